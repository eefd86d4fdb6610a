"""The tables of the report, from which both templates are filled. Their cells are text."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from swag_models.recipe.evaluation.accuracy.benchmarks import UNNAMED
from swag_models.recipe.evaluation.multilabel.results import MultilabelEvaluation
from swag_models.recipe.evaluation.results import Estimate, Evaluation, Probe

E = TypeVar("E", Evaluation, MultilabelEvaluation)


class BenchmarkKey(NamedTuple):
    """Identifies a benchmark in the report.

    Attributes:
        name: name of the benchmark.
        data: name of its data.
    """

    name: str
    data: str

    @property
    def title(self) -> str:
        """Its name for readers; for any labelled images, the name of the data."""
        return self.data if self.name in UNNAMED else self.name

    @property
    def subtitle(self) -> str:
        """The name that `title` does not show."""
        return self.name if self.name in UNNAMED else self.data


class Cell(NamedTuple):
    """A table cell.

    Attributes:
        text: the value.
        notes: smaller lines below it.
        best: whether the value is the best of its column.
        warning: an additional line, marked as a warning.
    """

    text: str
    notes: tuple[str, ...] = ()
    best: bool = False
    warning: str = ""


EMPTY_CELL = Cell("\N{EN DASH}")  # not measured, unlike 0


class Table(NamedTuple):
    """A table with a row for each model, or for each model and classifier.

    Attributes:
        header: headers of the columns, without the model's.
        rows: (model, cells).
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    def find_row(self, model: str) -> tuple[Cell, ...]:
        """The cells of a model; empty ones if it has no row."""
        return dict(self.rows).get(model, (EMPTY_CELL,) * len(self.header))


def group_benchmarks(evaluations: Sequence[E]) -> dict[BenchmarkKey, list[E]]:
    """The evaluations of each benchmark, in order of first appearance.

    Different data with the same name are numbered: `held out (2)`.

    Args:
        evaluations: evaluations of any models and benchmarks.
    """
    grouped: dict[BenchmarkKey, list[E]] = {}
    counts = Counter[tuple[str, BenchmarkKey]]()
    for evaluation in evaluations:
        key = BenchmarkKey(evaluation.benchmark, str(evaluation.facts["name"]))
        counts[evaluation.model, key] += 1
        # Different data are recognised by a second evaluation of the same model. Hashes cannot be
        # used, because the hash of the same data depends on the classes of the model.
        if (number := counts[evaluation.model, key]) > 1:
            key = key._replace(data=f"{key.data} ({number})")
        grouped.setdefault(key, []).append(evaluation)
    return grouped


def build_accuracy_table(evaluations: Sequence[Evaluation]) -> Table:
    """The table of one benchmark, with a row for each model.

    The best value of each column is marked if there are several models.

    Args:
        evaluations: evaluations of several models on one benchmark.
    """
    measures = [
        (evaluation.top1, evaluation.top5, evaluation.mean_per_class, evaluation.ece)
        for evaluation in evaluations
    ]
    # values that are equal as printed are equally good
    best = [
        choose(round(estimate.value, 2) for estimate in column)
        # for ECE, the last column, lower is better
        for choose, column in zip((max, max, max, min), zip(*measures))
    ]
    # the column is left out if no model has a published value, as for most benchmarks
    any_published = any(evaluation.published is not None for evaluation in evaluations)
    rows = []
    for evaluation, estimates in zip(evaluations, measures):
        top1, *cells = [
            Cell(
                f"{estimate.value:.2f}",
                (format_interval(estimate),),
                len(evaluations) > 1 and round(estimate.value, 2) == best_value,
            )
            for estimate, best_value in zip(estimates, best)
        ]
        published = (format_published(evaluation),) if any_published else ()
        num_skipped = sum(evaluation.skipped.values())
        skipped = (f"{num_skipped:,} skipped",) if num_skipped else ()
        images = Cell(f"{len(evaluation.records):,}", skipped)
        rows.append((evaluation.model, (top1, *published, *cells, images)))
    published_header = ("published",) if any_published else ()
    return Table(("top-1", *published_header, "top-5", "per class", "ECE", "images"), tuple(rows))


