"""What measuring gives: values, in percent unless they say otherwise, that tables, files and the report are made from."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from swag_models.atomic import atomic_write, disk_errors

TOLERANCE = 0.1  # points by which a measured accuracy may differ from the published one


class Estimate(NamedTuple):
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float


class Bin(NamedTuple):
    """Pictures whose best class has a probability in (low, high]: how many, their mean probability, their share of hits."""

    low: float
    high: float
    pictures: int
    probability: float
    accuracy: float


class ImageResult(NamedTuple):
    """One picture: its name in the data, its true classes, the model's best five in order, and the probability of the first."""

    name: str
    labels: tuple[int, ...]
    top: tuple[int, ...]
    probability: float


def write_texts(folder: Path, files: Mapping[str, str]) -> None:
    """Files of these names, each whole, in a folder that is made if need be. OutputError if they cannot be written."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with atomic_write(folder / name) as to:
                to.write_text(text, "utf-8")


@dataclass(frozen=True)
class Evaluation:
    """A model on a suite: every picture once.

    facts: of the data, as a `EvalLoader` has them. settings: preprocess and dtype of the model, only_present.
    skipped: broken pictures by message. classes: the name of each class.
    published: top-1 as the model's makers state it for this suite, None if they do not. ece: expected calibration error.
    """

    model: str
    suite: str
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]
    skipped: Mapping[str, int]
    classes: tuple[str, ...]
    top1: Estimate
    top5: Estimate
    mean_per_class: Estimate
    ece: Estimate
    bins: tuple[Bin, ...]
    published: float | None
    records: tuple[ImageResult, ...] = field(repr=False)

    @property
    def differs(self) -> bool:
        """Whether it is not what was published."""
        return self.published is not None and abs(self.top1.value - self.published) > TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the records."""
        values = {
            name: value
            for name, value in asdict(self).items()
            if name not in ("records", "classes")
        }
        estimates = {
            name: value._asdict()
            for name, value in vars(self).items()
            if isinstance(value, Estimate)
        }
        return {
            **values,
            **estimates,
            "bins": [each._asdict() for each in self.bins],
            "differs": self.differs,
        }


@dataclass(frozen=True)
class Probe:
    """A classifier on a frozen model: top-1 on the test pictures, one value for each split of the training pictures.

    shots: labels of each class if whole, a share of all below 1, None for all. settings: what was chosen, such as k or C.
    """

    model: str
    method: Literal["knn", "logistic", "sgd"]
    shots: int | float | None
    values: tuple[float, ...]
    settings: Mapping[str, Any]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over splits."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "mean": self.mean, "spread": self.spread}
