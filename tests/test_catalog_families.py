"""The models beside SWAG: their URLs are those of a published list, their facts those of timm."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny import torchvision_twin

import swag_models
from swag_models.layouts import translate_layout
from swag_models.models import build
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
        assert f"_{family}" in spec.name


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
