"""Students of a distillation: of the catalog or of timm, with a projection to the teacher's width.

Axes: N samples, D features, C classes, S pixels.
"""

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from swag_models.errors import ConfigError
from swag_models.formatting import describe_error
from swag_models.recipe.config import Run
from swag_models.recipe.training.classes import Classes
from swag_models.recipe.training.memory import TIMM_PREFIX
from swag_models.recipe.training.model import make_model
from swag_models.recipe.training.timm_student import (
    FOREIGN_ERRORS,
    make_timm_student,
    read_timm_preprocess,
)
from swag_models.spec import ModelSpec


class StudentOutputs(NamedTuple):
    """Features (N, D) in the teacher's width, and logits (N, C); None if they are not compared."""

    features: Tensor | None
    logits: Tensor | None


class Student(nn.Module):
    """A backbone, and a linear projection of its features that is not published.

    Args:
        backbone: of this library or of timm; has a head if its logits are compared.
        width: of the teacher's features; None if features are not compared.
    """

    def __init__(self, backbone: nn.Module, width: int | None) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.projection = None if width is None else nn.Linear(count_features(backbone), width)

    def forward(self, images: Tensor) -> StudentOutputs:
        """Run the backbone, its head and the projection on images (N, 3, S, S)."""
        hidden = self.backbone.forward_features(images)
        features = None
        if self.projection is not None:
            features = self.projection(self.backbone.forward_head(hidden, pre_logits=True))
        logits = self.backbone.forward_head(hidden) if self.backbone.num_classes else None
        return StudentOutputs(features, logits)


def count_features(backbone: Any) -> int:
    """Channels of the features before the head, by timm's names."""
    return int(backbone.head_hidden_size or backbone.num_features)


def make_student(run: Run, classes: Classes, *, multi_label: bool) -> tuple[nn.Module, ModelSpec]:
    """Build the backbone of a student with random weights, or those of `run.init`.

    Args:
        run: the settings.
        classes: of the teacher, if logits are compared.
        multi_label: whether an image can have any number of them.

    Returns:
        The backbone and its spec; see `make_timm_student` for that of a timm model.

    Raises:
        ConfigError: the settings do not fit the architecture.
    """
    if run.arch.startswith(TIMM_PREFIX):
        model, spec = make_timm_student(run, classes)
    else:
        model, spec = make_model(run, classes)
        model.set_grad_checkpointing(run.engine.grad_checkpointing)
    return model, replace(spec, multi_label=multi_label)


def count_student_flops(student: Student, run: Run) -> int:
    """Operations of a student's forward pass in training for one image, on the meta device.

    Raises:
        ConfigError: the architecture does not take images of this size, or does not return
            features and logits as a student must.
    """
    shapes = copy.deepcopy(student).to("meta").train()
    images = torch.empty(2, 3, run.image_size, run.image_size, device="meta")
    reason = "its features and logits are not one row for each image"
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            outputs = shapes(images)
        fits = all(rows is None or (rows.ndim, len(rows)) == (2, 2) for rows in outputs)
    except FOREIGN_ERRORS as error:
        reason, fits = describe_error(error).removesuffix("."), False
    if not fits:
        assert run.arch.startswith(TIMM_PREFIX)
        (size, _) = read_timm_preprocess(student.backbone).size
        raise ConfigError(
            f"{run.arch} cannot be a student with images of {run.image_size} pixels: {reason}; "
            + ("" if size == run.image_size else f"set image_size to {size}, or ")
            + "choose another architecture"
        )
    return int(counter.get_total_flops()) // len(images)
