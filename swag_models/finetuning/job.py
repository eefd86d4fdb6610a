"""What must be equal for a fine-tuning run to be resumed."""

import json
from collections.abc import Mapping
from typing import Any

from swag_models.finetuning.folders import FolderData
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import iterate_fields
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.training.run_dir import RESUME_FREE
from swag_models.spec import ModelSpec


def describe_finetuning(spec: ModelSpec, run: Run, data: FolderData) -> dict[str, Any]:
    """What a run depends on, by names that messages show."""
    held_out = None if data.held_out is None else _describe(data.held_out)
    settings = {
        name: value
        for name, value in iterate_fields(run)
        if name.partition(".")[0] not in RESUME_FREE
    }
    return {
        "model": spec.name,
        "weights": [source.sha256 for source in spec.sources],
        "training images": _describe(data.train),
        "held-out images": held_out,
        **settings,
    }


def complete_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job, also of an earlier version: settings that it did not have get their defaults."""
    defaults = dict(iterate_fields(Run("", image_size=1, batch_size=1, steps=1)))
    return {**json.loads(json.dumps(defaults)), **job}  # tuples become lists, as in job


def _describe(dataset: ImageDataset) -> str:
    return f"{len(dataset)} of {dataset.root} ({dataset.sha256[:16]})"
