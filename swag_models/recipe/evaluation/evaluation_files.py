"""Evaluate a model by the name of a benchmark, and write the results."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from swag_models.atomic import atomic_write, disk_errors, write_json, write_text
from swag_models.formatting import markdown_table
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.evaluation.accuracy.benchmarks import (
    BENCHMARKS,
    FOLDER,
    MULTILABEL,
    UNNAMED,
    open_benchmark,
)
from swag_models.recipe.evaluation.accuracy.evaluate import evaluate
from swag_models.recipe.evaluation.accuracy.metrics import hit_top
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.evaluation.multilabel.evaluate import evaluate_multilabel
from swag_models.recipe.evaluation.multilabel.results import (
    AnyEvaluation,
    MultilabelEvaluation,
    format_multilabel,
)
from swag_models.recipe.evaluation.output_files import check_output, make_stem
from swag_models.recipe.evaluation.probes.features import identify_data
from swag_models.recipe.evaluation.results import Estimate, Evaluation
from swag_models.recipe.training.distributed import DistContext
from swag_models.reruns import find_finished, store_finished
from swag_models.resumable import output_folder
from swag_models.runtime import import_extra

TABLE_HEADER = (
    "model",
    "benchmark",
    "images",
    "top-1",
    "top-5",
    "mean per class",
    "ECE",
    "expected top-1",
    "difference",
)


def evaluate_any(
    model: EvaluatedModel, data: Shards | ImageDataset, benchmark: str = FOLDER, **options: Any
) -> AnyEvaluation:
    """Measure a model on a benchmark of any kind.

    Args:
        model, data, benchmark: as for `evaluate`.
        options: further options of `evaluate`, or of `evaluate_multilabel` for that benchmark.
    """
    if benchmark == MULTILABEL:
        return evaluate_multilabel(model, data, **options)
    return evaluate(model, data, benchmark, **options)


def restore_evaluation(values: dict[str, Any]) -> AnyEvaluation:
    """Restore an evaluation of any kind from its `to_dict`."""
    if values["benchmark"] == MULTILABEL:
        return MultilabelEvaluation.from_dict(values)
    return Evaluation.from_dict(values)


def evaluate_into(
    folder: Path,
    model: EvaluatedModel,
    data: Shards,
    benchmark: str = FOLDER,
    *,
    dist: DistContext,
    **options: Any,
) -> AnyEvaluation:
    """Evaluate a model and write the results, unless an earlier run has done both.

    Args:
        folder: output folder, see `write_evaluation`.
        model, data, benchmark, dist: as for `evaluate`.
        options: as for `evaluate_any`.

    Raises:
        ConfigError, OutputError: as for `evaluate` and `write_evaluation`.
    """
    choices = {
        name: options[name] for name in ("only_present", "skip_unmatched") if name in options
    }
    opened = open_benchmark(benchmark, data, model, **choices)
    path = folder / make_stem(model.name, benchmark)
    files = [path.with_name(path.name + suffix) for suffix in (".json", ".md", ".parquet")]
    # The number of workers and the progress bar do not change results.
    settings = {name: options[name] for name in options.keys() - {"workers", "progress"}}
    identity = [benchmark, opened.competing, sorted(settings.items())]

    def find() -> tuple[Any, Any]:
        content: Any = identify_data(opened.data)
        key = content and ["evaluate", model.identify(), content, identity]
        with suppress(LookupError):
            return key, find_finished(files[0], key, files)
        return key, None

    key, finished = dist.run_on_main(find)
    if finished:
        return restore_evaluation(finished)
    with output_folder(folder):
        # opened once, so that what is left out is logged once
        content = opened.data if benchmark in UNNAMED else data
        evaluation = evaluate_any(model, content, benchmark, dist=dist, output=folder, **options)

        def write() -> None:
            write_evaluation(evaluation, folder)
            store_finished(files[0], key, files, evaluation.to_dict())

        dist.run_on_main(write)
    return evaluation


def write_evaluation(evaluation: AnyEvaluation, folder: Path) -> None:
    """Write three files, named MODEL-BENCHMARK with a suffix.

    .json contains everything but the predictions, .md a table, and .parquet one row per image.

    Raises:
        ConfigError: as for `check_output`.
        OutputError: the files cannot be written.
    """
    model, benchmark = evaluation.model, evaluation.benchmark
    check_output(folder, model, benchmark, evaluation.facts, evaluation.settings)
    stem = make_stem(model, benchmark)
    arrow, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
    with disk_errors(folder):
        write_json(folder / f"{stem}.json", evaluation.summarise(), indent=1)
        write_text(folder / f"{stem}.md", format_evaluation(evaluation))
        with atomic_write(folder / f"{stem}.parquet") as path:
            parquet.write_table(arrow.Table.from_pylist(_list_rows(evaluation)), path)


def format_evaluation(evaluation: AnyEvaluation) -> str:
    """Format the Markdown table of one evaluation of any kind."""
    if isinstance(evaluation, MultilabelEvaluation):
        return format_multilabel([evaluation])
    return format_evaluations([evaluation])


def format_evaluations(evaluations: Sequence[Evaluation]) -> str:
    """Format a Markdown table; ** marks a top-1 accuracy that differs from the published one."""
    return markdown_table(TABLE_HEADER, map(_format_row, evaluations)) + "\n"


def _format_row(evaluation: Evaluation) -> tuple[str, ...]:
    """Format the cells of one row of the table."""
    complete, published = BENCHMARKS[evaluation.benchmark].num_images, evaluation.published
    images = f"{len(evaluation.records):,}"
    if complete not in (None, len(evaluation.records)):
        images += f" of {complete:,}"
    if evaluation.skipped:
        images += f", {sum(evaluation.skipped.values()):,} broken"
    difference = "" if published is None else f"{evaluation.top1.value - published:+.2f}"
    estimates = (evaluation.top1, evaluation.top5, evaluation.mean_per_class, evaluation.ece)
    return (
        evaluation.model,
        evaluation.benchmark,
        images,
        *map(_format_estimate, estimates),
        "" if published is None else f"{published:.2f}",
        f"**{difference}**" if evaluation.differs else difference,
    )


def _format_estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _list_rows(evaluation: AnyEvaluation) -> list[dict[str, object]]:
    """List the rows of the Parquet file."""
    if isinstance(evaluation, MultilabelEvaluation):
        return evaluation.list_rows()
    class_names = evaluation.classes
    return [
        {
            "name": record.name,
            "labels": list(record.labels),
            "label_names": [class_names[label] for label in record.labels],
            "predicted": record.top[0],
            "predicted_name": class_names[record.top[0]],
            "probability": record.probability,
            "hit1": hit_top(record, 1),
            "hit5": hit_top(record, 5),
        }
        for record in evaluation.records
    ]
