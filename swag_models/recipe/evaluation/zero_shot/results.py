"""Configurations and results of zero-shot classification."""

import statistics
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from swag_models.errors import ConfigError
from swag_models.recipe.classes.wordnet_mapping import HashtagMapping

Aggregation = Literal["sum", "max"]
AGGREGATIONS: tuple[Aggregation, ...] = ("sum", "max")
MAX_PREDICTIONS = 5


class ZeroShotPrediction(NamedTuple):
    """The prediction for one image.

    Attributes:
        name: name of the image.
        label: the true target; None if unknown.
        top: up to five targets with a score above 0, best first.
        shares: share of each of these targets in the sum of all scores.
    """

    name: str
    label: int | None
    top: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class ZeroShotConfig:
    """How targets are scored from hashtags.

    Attributes:
        platt: whether Platt scaling first makes hashtags equally frequent.
        mapping: the weights from hashtags to targets.
        aggregation: a target's score is the sum over hashtags of probability times weight, or the
            largest of these products ("max").

    Raises:
        ConfigError: the aggregation is unknown.
    """

    platt: bool = True
    mapping: HashtagMapping = field(default_factory=HashtagMapping)
    aggregation: Aggregation = "sum"

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise ConfigError(
                f"invalid aggregation {self.aggregation!r}: allowed: {', '.join(AGGREGATIONS)}"
            )


@dataclass(frozen=True)
class ZeroShotResult:
    """The predictions of one model with one configuration, and their accuracy.

    Attributes:
        model: name of the model.
        config: the configuration.
        targets: names of the targets.
        titles: names of the targets for readers.
        unreached: targets without any hashtag, which cannot be predicted.
        facts: description of the data, as `EvalLoader.facts`.
        skipped: number of images that could not be read, by error message.
        unlabelled: facts of the images that Platt scaling was fitted on; None without it.
        predictions: predictions for all images, in order.
    """

    model: str
    config: ZeroShotConfig
    targets: tuple[str, ...]
    titles: tuple[str, ...]
    unreached: tuple[str, ...]
    facts: dict[str, Any]
    skipped: dict[str, int]
    unlabelled: dict[str, Any] | None
    predictions: tuple[ZeroShotPrediction, ...] = field(repr=False)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels; otherwise accuracy is undefined."""
        return self.predictions[0].label is not None

    @property
    def top1(self) -> float:
        """Percentage of images whose label is the best target."""
        return self._measure_accuracy(1)

    @property
    def top5(self) -> float:
        """Percentage of images whose label is among the best five targets."""
        return self._measure_accuracy(MAX_PREDICTIONS)

    @property
    def mean_per_class(self) -> float:
        """Mean over the labels of the percentage of their images that are correct."""
        assert self.labelled
        hits = defaultdict[int | None, list[bool]](list)
        for prediction in self.predictions:
            hits[prediction.label].append(prediction.label in prediction.top[:1])
        return 100 * statistics.mean(map(statistics.mean, hits.values()))

    @property
    def confusions(self) -> Counter[tuple[int | None, int | None]]:
        """Number of images for each pair of label and best target (None without a target)."""
        return Counter(
            (prediction.label, prediction.top[0] if prediction.top else None)
            for prediction in self.predictions
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the predictions."""
        values = {name: value for name, value in vars(self).items() if name != "predictions"}
        accuracy = {
            name: getattr(self, name) if self.labelled else None
            for name in ("mean_per_class", "top1", "top5")
        }
        return {
            **values,
            "config": asdict(self.config),
            "images": len(self.predictions),
            **accuracy,
        }

    def _measure_accuracy(self, count: int) -> float:
        assert self.labelled
        return 100 * statistics.mean(
            prediction.label in prediction.top[:count] for prediction in self.predictions
        )
