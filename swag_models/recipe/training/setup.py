"""What a run trains on and what it trains: from labelled images, embeddings, or a teacher."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.recipe.config import Run
from swag_models.recipe.data.collate import Transform
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.embeddings import StoredEmbeddings, open_embedded
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.train_loader import TrainLoader, open_train_loader
from swag_models.recipe.data.transforms import make_augmentation
from swag_models.recipe.data.unlabelled import open_images_only
from swag_models.recipe.distill_runs import check_distill_run
from swag_models.recipe.training.classes import Classes, read_class_names
from swag_models.recipe.training.distillation import check_mixup, make_distill_state
from swag_models.recipe.training.distributed import DistContext
from swag_models.recipe.training.estimate import check_batch_memory
from swag_models.recipe.training.head_init import plan_head
from swag_models.recipe.training.head_state import check_embeddings, make_head_state
from swag_models.recipe.training.teacher import StoredTeacher, open_teacher
from swag_models.recipe.training.train_state import TrainState, make_train_state

Data = Shards | ImageDataset


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs.

    Attributes:
        loader: training data.
        classes: that the model learns.
        state: the model.
        facts: what identifies a teacher or embeddings, for run.json and recipe.json.
    """

    loader: TrainLoader
    classes: Classes
    state: TrainState
    facts: Mapping[str, Any] = field(default_factory=dict)


def set_up(
    run: Run,
    data: Data,
    embeddings: str | os.PathLike[str] | None,
    output: Path,
    dist: DistContext,
) -> Setup:
    """Open the data of a run and build its model.

    Args:
        run: the settings.
        data: training data.
        embeddings: a file of embeddings of the images, to train a head on instead of them.
        output: folder of the run, which may have a record of its head.
        dist: this process.

    Raises:
        ConfigError: run and data do not fit each other.
    """
    if run.distill:
        if embeddings is not None:
            raise ConfigError("in distillation, embeddings are given as distill.teacher")
        return _set_up_distillation(run, data, dist)
    if embeddings is not None:
        return _set_up_head(run, data, embeddings, output, dist)
    loader = _open_loader(run, data, make_augmentation(run, run.image_size), dist)
    classes = _plan_head(run, output, read_class_names(loader, data), dist)
    return Setup(loader, classes, make_train_state(run, classes, dist))


def _set_up_distillation(run: Run, data: Data, dist: DistContext) -> Setup:
    assert run.distill
    check_distill_run(run)
    teacher = open_teacher(run.distill, dist.device)
    check_mixup(run, teacher)
    size = max(run.image_size, teacher.image_size)  # one crop for both
    check_batch_memory(run, dist.world_size, size)
    data = open_images_only(data)
    if isinstance(teacher, StoredTeacher):
        data = teacher.select(data)
    state = make_distill_state(run, teacher, dist)
    loader = _open_loader(run, data, make_augmentation(run, size), dist)
    if loader.samples is None:
        raise ConfigError(f"{data} does not say how many samples it has; give packed shards")
    return Setup(loader, teacher.classes, state, {"teacher": teacher.facts})


def _set_up_head(
    run: Run, data: Data, embeddings: str | os.PathLike[str], output: Path, dist: DistContext
) -> Setup:
    stored = StoredEmbeddings(embeddings)
    check_embeddings(run, stored)
    dataset, vocabulary = open_embedded(data, stored)
    # rows in memory need no processes that read them
    in_process = replace(run, engine=replace(run.engine, workers=0))
    loader = _open_loader(in_process, dataset, _return_vector, dist)
    classes = read_class_names(loader, dataset, vocabulary)
    classes = _plan_head(run, output, classes, dist)
    return Setup(loader, classes, make_head_state(run, classes, dist), {"embeddings": stored.facts})


def _plan_head(run: Run, output: Path, classes: Classes, dist: DistContext) -> Classes:
    """Add how the head of a run starts."""
    head = dist.run_on_main(lambda: plan_head(run, output, classes.names, classes.synsets))
    return replace(classes, head=head)


def _open_loader(run: Run, data: Data, transform: Transform, dist: DistContext) -> TrainLoader:
    return open_train_loader(
        data,
        transform,
        batch_size=run.batch_size,
        seed=run.seed,
        rank=dist.rank,
        world_size=dist.world_size,
        engine=run.engine,
    )


def _return_vector(vector: Any) -> Tensor:
    assert isinstance(vector, Tensor)
    return vector
