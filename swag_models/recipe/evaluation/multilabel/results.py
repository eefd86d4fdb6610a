"""Results of multi-label evaluations, and their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from swag_models.formatting import list_names, markdown_table
from swag_models.recipe.evaluation.results import BaseEvaluation, Estimate, Evaluation

MEASURES = ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")


class ClassResult(NamedTuple):
    """The results of one class; shares are in percent, and None for a class without positives.

    Attributes:
        positives: number of images that have the class.
        predictions: number of images for which it is predicted.
        average_precision: area under its curve of precision and recall.
        precision: share of the predictions that are right; 0 without any.
        recall: share of the positives that are predicted.
    """

    positives: int
    predictions: int
    average_precision: float | None
    precision: float | None
    recall: float | None


class LabelledImage(NamedTuple):
    """The predictions for one image.

    Attributes:
        name: name of the image within its data set.
        labels: its classes.
        predicted: classes whose probability reaches the threshold, the most probable first.
        probabilities: of the predicted classes, from 0 to 1.
    """

    name: str
    labels: tuple[int, ...]
    predicted: tuple[int, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class MultilabelEvaluation(BaseEvaluation):
    """The results of one model on images with any number of labels each.

    Attributes:
        measures: the estimate of each of MEASURES, in percent.
        class_results: results of each class.
        records: the predictions for every image, sorted by name.
    """

    measures: Mapping[str, Estimate]
    class_results: tuple[ClassResult, ...]
    records: tuple[LabelledImage, ...] = field(repr=False)

    @property
    def without_positives(self) -> list[str]:
        """Names of the classes that no image has, which are left out of the means over classes."""
        pairs = zip(self.classes, self.class_results, strict=True)
        return [name for name, result in pairs if not result.positives]

    def describe_classes(self) -> str:
        """How many classes the means are over, and which are left out."""
        missing, total = self.without_positives, len(self.classes)
        if not missing:
            return f"{total:,}"
        return f"{total - len(missing):,} of {total:,}, without {list_names(missing, 3)}"

    def summarise(self) -> dict[str, Any]:
        """Return JSON values for readers: named parts, without the predictions."""
        summary: dict[str, Any] = dict(vars(self))
        del summary["records"], summary["classes"], summary["measures"], summary["class_results"]
        return {
            **summary,
            **{name: estimate._asdict() for name, estimate in self.measures.items()},
            "without_positives": self.without_positives,
            "classes": [
                {"name": name, **result._asdict()}
                for name, result in zip(self.classes, self.class_results, strict=True)
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MultilabelEvaluation":
        """Restore an evaluation from `to_dict`, also after a round trip through JSON."""
        measures = {name: Estimate(*estimate) for name, estimate in values["measures"].items()}
        records = (
            LabelledImage(name, tuple(labels), tuple(predicted), tuple(probabilities))
            for name, labels, predicted, probabilities in values["records"]
        )
        restored = {
            **values,
            "classes": tuple(values["classes"]),
            "measures": measures,
            "class_results": tuple(ClassResult(*result) for result in values["class_results"]),
            "records": tuple(records),
        }
        return cls(**restored)

    def list_rows(self) -> list[dict[str, object]]:
        """List a row of the Parquet file for each image."""
        return [
            {
                "name": record.name,
                "labels": list(record.labels),
                "label_names": [self.classes[label] for label in record.labels],
                "predicted": list(record.predicted),
                "predicted_names": [self.classes[index] for index in record.predicted],
                "probabilities": list(record.probabilities),
            }
            for record in self.records
        ]


AnyEvaluation = Evaluation | MultilabelEvaluation


def format_multilabel(evaluations: Sequence[MultilabelEvaluation]) -> str:
    """Format a Markdown table with a row for each evaluation."""
    rows = []
    for evaluation in evaluations:
        images = f"{len(evaluation.records):,}"
        if evaluation.skipped:
            images += f", {sum(evaluation.skipped.values()):,} broken"
        estimates = (evaluation.measures[name] for name in MEASURES)
        cells = [f"{part.value:.2f} ({part.low:.2f} to {part.high:.2f})" for part in estimates]
        rows.append((evaluation.model, images, evaluation.describe_classes(), *cells))
    return markdown_table(("model", "images", "classes", *MEASURES), rows) + "\n"
