"""What a model's labels and features have to do with groups of pictures that the user names.

Axes: n the pictures of a batch, N of all, K labels of a picture at most, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from swag_models.errors import ConfigError
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.evaluation.bias.dataset import GroupedImages
from swag_models.recipe.evaluation.bias.disparity import Disparities, measure_disparities
from swag_models.recipe.evaluation.bias.disparity import Groups
from swag_models.recipe.evaluation.bias.neighbours import (
    NeighbourShares,
    compare_neighbours,
    list_neighbours,
)
from swag_models.recipe.evaluation.models import EvaluatedModel


@dataclass(frozen=True)
class AssociationConfig:
    """What was asked for.

    top_k, threshold: a label is given to a picture if it is among the model's best so many and more probable than that.
    min_group: pictures that a group must have. min_pictures: that a label must be given to. neighbours: of each picture, 0 for
    none.
    """

    top_k: int = 5
    threshold: float = 0.1
    min_group: int = 30
    min_pictures: int = 5
    permutations: int = 2000
    neighbours: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {
            "top_k": 1,
            "min_pictures": 1,
            "permutations": 100,
            "neighbours": 0,
            "seed": 0,
        }.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: {least} or more")
        if not 0 <= self.threshold < 1:
            raise ConfigError(
                f"threshold is {self.threshold}; allowed: a probability from 0 to below 1"
            )


@dataclass(frozen=True)
class Associations:
    """What was found. facts: of the table. unread: pictures that could not be read. small: groups left out, and their sizes.

    names: of all the model's classes. retrieval: None if no neighbours were asked for.
    """

    model: str
    facts: Mapping[str, Any]
    column: str
    settings: AssociationConfig
    ungrouped: int
    unplaced: int
    unread: int
    small: Mapping[str, int]
    names: tuple[str, ...]
    disparities: Disparities
    retrieval: NeighbourShares | None

    @property
    def groups(self) -> Groups:
        """Those compared."""
        return self.disparities.groups


def measure_associations(
    candidate: EvaluatedModel,
    roster: GroupedImages,
    settings: AssociationConfig | None = None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = True,
) -> Associations:
    """Label the pictures of a roster, compare the groups' labels, and whose pictures are near whose.

    ConfigError for a model without classes, fewer than two groups that are large enough, or more neighbours than pictures.
    """
    settings = settings or AssociationConfig()
    if candidate.num_classes is None:
        raise ConfigError(
            f"{candidate.name} has no classes, so it gives no labels; choose a model with classes"
        )
    _keep_groups(
        [roster.classes(row)[0] for row in range(len(roster))], roster, settings
    )  # better known before the work
    check = open_eval_loader(
        roster, candidate.fit, batch_size=batch_size, rank=0, world_size=1, workers=workers
    )
    given, vectors, codes = list[Tensor](), list[Tensor](), list[int]()
    with tqdm(total=len(roster), unit=" pictures", disable=not progress, smoothing=0.1) as bar:
        for batch in check:
            logits, features = candidate.forward(batch.images)
            given.append(choose_labels(logits, settings.top_k, settings.threshold))
            if settings.neighbours:
                vectors.append(features)
            codes += [group for (group,) in batch.classes]
            bar.update(len(batch.ids))
    try:
        mask, groups, small = _keep_groups(codes, roster, settings)
    except ConfigError:  # before they were read there were enough
        raise ConfigError(
            f"{check.skipped.total():,} of {len(roster):,} pictures cannot be read, and the others are too few to compare: "
            f"{next(iter(check.skipped))}; paths are relative to {roster.root}, the table's folder"
        ) from None
    options: dict[str, Any] = {
        "permutations": settings.permutations,
        "seed": settings.seed,
        "progress": progress,
    }
    labels = torch.cat(given).numpy()[mask]
    retrieval = None
    if settings.neighbours:
        places = list_neighbours(
            torch.cat(vectors)[torch.from_numpy(mask)].numpy(), settings.neighbours
        )
        retrieval = compare_neighbours(places, groups, **options)
    return Associations(
        model=candidate.name,
        facts=check.facts,
        column=roster.column,
        settings=settings,
        ungrouped=roster.ungrouped,
        unplaced=roster.unplaced,
        unread=check.skipped.total(),
        small=small,
        names=candidate.classes
        or tuple(f"class {index}" for index in range(candidate.num_classes)),
        disparities=measure_disparities(
            labels, groups, min_pictures=settings.min_pictures, **options
        ),
        retrieval=retrieval,
    )


def choose_labels(logits: Tensor, top_k: int, threshold: float) -> Tensor:
    """Logits (n, classes) -> the indices of the labels given (n, K), -1 for none."""
    best = torch.softmax(logits, 1).topk(min(top_k, logits.shape[1]))
    return torch.where(best.values > threshold, best.indices, -1)


def _keep_groups(
    codes: list[int], roster: GroupedImages, settings: AssociationConfig
) -> tuple[NDArray[np.bool_], Groups, Mapping[str, int]]:
    """As `Groups.keep_large`; ConfigError also for more neighbours than there are other pictures."""
    mask, groups, small = Groups(np.array(codes, np.int64), roster.class_names).keep_large(
        settings.min_group
    )
    if settings.neighbours >= len(groups.codes):
        raise ConfigError(
            f"neighbours is {settings.neighbours}; with {len(groups.codes)} pictures there are fewer others"
        )
    return mask, groups, small
