"""The tables of multi-label results in the report."""

from collections.abc import Sequence

from swag_models.recipe.evaluation.multilabel.results import MEASURES, MultilabelEvaluation
from swag_models.recipe.evaluation.report.tables import Cell, Table, format_interval

HARD_CLASSES = 5  # listed for each model


def build_multilabel_table(evaluations: Sequence[MultilabelEvaluation]) -> Table:
    """The table of one data set, with a row for each model.

    The best value of each column is marked if there are several models.

    Args:
        evaluations: evaluations of several models on the same data.
    """
    best = {
        name: max(round(evaluation.measures[name].value, 2) for evaluation in evaluations)
        for name in MEASURES
    }
    rows = []
    for evaluation in evaluations:
        cells = [
            Cell(
                f"{estimate.value:.2f}",
                (format_interval(estimate),),
                len(evaluations) > 1 and round(estimate.value, 2) == best[name],
            )
            for name, estimate in ((name, evaluation.measures[name]) for name in MEASURES)
        ]
        num_skipped = sum(evaluation.skipped.values())
        skipped = (f"{num_skipped:,} skipped",) if num_skipped else ()
        cells.append(Cell(f"{len(evaluation.records):,}", skipped))
        rows.append((evaluation.model, tuple(cells)))
    return Table((*MEASURES, "images"), tuple(rows))


def describe_classes(evaluation: MultilabelEvaluation) -> str:
    """One line on the classes: how many are in the means, and those of the lowest precision."""
    ranked = sorted(
        (result.average_precision, name)
        for name, result in zip(evaluation.classes, evaluation.class_results, strict=True)
        if result.average_precision is not None
    )
    lowest = ", ".join(f"{name} {value:.1f}" for value, name in ranked[:HARD_CLASSES])
    return (
        f"{evaluation.model}: classes in the means: {evaluation.describe_classes()}; "
        f"lowest average precision: {lowest}"
    )
