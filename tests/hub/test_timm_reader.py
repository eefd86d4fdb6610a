"""Folders that timm saved load here with equal outputs, or are rejected in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny import deviation, images, load_tiny, randomise
from torch import nn

from swag_models import get_spec, load_classes, load_model, load_preprocess
from swag_models.architectures import ViTConfig
from swag_models.errors import ConfigError, SwagModelsError
from swag_models.hub.timm_reader import VIT_NAME, read_timm_config
from swag_models.publish import save
from swag_models.spec import UNKNOWN

pytestmark = pytest.mark.usefixtures("caches")

TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def save_timm(
    folder: Path, name: str, labels: Any = None, safe: bool = True, **options: Any
) -> nn.Module:
    """Make a model of timm, and save it as timm does."""
    model = randomise(timm.create_model(name, **options)).eval()
    entries = {"label_names": labels} if labels else None
    timm.models.save_for_hf(model, folder, model_config=entries, safe_serialization=safe)
    return model


@torch.no_grad()
def assert_equal_outputs(folder: Path, model: nn.Module, size: int, in_chans: int = 3) -> None:
    ours, inputs = load_model(folder), images(2, size, in_chans)
    output = ours(inputs)
    if output.ndim == 4:
        output = ours.forward_head(output)
    assert deviation(output, model(inputs)) < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit_tiny_patch16_224", {**TINY_VIT, "num_classes": 5}, 32),
        ("vit_tiny_patch16_224", {**TINY_VIT, "num_classes": 0}, 32),
        ("vit_base_patch32_384", {**TINY_VIT, "global_pool": "avg", "fc_norm": False}, 32),
        ("vit_small_patch8_224", {**TINY_VIT, "mlp_ratio": 1.5, "in_chans": 1}, 32),
        ("vit_small_patch8_224", {**TINY_VIT, "dynamic_img_size": True, "num_classes": 2}, 32),
        ("regnety_002", {"num_classes": 5}, 64),
        ("regnety_004", {"num_classes": 0, "drop_path_rate": 0.1}, 64),
        ("regnety_002", {"in_chans": 4}, 64),
    ],
)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_a_folder_of_timm_loads_with_equal_outputs(
    name: str, options: dict[str, Any], size: int, safe: bool, tmp_path: Path
) -> None:
    model: Any = save_timm(tmp_path / "mine", name, safe=safe, **options)
    assert_equal_outputs(tmp_path / "mine", model, size, options.get("in_chans", 3))
    spec = get_spec(tmp_path / "mine")
    assert (spec.name, spec.num_classes or 0) == ("mine", model.num_classes)
    assert spec.num_params == sum(parameter.numel() for parameter in model.parameters())
    assert spec.description == f"{name} of timm"


def test_a_model_fine_tuned_in_timm_loads_again(tmp_path: Path) -> None:
    save(load_tiny(), tmp_path / "first", license="mit")
    model: Any = timm.create_model(f"local-dir:{tmp_path}/first", pretrained=True, num_classes=2)
    randomise(model).eval()
    timm.models.save_for_hf(
        model, tmp_path / "second", model_config={"label_names": ["cat", "dog"]}
    )
    assert_equal_outputs(tmp_path / "second", model, 64)
    spec = get_spec(tmp_path / "second")
    assert (spec.license, spec.classes) == ("mit", ("cat", "dog"))
    save(load_model(tmp_path / "second"), tmp_path / "third")
    assert_equal_outputs(tmp_path / "third", model, 64)
    assert load_classes(tmp_path / "third") == ("cat", "dog")


def test_a_folder_may_be_saved_again_with_other_weights(tmp_path: Path) -> None:
    for _ in range(2):  # no hash of the first file is kept
        model = save_timm(tmp_path, "vit_tiny_patch16_224", **TINY_VIT, num_classes=2)
        assert_equal_outputs(tmp_path, model, 32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18d", {}, "architecture is 'resnet18d', which this library does not have"),
        ("vit_wee_patch16_reg1_gap_256", {}, "architecture is 'vit_wee_patch16_reg1_gap_256'"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "the norm is behind the pooling"),
        ("vit_tiny_patch16_224", {"global_pool": "map"}, "global_pool is 'map'; allowed: token"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "model_args has qk_norm=True"),
        ("vit_tiny_patch16_224", {"init_values": 1e-5}, "model_args has init_values=1e-05"),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, "model_args has reg_tokens=4"),
        ("regnety_002", {"output_stride": 16}, "model_args has output_stride=16"),
        ("regnety_002", {"global_pool": "max"}, "global_pool is 'max'; allowed: avg"),
        ("regnetx_002", {}, "architecture is 'regnetx_002'"),
    ],
)
def test_another_architecture_is_an_error_of_one_line(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    args = TINY_VIT if name == "vit_tiny_patch16_224" else {}
    save_timm(tmp_path, name, **args, **options)
    with pytest.raises(ConfigError, match="does not describe a model of this library") as caught:
        load_model(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_every_name_of_a_plain_vit_has_timms_architecture() -> None:
    from swag_models.models import build

    names = [name for name in timm.list_models("vit_*") if VIT_NAME.fullmatch(name)]
    assert len(names) > 15
    for name in names:
        with torch.device("meta"):
            model: Any = timm.create_model(name, img_size=224)
        config = read_timm_config({"architecture": name}, name).config
        assert isinstance(config, ViTConfig)
        shape = (len(model.blocks), model.embed_dim, model.blocks[0].attn.num_heads)
        assert shape == (config.depth, config.width, config.num_heads)
        assert model.blocks[0].mlp.fc1.out_features == config.mlp_width
        assert model.patch_embed.patch_size == (config.patch_size, config.patch_size)
        with torch.device("meta"):
            ours = build(config, num_classes=model.num_classes or None, image_size=224)
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        assert shapes == {key: tensor.shape for key, tensor in ours.state_dict().items()}


def write_config(folder: Path, **changes: Any) -> Path:
    """A config of timm with some entries changed; None removes one."""
    pretrained = {"input_size": [3, 64, 64], "num_classes": 2, "crop_pct": 1.0}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 2,
        "pretrained_cfg": pretrained | changes.pop("pretrained", {}),
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_preprocessing_is_that_of_the_folder(tmp_path: Path) -> None:
    values = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5],
        "interpolation": "bilinear",
        "input_size": [3, 32, 64],
    }
    preprocess = load_preprocess(write_config(tmp_path, pretrained=values)).preprocess
    assert preprocess.size == (32, 64)
    assert (preprocess.mean, preprocess.std) == ((0.5, 0.4, 0.3), (0.5, 0.5, 0.5))
    assert preprocess.interpolation == "bilinear"


def test_the_crop_is_read(tmp_path: Path) -> None:
    assert get_spec(write_config(tmp_path)).preprocess.crop_pct == 1
    changed = {"crop_pct": 0.9, "crop_mode": "squash"}
    preprocess = get_spec(write_config(tmp_path, pretrained=changed)).preprocess
    assert (preprocess.crop_pct, preprocess.crop_mode) == (0.9, "squash")
    with pytest.raises(ConfigError, match="crop_mode is 'border'"):
        get_spec(write_config(tmp_path, pretrained={"crop_mode": "border"}))


@pytest.mark.parametrize(
    ("changes", "classes"),
    [
        ({"label_names": ["cat", "dog"]}, ("cat", "dog")),
        ({"label_names": {"1": "dog", "0": "cat"}}, ("cat", "dog")),
        ({"pretrained": {"label_names": ["cat", "dog"]}}, ("cat", "dog")),
        ({"labels": ["cat", "dog"]}, ("cat", "dog")),
        ({"label_names": ["LABEL_0", "LABEL_1"]}, None),
        ({"label_names": ["cat", "dog", "fish"]}, None),  # of another head
        ({"num_classes": 1000}, "imagenet-1k"),
        ({"num_classes": 0}, None),
        ({}, None),
    ],
)
def test_class_names_are_those_of_the_folder(
    changes: dict[str, Any], classes: Any, tmp_path: Path
) -> None:
    spec = get_spec(write_config(tmp_path, **changes))
    assert spec.classes == classes
    assert spec.license == UNKNOWN


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrained_cfg": []},
        {"pretrained_cfg": "x"},
        {"model_args": [1]},
        {"model_args": {"embed_dim": "32"}},
        {"model_args": {"embed_dim": 10**9}},
        {"model_args": {"depth": -1}},
        {"model_args": {"patch_size": [16, 8]}},
        {"model_args": {"patch_size": 0}},
        {"model_args": {"mlp_ratio": 1e300}},
        {"model_args": {"mlp_ratio": float("nan")}},
        {"model_args": {"img_size": [32]}},
        {"model_args": {"img_size": 0}},
        {"model_args": {"in_chans": 0}},
        {"model_args": {"global_pool": 3}},
        {"model_args": {"\x1b[2J": 1}},
        {"num_classes": "2"},
        {"num_classes": -1},
        {"num_classes": 10**12},
        {"label_names": 3},
        {"label_names": ["a\n", "b"]},
        {"label_names": [1, 2]},
        {"label_names": {"a": "cat", "b": "dog"}},
        {"pretrained": {"mean": [1, 2]}},
        {"pretrained": {"std": [0, 0, 0]}},
        {"pretrained": {"mean": "x"}},
        {"pretrained": {"input_size": [64, 64]}},
        {"pretrained": {"input_size": None}},
        {"pretrained": {"interpolation": "lanczos"}},
        {"pretrained": {"license": 3}},
        {"pretrained": {"license": "a\nb"}},
        {"pretrained": {"crop_pct": "1"}},
        {"architecture": "x" * 10_000},
        {"architecture": "vit_base_patch999_224"},
        {"architecture": "swag_nothing"},
        {"architecture": ""},
        {"architecture": "swag_models_regnety", "model_args": {"se_ratio": [None]}},
        {"architecture": "swag_models_regnety", "model_args": {"w_0": "48"}},
        {"architecture": "swag_models_regnety", "model_args": {"depth": 10**6}},
        {"architecture": None, "swag_models": {}, "transformers_version": "5.0"},
        {"architecture": 3},
    ],
)
def test_an_invalid_config_is_an_error_of_one_line(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SwagModelsError) as caught:
        get_spec(write_config(tmp_path, **changes))
    assert "config.json" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_the_folder_of_a_native_transformers_model_is_rejected(tmp_path: Path) -> None:
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="does not describe a model of this library"):
        load_model(tmp_path)


def test_a_folder_without_weights_names_the_files_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(SwagModelsError, match=r"model\.safetensors: no such file") as caught:
        load_model(write_config(tmp_path))
    assert "pytorch_model.bin: no such file" in str(caught.value)
