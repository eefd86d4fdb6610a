"""Distillation: a student learns from the outputs of a frozen teacher, without labels.

Both see the same crop, flip and mixup, each at its own size and normalisation, which is better than
fixed answers of the teacher (Beyer et al. 2022, arXiv 2106.05237). The trainer is that of all runs;
only inputs and losses differ, which `DistillState` replaces.

Axes: N samples of a micro batch, S pixels of a crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swag_models.errors import ConfigError
from swag_models.formatting import spell_license
from swag_models.publish.model_info import count_flops
from swag_models.recipe.config import Run
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.training.distill_losses import compare_features, compare_logits
from swag_models.recipe.training.distributed import DistContext
from swag_models.recipe.training.losses import Targets, mix
from swag_models.recipe.training.memory import TIMM_PREFIX
from swag_models.recipe.training.student import (
    Student,
    StudentOutputs,
    count_student_flops,
    make_student,
)
from swag_models.recipe.training.teacher import ModelTeacher, StoredTeacher, Teacher
from swag_models.recipe.training.timm_student import (
    save_timm_student,
    update_statistics_once,
)
from swag_models.recipe.training.train_state import TrainState, assemble_state
from swag_models.spec import UNKNOWN


@dataclass(frozen=True, kw_only=True)
class DistillState(TrainState):
    """The state of a student's training; the teacher is not part of a checkpoint.

    Attributes:
        teacher: frozen.
        flops: operations of a step for one image, of both networks.
        licenses: of the teacher and of the initial weights, for the card.
    """

    teacher: Teacher
    flops: int
    licenses: str

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
        details["training"] += f"\n\nLicences {self.licenses}."
        if not self.run.arch.startswith(TIMM_PREFIX):
            super().publish(folder, weights, **details)
            return
        # classes and synsets are in the spec; without validation there is no accuracy
        texts = {name: details[name] for name in ("name", "description", "training", "datasets")}
        terms = {name: details[name] for name in ("license", "license_url")}
        save_timm_student(self.run, self.spec, weights, folder, **texts, **terms)


def resize(images: Tensor, size: int, interpolation: str) -> Tensor:
    """Resize square images (N, 3, S, S) with values from 0 to 1; no copy if they have the size."""
    if images.shape[-1] == size or size == 1:  # embeddings need no images
        return images
    return F.interpolate(
        images, (size, size), mode=interpolation, align_corners=False, antialias=True
    ).clamp_(0, 1)


def check_mixup(run: Run, teacher: Teacher) -> None:
    """Raise ConfigError if a teacher cannot say what it gives for mixed images."""
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
    has_head = run.distill.logit_weight > 0
    multi_label = has_head and teacher.spec is not None and teacher.spec.multi_label
    backbone, spec = make_student(run, teacher.classes, multi_label=multi_label)
    student = Student(backbone, teacher.width if run.distill.feature_weight else None)
    flops = 3 * count_student_flops(student, run)  # forward, and twice that backward
    if isinstance(teacher, ModelTeacher):
        flops += count_flops(replace(teacher.spec, num_classes=teacher.model.num_classes or None))
    # The student learns from the teacher, so that the teacher's licence may apply to it, as does
    # that of its initial weights.
    origins = {"teacher": (teacher.facts["model"], *teacher.license)}
    if run.init:
        origins["initial weights"] = (spec.name, spec.license, spec.license_url)
    license, url = combine_licenses([origin[1:] for origin in origins.values()])
    name = " and ".join(dict.fromkeys(origin[0] for origin in origins.values()))
    spec = replace(spec, name=name, license=license, license_url=url)
    licenses = "; ".join(
        f"of the {role}, {origin[0]}: {spell_license(origin[1])}"
        for role, origin in origins.items()
    )
    state = assemble_state(
        *(DistillState, run, dist, student, spec), teacher=teacher, flops=flops, licenses=licenses
    )
    if run.engine.grad_checkpointing and run.arch.startswith(TIMM_PREFIX):
        update_statistics_once(state.model)
    return state


def combine_licenses(licenses: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return the licence of weights that derive from several others, whose terms all apply.

    Args:
        licenses: the licence of each, and its URL.

    Returns:
        The licence, and its URL: "unknown" if one of them is, because then nobody has permitted
        the use; otherwise all, joined by "and", and the URL of the first that forbids commercial
        use, or else of the first that has one.
    """
    strict_first = sorted(dict.fromkeys(licenses), key=lambda pair: "-nc" not in pair[0])
    names = list(dict.fromkeys(license for license, _ in strict_first))
    if UNKNOWN in names:
        return UNKNOWN, ""
    return " and ".join(names), next((url for _, url in strict_first if url), "")
