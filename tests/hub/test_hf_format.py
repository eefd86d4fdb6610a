"""The files of a published model: config.json, read by us and by timm, and the index."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny import REGNET_SPEC, VIT, VIT_SPEC, deviation, images, randomise

from swag_models import load_model
from swag_models.architectures import RegNetConfig, ViTConfig
from swag_models.errors import CheckpointError, ConfigError
from swag_models.hub.hf_format import (
    CONFIG_FILE,
    INDEX_FILE,
    make_config,
    read_folder,
    read_index,
)
from swag_models.hub.timm_format import OWN_REGNET, TIMM_REGNETS, is_known_to_timm
from swag_models.publish import save
from swag_models.spec import ModelSpec, Source

SMALL = next(config for config, name in TIMM_REGNETS.items() if name == "regnety_002")
SPEC = replace(VIT_SPEC, classes=None, sources=(Source("model.safetensors", "timm", "0" * 64),))


def write(folder: Path, spec: ModelSpec = SPEC, **changes: Any) -> Path:
    """Write the config.json of a spec with some fields changed; the folder."""
    config = make_config(spec, "float32")
    config["swag_models"] |= changes
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder


def test_config_json_round_trip_completes_the_source_url(tmp_path: Path) -> None:
    folder = tmp_path / "my model #1"
    folder.mkdir()
    spec = read_folder(write(folder))
    (source,) = spec.sources
    assert source.url == f"{folder.as_uri()}/model.safetensors"
    assert replace(spec, sources=SPEC.sources) == SPEC


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "invalid sources none; expected model.safetensors"),
        (
            {"sources": [{"url": "../other.safetensors", "layout": "timm"}]},
            r"invalid sources \.\./other.safetensors",
        ),
        (
            {"sources": [{"url": "https://x/model.safetensors", "layout": "timm"}]},
            "invalid sources https://x/",
        ),
        ({"sources": [{"url": "/etc/passwd", "layout": "timm"}]}, "invalid sources /etc/passwd"),
        (
            {"sources": [{"url": "model.safetensors", "layout": "timm"}]},
            "invalid SHA-256 None of model.safetensors; expected 64",
        ),
        (
            {"sources": [{"url": "model.safetensors", "layout": "timm", "sha256": "0"}]},
            "invalid SHA-256 '0' of .*; expected 64",
        ),
        ({"classes": ["cat", "dog"]}, "has 2 class names for 10 classes"),
        ({"classes": ["cat"], "num_classes": None}, "has 1 class name for no classes"),
        ({"name": "\x1b[2Jmine"}, r"config.json: '\\x1b\[2Jmine' has control characters"),
        ({"license_url": "https://x\n"}, "has control characters; use one line of printable text"),
        ({"colour": "red"}, "ModelSpec has no field colour.*a newer version of this library"),
        (
            {
                "config": {
                    "family": "vit",
                    "patch_size": 0,
                    "depth": 1,
                    "width": 8,
                    "num_heads": 1,
                    "mlp_width": 8,
                }
            },
            "patch_size is 0",
        ),
    ],
)
def test_an_invalid_config_is_an_error_of_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_folder(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '{"architecture": "convnext_tiny"}', "[" * 100_000, "\udcff"]
)
def test_a_config_of_another_library_is_an_error_of_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(text.encode(errors="surrogateescape"))
    message = r"config.json (cannot be read|does not describe a model of this library)"
    with pytest.raises(ConfigError, match=message) as caught:
        read_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_config_suggests_weights(tmp_path: Path) -> None:
    message = "is not a published model: it has no config.json; to load a bare weight file pass"
    with pytest.raises(ConfigError, match=message):
        load_model(tmp_path)


def test_regnet_configs_equal_those_of_timm() -> None:
    for config, name in TIMM_REGNETS.items():
        timm_config = timm.models.regnet.model_cfgs[name]
        fields = ("depth", "w0", "wa", "wm", "group_size", "se_ratio", "stem_width")
        assert astuple(config) == tuple(getattr(timm_config, field) for field in fields)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (VIT, {}),
        (VIT, {"num_classes": None}),
        (VIT, {"global_pool": "avg"}),
        (VIT, {"image_size": (16, 64), "in_chans": 1}),
        (
            ViTConfig(patch_size=16, depth=1, width=1280, num_heads=16, mlp_width=1281),
            {"num_classes": 3},
        ),
        (SMALL, {}),
        (SMALL, {"in_chans": 4, "image_size": 96}),
    ],
    ids=["vit", "backbone", "avg", "one-channel", "odd-mlp", "regnet", "four-channels"],
)
def test_timm_loads_the_folder_and_gives_the_same_output(
    config: ViTConfig | RegNetConfig, options: Any, tmp_path: Path
) -> None:
    model = load_model(replace(VIT_SPEC, config=config, classes=None), pretrained=False, **options)
    save(randomise(model), tmp_path, license="mit")
    timm_model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    size = options.get("image_size", 64)
    inputs = images(2, size, options.get("in_chans", 3))
    with torch.no_grad():
        assert deviation(model(inputs), timm_model(inputs)) < 1e-5
    assert tuple(timm_model.pretrained_cfg["input_size"][1:]) == model.image_size
    assert timm_model.num_features == model.num_features
    assert timm_model.num_classes == (model.num_classes or 0)


def test_timm_preprocesses_images_in_the_same_way(tmp_path: Path) -> None:
    from PIL import Image

    from swag_models import load_preprocess

    save(load_model("vit_nano_hashtags"), tmp_path)
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}"))
    transform = timm.data.create_transform(**config, is_training=False)
    image = Image.effect_noise((200, 150), 80).convert("RGB")
    expected = load_preprocess(tmp_path)(image)
    torch.testing.assert_close(transform(image), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_regnet_unknown_to_timm_has_an_architecture_that_timm_rejects(tmp_path: Path) -> None:
    assert not is_known_to_timm(REGNET_SPEC)
    write(tmp_path, replace(REGNET_SPEC, classes=None, sources=SPEC.sources))
    # In a process that has not imported swag_models.timm
    script = f"import timm; timm.create_model('local-dir:{tmp_path}')"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert f"RuntimeError: Unknown model ({OWN_REGNET})" in result.stderr


def test_mlp_ratio_gives_every_mlp_width_in_timm() -> None:
    for width in (11, 19, 32, 768):
        for mlp_width in range(1, 4 * width, 7):
            spec = replace(SPEC, config=replace(VIT, width=width, mlp_width=mlp_width))
            assert int(width * make_config(spec, "float32")["model_args"]["mlp_ratio"]) == mlp_width


def index(weight_map: object, **metadata: object) -> str:
    """The JSON text of an index."""
    return json.dumps({"metadata": metadata, "weight_map": weight_map})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (index({"a": "../model.safetensors"}), r"invalid file '\.\./model.safetensors'"),
        (index({"a": "/etc/model.safetensors"}), "invalid file '/etc/model.safetensors'"),
        (index({"a": "b/c.safetensors"}), "invalid file 'b/c.safetensors'"),
        (index({"a": r"..\c.safetensors"}), "invalid file '"),
        (index({"a": "https://x/c.safetensors"}), "invalid file '"),
        (index({"a": "model.pth"}), "invalid file 'model.pth'"),
        (index({"a": ".safetensors"}), "invalid file '.safetensors'"),
        (index({"a": 3}), "invalid file 3"),
        (index({"a": ["b.safetensors"]}), "invalid file|not an index"),
        (index({}), "invalid file;"),
        (index({"a": "b.safetensors"}, sha256={"b.safetensors": 3}), "invalid file;"),
        (index(["a"]), "is not an index"),
        (index({"a": "b.safetensors"}, sha256=[1]), "is not an index"),
        ('{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}', "a occurs twice"),
        ('{"metadata": {}}', "is not an index"),
        ("[1]", "is not an index"),
        ("{", "is not an index"),
        ("[" * 100_000, "is not an index"),
    ],
)
def test_an_invalid_index_is_an_error_of_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / INDEX_FILE
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_index(path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b16", "regnety_16gf_in1k", "vit_l16_in1k"])
def test_timm_loads_the_catalogs_architectures(name: str, tmp_path: Path) -> None:
    model = load_model(name, pretrained=False, image_size=224)
    save(randomise(model), tmp_path, license="mit")
    timm_model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    inputs = images(1, 224)
    with torch.no_grad():
        output = model(inputs)
        if not (model.num_classes or name.startswith("vit")):
            output = model.forward_head(output)  # ours is a feature map, timm's is pooled
        assert deviation(output, timm_model(inputs)) < 1e-4
