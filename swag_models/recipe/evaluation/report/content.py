"""The content of the report, from which both templates are filled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from swag_models.formatting import count_noun
from swag_models.recipe.evaluation.multilabel.results import AnyEvaluation, MultilabelEvaluation
from swag_models.recipe.evaluation.report.confusions import (
    Confusion,
    Miss,
    find_confusions,
    find_misses,
    pick_misses,
)
from swag_models.recipe.evaluation.report.multilabel_tables import (
    build_multilabel_table,
    describe_classes,
)
from swag_models.recipe.evaluation.report.plots import (
    Plot,
    plot_few_shot,
    plot_neighbours,
    plot_reliability,
)
from swag_models.recipe.evaluation.report.tables import (
    BenchmarkKey,
    Table,
    build_accuracy_table,
    build_few_shot_table,
    build_neighbours_table,
    group_benchmarks,
)
from swag_models.recipe.evaluation.results import PUBLISHED_TOLERANCE, Evaluation, Probe

MAX_CONFUSIONS = 6  # per model
MAX_CONFUSION_IMAGES = 4  # per confusion
MAX_MISSED_CLASSES = 12  # with one image each
MAX_ERROR_MESSAGES = 10
# texts by the anchor of their section
INTRODUCTIONS = {
    "accuracy": "In percent, with 95% intervals.",
    "multilabel": "In percent, with 95% intervals from resamplings of the images.",
    "labels": "Top-1 accuracy in percent, by labelled images per class.",
    "neighbours": "Top-1 accuracy in percent, by number of nearest neighbours among all labelled "
    "images.",
    "calibration": "Accuracy at each confidence level (bars). A perfectly calibrated model follows "
    "the dashed line.",
    "errors": "The most frequent confusions of each model (true → predicted class), with the "
    "images of the most confident predictions and the probability of the predicted class.",
}
DEFINITIONS = {
    "top-1": "share of images whose most probable class is correct",
    "top-5": "share of images with a correct class among the five most probable ones",
    "per class": "mean of the top-1 within each class, so that rare classes count as much as "
    "frequent ones",
    "ECE": "expected calibration error: the difference between the probability of the predicted "
    "class and the accuracy, averaged over all images; with few images the interval may lie above "
    "the value",
    "95% interval": "contains the value for all images of this kind in 19 of 20 samples",
    "published": "top-1 that the authors of the model report for this benchmark",
}
MULTILABEL_DEFINITIONS = {
    "mAP": "mean over classes of average precision, the area under the curve of precision and "
    "recall; classes without images in the data are left out",
    "CP, CR, CF1": "means over these classes of precision and recall, and their harmonic mean",
    "OP, OR, OF1": "precision, recall and F1 of all predictions together",
}
FEW_SHOT_DEFINITION = (
    "top-1 of a classifier on features of the frozen model; ± is the standard deviation over "
    "random choices of the labelled images"
)
# wrong conclusions that readers might draw from the numbers
LIMITATIONS = {
    "chance": "models with overlapping intervals may differ by chance",
    "skipped": "images that cannot be read count neither as correct nor as wrong",
    "seen before": "a model may have been pre-trained on images like these; the report does not "
    "check this",
    "images shown": "they were selected because they are wrong, and do not show how a model "
    "usually behaves",
}

Facts = Sequence[tuple[str, str]]


class BenchmarkErrors(NamedTuple):
    """The errors of all models on one benchmark.

    Attributes:
        benchmark: the benchmark.
        confusions: (evaluation, its most frequent confusions) of each model.
        misses: (image, number of such images of its class): images that all models classify
            incorrectly; None for a single model.
        miss_summary: number of images that all models classify incorrectly.
    """

    benchmark: BenchmarkKey
    confusions: list[tuple[Evaluation, list[Confusion]]]
    misses: list[tuple[Miss, int]] | None
    miss_summary: str


@dataclass(frozen=True)
class ReportContent:
    """The results of a report, and the texts, tables and plots that present them.

    Attributes:
        evaluations: results of models on benchmarks.
        probes: results of probes.
        date: date of the report, as text.
        versions: versions of the software.
        origins: description of each model, by name.
        facts: descriptions of the probes' training and test data, as `EvalLoader.facts`.
        multilabel: results of models on images with any number of labels.
    """

    evaluations: Sequence[Evaluation]
    probes: Sequence[Probe]
    date: str
    versions: Mapping[str, str]
    origins: Mapping[str, str] = field(default_factory=dict)
    facts: Sequence[Mapping[str, Any]] = ()
    multilabel: Sequence[MultilabelEvaluation] = ()
    # without annotations, so that these are not fields of the dataclass
    title = "Transfer evaluation"
    introductions = INTRODUCTIONS

    @property
    def sections(self) -> dict[str, str]:
        """Title of each section that has content, by its anchor."""
        titles = {}
        if self.evaluations:
            titles["accuracy"] = "Accuracy"
        if self.multilabel:
            titles["multilabel"] = "Several labels"
        if self.probes:
            titles["labels"] = "With few labels"
        if self.evaluations:
            titles |= {"calibration": "Calibration", "errors": "Errors"}
        return {**titles, "details": "How it was made"}

    @property
    def measured(self) -> tuple[AnyEvaluation, ...]:
        """The evaluations of all kinds."""
        return (*self.evaluations, *self.multilabel)

    @cached_property
    def models(self) -> list[str]:
        """Names of all models, in order of first appearance."""
        names = [evaluation.model for evaluation in self.measured]
        return list(dict.fromkeys(names + [probe.model for probe in self.probes]))

    @cached_property
    def benchmarks(self) -> dict[BenchmarkKey, list[Evaluation]]:
        """The evaluations of each benchmark."""
        return group_benchmarks(self.evaluations)

    @cached_property
    def accuracy(self) -> dict[BenchmarkKey, Table]:
        """The accuracy table of each benchmark."""
        return {
            benchmark: build_accuracy_table(group) for benchmark, group in self.benchmarks.items()
        }

    @cached_property
    def multilabel_groups(self) -> dict[BenchmarkKey, list[MultilabelEvaluation]]:
        """The multi-label evaluations of each data set."""
        return group_benchmarks(self.multilabel)

    @cached_property
    def multilabel_tables(self) -> dict[BenchmarkKey, Table]:
        """The table of each data set with several labels."""
        groups = self.multilabel_groups
        return {key: build_multilabel_table(group) for key, group in groups.items()}

    @property
    def multilabel_remarks(self) -> list[str]:
        """The lines below these tables: thresholds, classes, and `remarks` if nowhere else."""
        lines = [] if self.evaluations else list(self.remarks)
        for evaluation in self.multilabel:
            threshold = evaluation.settings["threshold"]
            text = f"{threshold:g}" if isinstance(threshold, float) else "of each class"
            kind = evaluation.settings["probability"]
            lines.append(f"{describe_classes(evaluation)}; {kind}, threshold {text}.")
        return lines

    @cached_property
    def probe_tables(self) -> dict[str, Table]:
        """The tables of probes that have rows, by their introductions."""
        tables = {
            INTRODUCTIONS["labels"]: build_few_shot_table(self.probes),
            INTRODUCTIONS["neighbours"]: build_neighbours_table(self.probes),
        }
        return {introduction: table for introduction, table in tables.items() if table.rows}

    @cached_property
    def curves(self) -> list[Plot]:
        """The plots of probes."""
        train = self.facts[0] if self.facts else {}
        images_per_class = train["samples"] / train["classes"] if train.get("samples") else None
        plots = (plot_few_shot(self.probes, images_per_class), plot_neighbours(self.probes))
        return [plot for plot in plots if plot]

    @cached_property
    def reliability(self) -> dict[BenchmarkKey, list[Plot]]:
        """The reliability diagrams of each benchmark, one for each model."""
        return {
            benchmark: [plot_reliability(evaluation, benchmark.title) for evaluation in group]
            for benchmark, group in self.benchmarks.items()
        }

    @cached_property
    def errors(self) -> list[BenchmarkErrors]:
        """The errors on each benchmark."""
        errors = []
        for benchmark, group in self.benchmarks.items():
            confusions = [
                (evaluation, find_confusions(evaluation, MAX_CONFUSIONS)) for evaluation in group
            ]
            # for a single model these would be all its errors
            misses = find_misses(group) if len(group) > 1 else []
            picked = pick_misses(misses, MAX_MISSED_CLASSES) if len(group) > 1 else None
            summary = _summarise_misses(len(misses), len(group[0].records))
            errors.append(BenchmarkErrors(benchmark, confusions, picked, summary))
        return errors

    @property
    def summary(self) -> str:
        """The models, benchmarks and date in one line."""
        names = [key.title for key in (*self.benchmarks, *self.multilabel_groups)]
        benchmarks = [f"measured on {_join_names(names, 'benchmarks')}"] if names else []
        return " · ".join([_join_names(self.models, "models"), *benchmarks, self.date])

    @property
    def remarks(self) -> list[str]:
        """The lines below the accuracy table: the meaning of marks, and the skipped images."""
        lines = []
        if len(self.models) > 1:
            ece = "; for ECE, lower is better" if self.evaluations else ""
            lines.append(f"The best value of each column is bold{ece}.")
        if any(evaluation.differs for evaluation in self.evaluations):
            lines.append(
                f"⚠ marks a top-1 that differs by more than {PUBLISHED_TOLERANCE:g} points from "
                "the published one."
            )
        # a dict, since all models skip the same images
        skipped = dict.fromkeys(
            (evaluation.facts["name"], message, count)
            for evaluation in self.measured
            for message, count in evaluation.skipped.items()
        )
        messages = [
            f"Skipped: {name}: {message}" + (f" ({count:,} times)" if count > 1 else "")
            for name, message, count in skipped
        ]
        lines += messages[:MAX_ERROR_MESSAGES]
        if messages[MAX_ERROR_MESSAGES:]:
            lines.append(f"and {len(messages) - MAX_ERROR_MESSAGES} more")
        return lines

    @property
    def details(self) -> dict[str, Facts]:
        """Definitions, limitations and provenance: lists of (term, description), by title."""
        definitions = dict(DEFINITIONS) if self.benchmarks else {}
        definitions |= MULTILABEL_DEFINITIONS if self.multilabel else {}
        if self.probes:
            definitions["with few labels"] = FEW_SHOT_DEFINITION
        data = []
        groups: dict[BenchmarkKey, Any] = {**self.benchmarks, **self.multilabel_groups}
        for benchmark, group in groups.items():
            # the classes of the images; the model may have more
            classes = {label for record in group[0].records for label in record.labels}
            data.append((" ".join(benchmark), _describe_data(group[0].facts, len(classes))))
        for facts, use in zip(self.facts, ("for training", "for testing")):
            data.append((f"{facts['name']}, {use}", _describe_data(facts, facts["classes"])))
        parts: dict[str, Facts] = {
            "What the numbers mean": list(definitions.items()),
            "Limitations": list(LIMITATIONS.items()),
            "Data": data,
            "Models": list(self.origins.items()),
            "Software": list(self.versions.items()),
        }
        return {title: facts for title, facts in parts.items() if facts}


def _summarise_misses(num_misses: int, num_images: int) -> str:
    if not num_misses:
        return f"none of {count_noun(num_images, 'image')}"
    return (
        f"{num_misses:,} of {count_noun(num_images, 'image')}, {100 * num_misses / num_images:.1f}%"
    )


def _describe_data(facts: Mapping[str, Any], num_classes: int | None) -> str:
    counts = [
        count_noun(count, noun)
        for count, noun in ((facts["samples"], "image"), (num_classes, "class"))
        if count  # the size of a stream is unknown
    ]
    return ", ".join([facts["kind"], *counts, f"SHA-256 {facts['sha256']}"])


def _join_names(names: Sequence[str], noun: str) -> str:
    """Join up to three names; a longer list becomes its length and the noun."""
    if len(names) > 3:
        return f"{len(names)} {noun}"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