def format_published(evaluation: Evaluation) -> Cell:
    """The published top-1, with a warning if the measured one differs.

    Args:
        evaluation: evaluation of one model.
    """
    if evaluation.published is None:
        return EMPTY_CELL
    gap = evaluation.top1.value - evaluation.published
    return Cell(
        f"{evaluation.published:.2f}", warning=f"measured {gap:+.2f}" if evaluation.differs else ""
    )


def format_interval(estimate: Estimate) -> str:
    """The 95% interval of an estimate.

    Args:
        estimate: the estimate, in percent.
    """
    return f"{estimate.low:.1f} to {estimate.high:.1f}"


def build_few_shot_table(probes: Sequence[Probe]) -> Table:
    """A row for each model and trained classifier, a column for each number of labelled images.

    The best value of each column is marked if there are several rows.

    Args:
        probes: probes of any models and methods; nearest neighbours are left out.
    """
    trained = [probe for probe in probes if probe.method != "knn"]
    by_row: dict[tuple[str, str], dict[int | float | None, Probe]] = {}
    for probe in trained:
        by_row.setdefault((probe.model, name_method(probe)), {})[probe.shots] = probe
    columns = sorted({probe.shots for probe in trained}, key=get_shots_order)
    cells = _build_probe_cells(list(by_row.values()), columns)
    rows = tuple(
        (model, (Cell(method), *row)) for (model, method), row in zip(by_row, cells, strict=True)
    )
    return Table(("classifier", *map(format_shots, columns)), rows)


def build_neighbours_table(probes: Sequence[Probe]) -> Table:
    """A row for each model, a column for each number of nearest neighbours.

    The best value of each column is marked if there are several rows.

    Args:
        probes: probes of any models and methods; only nearest neighbours are shown.
    """
    by_model: dict[str, dict[int | float | None, Probe]] = {}
    for probe in probes:
        if probe.method == "knn":
            by_model.setdefault(probe.model, {})[probe.settings["k"]] = probe
    columns = sorted({k for by_k in by_model.values() for k in by_k if k is not None})
    cells = _build_probe_cells(list(by_model.values()), columns)
    return Table(tuple(map(str, columns)), tuple(zip(by_model, cells, strict=True)))


def _build_probe_cells(
    rows: Sequence[Mapping[int | float | None, Probe]], columns: Sequence[int | float | None]
) -> list[tuple[Cell, ...]]:
    """The cells of rows of probes; the best of each column is marked if there are several rows."""
    best = {
        column: max(round(row[column].mean, 2) for row in rows if column in row)
        for column in columns
    }
    return [
        tuple(
            _build_probe_cell(row[column], best[column] if len(rows) > 1 else None)
            if column in row
            else EMPTY_CELL
            for column in columns
        )
        for row in rows
    ]


def _build_probe_cell(probe: Probe, best: float | None) -> Cell:
    spread = (f"± {probe.spread:.2f}",) if len(probe.values) > 1 else ()
    warning = "" if probe.settings.get("converged", True) else "not converged"
    return Cell(f"{probe.mean:.2f}", spread, round(probe.mean, 2) == best, warning)


def get_shots_order(shots: int | float | None) -> tuple[int, float]:
    """A sort key: numbers of images per class, then shares, then all images.

    Args:
        shots: number or share of images, as in `Probe.shots`.
    """
    if shots is None:
        return 2, 0.0
    return (1 if shots < 1 else 0), shots


def format_shots(shots: int | float | None) -> str:
    """`5` images per class, `10%` of them, or `all`.

    Args:
        shots: number or share of images, as in `Probe.shots`.
    """
    if shots is None:
        return "all"
    return f"{100 * shots:g}%" if shots < 1 else f"{shots:g}"


def name_method(probe: Probe) -> str:
    """The classifier in words, with the number of nearest neighbours.

    Args:
        probe: probe whose method and settings are named.
    """
    if probe.method == "knn":
        neighbours = f"{probe.settings['k']} " if "k" in probe.settings else ""
        return f"{neighbours}nearest neighbours"
    return {"logistic": "logistic regression", "sgd": "linear, by SGD"}[probe.method]
