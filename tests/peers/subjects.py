"""Models for the scenarios of other libraries' test suites: ours, and theirs as control.

The same test function runs on both, with equal assertions. A failure on a control is an error of
the test, or a change of the peer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import swag_models
import swag_models.timm

Family = Literal["vit", "regnet"]
MAX_SIDE = 128  # pixels, of images for models that take any size


@dataclass(frozen=True)
class Subject:
    """A model that scenarios run on.

    Attributes:
        name: as in the library that makes it.
        library: "swag_models", "timm" or "torchvision".
        family: which of our families it is, or is compared with.
        marks: of the tests that run on it.
    """

    name: str
    library: str
    family: Family
    marks: tuple[pytest.MarkDecorator, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is a model of this library."""
        return self.library == "swag_models"

    @property
    def timm_name(self) -> str:
        """The name for `timm.create_model`."""
        return f"swag_{self.name}" if self.is_ours else self.name

    def load(self, **options: Any) -> nn.Module:
        """Build the model in its own library, with random weights, in evaluation mode."""
        if self.is_ours:
            return swag_models.load_model(self.name, **({"pretrained": False} | options))
        if self.library == "timm":
            return timm.create_model(self.name, **options).eval()
        return torchvision.models.get_model(self.name, weights=None, **options).eval()

    def create(self, **options: Any) -> nn.Module:
        """Build the model with `timm.create_model`, with random weights, in evaluation mode."""
        return timm.create_model(self.timm_name, **options).eval()

    @cached_property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images for tests."""
        if self.is_ours:
            size = swag_models.get_spec(self.name).preprocess.size
            is_fixed = self.family == "vit"
        elif self.library == "timm":
            config = timm.get_pretrained_cfg(self.name)
            size, is_fixed = config.input_size[1:], config.fixed_input_size
        else:
            size, is_fixed = (224, 224), self.family == "vit"
        return tuple(size) if is_fixed else tuple(min(side, MAX_SIDE) for side in size)

    def images(self, count: int = 1) -> Tensor:
        """Return random images (N, 3, H, W)."""
        return torch.randn(count, 3, *self.image_size)


PEERS = (pytest.mark.peers,)
VIT = Subject("vit_nano_hashtags", "swag_models", "vit")
REGNET = Subject("regnety_nano_hashtags", "swag_models", "regnet")
TIMM_VIT = Subject("test_vit", "timm", "vit", PEERS)
TIMM_REGNET = Subject("regnety_002", "timm", "regnet", PEERS)
TORCHVISION_VIT = Subject("vit_b_16", "torchvision", "vit", PEERS)
TORCHVISION_REGNET = Subject("regnet_y_400mf", "torchvision", "regnet", PEERS)
LARGE = (
    Subject("vit_b16_in1k", "swag_models", "vit", PEERS),
    Subject("regnety_16gf_in1k", "swag_models", "regnet", PEERS),
)
OURS = (VIT, REGNET)
TIMM = (TIMM_VIT, TIMM_REGNET)
TORCHVISION = (TORCHVISION_VIT, TORCHVISION_REGNET)


def on(*subjects: Subject) -> pytest.MarkDecorator:
    """Run a test on each of these models."""
    return pytest.mark.parametrize(
        "subject",
        [
            pytest.param(subject, marks=subject.marks, id=f"{subject.library}-{subject.name}")
            for subject in subjects
        ],
    )


def of_family(family: Family, subjects: Iterable[Subject]) -> list[Subject]:
    """Return the models of a family."""
    return [subject for subject in subjects if subject.family == family]
