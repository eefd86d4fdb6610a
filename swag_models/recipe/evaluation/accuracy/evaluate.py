"""A model on a test set: every picture once over all ranks, and one record of each, from which all numbers are made.

Axes: n the pictures of a batch, K classes, C those that compete.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import ConfigError
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
from swag_models.recipe.evaluation.results import Estimate, Evaluation, ImageResult
from swag_models.recipe.training.distributed import DistContext
from swag_models.runtime import import_extra

TOP = 5
HEADER = (
    "model",
    "benchmark",
    "pictures",
    "top-1",
    "top-5",
    "mean per class",
    "ECE",
    "expected top-1",
    "difference",
)


def evaluate(
    candidate: EvaluatedModel,
    data: Shards,
    benchmark: str = FOLDER,
    *,
    dist: DistContext,
    batch_size: int = 64,
    workers: int = 0,
    only_present: bool = False,
    progress: bool = True,
    output: Path | None = None,
) -> Evaluation:
    """The same on every rank, and however many there are.

    benchmark: one of BENCHMARKS; data: the folder of its release, or for "folder" whatever `open_eval_loader` takes. only_present: no classes
    compete but those of the pictures, which is not what others published. workers: processes that read pictures. Probabilities
    are those among the classes that compete. output: a folder to `check_output` before any picture is read.
    A broken picture is counted in `skipped` and nowhere else.
    """
    task = open_benchmark(benchmark, data, candidate, only_present)
    assert candidate.num_classes is not None
    classes = candidate.classes or tuple(map(str, range(candidate.num_classes)))
    if isinstance(task.data, ImageDataset):
        batch_size = min(batch_size, len(task.data))
    check = open_eval_loader(
        task.data,
        candidate.fit,
        batch_size=batch_size,
        rank=dist.rank,
        world_size=dist.world_size,
        workers=workers,
        classes=classes,
    )
    settings = {
        "preprocess": candidate.preprocess,
        "dtype": str(candidate.dtype),
        "only_present": only_present,
    }
    if output:
        dist.run_on_main(
            lambda: check_output(output, candidate.name, benchmark, check.facts, settings)
        )
    own: list[ImageResult] = []
    total = None if check.samples is None else -(-check.samples // dist.world_size)
    with tqdm(
        total=total, desc=benchmark, unit=" pictures", disable=not (progress and dist.is_main)
    ) as bar:
        for batch in check:
            logits = candidate.classify(_fill(batch.images, batch_size))[: len(batch.ids)]  # (n, K)
            own += _rank_classes(logits, batch.ids, batch.classes, task.competing)
            bar.update(len(batch.ids))
    gathered = dist.gather((own, check.skipped))
    records = tuple(sorted(record for each, _ in gathered for record in each))
    skipped = sum((each for _, each in gathered), Counter[str]())
    if not records:
        raise ConfigError(
            f"no picture in {data} can be read: {next(iter(skipped), 'there is none')}"
        )
    measures = dist.run_on_main(lambda: compute_metrics(records))
    return Evaluation(
        model=candidate.name,
        benchmark=benchmark,
        facts=check.facts,
        settings=settings,
        skipped=dict(sorted(skipped.items())),
        classes=classes,
        **measures._asdict(),
        published=None if only_present else find_published(candidate, benchmark),
        records=records,
    )


def tabulate_evaluations(evaluations: Sequence[Evaluation]) -> str:
    """A table in Markdown, a row for each; ** marks a difference from what was published."""
    rows = [HEADER, ("---",) * len(HEADER), *(_spell_row(each) for each in evaluations)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def check_output(
    folder: Path, model: str, benchmark: str, facts: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """See to it that an evaluation can be written there: what its files are called, but for suffixes.

    ConfigError if those that are there are of other data or settings; OutputError if the folder cannot be made.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.-]+", "-", f"{model}-{benchmark}").lstrip(".-")
    path = folder / f"{stem}.json"
    if path.exists():
        try:
            old = json.loads(path.read_text("utf-8"))
            same = {"data": old["facts"] == {**facts}, "settings": old["settings"] == {**settings}}
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path} is no evaluation that can be read; move it, or give another folder"
            ) from None
        if others := " and ".join(name for name, equal in same.items() if not equal):
            raise ConfigError(
                f"{path} has results of other {others}; give another folder, or move it to have it made anew"
            )
    return stem


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """<model>-<benchmark>.json with all but the pictures, .md with a table, and .parquet with a row for each picture.

    Errors of `check_output`.
    """
    stem = check_output(
        folder, evaluation.model, evaluation.benchmark, evaluation.facts, evaluation.settings
    )
    for suffix, text in (
        (".json", json.dumps(evaluation.summarise(), indent=1) + "\n"),
        (".md", tabulate_evaluations([evaluation])),
    ):
        with atomic_write(folder / f"{stem}{suffix}") as path:
            path.write_text(text, encoding="utf-8")
    arrow, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
    with atomic_write(folder / f"{stem}.parquet") as path:
        parquet.write_table(arrow.Table.from_pylist(_list_rows(evaluation)), path)


def _fill(images: Tensor, count: int) -> Tensor:
    """As many images as a whole batch, by the last one over again.

    Kernels may add up in another order for another size of batch, and how many pictures end a shard's stream in one is a
    matter of ranks and workers.
    """
    return (
        torch.cat([images, images[-1:].expand(count - len(images), -1, -1, -1)])
        if len(images) < count
        else images
    )


def _rank_classes(
    logits: Tensor,
    names: Sequence[str],
    labels: Sequence[tuple[int, ...]],
    competing: tuple[int, ...] | None,
) -> Iterator[ImageResult]:
    """The records of a batch; of equal classes the lower index comes first."""
    if not logits.isfinite().all():
        raise ConfigError(
            f"the model gives {names[0]}, or one beside it, numbers that are not finite; try dtype float32"
        )
    indices = torch.arange(logits.shape[1]) if competing is None else torch.tensor(competing)
    logits = logits[:, indices]  # (n, C)
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :TOP]
    probabilities = logits.double().softmax(dim=1).amax(dim=1)
    for name, own, top, probability in zip(
        names, labels, indices[order].tolist(), probabilities.tolist()
    ):
        if not own:
            raise ConfigError(
                f"{name} has no class to compare with; give pictures that have one at least"
            )
        yield ImageResult(name, own, tuple(top), probability)


def _spell_row(evaluation: Evaluation) -> tuple[str, ...]:
    whole, published = BENCHMARKS[evaluation.benchmark].pictures, evaluation.published
    pictures = f"{len(evaluation.records):,}"
    pictures += f" of {whole:,}" if whole not in (None, len(evaluation.records)) else ""
    pictures += f", {sum(evaluation.skipped.values()):,} broken" if evaluation.skipped else ""
    difference = "" if published is None else f"{evaluation.top1.value - published:+.2f}"
    return (
        evaluation.model.replace("|", r"\|"),
        evaluation.benchmark,
        pictures,
        *map(_spell, (evaluation.top1, evaluation.top5, evaluation.mean_per_class, evaluation.ece)),
        "" if published is None else f"{published:.2f}",
        f"**{difference}**" if evaluation.differs else difference,
    )


def _spell(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _list_rows(evaluation: Evaluation) -> list[dict[str, object]]:
    names = evaluation.classes
    return [
        {
            "name": record.name,
            "labels": list(record.labels),
            "label_names": [names[label] for label in record.labels],
            "predicted": record.top[0],
            "predicted_name": names[record.top[0]],
            "probability": record.probability,
            "hit1": hit_top(record, 1),
            "hit5": hit_top(record, 5),
        }
        for record in evaluation.records
    ]
