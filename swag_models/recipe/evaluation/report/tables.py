"""The tables of the report as text, from which the page and its Markdown are written alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from swag_models.recipe.evaluation.results import Estimate, Evaluation, Probe

Benchmark = tuple[str, str]  # its name, and the name of the data


class Cell(NamedTuple):
    """A figure, what is said below it, and what to warn of."""

    text: str
    notes: tuple[str, ...] = ()
    best: bool = False
    warning: str = ""


ABSENT = Cell("\N{EN DASH}")


class Table(NamedTuple):
    """heads: of the columns. rows: the model of each, and its cells."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def group_benchmarks(evaluations: Sequence[Evaluation]) -> dict[Benchmark, list[Evaluation]]:
    """The evaluations of each benchmark, in the order of the first. Other data of the same name are numbered.

    That a model was measured on it before tells: hashes of the same data differ with the classes of models.
    """
    grouped: dict[Benchmark, list[Evaluation]] = {}
    times = Counter[tuple[str, Benchmark]]()
    for evaluation in evaluations:
        benchmark = (evaluation.benchmark, str(evaluation.facts["name"]))
        times[evaluation.model, benchmark] += 1
        number = times[evaluation.model, benchmark]
        grouped.setdefault(
            benchmark if number == 1 else (benchmark[0], f"{benchmark[1]} ({number})"), []
        ).append(evaluation)
    return grouped


def name_benchmark(benchmark: Benchmark) -> str:
    """What people call it: a folder by its name."""
    return benchmark[1] if benchmark[0] == "folder" else benchmark[0]


def make_accuracy(evaluations: Sequence[Evaluation]) -> Table:
    """Of one benchmark, a row for each model. The best is marked if there are several models."""
    measures = [[each.top1, each.top5, each.mean_per_class, each.ece] for each in evaluations]
    best = [
        choose(round(each.value, 2) for each in column)
        for choose, column in zip((max, max, max, min), zip(*measures))
    ]
    stated = any(each.published is not None for each in evaluations)  # else there is no such column
    rows = []
    for evaluation, values in zip(evaluations, measures):
        cells = [
            Cell(
                f"{each.value:.2f}",
                (write_interval(each),),
                len(evaluations) > 1 and round(each.value, 2) == winner,
            )
            for each, winner in zip(values, best)
        ]
        seen, skipped = len(evaluation.records), sum(evaluation.skipped.values())
        pictures = Cell(f"{seen:,}", (f"{skipped:,} skipped",) if skipped else ())
        rows.append(
            (
                evaluation.model,
                (cells[0], *[write_published(evaluation)][:stated], *cells[1:], pictures),
            )
        )
    heads = ("top-1", *["published"][:stated], "top-5", "per class", "ECE", "pictures")
    return Table(heads, tuple(rows))


def write_published(evaluation: Evaluation) -> Cell:
    if evaluation.published is None:
        return ABSENT
    gap = evaluation.top1.value - evaluation.published
    return Cell(
        f"{evaluation.published:.2f}", warning=f"measured {gap:+.2f}" if evaluation.differs else ""
    )


def write_interval(estimate: Estimate) -> str:
    return f"{estimate.low:.1f} to {estimate.high:.1f}"


def make_shots(probes: Sequence[Probe]) -> Table:
    """A row for each model and kind of classifier, a column for each number of labels."""
    shots = sorted({probe.shots for probe in probes}, key=order_shots)
    found = {(probe.model, name_method(probe), probe.shots): probe for probe in probes}
    best = {
        each: max(round(probe.mean, 2) for probe in probes if probe.shots == each) for each in shots
    }
    rows = []
    for model, method in dict.fromkeys((model, method) for model, method, _ in found):
        cells = []
        for each in shots:
            probe = found.get((model, method, each))
            if probe is None:
                cells.append(ABSENT)
                continue
            spread = (f"± {probe.spread:.2f}",) if len(probe.values) > 1 else ()
            warning = "" if probe.settings.get("converged", True) else "not converged"
            bold = len(found) > len(shots) and round(probe.mean, 2) == best[each]
            cells.append(Cell(f"{probe.mean:.2f}", spread, bold, warning))
        rows.append((model, (Cell(method), *cells)))
    return Table(("classifier", *map(name_shots, shots)), tuple(rows))


def order_shots(shots: int | float | None) -> tuple[int, float]:
    """Labels of each class, then shares, then all."""
    return (2, 0.0) if shots is None else (1 if shots < 1 else 0, shots)


def name_shots(shots: int | float | None) -> str:
    if shots is None:
        return "all"
    return f"{100 * shots:g}%" if shots < 1 else f"{shots:g}"


def name_method(probe: Probe) -> str:
    """In words; of nearest neighbours with how many there are."""
    if probe.method == "knn":
        return (
            f"{probe.settings['k']} nearest neighbours"
            if "k" in probe.settings
            else "nearest neighbours"
        )
    return {"logistic": "logistic regression", "sgd": "linear, by SGD"}[probe.method]
