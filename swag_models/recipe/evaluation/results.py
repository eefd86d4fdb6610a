"""Result types of evaluations, in percent, and their conversion to and from JSON."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

# Published accuracies have one or two decimals; a larger difference cannot be due to rounding.
PUBLISHED_TOLERANCE = 0.1  # percentage points


class Estimate(NamedTuple):
    """A value with the ends of its 95% confidence interval."""

    value: float
    low: float
    high: float


class Bin(NamedTuple):
    """One bin of a reliability diagram; all numbers but the count are in percent.

    Attributes:
        low: lower end of the bin, exclusive.
        high: upper end of the bin, inclusive.
        images: number of images whose highest class probability is in the bin.
        probability: mean of these probabilities.
        accuracy: share of these images whose first class is correct.
    """

    low: float
    high: float
    images: int
    probability: float
    accuracy: float


class ImageResult(NamedTuple):
    """The prediction for one image.

    Attributes:
        name: name of the image within its data set.
        labels: the true classes.
        top: the five most probable classes, in descending order.
        probability: probability of the first of them, from 0 to 1.
    """

    name: str
    labels: tuple[int, ...]
    top: tuple[int, ...]
    probability: float


@dataclass(frozen=True)
class BaseEvaluation:
    """What the results of any benchmark state beside the measures.

    Attributes:
        model: name of the model.
        benchmark: name of the benchmark.
        facts: description of the data, as `EvalLoader.facts`.
        settings: preprocessing and dtype of the model, and options of the benchmark.
        skipped: number of images that could not be read, by error message.
        classes: name of each class.
    """

    model: str
    benchmark: str
    facts: Mapping[str, Any]
    settings: Mapping[str, Any]
    skipped: Mapping[str, int]
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values of all fields, from which `from_dict` restores the results."""
        return dict(vars(self))


@dataclass(frozen=True)
class Evaluation(BaseEvaluation):
    """The accuracy of one model on one benchmark.

    Attributes:
        top1: share of images whose first class is correct.
        top5: share of images with a correct class among the first five.
        mean_per_class: mean over classes of the top-1 accuracy within the class.
        ece: expected calibration error.
        bins: reliability diagram.
        published: top-1 accuracy that the authors of the model report for this benchmark, if any.
        records: the prediction for every image, sorted by name.
    """

    top1: Estimate
    top5: Estimate
    mean_per_class: Estimate
    ece: Estimate
    bins: tuple[Bin, ...]
    published: float | None
    records: tuple[ImageResult, ...] = field(repr=False)

    @property
    def differs(self) -> bool:
        """Whether top-1 differs from the published one by more than `PUBLISHED_TOLERANCE`."""
        if self.published is None:
            return False
        return abs(self.top1.value - self.published) > PUBLISHED_TOLERANCE

    def summarise(self) -> dict[str, Any]:
        """Return JSON values for readers: named parts, without the predictions and class names."""
        summary = {**vars(self), "differs": self.differs}
        del summary["records"], summary["classes"]
        # JSON would make lists of named tuples, without the names.
        for name, value in summary.items():
            if isinstance(value, Estimate):
                summary[name] = value._asdict()
        return {**summary, "bins": [bin._asdict() for bin in self.bins]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Evaluation":
        """Restore an evaluation from `to_dict`, also after a round trip through JSON."""
        # JSON turns tuples, named ones too, into lists.
        estimates = ("top1", "top5", "mean_per_class", "ece")
        restored = {
            **values,
            **{name: Estimate(*values[name]) for name in estimates},
            "bins": tuple(Bin(*bin) for bin in values["bins"]),
            "classes": tuple(values["classes"]),
            "records": tuple(
                ImageResult(name, tuple(labels), tuple(top), probability)
                for name, labels, top, probability in values["records"]
            ),
        }
        return cls(**restored)


@dataclass(frozen=True)
class Probe:
    """The top-1 accuracy of a classifier that was trained on features of a frozen model.

    Attributes:
        model: name of the model.
        method: how the classifier was trained.
        shots: training images per class; below 1, the share of the class; None for all images.
        values: accuracy on the test images, one value per random choice of training images.
        settings: hyperparameters, such as k or C.
        skipped: number of training and test images that could not be read.
    """

    model: str
    method: Literal["knn", "logistic", "sgd"]
    shots: int | float | None
    values: tuple[float, ...]
    settings: Mapping[str, Any]
    skipped: int = 0

    @property
    def mean(self) -> float:
        """Mean over the random choices of training images."""
        return statistics.mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the random choices of training images; 0 if there is only one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values of all fields, and of the mean and spread for readers."""
        return {**asdict(self), "mean": self.mean, "spread": self.spread}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Probe":
        """Restore a probe from `to_dict`, also after a round trip through JSON."""
        model, method, shots = values["model"], values["method"], values["shots"]
        settings, skipped = values["settings"], values.get("skipped", 0)
        return cls(model, method, shots, tuple(values["values"]), settings, skipped)
