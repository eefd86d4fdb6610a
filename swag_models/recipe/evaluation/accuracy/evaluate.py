"""Evaluation of a model on a benchmark.

Every image is read once over all ranks, which makes one record. The records are gathered, and all
metrics are computed from them on one rank, so they do not depend on the number of ranks.

Axes: n images of a batch, K classes, C classes that may be predicted.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swag_models.atomic import atomic_write, disk_errors, write_json, write_text
from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import markdown_table
from swag_models.hub.progress import make_bar
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.evaluation.accuracy.benchmarks import (
    BENCHMARKS,
    FOLDER,
    find_published,
    open_benchmark,
)
from swag_models.recipe.evaluation.accuracy.metrics import compute_metrics, hit_top
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.evaluation.probes.features import identify_data
from swag_models.recipe.evaluation.results import Estimate, Evaluation, ImageResult
from swag_models.recipe.training.distributed import DistContext
from swag_models.reruns import find_finished, store_finished
from swag_models.resumable import output_folder
from swag_models.runtime import import_extra

MAX_STEM = 200  # characters of a file name; file systems allow 255 bytes
TOP_CLASSES = 5  # recorded for each image
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


def evaluate(
    model: EvaluatedModel,
    data: Shards | ImageDataset,
    benchmark: str = FOLDER,
    *,
    dist: DistContext,
    batch_size: int = 64,
    workers: int = 0,
    only_present: bool = False,
    progress: bool = True,
    output: Path | None = None,
) -> Evaluation:
    """Measure the accuracy and calibration of a model; all ranks return the same result.

    Args:
        model: the model.
        data: folder of the release of the benchmark; for "folder", as for `open_eval_loader`.
        benchmark: key of `BENCHMARKS`.
        dist: the ranks that share the work.
        batch_size: images per forward pass of a rank.
        workers: number of processes per rank that read images.
        only_present: allow only predictions of classes that have an image. Published results allow
            all classes.
        progress: show a progress bar.
        output: folder for which `check_output` is called before any image is read.

    Raises:
        ConfigError: invalid arguments or data, logits that are not finite, or no readable image.
        OutputError: the output folder cannot be created.
    """
    opened = open_benchmark(benchmark, data, model, only_present)
    assert model.num_classes is not None
    classes = model.classes or tuple(map(str, range(model.num_classes)))
    if isinstance(opened.data, ImageDataset):
        # Batches are padded to `batch_size`, which would waste work on a small data set.
        batch_size = min(batch_size, len(opened.data))
    loader = open_eval_loader(
        opened.data,
        model.fit,
        batch_size=batch_size,
        rank=dist.rank,
        world_size=dist.world_size,
        workers=workers,
        classes=classes,
    )
    settings = {
        "preprocess": model.preprocess,
        "dtype": str(model.dtype),
        "only_present": only_present,
    }
    if output:
        dist.run_on_main(
            lambda: check_output(output, model.name, benchmark, loader.facts, settings)
        )
    rank_records: list[ImageResult] = []
    # The progress bar counts the images of one rank, so estimate its share.
    total = None if loader.samples is None else -(-loader.samples // dist.world_size)
    shown = progress and dist.is_main
    with make_bar(shown, total=total, desc=benchmark, unit=" images") as bar:
        for batch in loader:
            images = _pad_batch(batch.images, batch_size)
            logits = model.classify(images)[: len(batch.ids)]  # (n, K)
            rank_records += _make_records(logits, batch.ids, batch.classes, opened.competing)
            bar.update(len(batch.ids))
    gathered = dist.gather((rank_records, loader.skipped))
    # Sorted by name, so that the order does not depend on the numbers of ranks and workers.
    records = tuple(sorted(record for part, _ in gathered for record in part))
    skipped = sum((counts for _, counts in gathered), Counter[str]())
    if not records:
        reason = next(iter(skipped), "the data have none")
        raise ConfigError(f"no image in {data} can be read: {reason}")
    # Computed on one rank, so that all ranks return identical numbers.
    metrics = dist.run_on_main(lambda: compute_metrics(records))
    return Evaluation(
        model=model.name,
        benchmark=benchmark,
        facts=loader.facts,
        settings=settings,
        skipped=dict(sorted(skipped.items())),
        classes=classes,
        **metrics._asdict(),
        # The published value is not comparable if fewer classes compete.
        published=None if only_present else find_published(model, benchmark),
        records=records,
    )


def evaluate_into(
    folder: Path,
    model: EvaluatedModel,
    data: Shards,
    benchmark: str = FOLDER,
    *,
    dist: DistContext,
    batch_size: int = 64,
    only_present: bool = False,
    **options: Any,
) -> Evaluation:
    """Evaluate a model and write the results, unless an earlier run has done both.

    Args:
        folder: output folder, see `write_evaluation`.
        model, data, benchmark, dist, batch_size, only_present: as for `evaluate`.
        options: further options of `evaluate`.

    Raises:
        ConfigError, OutputError: as for `evaluate` and `write_evaluation`.
    """
    opened = open_benchmark(benchmark, data, model, only_present)
    path = folder / _make_stem(model.name, benchmark)
    files = [path.with_name(path.name + suffix) for suffix in (".json", ".md", ".parquet")]

    settings = [benchmark, opened.competing, only_present, batch_size]

    def find() -> tuple[Any, Any]:
        content: Any = identify_data(opened.data)
        key = content and ["evaluate", model.identify(), content, settings]
        with suppress(LookupError):
            return key, find_finished(files[0], key, files)
        return key, None

    key, finished = dist.run_on_main(find)
    if finished:
        return Evaluation.from_dict(finished)
    with output_folder(folder):
        evaluation = evaluate(
            model,
            data,
            benchmark,
            dist=dist,
            batch_size=batch_size,
            only_present=only_present,
            output=folder,
            **options,
        )

        def write() -> None:
            write_evaluation(evaluation, folder)
            store_finished(files[0], key, files, evaluation.to_dict())

        dist.run_on_main(write)
    return evaluation


def format_evaluations(evaluations: Sequence[Evaluation]) -> str:
    """Format a Markdown table; ** marks a top-1 accuracy that differs from the published one."""
    return markdown_table(TABLE_HEADER, map(_format_row, evaluations)) + "\n"


def check_output(
    folder: Path, model: str, benchmark: str, facts: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Create the output folder and check that no other evaluation would be overwritten.

    Args:
        folder: where `write_evaluation` will write.
        model: name of the model.
        benchmark: name of the benchmark.
        facts: description of the data.
        settings: settings of the evaluation.

    Raises:
        ConfigError: the folder has an evaluation of this model and benchmark on other data or with
            other settings.
        OutputError: the folder cannot be created.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_make_stem(model, benchmark)}.json"
    if not path.exists():
        return
    try:
        stored = parse_json(path.read_text("utf-8"))
        equal_parts = {
            "data": stored["facts"] == dict(facts),
            "settings": stored["settings"] == dict(settings),
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path} is not an evaluation or is damaged; move it, or choose another folder"
        ) from None
    if different := [name for name, equal in equal_parts.items() if not equal]:
        raise ConfigError(
            f"{path} has results of other {' and '.join(different)}; choose another folder, "
            "or move the file"
        )


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write three files, named MODEL-BENCHMARK with a suffix.

    .json contains everything but the predictions, .md a table, and .parquet one row per image.

    Raises:
        ConfigError: as for `check_output`.
        OutputError: the files cannot be written.
    """
    model, benchmark = evaluation.model, evaluation.benchmark
    check_output(folder, model, benchmark, evaluation.facts, evaluation.settings)
    stem = _make_stem(model, benchmark)
    arrow, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
    with disk_errors(folder):
        write_json(folder / f"{stem}.json", evaluation.summarise(), indent=1)
        write_text(folder / f"{stem}.md", format_evaluations([evaluation]))
        with atomic_write(folder / f"{stem}.parquet") as path:
            parquet.write_table(arrow.Table.from_pylist(_list_rows(evaluation)), path)


