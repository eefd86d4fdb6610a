"""Students of timm: what they cannot do, their norms on several ranks, and their publication."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_support import TEACHER, distill_digits
from ranks import run_ranks
from runs import make_digits, read_losses
from safetensors.torch import load_file
from torch import nn

from swag_models.errors import ConfigError, SwagModelsError
from swag_models.inference import Classifier
from swag_models.recipe.training.distributed import (
    DistContext,
    average_statistics,
    find_norms,
    sync_batch_norm,
)

timm = pytest.importorskip("timm")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TWO_GPUS = DistContext(0, 2, torch.device("cuda"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "train", 24)


@pytest.mark.parametrize(
    "arch", ["test_efficientnet", "test_resnet", "mobilenetv3_small_050", "levit_128s"]
)
def test_synchronised_norms_compute_what_they_computed(arch: str) -> None:
    model = timm.create_model(arch, num_classes=3)
    images = torch.randn(4, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        model(images)  # statistics that are not 0 and 1
        before = copy.deepcopy(model).eval()(images)
        assert find_norms(model)
        synchronised = sync_batch_norm(copy.deepcopy(model), TWO_GPUS).eval()
        assert not find_norms(synchronised)
        assert torch.equal(synchronised(images), before)
    assert synchronised.state_dict().keys() == model.state_dict().keys()


class Doubled(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "norm",
    [
        timm.layers.EvoNorm2dB0(8),
        timm.layers.SplitBatchNorm2d(8),
        timm.layers.BatchNormAct2d(8, act_layer=nn.SiLU),
        Doubled(8),
        nn.BatchNorm1d(8),
        nn.BatchNorm3d(8),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_a_norm_is_synchronised_completely_or_refused(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm)
    if type(norm).__name__ in ("EvoNorm2dB0", "SplitBatchNorm2d", "Doubled"):
        with pytest.raises(ConfigError, match=f"{type(norm).__name__}; set engine.sync_bn=false"):
            sync_batch_norm(model, TWO_GPUS)
    else:
        made = sync_batch_norm(model, TWO_GPUS)[1]  # type: ignore[index]
        assert isinstance(made, nn.SyncBatchNorm)
        assert getattr(made, "act", None) is getattr(norm, "act", None)


def test_running_statistics_of_every_kind_are_averaged_over_the_ranks() -> None:
    run_ranks(2, average_on_a_rank)


def average_on_a_rank() -> None:
    dist = DistContext(torch.distributed.get_rank(), 2, torch.device("cpu"))
    norms = nn.ModuleDict(
        {
            "1d": nn.BatchNorm1d(3),
            "3d": nn.BatchNorm3d(3),
            "act": timm.layers.BatchNormAct2d(3),
            "evo": timm.layers.EvoNorm2dB0(3),
            "frozen": nn.BatchNorm2d(3).eval(),
        }
    )
    for norm in norms.values():
        for name, buffer in norm.named_buffers():
            if name.startswith("running"):
                buffer.fill_(1.0 + 2 * dist.rank)
    average_statistics(norms, dist)
    for kind, norm in norms.items():
        expected = 1.0 + 2 * dist.rank if kind == "frozen" else 2.0
        assert (norm.running_var == expected).all(), kind


@pytest.mark.parametrize(
    ("student", "settings", "message"),
    [
        ("resnet10t", "optimizer.layer_decay=0.5", "layer_decay is 0.5; allowed"),
        ("resnet10t", "optimizer.kind=muon", "'muon'; allowed for a timm student: adamw, sgd"),
        ("test_vit", "optimizer.kind=muon", "'muon'; allowed for a timm student: adamw, sgd"),
        ("resnet10t", "init=vit_nano_hashtags", "init is vit_nano_hashtags; allowed"),
        ("pit_xs_224", "engine.grad_checkpointing=true", "pit_xs_224 does not support"),
        ("convit_tiny", "engine.grad_checkpointing=true", "convit_tiny does not support"),
        ("convit_tiny", "image_size=64", "with images of 64 pixels: .*set image_size to 224, or"),
        ("pit_xs_224", "image_size=64", "with images of 64 pixels: .*set image_size to 224, or"),
        (
            "tnt_s_legacy_patch16_224",
            "image_size=64",
            "images of 64 pixels: .*set image_size to 224, or",
        ),
        ("test_vit", "image_size=33", "image_size is 33, which timm:test_vit rejects|33 pixels"),
        ("resnet10t", "augment.sizes=32,48", "augment.sizes is .* allowed in distillation: none"),
        ("resnet10t", "head_init=hashtags", "head_init is hashtags; allowed in distillation"),
    ],
)
def test_what_does_not_fit_a_timm_student_is_one_line(
    student: str, settings: str, message: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(SwagModelsError, match=message) as caught:
        distill_digits(images, tmp_path / "run", settings, student=f"timm:{student}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("more", [(), ("engine.micro_batch=6", "engine.parallel=fsdp")])
@pytest.mark.parametrize("student", ["timm:test_resnet", "timm:test_efficientnet"])
def test_gradient_checkpointing_does_not_change_a_timm_student(
    student: str, more: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    settings = ("engine.precision=fp32", "image_size=96", "steps=2", *more)
    plain = distill_digits(images, tmp_path / "plain", *settings, student=student)
    changed = distill_digits(
        images, tmp_path / "run", *settings, "engine.grad_checkpointing=true", student=student
    )
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (changed, plain))
    counters = [name for name in theirs if name.endswith("num_batches_tracked")]
    assert len(counters) > 10
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("student", ["timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_a_timm_student_is_loaded_by_timm(student: str, images: Path, tmp_path: Path) -> None:
    folder = distill_digits(
        images, tmp_path / "run", "distill.logit_weight=1", "engine.precision=bf16", student=student
    )
    losses = read_losses(tmp_path / "run")
    assert losses[-1] < losses[0]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    cfg = timm.data.resolve_model_data_config(model)
    assert (cfg["input_size"], cfg["crop_pct"], model.num_classes) == ((3, 32, 32), 1.0, 65)
    assert cfg == timm.data.resolve_model_data_config(model, use_test_size=True)
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == list(Classifier(TEACHER).classes)
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    # nothing of timm's own weights
    known = {"license", "num_classes", "input_size", "mean", "std", "interpolation", "pool_size"}
    known |= {"crop_pct", "crop_mode", "first_conv", "classifier", "fixed_input_size"}
    assert config["pretrained_cfg"].keys() - known <= {"custom_load"}
    assert json.loads((folder / "recipe.json").read_text())["preset"] is None


def test_the_card_of_a_timm_student_states_what_the_user_stated(
    images: Path, tmp_path: Path
) -> None:
    from swag_models.recipe.training.distill import distill

    settings = ["steps=1", "engine.workers=0", "batch_size=8", "image_size=32"]
    distill(
        *("timm:test_resnet", "regnety_nano_hashtags", images, tmp_path / "run"),  # type: ignore[arg-type]
        settings=[*settings, "augment.interpolation=bilinear"],
        name="digit-features",
        description="features of digits",
        license="MIT",
        progress=False,
    )
    folder = tmp_path / "run" / "model"
    card = (folder / "README.md").read_text()
    for part in (
        "license: mit",
        "library_name: timm",
        "# digit-features\n",
        "Features of digits.",
        '"local-dir:path/to/digit-features"',
        "The weights are licensed mit.",
        "Licences of the teacher, regnety_nano_hashtags: Apache-2.0.",
    ):
        assert part in card
    cfg = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert (cfg["license"], cfg["interpolation"]) == ("mit", "bilinear")
    with pytest.raises(ConfigError, match="invalid name"):  # before it is trained
        distill_digits(images, tmp_path / "other", student="timm:test_resnet", name="a/b")


def test_an_interrupted_publication_leaves_no_config(tmp_path: Path) -> None:
    from swag_models.recipe.config_overrides import override
    from swag_models.recipe.training.classes import Classes
    from swag_models.recipe.training.distill import make_distill_run
    from swag_models.recipe.training.timm_student import make_timm_student, save_timm_student

    run = override(make_distill_run("timm:test_resnet", TEACHER), ["image_size=32"])
    model, spec = make_timm_student(run, Classes(0))
    texts: dict[str, Any] = {"name": None, "description": "a", "training": "b"}
    terms: dict[str, Any] = {"license": "mit", "license_url": None}

    def save() -> None:
        save_timm_student(run, spec, model.state_dict(), tmp_path, **texts, **terms)

    save()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    with pytest.raises(OSError, match=r"README\.md"):
        save()
    assert not (tmp_path / "config.json").exists()
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    (tmp_path / "README.md").rmdir()
    save()
    assert sorted(path.name for path in tmp_path.iterdir()) == names
