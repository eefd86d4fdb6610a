"""Distillation: a student learns from the outputs of a frozen teacher, without labels.

Both see the same crop, flip and mixup, each at its own size and normalisation, which is better than
fixed answers of the teacher (Beyer et al. 2022, arXiv 2106.05237). The trainer is that of all runs;
only inputs and losses differ, which `DistillState` replaces.

Axes: N samples of a micro batch, S pixels of a crop.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from swag_models.errors import ConfigError
from swag_models.recipe.config import Objective, Run
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.training.distill_losses import compare_features, compare_logits
from swag_models.recipe.training.distributed import DistContext
from swag_models.recipe.training.losses import Targets, mix
from swag_models.recipe.training.student import (
    TIMM_PREFIX,
    Student,
    StudentOutputs,
    make_student,
    save_timm_student,
)
from swag_models.recipe.training.teacher import ModelTeacher, StoredTeacher, Teacher
from swag_models.recipe.training.train_state import TrainState, assemble_state


@dataclass(frozen=True, kw_only=True)
class DistillState(TrainState):
    """The state of a student's training; the teacher is not part of a checkpoint.

    Attributes:
        teacher: frozen.
        flops: operations of a step for one image, of both networks.
    """

    teacher: Teacher
    flops: int

    @property
    def final_model(self) -> nn.Module:
        """The backbone of the student, without the projection."""
        student = super().final_model
        assert isinstance(student, Student)
        backbone: nn.Module = student.backbone
        return backbone

    def count_flops(self) -> int:
        return self.flops

    def compute_losses(self, batch: Batch) -> Tensor:
        run, device = self.run, self.dist.device
        assert run.distill
        images = batch.images.to(device, non_blocking=True).float().div_(255)  # (N, 3, S, S)
        none = torch.empty(len(images), 0, device=device)
        targets = Targets(none.long(), none)
        images, _ = mix(images, targets, run.objective.mixup, torch.default_generator)
        filter = run.augment.interpolation
        seen = resize(images, self.teacher.image_size, filter)
        answers = self.teacher.answer(seen, batch.ids, self.autocast)
        inputs = self.transform.normalise(resize(images, run.image_size, filter))
        with self.autocast:
            outputs: StudentOutputs = self.forward(self.order_channels(inputs))
        losses = torch.zeros(len(images), device=device)
        if outputs.features is not None:
            losses = losses + run.distill.feature_weight * compare_features(
                run.distill.feature_loss, outputs.features, answers.features
            )
        if outputs.logits is not None and answers.logits is not None:
            assert self.teacher.spec
            losses = losses + run.distill.logit_weight * compare_logits(
                outputs.logits,
                answers.logits,
                run.distill.temperature,
                multi_label=self.teacher.spec.multi_label,
            )
        return losses * answers.weights

    def publish(self, folder: Path, weights: Any, **details: Any) -> None:
        if not self.run.arch.startswith(TIMM_PREFIX):
            super().publish(folder, weights, **details)
            return
        texts = details["description"], details["training"]
        save_timm_student(self.run, self.teacher.classes, weights, folder, *texts)


def resize(images: Tensor, size: int, interpolation: str) -> Tensor:
    """Resize square images (N, 3, S, S) with values from 0 to 1; no copy if they have the size."""
    if images.shape[-1] == size or size == 1:  # embeddings need no images
        return images
    return F.interpolate(
        images, (size, size), mode=interpolation, align_corners=False, antialias=True
    ).clamp_(0, 1)


def check_distillation(run: Run, teacher: Teacher) -> None:
    """Raise ConfigError for settings that would have no effect or a wrong one."""
    if run.trainable != "all":
        raise ConfigError(f"trainable is {run.trainable}; allowed in distillation: all")
    if run.head_init != "random":
        raise ConfigError(
            f"head_init is {run.head_init}; allowed in distillation: random, because the student "
            "has no head or that of its teacher"
        )
    if run.augment.sizes:
        raise ConfigError(
            f"augment.sizes is {run.augment.sizes}; allowed in distillation: none, because both "
            "networks have one size"
        )
    if replace(run.objective, mixup=0.0) != Objective():
        raise ConfigError(
            "in distillation there are no labels: of the objective only mixup applies; leave out "
            "the other settings of objective"
        )
    if run.objective.mixup and isinstance(teacher, StoredTeacher):
        raise ConfigError(
            f"objective.mixup is {run.objective.mixup:g}, but embeddings are of images that are "
            "not mixed; set it to 0, or give a model as distill.teacher"
        )


def make_distill_state(run: Run, teacher: Teacher, dist: DistContext) -> DistillState:
    """Build a student with its projection, average and optimizer, distributed over all ranks.

    Raises:
        ConfigError: the settings do not fit the architecture.
    """
    assert run.distill
    torch.manual_seed(run.seed)  # the same initial weights on all ranks
    backbone, spec = make_student(run, teacher.classes)
    width = teacher.width if run.distill.feature_weight else None
    has_head = run.distill.logit_weight > 0
    student = Student(backbone, width)
    if run.engine.grad_checkpointing:
        student.backbone.set_grad_checkpointing(True)
    flops = 3 * _count_flops(backbone, run.image_size)  # forward, and twice that backward
    if isinstance(teacher, ModelTeacher):
        flops += _count_flops(teacher.model, teacher.image_size)
        # the student learns from these weights, so their licence may apply to it
        spec = replace(
            spec,
            license=teacher.spec.license,
            license_url=teacher.spec.license_url,
            multi_label=has_head and teacher.spec.multi_label,
        )
    return assemble_state(DistillState, run, dist, student, spec, teacher=teacher, flops=flops)


def _count_flops(model: nn.Module, size: int) -> int:
    """Operations of a forward pass for one image, on the meta device."""
    shapes = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, 3, size, size, device="meta"))
    return int(counter.get_total_flops())