def _make_stem(model: str, benchmark: str) -> str:
    """Make a file name without suffix; replace all but letters, digits and ._- with -."""
    # A leading dot would hide the file, and a leading dash would look like an option.
    return re.sub(r"[^\w.-]+", "-", f"{model}-{benchmark}").lstrip(".-")[:MAX_STEM]


def _pad_batch(images: Tensor, batch_size: int) -> Tensor:
    """Repeat the last image until the batch is complete.

    For another batch size, kernels may sum in another order. Which images are in the last, smaller
    batch of a shard depends on the numbers of ranks and workers, which must not change logits.
    """
    missing = batch_size - len(images)
    return torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing > 0 else images


def _make_records(
    logits: Tensor,
    names: Sequence[str],
    labels: Sequence[tuple[int, ...]],
    competing: tuple[int, ...] | None,
) -> Iterator[ImageResult]:
    """Yield the records of a batch; classes with equal logits are sorted by index."""
    if not logits.isfinite().all():
        raise ConfigError(
            f"the logits of {names[0]}, or of another image of its batch, are not finite; "
            "try dtype float32"
        )
    indices = torch.arange(logits.shape[1]) if competing is None else torch.tensor(competing)
    logits = logits[:, indices]  # (n, C), so that the softmax is over the competing classes
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :TOP_CLASSES]
    probabilities = logits.double().softmax(dim=1).amax(dim=1)
    predictions = zip(names, labels, indices[order].tolist(), probabilities.tolist())
    for name, image_labels, top, probability in predictions:
        if not image_labels:
            raise ConfigError(f"{name} has no class; give images with at least one class each")
        yield ImageResult(name, image_labels, tuple(top), probability)


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


def _list_rows(evaluation: Evaluation) -> list[dict[str, object]]:
    """List the rows of the Parquet file."""
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
