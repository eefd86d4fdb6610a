"""Published folders in transformers, and what transformers saves loads here again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import SMALL_REGNET, VIT_SPEC, deviation, images, load_tiny, randomise
from torch import nn

from swag_models import get_spec, load_classes, load_model, load_preprocess
from swag_models.errors import SignatureError
from swag_models.hub.timm_format import OWN_REGNET, TIMM_REGNETS
from swag_models.publish import save, sign_folder

transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.usefixtures("caches"),
    pytest.mark.filterwarnings("ignore"),  # of transformers about itself
]
ANIMALS = ["cat", "dog", "fish", "owl", "ant", "bee", "cow", "elk", "fox", "hen"]
REGNETY_002 = next(config for config, name in TIMM_REGNETS.items() if name == "regnety_002")


@pytest.fixture(params=["vit", pytest.param("regnet", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A published model of each family, with names for its 10 classes."""
    model = load_tiny()
    if request.param == "regnet":
        spec = replace(VIT_SPEC, name="tiny", config=REGNETY_002, classes=None)
        model = randomise(load_model(spec, pretrained=False))
    return save(model, tmp_path / "first", license="mit", classes=ANIMALS)


def open_model(folder: Path, kind: str = "AutoModelForImageClassification", **options: Any) -> Any:
    model: nn.Module = getattr(transformers, kind).from_pretrained(folder, **options)
    return model.eval()


@torch.no_grad()
def assert_equal_logits(folder: Path, model: Any, size: int = 64) -> None:
    inputs = images(2, size)
    assert deviation(load_model(folder)(inputs), model(inputs).logits) < 1e-5


def test_a_pipeline_gives_our_class_names_and_probabilities(folder: Path) -> None:
    image = Image.effect_noise((90, 70), 80).convert("RGB")
    with torch.no_grad():
        logits = load_model(folder)(load_preprocess(folder)(image).unsqueeze(0))[0]
    expected = dict(zip(load_classes(folder), logits.softmax(0).tolist()))
    pipeline = transformers.pipeline("image-classification", model=str(folder))
    predictions = {item["label"]: item["score"] for item in pipeline(image, top_k=10)}
    assert predictions == pytest.approx(expected, abs=1e-5)


def test_a_multi_label_model_has_sigmoids_in_transformers_and_comes_back(folder: Path) -> None:
    save(load_model(folder), folder, license="mit", multi_label=True)
    image = Image.effect_noise((90, 70), 80).convert("RGB")
    with torch.no_grad():
        logits = load_model(folder)(load_preprocess(folder)(image).unsqueeze(0))[0]
    expected = dict(zip(load_classes(folder), logits.sigmoid().tolist()))
    pipeline = transformers.pipeline("image-classification", model=str(folder))
    predictions = {item["label"]: item["score"] for item in pipeline(image, top_k=10)}
    assert predictions == pytest.approx(expected, abs=1e-5)
    model = open_model(folder)
    assert model.config.problem_type == "multi_label_classification"
    targets, inputs = (torch.rand(2, 10) > 0.5).float(), images(2)
    output = model(inputs, labels=targets)  # transformers trains it as one too
    loss = nn.functional.binary_cross_entropy_with_logits(output.logits, targets)
    torch.testing.assert_close(output.loss, loss)
    model.save_pretrained(folder.parent / "second")
    assert get_spec(folder.parent / "second").multi_label
    single = open_model(folder, problem_type="single_label_classification")
    single.save_pretrained(folder.parent / "third")
    assert not get_spec(folder.parent / "third").multi_label


def test_images_and_features_are_ours(folder: Path) -> None:
    image = Image.effect_noise((90, 70), 80).convert("RGB")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    inputs = load_preprocess(folder)(image).unsqueeze(0)
    torch.testing.assert_close(processor(image).pixel_values, inputs)
    ours = load_model(folder)
    with torch.no_grad():
        features = ours.forward_head(ours.forward_features(inputs), pre_logits=True)
        output = open_model(folder, "AutoModel")(inputs)
    torch.testing.assert_close(output.pooler_output, features)


def test_a_model_fine_tuned_with_other_classes_loads_with_equal_logits(folder: Path) -> None:
    labels = {0: "apple", 1: "pear", 2: "plum"}
    model = open_model(
        folder,
        num_labels=3,
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
        ignore_mismatched_sizes=True,
    )
    step(model.train())
    model.eval().save_pretrained(folder.parent / "second")
    assert_equal_logits(folder.parent / "second", model)
    spec = get_spec(folder.parent / "second")
    assert (spec.name, spec.license) == ("second", "mit")
    assert spec.classes == tuple(labels.values())
    assert spec.num_params == sum(parameter.numel() for parameter in model.parameters())
    # And on from there: here, and in transformers again.
    third = save(load_model(folder.parent / "second"), folder.parent / "third")
    assert_equal_logits(third, open_model(third))
    assert open_model(third).config.id2label == labels


