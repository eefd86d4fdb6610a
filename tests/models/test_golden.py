"""Outputs equal those recorded from the original implementation, or torchvision's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.synthetic import images, weight
from safetensors.torch import load_file
from tiny import deviation, torchvision_twin
from torch import Tensor

from swag_models import load_model
from swag_models.api import SPECS
from swag_models.layouts import translate_layout

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "golden.json").read_text())
LAYOUTS = json.loads((GOLDEN / "layouts.json").read_text())
PATCH = {"vit_b16": 16, "vit_l16": 16, "vit_h14": 14}


def synthetic_state(
    arch: str, *, salt: str, image_size: int, num_classes: int | None
) -> dict[str, Tensor]:
    """Return stand-in weights with the names and shapes of a published file."""
    state = {}
    for key, (_, shape) in LAYOUTS[arch if num_classes is None else f"{arch}_in1k"][
        "tensors"
    ].items():
        if key == "encoder.pos_embedding":
            shape = (1 + (image_size // PATCH[arch]) ** 2, *shape[1:])
        state[key] = torch.from_numpy(np.asarray(weight(salt, key, tuple(shape))))
    return state


@pytest.fixture
def save(tmp_path: Path) -> Iterator[Callable[[dict[str, Tensor]], Path]]:
    """Write a checkpoint, and remove it after the test, because pytest would keep gigabytes."""
    path = tmp_path / "published.torch"

    def write(state: dict[str, Tensor]) -> Path:
        torch.save(state, path)
        return path

    yield write
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if re.search("vit_l16|run512", name) else ())
        for name in CASES
    ],
)
def test_output_equals_the_recorded_one(
    name: str, save: Callable[[dict[str, Tensor]], Path]
) -> None:
    case: dict[str, Any] = CASES[name]
    arch, classes = case["architecture"], case["num_classes"]
    path = save(
        synthetic_state(
            arch, salt=case["salt"], image_size=case["checkpoint_image_size"], num_classes=classes
        )
    )
    model = load_model(
        arch if classes is None else f"{arch}_in1k",
        weights=path,
        image_size=case["image_size"],
        num_classes=classes,
    )
    with torch.inference_mode():
        output = model(torch.from_numpy(images(case["salt"], case["batch"], case["image_size"])))
    assert list(output.shape) == case["raw_output_shape"]
    if output.ndim == 4:
        output = output.mean((2, 3))
    assert deviation(output, load_file(GOLDEN / "golden.safetensors")[name]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["regnety_32gf", "regnety_128gf", "vit_h14"])
def test_output_equals_torchvisions(arch: str, save: Callable[[dict[str, Tensor]], Path]) -> None:
    path = save(synthetic_state(arch, salt="b", image_size=224, num_classes=1000))
    model = load_model(f"{arch}_in1k", weights=path, image_size=224)
    reference = torchvision_twin(SPECS[f"{arch}_in1k"].config, 1000, 224, device="meta")
    reference.load_state_dict(translate_layout(model.state_dict(), "torchvision"), assign=True)
    batch = torch.from_numpy(images("b", 2, 224))
    with torch.inference_mode():
        output, expected = model(batch), reference(batch)
    assert math.isfinite(float(expected.std()))
    assert float(expected.std()) > 0.01
    assert deviation(output, expected) < 1e-4
