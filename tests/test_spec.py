"""Specs are frozen and survive conversion to JSON and back."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

import swag_models
from swag_models.architectures import RegNetConfig, ViTConfig
from swag_models.errors import ConfigError
from swag_models.spec import ModelSpec, Preprocess

SPECS = [swag_models.get_spec(name) for name in swag_models.list_models()]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_json_round_trip_gives_an_equal_spec(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_non_square_image_size_survives_json() -> None:
    spec = dataclasses.replace(
        SPECS[0], preprocess=dataclasses.replace(SPECS[0].preprocess, image_size=(256, 128))
    )
    assert ModelSpec.from_json(spec.to_json()).preprocess.size == (256, 128)


def test_specs_are_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPECS[0].name = "other"  # type: ignore[misc]
    assert len(set(SPECS)) == len(SPECS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(colour="red"), "ModelSpec has no field colour"),
        (lambda data: data.pop("license"), "license"),
        (
            lambda data: data["config"].update(family="mlp"),
            "config.family is 'mlp'; allowed: vit, regnet",
        ),
        (lambda data: data["config"].update(heads=3), "has no field heads"),
        (
            lambda data: data.update(preprocess=3),
            r"preprocess is 3; allowed: its fields \(image_size, ",
        ),
        (
            lambda data: data.update(config="vit"),
            r"config is 'vit'; allowed: its fields \(patch_size, .*\) or its fields \(depth, w_0, ",
        ),
        (lambda data: data.update(sources="https://x/y"), "sources is 'https://x/y'"),
        (
            lambda data: data.update(num_classes=0),
            "num_classes is 0; allowed: a positive whole number or none",
        ),
        (
            lambda data: data.update(in_chans=True),
            "in_chans is True; allowed: a positive whole number",
        ),
        (lambda data: data.update(gmacs=float("nan")), "gmacs is nan; allowed: a finite number"),
        (lambda data: data.update(classes=[1, 2]), r"classes\[0\] is 1; allowed: a text"),
        (lambda data: data.update(global_pool="max"), "global_pool is 'max'"),
        (
            lambda data: data["preprocess"].update(mean=[0.5, 0.5]),
            r"preprocess.mean is \[0.5, 0.5\]",
        ),
        (
            lambda data: data["preprocess"].update(std=[0.2, 0, 0.2]),
            "preprocess.std is 0.0; give a number from 1e-06",
        ),
        (
            lambda data: data["config"].update(depth="18"),
            "config.depth is '18'; allowed: a positive whole number",
        ),
        (
            lambda data: data["config"].update(w_m=1),
            "config.w_m is 1.0; give a number from 1.001 to 100",
        ),
        (lambda data: data["sources"][0].update(layout="keras"), r"sources\[0\].layout is 'keras'"),
        (lambda data: data.update(sources=[{"url": "https://x/y"}]), "layout"),
    ],
)
def test_an_invalid_field_is_named(change, message: str) -> None:
    data = json.loads(SPECS[0].to_json())
    change(data)
    with pytest.raises(ConfigError, match=message):
        ModelSpec.from_dict(data)


def test_a_spec_without_the_later_fields_is_read() -> None:
    data = json.loads(SPECS[0].to_json())
    del data["in_chans"], data["global_pool"]
    assert ModelSpec.from_dict(data) == SPECS[0]


def test_text_that_is_not_json_is_rejected() -> None:
    with pytest.raises(ConfigError, match="invalid JSON"):
        ModelSpec.from_json("{")


@pytest.mark.parametrize(
    ("config", "stages"),
    [
        (RegNetConfig(18, 200, 106.23, 2.48, 112), ((224, 2), (448, 4), (1232, 11), (3024, 1))),
        (RegNetConfig(20, 232, 115.89, 2.53, 232), ((232, 2), (696, 5), (1392, 12), (3712, 1))),
        (RegNetConfig(27, 456, 160.83, 2.52, 264), ((528, 2), (1056, 7), (2904, 17), (7392, 1))),
    ],
)
def test_regnet_stages_follow_the_rule_of_the_paper(
    config: RegNetConfig, stages: tuple[tuple[int, int], ...]
) -> None:
    assert config.stages == stages


@pytest.mark.parametrize("value", [[12], (12,), None, [None], "12", True])
@pytest.mark.parametrize("field", ["depth", "patch_size"])
def test_a_number_of_an_architecture_is_one_number(field: str, value: object) -> None:
    numbers: dict[str, Any] = {"patch_size": 16, "depth": 12, "width": 768, "num_heads": 12}
    numbers |= {"mlp_width": 3072, field: value}
    with pytest.raises(ConfigError, match=f"{field} is .*give a whole number"):
        ViTConfig(**numbers)
    with pytest.raises(ConfigError, match=r"se_ratio is .*give a number"):
        RegNetConfig(18, 200, 106.23, 2.48, 112, se_ratio=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [[224], (224,), (1, 2, 3), [224, 224], (224, None), None])
def test_an_image_size_is_one_number_or_a_tuple_of_two(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"image_size is .*give a whole number"):
        Preprocess(size)
    with pytest.raises(ConfigError, match=r"mean is .*give a number"):
        Preprocess(224, mean=(0.5, 0.5))  # type: ignore[arg-type]


def test_the_repr_is_one_short_line_and_the_text_is_that_of_the_command() -> None:
    for spec in SPECS:
        assert len(repr(spec)) < 200
        assert repr(spec).isprintable()
        assert repr(spec).startswith(f"ModelSpec({spec.name}: {spec.description}, ")
    odd = dataclasses.replace(SPECS[0], name="a\x1b[2J\n" * 99, license="b\n" * 999)
    assert repr(odd).isprintable()
    assert len(repr(odd)) < 400
    done = subprocess.run(
        [sys.executable, "-m", "swag_models", "info", SPECS[0].name],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("on this machine ")]
    assert str(SPECS[0]).splitlines() == lines
