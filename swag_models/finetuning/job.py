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
    return {**_list_defaults(), **job}


def restrict_job(job: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A job as an earlier version described it, which did not have all settings.

    Args:
        job: from `describe_finetuning`. Settings that have their default are left out if they were
            not recorded.
        recorded: the run in the recipe.json of that version.
    """
    defaults, known = _list_defaults(), _list_names(recorded)
    job = json.loads(json.dumps(job))
    return {
        name: value
        for name, value in job.items()
        if name in known or name not in defaults or value != defaults[name]
    }


def _list_defaults() -> dict[str, Any]:
    defaults = dict(iterate_fields(Run("", image_size=1, batch_size=1, steps=1)))
    named = {"arch", "image_size", "batch_size", "steps"}  # without a default
    values = {name: value for name, value in defaults.items() if name not in named}
    return dict(json.loads(json.dumps(values)))  # tuples become lists, as in a recorded job


def _list_names(recorded: Mapping[str, Any], path: str = "") -> set[str]:
    """The dotted names of all settings of a recorded run, as `iterate_fields` lists them."""
    names = set[str]()
    for name, value in recorded.items():
        nested = isinstance(value, Mapping)
        names |= _list_names(value, f"{path}{name}.") if nested else {path + name}
    return names


def _describe(dataset: ImageDataset) -> str:
    return f"{len(dataset)} of {dataset.root} ({dataset.sha256[:16]})"
