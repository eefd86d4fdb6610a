"""What the report tells, in order and in words; the page and its Markdown only set it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from swag_models.recipe.evaluation.report.confusions import Confusion, Miss
from swag_models.recipe.evaluation.report.plots import (
    Plot,
    plot_neighbours,
    plot_reliability,
    plot_shots,
)
from swag_models.recipe.evaluation.report.tables import (
    Benchmark,
    Table,
    group_benchmarks,
    make_accuracy,
    make_shots,
    name_benchmark,
)
from swag_models.recipe.evaluation.results import PUBLISHED_TOLERANCE, Evaluation, Probe

Facts = Sequence[tuple[str, str]]
INTRODUCTIONS = {
    "accuracy": "In percent, with 95% intervals.",
    "labels": "Top-1 in percent by labels of each class.",
    "calibration": "How often a model is right (bars) when it is so sure. On the dashed line it is as right as it is sure.",
    "errors": "What is taken for what most often. Of each confusion, the pictures that the model is surest of.",
}
MEANINGS = {
    "top-1": "the share of pictures whose best class is a true one",
    "top-5": "the share of pictures with a true class among the best five",
    "per class": "the mean of the top-1 of each class, so that rare classes count as much as frequent ones",
    "ECE": "expected calibration error: how far the probability of the best class is from the share of right answers, "
    "on the mean; of few pictures its interval may lie above it",
    "95% interval": "holds what all pictures of this kind would give, 19 times out of 20",
    "published": "top-1 as the makers of the model state it for this benchmark",
}
SPLITS = "top-1 of a classifier on features of the frozen model; ± is the standard deviation over choices of the labelled pictures"
LIMITS = {
    "chance": "models whose intervals overlap may differ by chance",
    "skipped": "pictures that cannot be read count neither as right nor as wrong",
    "seen before": "a model may have been pre-trained on pictures like these; nothing here looks for that",
    "pictures shown": "they were chosen for being wrong, and say nothing of what a model usually does",
}


@dataclass(frozen=True)
class Story:
    """Results and where they come from.

    date: of today, as people are to read it. versions: of what decides the numbers. origins: of models, what else is known of
    each. facts: of the pictures that probes learn from, and of those that they are tested on, as a `EvalLoader` has them.
    """

    evaluations: Sequence[Evaluation]
    probes: Sequence[Probe]
    date: str
    versions: Mapping[str, str]
    origins: Mapping[str, str] = field(default_factory=dict)
    facts: Sequence[Mapping[str, Any]] = ()
    title = "Transfer evaluation"

    @cached_property
    def models(self) -> list[str]:
        return list(
            dict.fromkeys(
                [each.model for each in self.evaluations] + [each.model for each in self.probes]
            )
        )

    @cached_property
    def benchmarks(self) -> dict[Benchmark, list[Evaluation]]:
        return group_benchmarks(self.evaluations)

    @cached_property
    def accuracy(self) -> dict[Benchmark, Table]:
        return {benchmark: make_accuracy(group) for benchmark, group in self.benchmarks.items()}

    @cached_property
    def shots(self) -> Table:
        return make_shots(self.probes)

    @cached_property
    def curves(self) -> list[Plot]:
        train = self.facts[0] if self.facts else {}
        labels = train["samples"] / train["classes"] if train.get("samples") else None
        plots = (plot_shots(self.probes, labels), plot_neighbours(self.probes))
        return [plot for plot in plots if plot]

    @cached_property
    def reliability(self) -> dict[Benchmark, list[Plot]]:
        return {
            benchmark: [plot_reliability(each, name_benchmark(benchmark)) for each in group]
            for benchmark, group in self.benchmarks.items()
        }

    @property
    def summary(self) -> str:
        benchmarks = [name_benchmark(benchmark) for benchmark in self.benchmarks]
        measured = [f"measured on {_list(benchmarks, 'benchmarks')}"] if benchmarks else []
        return " · ".join([_list(self.models, "models"), *measured, self.date])

    @property
    def remarks(self) -> list[str]:
        """Below the table of accuracies."""
        lines = (
            ["The best of each column is bold; of ECE the lowest is the best."]
            if len(self.models) > 1
            else []
        )
        if any(each.differs for each in self.evaluations):
            lines.append(
                f"⚠ marks a top-1 that is more than {PUBLISHED_TOLERANCE:g} points from the published one."
            )
        found = (
            (each.facts["name"], item) for each in self.evaluations for item in each.skipped.items()
        )
        broken = [
            f"{name}: {message}" + (f" ({count:,} times)" if count > 1 else "")
            for name, (message, count) in dict.fromkeys(found)  # which all models meet
        ]
        return (
            lines
            + [f"Skipped: {line}" for line in broken[:10]]
            + ([f"and {len(broken) - 10} more"] if broken[10:] else [])
        )

    @property
    def making(self) -> dict[str, Facts]:
        meanings = {
            **(MEANINGS if self.benchmarks else {}),
            **({"with few labels": SPLITS} if self.probes else {}),
        }
        data = [
            (" ".join(benchmark), _describe(group[0].facts, _count_classes(group[0])))
            for benchmark, group in self.benchmarks.items()
        ]
        data += [
            (f"{each['name']}, {use}", _describe(each, each["classes"]))
            for use, each in zip(("to learn from", "to test on"), self.facts)
        ]
        parts = {
            "What the numbers mean": list(meanings.items()),
            "What they do not say": list(LIMITS.items()),
            "Data": data,
            "Models": list(self.origins.items()),
            "Software": list(self.versions.items()),
        }
        return {title: facts for title, facts in parts.items() if facts}


def count_confusion(confusion: Confusion) -> str:
    count = len(confusion.records)
    return f"{count:,} picture{'s' * (count > 1)}, {confusion.share:.0f}% of {confusion.truth}"


def count_misses(group: Sequence[Evaluation], misses: Sequence[Miss]) -> str:
    total = len(group[0].records)
    if not misses:
        return f"none of {total:,} pictures"
    return f"{len(misses):,} of {total:,} pictures, {100 * len(misses) / total:.1f}%"


def _count_classes(evaluation: Evaluation) -> int:
    """Those of the pictures; the model may have more."""
    return len({label for record in evaluation.records for label in record.labels})


def _describe(facts: Mapping[str, Any], classes: int | None) -> str:
    counts = [
        f"{count:,} {what}"
        for count, what in ((facts["samples"], "pictures"), (classes, "classes"))
        if count
    ]
    return ", ".join([facts["kind"], *counts, f"SHA-256 {facts['sha256']}"])


def _list(names: Sequence[str], what: str) -> str:
    """All of them, or how many if they are many."""
    return (
        " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        if len(names) <= 3
        else f"{len(names)} {what}"
    )
