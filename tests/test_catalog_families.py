"""The models beside SWAG: their URLs are those of a published list, their facts those of timm."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from tiny import deviation, images, randomise, torchvision_twin

import swag_models
from swag_models.architectures import keep_few_blocks
from swag_models.hub.fetch import find_weights
from swag_models.layouts import translate_layout
from swag_models.models import build
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.memory import find_arch
from swag_models.recipe.training.model import find_start_spec
from swag_models.spec import ModelSpec

URLS: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "weight_urls.json").read_text("utf-8")
)
WITHOUT_TIMM = "resnext101_32x48d_wsl_in1k"  # timm has removed it
RESNETS = [swag_models.get_spec(name) for name in swag_models.list_models(family="resnet")]
every_resnet = pytest.mark.parametrize("spec", RESNETS, ids=lambda spec: spec.name)


def find_timm_config(spec: ModelSpec) -> Any:
    tag = "fb_wsl_ig1b_ft_in1k" if spec.pretraining == "wsl" else "fb_swsl_ig1b_ft_in1k"
    return timm.get_pretrained_cfg(f"{spec.arch}.{tag}")


@pytest.mark.parametrize("family", URLS)
def test_the_first_sources_are_exactly_the_published_files(family: str) -> None:
    specs = [swag_models.get_spec(name) for name in swag_models.list_models(family=family)]
    assert [spec.sources[0].url for spec in specs] == URLS[family]
    assert {spec.pretraining for spec in specs} == {family}
    for spec in specs:
        assert spec.license == "cc-by-nc-4.0"
        assert f"_{family}" in spec.name or spec.variant == "mae"


MAWS = [swag_models.get_spec(name) for name in swag_models.list_models(family="maws")]
every_maws = pytest.mark.parametrize("spec", MAWS, ids=lambda spec: spec.name)


@every_maws
def test_names_and_shapes_of_maws_are_those_of_timm(spec: ModelSpec) -> None:
    assert spec.sources[0].layout == "timm"
    assert spec.sources[0].sha256 is None  # none is published
    with torch.device("meta"):
        model = build(spec.config, num_classes=spec.num_classes, image_size=spec.image_size)
        twin = make_timm_vit(spec.config, spec.image_size, spec.num_classes or 0)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in twin.state_dict().items()} == shapes
    assert sum(parameter.numel() for parameter in model.parameters()) == spec.num_params


def make_timm_vit(config: Any, image_size: Any, num_classes: int) -> Any:
    return VisionTransformer(
        img_size=image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_width / config.width,
        num_classes=num_classes,
    ).eval()


LARGE = pytest.mark.slow  # 80 and 200 million parameters in one block


@pytest.mark.parametrize(
    "arch",
    [
        "vit_b16",
        "vit_l16",
        "vit_h14",
        pytest.param("vit_2b14", marks=LARGE),
        pytest.param("vit_6_5b14", marks=LARGE),
    ],
)
@torch.inference_mode()
def test_one_block_of_maws_computes_what_timm_does(arch: str) -> None:
    spec = next(spec for spec in MAWS if spec.arch == arch and spec.num_classes)
    config: Any = keep_few_blocks(spec.config)
    size = 4 * config.patch_size
    model = randomise(build(config, num_classes=10, image_size=size)).eval()
    twin = make_timm_vit(config, size, 10)
    twin.load_state_dict(model.state_dict(), assign=True)
    x = images(1, size)
    assert deviation(model(x), twin(x)) < 1e-5


@every_resnet
def test_the_hash_is_that_of_the_file_name(spec: ModelSpec) -> None:
    source = spec.sources[0]
    match = re.search(r"-([0-9a-f]{8})\.pth$", source.url)
    assert match is not None
    assert source.sha256 == match[1]


@every_resnet
def test_source_and_preprocessing_are_those_of_timm(spec: ModelSpec) -> None:
    if spec.name == WITHOUT_TIMM:
        assert len(spec.sources) == 1
        return
    config = find_timm_config(spec)
    assert config.url == spec.sources[0].url
    assert spec.sources[1].url == f"hf://{config.hf_hub_id}/model.safetensors"
    assert spec.sources[1].layout == "timm"
    assert config.license == spec.license
    preprocess = spec.preprocess
    assert (3, *preprocess.size) == config.input_size
    assert (preprocess.crop_pct, preprocess.interpolation) == (0.875, "bilinear")
    assert (config.crop_pct, config.interpolation) == (0.875, "bilinear")
    assert (preprocess.mean, preprocess.std) == (config.mean, config.std)


@every_resnet
def test_names_and_shapes_of_all_tensors_are_those_of_torchvision_and_timm(
    spec: ModelSpec,
) -> None:
    with torch.device("meta"):
        model = build(spec.config, num_classes=1000, image_size=224)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    twins = [torchvision_twin(spec.config, 1000, 224, device="meta")]
    if spec.name != WITHOUT_TIMM:
        with torch.device("meta"):
            twins.append(timm.create_model(spec.arch))
    for twin in twins:
        assert {name: tensor.shape for name, tensor in twin.state_dict().items()} == shapes
    for layout in ("timm", "torchvision", "swag"):
        translated = translate_layout(model.state_dict(), layout)  # type: ignore[arg-type]
        assert {name: tensor.shape for name, tensor in translated.items()} == shapes


def test_accuracies_grow_with_the_models_of_wsl() -> None:
    metrics = [swag_models.get_spec(name).metrics for name in swag_models.list_models(family="wsl")]
    top1 = [metric.top1 for metric in metrics if metric]
    assert top1 == sorted(top1)
    assert len(top1) == len(URLS["wsl"])


def test_a_file_of_maws_is_not_taken_for_another_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from the cache of torch.hub, which stores both under one name."""
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    specs = {spec.name: spec for spec in MAWS}
    assert specs["vit_b16_mae"].sources[0].file_name == specs["vit_b16_maws"].sources[0].file_name
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("vit_b16.pt", "vit_b16_512.pt"):
        torch.save({"cls_token": torch.zeros(1)}, checkpoints / name)
    assert find_weights(specs["vit_b16_mae"]) is None
    assert find_weights(specs["vit_b16_maws"]) is None
    assert find_weights(specs["vit_b16_maws_in1k"]) == checkpoints / "vit_b16_512.pt"


