"""Label and neighbour disparities of one model between groups of images that the user defines.

Axes: n images of a batch, N images in all, K labels of an image (at most), D features.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swag_models.errors import ConfigError, check_minimum
from swag_models.formatting import count_noun
from swag_models.hub.cache import cache_folder
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.eval_loader import EvalLoader, open_eval_loader
from swag_models.recipe.evaluation.bias.dataset import GroupedImages
from swag_models.recipe.evaluation.bias.disparity import (
    Disparities,
    Groups,
    Integers,
    Mask,
    measure_disparities,
)
from swag_models.recipe.evaluation.bias.neighbours import (
    NeighbourShares,
    compare_neighbours,
    list_neighbours,
)
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.evaluation.row_pass import CollectedRows, collect_rows
from swag_models.recipe.training.distributed import SINGLE_PROCESS, DistContext
from swag_models.runtime import find_versions

# Rates of a rare, a usual and a frequent label, whose smallest detectable difference is reported.
REPORTED_RATES = (0.01, 0.05, 0.2)


@dataclass(frozen=True)
class AssociationConfig:
    """How labels are assigned and compared.

    Attributes:
        top_k: maximum number of labels of an image, which are the most probable classes.
        threshold: labels must have a higher probability than this; from 0 to below 1.
        min_group: minimum number of images of a group; smaller ones are left out.
        min_images: minimum number of images of a label; rarer ones are not tested.
        permutations: number of permutations of the groups, for p-values.
        neighbours: number of nearest neighbours of each image; 0 for none.
        seed: seed of permutations and resampling.

    Raises:
        ConfigError: a value is out of range.
    """

    top_k: int = 5
    threshold: float = 0.1
    # with 30 images, the 95% interval of a rate of 50% is 18 points wide on each side
    min_group: int = 30
    min_images: int = 5
    permutations: int = 2000
    neighbours: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        # with 100 permutations the smallest p-value is 0.01, well below the level of 0.05
        minima = {"top_k": 1, "min_images": 1, "permutations": 100, "neighbours": 0, "seed": 0}
        for name, minimum in minima.items():
            check_minimum(minimum, **{name: getattr(self, name)})
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"invalid threshold {self.threshold}: allowed: 0 to below 1")


@dataclass(frozen=True)
class Associations:
    """The disparities of one model on one table of images.

    Attributes:
        model: name of the model.
        facts: description of the data, as `EvalLoader.facts`.
        column: the table's column of groups.
        config: how labels were assigned and compared.
        without_group: number of rows without a group.
        without_path: number of other rows without a path.
        unreadable: number of images that could not be read.
        small: size of each group that was left out.
        names: names of all classes of the model.
        disparities: disparities of labels.
        neighbours: shares of groups among neighbours; None if `config.neighbours` is 0.
    """

    model: str
    facts: Mapping[str, Any]
    column: str
    config: AssociationConfig
    without_group: int
    without_path: int
    unreadable: int
    small: Mapping[str, int]
    names: tuple[str, ...]
    disparities: Disparities
    neighbours: NeighbourShares | None

    @property
    def groups(self) -> Groups:
        """The compared groups."""
        return self.disparities.groups

    def to_dict(self) -> dict[str, Any]:
        """JSON values of all results; rates and disparities are shares, from -1 to 1."""
        disparities = self.disparities
        # converted by float() and int(), because NumPy's numbers are not JSON values
        rows = [
            {
                "label": self.names[disparities.labels[row]],
                "index": int(disparities.labels[row]),
                "group": self.groups.names[group],
                "rate": float(disparities.rates[row, group]),
                "disparity": float(disparities.values[row, group]),
                "interval": [
                    float(disparities.low[row, group]),
                    float(disparities.high[row, group]),
                ],
                "p": float(disparities.p[row, group]),
                "significant": bool(disparities.significant[row, group]),
            }
            for row, group in disparities.rank()
        ]
        neighbours = self.neighbours and {
            name: getattr(self.neighbours, name).tolist() for name in ("share", "expected", "p")
        }
        return {
            "model": self.model,
            "data": dict(self.facts),
            "group_column": self.column,
            "settings": asdict(self.config),
            "versions": find_versions("swag_models", "torch", "python"),
            "groups": dict(zip(self.groups.names, self.groups.sizes.tolist())),
            "left_out": {
                "groups": dict(self.small),
                "without_group": self.without_group,
                "without_path": self.without_path,
                "unreadable": self.unreadable,
            },
            "labels": {
                "of_model": len(self.names),
                "tested": len(disparities.labels),
                "too_rare": disparities.rare,
            },
            "smallest": {
                str(rate): disparities.find_smallest(rate).tolist() for rate in REPORTED_RATES
            },
            "disparities": rows,
            "neighbours": neighbours,
        }


def measure_associations(
    model: EvaluatedModel,
    images: GroupedImages,
    config: AssociationConfig | None = None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = True,
    dist: DistContext = SINGLE_PROCESS,
    scratch: Path | None = None,
) -> Associations:
    """Label the images, and compare the labels and the nearest neighbours between groups.

    Args:
        model: a model with classes.
        images: the images with their groups.
        config: how labels are assigned and compared; by default `AssociationConfig()`.
        batch_size: images per forward pass of a rank.
        workers: number of processes per rank that read images.
        progress: whether to show progress bars.
        dist: the ranks that share the pass of the model; by default this process alone.
        scratch: folder for a temporary file of the features, if neighbours are compared; by default
            the cache folder of downloads.

    Returns:
        The disparities, on every rank.

    Raises:
        OutputError: the temporary file cannot be written.
        ConfigError: the model has no classes, fewer than two groups are large enough, or there
            are fewer images than neighbours.
    """
    config = config or AssociationConfig()
    if model.num_classes is None:
        raise ConfigError(
            f"{model.name} has no classes and so no labels; choose a model with classes"
        )
    # fails early, not after reading the images
    _select_groups([group for (group,) in images.labels], images, config)
    loader = open_eval_loader(
        images,
        model.fit,
        batch_size=batch_size,
        rank=dist.rank,
        world_size=dist.world_size,
        workers=workers,
    )

    def compute(batch: Batch) -> tuple[NDArray[Any], ...]:
        logits, features = model.forward(batch.images)
        labels = choose_labels(
            logits, config.top_k, config.threshold, multi_label=model.multi_label
        ).numpy()
        return (labels, features.numpy()) if config.neighbours else (labels,)

    rows = collect_rows(
        loader, compute, dist, scratch or cache_folder(), batch_size=batch_size, progress=progress
    )
    return dist.run_on_main(lambda: _compare_groups(model, images, config, loader, rows, progress))


def _compare_groups(
    model: EvaluatedModel,
    images: GroupedImages,
    config: AssociationConfig,
    loader: EvalLoader,
    rows: CollectedRows,
    progress: bool,
) -> Associations:
    """Compare labels (N, K) and features (N, D), the collected rows, between groups."""
    unreadable = loader.skipped.total()
    try:
        mask, groups, small = _select_groups([code for (code,) in rows.classes], images, config)
    except ConfigError:  # the table has enough images, so too many are unreadable
        raise ConfigError(
            f"{unreadable:,} of {count_noun(len(images), 'image')} cannot be read, and too few are "
            f"left to compare: {next(iter(loader.skipped))}; paths are relative to {images.root}, "
            "the table's folder"
        ) from None
    test_options: dict[str, Any] = {
        "permutations": config.permutations,
        "seed": config.seed,
        "progress": progress,
    }
    neighbours = None
    if config.neighbours:
        features = rows.outputs[1].select(np.flatnonzero(mask))
        indices = list_neighbours(features, config.neighbours)
        neighbours = compare_neighbours(indices, groups, **test_options)
    # a model may have classes without names
    assert model.num_classes is not None
    class_names = model.classes or tuple(f"class {index}" for index in range(model.num_classes))
    return Associations(
        model=model.name,
        facts=loader.facts,
        column=images.column,
        config=config,
        without_group=images.without_group,
        without_path=images.without_path,
        unreadable=unreadable,
        small=small,
        names=class_names,
        disparities=measure_disparities(
            rows.outputs[0][:][mask], groups, min_images=config.min_images, **test_options
        ),
        neighbours=neighbours,
    )


def choose_labels(
    logits: Tensor, top_k: int, threshold: float, *, multi_label: bool = False
) -> Tensor:
    """The labels of each image: the `top_k` classes with a probability above `threshold`.

    Args:
        logits: (n, classes).
        top_k: K, the maximum number of labels.
        threshold: minimum probability, exclusive.
        multi_label: take sigmoids for probabilities, not a softmax.

    Returns:
        (n, K), class indices in descending order of probability, padded with -1.
    """
    probabilities = logits.sigmoid() if multi_label else logits.softmax(1)
    best = probabilities.topk(min(top_k, logits.shape[1]))
    return torch.where(best.values > threshold, best.indices, -1)


def _select_groups(
    codes: list[int], images: GroupedImages, config: AssociationConfig
) -> tuple[Mask, Groups, Mapping[str, int]]:
    """Call `Groups.keep_large`; raise ConfigError also for too few images for the neighbours."""
    all_codes: Integers = np.array(codes, np.int64)
    mask, groups, small = Groups(all_codes, images.class_names).keep_large(config.min_group)
    if config.neighbours >= len(groups.codes):
        raise ConfigError(
            f"invalid neighbours {config.neighbours}: allowed: 0 to {len(groups.codes) - 1}, "
            f"fewer than the {count_noun(len(groups.codes), 'image')}"
        )
    return mask, groups, small
