"""Distillation in one call: a student of any architecture learns from a teacher, without labels."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.distill_runs import DISTILL
from swag_models.recipe.presets import PRESETS
from swag_models.recipe.training.memory import TIMM_PREFIX, find_arch
from swag_models.recipe.training.model import PublishInfo
from swag_models.recipe.training.timm_student import (
    create_timm_model,
    read_timm_preprocess,
)
from swag_models.recipe.training.trainer import train


def distill(
    student: str,
    teacher: str | os.PathLike[str],
    data: Shards | ImageDataset,
    output: str | os.PathLike[str],
    *,
    settings: Sequence[str] = (),
    init: str | None = None,
    name: str | None = None,
    description: str | None = None,
    license: str | None = None,
    device: torch.device | None = None,
    progress: bool = True,
) -> Path:
    """Train a student to give the outputs of a teacher, or resume its training.

    Args:
        student: an architecture of the catalog, or "timm:" and the name of a timm architecture.
        teacher: a catalog name, a folder, hf-hub:org/repo, or a file that `swag-models embed`
            wrote.
        data: images in any folders or tar files, packed shards, or labelled data as for `train`;
            labels are not used.
        output: folder of the run; call again with the same arguments to resume.
        settings: replace values of the preset, as for `override`: "distill.logit_weight=1".
        init: initial weights of a student of the catalog; None for random ones.
        name: of the model; as are the next two for `publish.save`.
        description: of the model.
        license: of the weights; by default that of the teacher, and of `init` as well.
        device: as for `train`, as is `progress`.
        progress: draw a progress bar.

    Returns:
        The folder of the published model, `output`/model: for `load_model`, or of a timm student
        for `timm.create_model("local-dir:...")`.

    Raises:
        ConfigError: the arguments do not fit each other.
        TrainingError, PreemptedError: as for `train`.
    """
    run = make_distill_run(student, os.fspath(teacher))
    run = override(run, [*settings, *([f"init={init}"] if init else [])])
    preset = f"{student}_distill"
    known = preset in {known.name for known in PRESETS}
    info = PublishInfo(preset if known else None, name, description, license)
    return train(run, data, output, device=device, progress=progress, publish_info=info)


def make_distill_run(student: str, teacher: str) -> Run:
    """Return the settings of a distillation: of the student's preset, or those for any student.

    Args:
        student: an architecture of the catalog, or "timm:" and the name of a timm architecture.
        teacher: a catalog name, a folder, hf-hub:org/repo, or a file that `swag-models embed`
            wrote.

    Raises:
        ConfigError: the architecture does not exist.
    """
    if student.startswith(TIMM_PREFIX):
        preprocess = read_timm_preprocess(create_timm_model(student, 0))
        run = replace(DISTILL, arch=student, image_size=preprocess.size[0])
    else:
        spec = find_arch(student)
        runs = {preset.name: preset.run for preset in PRESETS}
        run = runs.get(f"{spec.arch}_distill") or replace(
            DISTILL, arch=spec.arch, image_size=spec.preprocess.size[0]
        )
    assert run.distill
    return replace(run, distill=replace(run.distill, teacher=teacher))