@pytest.mark.skipif(sys.platform != "linux", reason="a flag of Linux")
def test_a_file_larger_than_the_memory_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = swag_models.load_model("vit_nano_hashtags")
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in original.state_dict().items()}, path)
    content = path.read_bytes()

    def refuse(*_: object) -> Any:
        raise RuntimeError(f"unable to mmap {len(content)} bytes: Cannot allocate memory (12)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refuse)
    model = swag_models.load_model("vit_nano_hashtags", weights=path)
    assert not caplog.messages
    assert all(map(torch.equal, model.state_dict().values(), original.state_dict().values()))
    with torch.no_grad():
        model.cls_token.add_(1)  # only this process sees it
    assert path.read_bytes() == content
    monkeypatch.setattr("swag_models.stored_tensor.map_unreserved", lambda path, size: None)
    swag_models.load_model("vit_nano_hashtags", weights=path)
    assert "cannot be mapped (Cannot allocate memory (12)) and is read instead" in caplog.text


def test_random_weights_derive_from_no_work() -> None:
    model = swag_models.load_model("vit_b16_maws", pretrained=False, device="meta")
    assert model.spec is not None
    assert model.spec.pretraining is None
    for name in ("vit_b16_in1k", "regnety_16gf_in1k"):
        spec = find_start_spec(get_preset(name).run)
        assert spec.pretraining is None
        assert (spec.preprocess.crop_pct, spec.preprocess.crop_mode) == (1, "center")
    assert find_arch("vit_b16").name == "vit_b16"  # not one of MAWS
