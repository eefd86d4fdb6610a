"""Classifier, Embedder, load_preprocess and load_classes of models in memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from image_support import NANO, SCENES, make_pixels
from peft import LoraConfig, get_peft_model
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from tiny import VIT, randomise
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from swag_models import load_classes, load_model, load_preprocess
from swag_models.errors import ConfigError
from swag_models.inference import Classifier, Embedder
from swag_models.models import FeaturePyramid, ViT, build
from swag_models.publish import save
from swag_models.spec import Preprocess

pytestmark = pytest.mark.usefixtures("one_thread")

REGNET = "regnety_nano_hashtags"
FILES = sorted(SCENES.iterdir())[:3]
NANOS = pytest.mark.parametrize("name", [NANO, REGNET])


def add_adapters(model: nn.Module) -> nn.Module:
    peft = get_peft_model(
        model, LoraConfig(target_modules=["qkv"], modules_to_save=["head"], init_lora_weights=False)
    )
    return peft.train()


WRAPPED: dict[str, Callable[[Any], nn.Module]] = {
    "bare": lambda model: model,
    "compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "LoRA": add_adapters,
}


def open_images() -> list[Image.Image]:
    return [Image.fromarray(make_pixels(number, 70, 90)) for number in range(2)]


@NANOS
def test_a_model_in_memory_gives_what_the_name_gives(name: str) -> None:
    model = load_model(name)
    assert Classifier(model)(FILES) == Classifier(name, device="cpu")(FILES)
    assert torch.equal(Embedder(model)(FILES).vectors, Embedder(name, device="cpu")(FILES).vectors)
    assert load_classes(model) == load_classes(name)
    assert repr(load_preprocess(model)) == repr(load_preprocess(name))


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.filterwarnings("ignore")
def test_a_wrapped_model_in_training_is_used_as_it_is(kind: str) -> None:
    wrapped = WRAPPED[kind](load_model(NANO, drop_rate=0.5).train())
    classifier, embedder = Classifier(wrapped), Embedder(wrapped)
    modes = [module.training for module in wrapped.modules()]
    state = {key: value.clone() for key, value in wrapped.state_dict().items()}
    found = classifier(FILES, top_k=65)
    vectors = embedder(FILES).vectors
    assert [module.training for module in wrapped.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in wrapped.state_dict().items())
    reference = copy.deepcopy(wrapped).eval()
    pixels = torch.stack([load_preprocess(wrapped)(Image.open(file)) for file in FILES])
    with torch.inference_mode():
        expected = reference(pixels).softmax(1)
    for row, predictions in zip(expected, found):
        assert {p.index: p.probability for p in predictions} == pytest.approx(
            dict(enumerate(row.tolist())), abs=1e-6
        )
    with torch.no_grad():  # later training changes the results
        next(
            p for n, p in wrapped.named_parameters() if n.endswith("patch_embed.proj.weight")
        ).mul_(2)
    assert not torch.equal(embedder(FILES).vectors, vectors)


@NANOS
@pytest.mark.parametrize(
    "options", [{"dtype": "bfloat16"}, {"fast": True}, {"image_size": 64}, {"dtype": "float64"}]
)
def test_a_change_is_made_to_a_copy(name: str, options: dict[str, Any]) -> None:
    model = load_model(name).train()
    state = copy.deepcopy(model.state_dict())
    embedder = Embedder(model, **options)
    vectors = embedder(FILES).vectors
    expected = Embedder(name, device="cpu", **options)(FILES).vectors
    torch.testing.assert_close(vectors, expected, rtol=1e-3, atol=1e-4)
    assert model.training
    assert model.image_size == (48, 48)
    assert {key: value.dtype for key, value in model.state_dict().items()} == {
        key: value.dtype for key, value in state.items()
    }
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_new_head_needs_names() -> None:
    model = load_model(NANO, num_classes=3)
    message = "the ViT from vit_nano_hashtags has 3 classes without names; name them with"
    for call in (load_classes, Classifier):
        with pytest.raises(ConfigError, match=message):
            call(model)  # type: ignore[operator]
    classifier = Classifier(model, classes=["cat", "dog", "fish"])
    ((prediction, *_),) = classifier(FILES[0])
    assert prediction.label == ["cat", "dog", "fish"][prediction.index]
    assert classifier.spec.classes == classifier.classes == ("cat", "dog", "fish")
    with pytest.raises(ConfigError, match="2 class names for 3 classes"):
        Classifier(model, classes=["cat", "dog"])
    model.reset_classifier(0)
    for options in ({}, {"classes": ["cat"]}):
        with pytest.raises(ConfigError, match="vit_nano_hashtags gives features and has no"):
            Classifier(model, **options)
    model.reset_classifier(65)
    assert load_classes(model) == load_classes(NANO)


def test_classes_of_a_fine_tuned_checkpoint_are_its_own(tmp_path: Path) -> None:
    folder = save(load_model(NANO, num_classes=2), tmp_path / "x", classes=["cat", "dog"], name="x")
    assert load_classes(load_model(folder)) == ("cat", "dog")
    assert Classifier(folder, classes=["chat", "chien"]).classes == ("chat", "chien")


def test_image_size_and_channels_are_those_of_the_model() -> None:
    model = load_model(NANO, image_size=(64, 96), in_chans=1)
    assert load_preprocess(model).preprocess.size == (64, 96)
    model.set_input_size(32)
    assert load_preprocess(model)(open_images()[0]).shape == (3, 32, 32)
    assert load_preprocess(model, image_size=(16, 24)).preprocess.size == (16, 24)
    assert Classifier(model)(FILES)[0]
    assert load_preprocess(FeaturePyramid(model)).preprocess.image_size == 32
    net = load_model(NANO, features_only=True, image_size=64)
    assert load_preprocess(net).preprocess.image_size == 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda model: nn.Sequential(model, nn.Softmax(1)),
            "with a Sequential; .* attribute 0",
        ),
        (lambda model: nn.Linear(2, 2), "with a Linear; pass the model that load_model"),
        (lambda model: nn.ModuleList([model, copy.deepcopy(model)]), "2 models in it: 0, 1"),
        (lambda model: model.to("meta"), "a model on the meta device"),
        (
            lambda model: (model.reset_classifier(65, ""), model)[1],
            "a ViT that returns every token",
        ),
    ],
)
@pytest.mark.parametrize("pipeline", [Classifier, Embedder])
def test_a_module_that_computes_something_else_is_refused(
    make: Callable[[Any], nn.Module], message: str, pipeline: Any
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        pipeline(make(load_model(NANO)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", [{"weights": None}, {"pretrained": False}, {"backend": "pread"}])
def test_options_of_loading_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"invalid {next(iter(option))} for a model in memory"):
        Embedder(load_model(NANO), **option)


@pytest.mark.filterwarnings("ignore")
def test_adapters_cannot_be_folded() -> None:
    wrapped = add_adapters(load_model(NANO))
    with pytest.raises(ConfigError, match=r"pass merge_and_unload\(\) of it"):
        Classifier(wrapped, fast=True)
    assert load_classes(wrapped) == load_classes(NANO)


def test_layers_that_were_replaced_are_not_folded() -> None:
    model = load_model(REGNET)
    expected = Embedder(model, fast=True, dtype="float32")(FILES).vectors
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            nn.utils.parametrizations.weight_norm(module)
    vectors = Embedder(model, fast=True, dtype="float32")(FILES).vectors
    torch.testing.assert_close(vectors, expected, rtol=1e-3, atol=1e-4)
    prune.identity(model.head.fc, "weight")
    with pytest.raises(ConfigError, match=r"invalid model .* deepcopy"):
        Embedder(model, fast=True)
    assert Embedder(model)(FILES).vectors.shape == expected.shape


def test_a_model_that_was_built_without_a_name_has_the_usual_preprocessing() -> None:
    model = randomise(build(VIT, num_classes=None, image_size=64))
    assert load_preprocess(model).preprocess == Preprocess((64, 64))
    assert Embedder(model)(FILES).vectors.shape == (3, 32)


def test_copies_and_pickles_give_the_same() -> None:
    classifier = Classifier(load_model(NANO).train())
    expected = classifier(FILES)
    for twin in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        assert twin(FILES) == expected
        assert repr(twin) == repr(classifier)


TIMM = {
    "crop": {"crop_pct": 0.875, "input_size": (3, 64, 64)},
    "odd crop": {"crop_pct": 0.93, "input_size": (3, 50, 50), "interpolation": "bilinear"},
    "no crop": {"crop_pct": 1.0, "input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3},
    "squash": {"crop_pct": 0.9, "crop_mode": "squash", "input_size": (3, 64, 64)},
    "rectangle": {"crop_pct": 0.9, "input_size": (3, 64, 96)},
}


@pytest.mark.parametrize("kind", TIMM)
def test_a_model_of_timm_is_described_by_its_pretrained_cfg(kind: str) -> None:
    model = timm.create_model("test_resnet", pretrained=False, pretrained_cfg_overlay=TIMM[kind])
    for wrapped in (model, nn.DataParallel(model)):
        transform = load_preprocess(wrapped)
        expected = create_transform(**resolve_model_data_config(model))
        for image in open_images():
            assert torch.equal(transform(image), expected(image))
    assert pickle.loads(pickle.dumps(transform))(image).equal(transform(image))
    assert load_preprocess(model, train=True).preprocess == transform.preprocess


def test_classes_of_a_model_of_timm() -> None:
    model = timm.create_model("test_resnet")
    assert load_classes(model)[0] == "tench"
    model.reset_classifier(10)
    with pytest.raises(ConfigError, match="test_resnet has 10 classes without names"):
        load_classes(model)
    for pipeline in (Classifier, Embedder):
        with pytest.raises(ConfigError, match="with a ResNet; pass the model that load_model"):
            pipeline(model)
    named = timm.create_model(
        "test_resnet",
        num_classes=2,
        pretrained_cfg_overlay={"num_classes": 2, "label_names": ["a", "b"]},
    )
    assert load_classes(named) == ("a", "b")


@pytest.mark.parametrize(
    "change",
    [
        {"crop_mode": "border"},
        {"crop_pct": 0},
        {"crop_pct": "large"},
        {"input_size": (3, 64)},
        {"interpolation": "lanczos"},
        {"mean": (0.4, 0.5)},
    ],
)
def test_other_preprocessing_of_timm_is_refused_in_one_line(change: dict[str, Any]) -> None:
    model = timm.create_model("test_resnet")
    model.pretrained_cfg = {**model.pretrained_cfg, **change}
    with pytest.raises(ConfigError, match=next(iter(change))) as error:
        load_preprocess(model)
    assert str(error.value).isprintable()


def test_a_model_of_torchvision_is_refused_with_its_own_way() -> None:
    model = torchvision.models.regnet_y_400mf()
    for call in (load_preprocess, load_classes):
        with pytest.raises(ConfigError, match=r"RegNet, which has no pretrained_cfg; .*transforms"):
            call(model)


def test_reprs_are_one_short_line() -> None:
    assert repr(Classifier(NANO, device="cpu")) == (
        "Classifier(vit_nano_hashtags, 65 classes, 48x48 px, float32, cpu)"
    )
    embedder = Embedder(REGNET, device="cpu", dtype="bfloat16", image_size=(64, 96))
    assert (
        repr(embedder) == "Embedder(regnety_nano_hashtags, 192 features, 64x96 px, bfloat16, cpu)"
    )
    assert repr(embedder(FILES)) == "Embeddings(3 vectors of 192 features, 0 skipped)"
    model = load_model(NANO)
    model.spec = replace(model.spec, name="odd\x1b[31m\n" * 50)  # type: ignore[arg-type]
    assert repr(Embedder(model)).isprintable()
    assert len(repr(Embedder(model))) < 200


def test_auto_is_the_cpu_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has an accelerator")
    assert Embedder(NANO).device == Embedder(NANO, device="auto").device == torch.device("cpu")
    assert isinstance(load_model(NANO, device="auto"), ViT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(ConfigError, match="device 'cuda:3' cannot be used here"):
        Embedder(NANO)
    assert Embedder(load_model(NANO)).device == torch.device("cpu")  # stays where it is
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(ConfigError, match="device 'cuda' cannot be used here"):
        load_model(NANO, device="auto")
