"""The format of a published folder: config.json both ways, for us and for timm, and the index of shards."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny import REGNET_SPEC, VIT, VIT_SPEC, deviation, images, randomise

from swag_models import load_model
from swag_models.errors import CheckpointError, ConfigError
from swag_models.hub.hf_format import (
    CONFIG_FILE,
    INDEX_FILE,
    TIMM_REGNETS,
    is_known_to_timm,
    make_config,
    read_folder,
    read_index,
)
from swag_models.publish import save
from swag_models.spec import ModelSpec, RegNetConfig, Source, ViTConfig

SMALL = next(config for config, name in TIMM_REGNETS.items() if name == "regnety_002")
SPEC = replace(VIT_SPEC, sources=(Source("model.safetensors", "timm", "0" * 64),))


def write(folder: Path, spec: ModelSpec = SPEC, **changes: Any) -> Path:
    """A folder with the config.json of a spec, some of its own fields changed."""
    config = make_config(spec, "float32")
    config["swag_models"] |= changes
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return folder


def test_a_spec_survives_config_json_and_learns_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "my model #1"
    folder.mkdir()
    spec = read_folder(write(folder))
    (source,) = spec.sources
    assert source.url == f"{folder.as_uri()}/model.safetensors"
    assert replace(spec, sources=SPEC.sources) == SPEC


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "the sources are missing; expected model.safetensors"),
        (
            {"sources": [{"url": "../other.safetensors", "layout": "timm"}]},
            r"the sources are \.\./other.safetensors",
        ),
        (
            {"sources": [{"url": "https://x/model.safetensors", "layout": "timm"}]},
            "the sources are https://x/",
        ),
        ({"sources": [{"url": "/etc/passwd", "layout": "timm"}]}, "the sources are /etc/passwd"),
        (
            {"sources": [{"url": "model.safetensors", "layout": "timm"}]},
            "SHA-256 of model.safetensors is None; expected 64",
        ),
        (
            {"sources": [{"url": "model.safetensors", "layout": "timm", "sha256": "0"}]},
            "SHA-256 of .* is '0'; expected 64",
        ),
        ({"classes": ["cat", "dog"]}, "has 2 class names for 10 classes"),
        ({"classes": ["cat"], "num_classes": None}, "has 1 class names for no classes"),
        ({"name": "\x1b[2Jmine"}, r"config.json: '\\x1b\[2Jmine' holds control characters"),
        ({"license_url": "https://x\n"}, "holds control characters; texts must be of one line"),
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
def test_a_config_that_will_not_do_is_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_folder(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '{"architecture": "resnet50"}', "[" * 100_000, "\udcff"]
)
def test_a_config_of_something_else_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(
        ConfigError, match=r"config.json (cannot be read|describes no model of this library)"
    ) as caught:
        read_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_config_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"is no published model: it has no config.json; to load a bare weight file pass weights=",
    ):
        load_model(tmp_path)


def test_the_configs_for_timm_are_timms_own() -> None:
    for config, name in TIMM_REGNETS.items():
        theirs = timm.models.regnet.model_cfgs[name]
        shape = (
            theirs.depth,
            theirs.w0,
            theirs.wa,
            theirs.wm,
            theirs.group_size,
            theirs.se_ratio,
            theirs.stem_width,
        )
        assert astuple(config) == shape


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
    ids=["vit", "trunk", "avg", "one-channel", "odd-mlp", "regnet", "four-channels"],
)
def test_timm_reads_the_folder_and_computes_the_same(
    config: ViTConfig | RegNetConfig, options: Any, tmp_path: Path
) -> None:
    model = load_model(replace(VIT_SPEC, config=config, classes=None), pretrained=False, **options)
    save(randomise(model), tmp_path, license="mit")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    size = options.get("image_size", 64)
    inputs = images(2, size, options.get("in_chans", 3))
    with torch.no_grad():
        assert deviation(model(inputs), theirs(inputs)) < 1e-5
    assert tuple(theirs.pretrained_cfg["input_size"][1:]) == model.image_size
    assert (theirs.num_features, theirs.num_classes) == (model.num_features, model.num_classes or 0)


def test_timm_prepares_pictures_as_we_do(tmp_path: Path) -> None:
    from PIL import Image

    from swag_models import load_preprocess

    save(load_model("vit_nano_hashtags"), tmp_path)
    config = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}"))
    transform = timm.data.create_transform(**config, is_training=False)
    picture = Image.effect_noise((200, 150), 80).convert("RGB")
    torch.testing.assert_close(
        transform(picture), load_preprocess(tmp_path)(picture), rtol=0, atol=1e-6
    )


def test_a_regnet_that_timm_has_not_is_not_named_after_one() -> None:
    assert not is_known_to_timm(REGNET_SPEC)
    assert "architecture" not in make_config(REGNET_SPEC, "float32")


def test_every_mlp_width_reaches_timm() -> None:
    for width in (11, 19, 32, 768):
        for mlp_width in range(1, 4 * width, 7):
            spec = replace(SPEC, config=replace(VIT, width=width, mlp_width=mlp_width))
            assert int(width * make_config(spec, "float32")["model_args"]["mlp_ratio"]) == mlp_width


def index(weight_map: object, **metadata: object) -> str:
    return json.dumps({"metadata": metadata, "weight_map": weight_map})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (index({"a": "../model.safetensors"}), r"'\.\./model.safetensors' is none"),
        (index({"a": "/etc/model.safetensors"}), "'/etc/model.safetensors' is none"),
        (index({"a": "b/c.safetensors"}), "'b/c.safetensors' is none"),
        (index({"a": r"..\c.safetensors"}), "is none"),
        (index({"a": "https://x/c.safetensors"}), "is none"),
        (index({"a": "model.pth"}), "'model.pth' is none"),
        (index({"a": ".safetensors"}), "'.safetensors' is none"),
        (index({"a": 3}), "'3' is none"),
        (index({"a": ["b.safetensors"]}), "is none|no index"),
        (index({}), "was refused"),
        (index({"a": "b.safetensors"}, sha256={"b.safetensors": 3}), "was refused"),
        (index(["a"]), "is no index"),
        (index({"a": "b.safetensors"}, sha256=[1]), "is no index"),
        ('{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}', "it names a twice"),
        ('{"metadata": {}}', "is no index"),
        ("[1]", "is no index"),
        ("{", "is no index"),
        ("[" * 100_000, "is no index"),
    ],
)
def test_a_hostile_index_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / INDEX_FILE
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_index(path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b16", "regnety_16gf_in1k", "vit_l16_in1k"])
def test_timm_reads_the_published_architectures(name: str, tmp_path: Path) -> None:
    model = load_model(name, pretrained=False, image_size=224)
    save(randomise(model), tmp_path, license="mit")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    inputs = images(1, 224)
    with torch.no_grad():
        ours = (
            model(inputs)
            if model.num_classes or name.startswith("vit")
            else model.forward_head(model(inputs))
        )
        assert deviation(ours, theirs(inputs)) < 1e-4
