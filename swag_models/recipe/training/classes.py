"""The classes that a run learns: names, and how frequent they are in the training data."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from swag_models.errors import ConfigError
from swag_models.hub.hf_format import check_printable
from swag_models.recipe.config import Objective
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.shards import Shards, find_vocabulary, read_vocabulary
from swag_models.recipe.data.train_loader import TrainLoader
from swag_models.recipe.training.head_init import HeadInit

# A class that almost all samples have gets this weight, so that it has no part of the target beside
# other classes, and all of it alone.
MIN_WEIGHT = 1e-6


@dataclass(frozen=True)
class Classes:
    """The classes that a run learns.

    Attributes:
        count: number of classes.
        names: of the classes; None if the data have none.
        synsets: WordNet id of each class, if the classes are hashtags.
        vocabulary: the file that hashtags and synsets come from.
        sample_counts: number of samples of an epoch that have each class; None if not known.
        samples: number of samples of an epoch; 0 if not known.
        head: how their head starts, if not at random.
    """

    count: int
    names: tuple[str, ...] | None = None
    synsets: tuple[str, ...] | None = None
    vocabulary: Path | None = None
    sample_counts: tuple[float, ...] | None = None
    samples: int = 0
    head: HeadInit | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def shares(self) -> tuple[float, ...] | None:
        """Share of the samples that have each class; None if not known."""
        if self.sample_counts is None:
            return None
        # as if there were one more sample with each class and one without: not 0 or 1
        return tuple((count + 1) / (self.samples + 2) for count in self.sample_counts)


def read_class_names(
    loader: TrainLoader, data: Shards | ImageDataset, vocabulary: Path | None = None
) -> Classes:
    """Read the classes of training data: the hashtags of a vocabulary, or the loader's classes.

    Args:
        loader: of the data.
        data: as it was given.
        vocabulary: path of vocabulary.parquet; by default that beside packed shards.

    Raises:
        ConfigError: the number of classes is unknown, or a class has control characters.
    """
    if isinstance(data, ImageDataset):
        if vocabulary is None:
            check_printable(data.root, *(data.class_names or ()))
            return _count(Classes(data.num_classes, data.class_names), loader)
    elif vocabulary is None:
        vocabulary = find_vocabulary(data)
    if path := vocabulary:
        rows = read_vocabulary(path)
        hashtags = tuple(row["hashtag"] for row in rows)
        check_printable(path, *hashtags)
        synsets = tuple(row["synset"] for row in rows)
        return _count(Classes(len(rows), hashtags, synsets, path), loader)
    if loader.num_classes is None:
        raise ConfigError(
            f"{data} does not say how many classes it has; "
            "use a folder of packed shards with its manifest.json"
        )
    check_printable(data, *(loader.class_names or ()))
    return _count(Classes(loader.num_classes, loader.class_names), loader)


def _count(classes: Classes, loader: TrainLoader) -> Classes:
    """Add the frequencies of the classes, if the loader knows them."""
    counts = loader.count_classes()
    if counts is None or not loader.samples:
        return classes
    # the last classes of a vocabulary may have lost all of their images
    missing = [0.0] * (len(classes) - len(counts))
    return replace(classes, sample_counts=(*counts, *missing), samples=loader.samples)


def weigh_classes(objective: Objective, classes: Classes) -> tuple[float, ...] | None:
    """Weigh each class for the targets of a run; None for equal weights.

    The inverse document frequency is log(N / (1 + n)) for n of N samples with the class (Huang et
    al. 2024, arXiv 2411.03313), at least MIN_WEIGHT. N and n are of an epoch, that is, of images as
    often as they are seen: there they are counted while training.

    Raises:
        ConfigError: the objective needs the frequencies of the classes, and they are not known.
    """
    if objective.weighting == "none":
        return None
    if classes.sample_counts is None:
        raise ConfigError(
            "objective.weighting is 'idf', and the training data do not say how many samples have "
            "each class; pack the shards again, or set objective.weighting=none"
        )
    return tuple(
        max(MIN_WEIGHT, math.log(classes.samples / (1 + count))) for count in classes.sample_counts
    )