def step(model: nn.Module) -> None:
    """Train for one step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images(4), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    optimizer.step()


def test_a_model_fine_tuned_with_the_same_classes_keeps_their_names(folder: Path) -> None:
    model = open_model(folder)
    step(model.train())
    model.eval().save_pretrained(folder)  # over the folder that it came from
    assert_equal_logits(folder, model)
    assert load_classes(folder) == tuple(ANIMALS)


def test_classes_without_names_stay_without(tmp_path: Path) -> None:
    save(load_tiny(), tmp_path / "first")
    open_model(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert get_spec(tmp_path / "second").classes is None
    save(load_tiny(num_classes=1000), tmp_path / "first")  # not those of ImageNet
    assert open_model(tmp_path / "first").config.id2label[0] == "LABEL_0"
    open_model(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert get_spec(tmp_path / "second").classes is None


def test_names_of_as_many_classes_as_imagenet_has_are_kept(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(1000)]
    save(load_tiny(num_classes=1000), tmp_path / "first", classes=names)
    model = open_model(tmp_path / "first")
    assert model.config.id2label[999] == "class 999"
    model.save_pretrained(tmp_path / "second")
    assert load_classes(tmp_path / "second") == tuple(names)
    save(load_tiny(num_classes=1000), tmp_path / "first", classes="imagenet-1k")
    assert open_model(tmp_path / "first").config.id2label[0] == "tench, Tinca tinca"


def test_a_saved_encoder_has_no_head(folder: Path) -> None:
    model = open_model(folder, "AutoModel")
    model.save_pretrained(folder.parent / "encoder")
    ours, inputs = load_model(folder.parent / "encoder"), images()
    assert get_spec(folder.parent / "encoder").num_classes is None
    with torch.no_grad():
        features = ours.forward_head(ours.forward_features(inputs), pre_logits=True)
        torch.testing.assert_close(features, model(inputs).pooler_output)


def test_shards_and_half_precision_are_read(folder: Path) -> None:
    save(load_model(folder), folder, max_shard_size=20_000, license="mit")
    assert (folder / "model.safetensors.index.json").is_file()
    model = open_model(folder)
    assert_equal_logits(folder, model)
    model.save_pretrained(folder.parent / "second", max_shard_size="30KB")
    assert len(list((folder.parent / "second").glob("*.safetensors"))) > 1
    assert_equal_logits(folder.parent / "second", model)
    save(load_model(folder, dtype="bfloat16"), folder.parent / "half", license="mit")
    model = open_model(folder.parent / "half")
    assert model.dtype == torch.bfloat16
    assert_equal_logits(folder.parent / "half", model.float())


def test_a_signature_still_covers_what_transformers_saved(folder: Path, keys: Any) -> None:
    model = open_model(folder)
    model.save_pretrained(folder.parent / "second")
    second = folder.parent / "second"
    sign_folder(second, keys.private)
    inputs = images()
    with torch.no_grad():
        ours = load_model(second, trusted_key=keys.public)
        torch.testing.assert_close(ours(inputs), model(inputs).logits)
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(config | {"transformers_version": "5.0"}))
    with pytest.raises(SignatureError, match=r"config\.json"):
        load_model(second, trusted_key=keys.public)


def test_the_hash_of_a_folder_that_transformers_did_not_save_is_checked(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(OSError, match="SHA-256 is"):
        load_model(folder)


UNKNOWN_REGNET = """
import sys, transformers
for kind in ("AutoModel", "AutoModelForImageClassification"):
    try:
        getattr(transformers, kind).from_pretrained(sys.argv[1])
        print("opened")
    except ImportError as error:
        print(error)
import swag_models.timm
pipeline = transformers.pipeline("image-classification", model=sys.argv[1])
print(*pipeline.model.config.id2label.values())
"""


@pytest.mark.slow  # test_hf_format.py has a fast one, for timm
def test_a_regnet_that_timm_lacks_is_rejected_until_it_is_registered(tmp_path: Path) -> None:
    spec = replace(VIT_SPEC, name="tiny", config=SMALL_REGNET, classes=None)
    save(randomise(load_model(spec, pretrained=False)), tmp_path, license="mit", classes=ANIMALS)
    result = subprocess.run(
        [sys.executable, "-c", UNKNOWN_REGNET, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    first, second, names = result.stdout.splitlines()
    assert first.startswith(f"The model architecture '{OWN_REGNET}' is not supported")
    assert second == first
    assert names == " ".join(ANIMALS)


@pytest.mark.slow
def test_the_trainers_folders_load(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    data = [{"pixel_values": image, "labels": index % 2} for index, image in enumerate(images(8))]
    model = open_model(folder, num_labels=2, ignore_mismatched_sizes=True)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    for name in ("run/checkpoint-2", "final"):
        assert_equal_logits(tmp_path / name, model.eval())
        assert get_spec(tmp_path / name).num_classes == 2
