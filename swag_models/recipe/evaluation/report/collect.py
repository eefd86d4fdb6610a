"""The report: models on benchmarks side by side, measured as far as they are not yet, as a page and as Markdown.

The folder of a report holds
  index.html            the page, with everything in it
  report.md             the same figures, and its plots curves.png and calibration.png
  measured/<hash>.json  an evaluation or the probes of a model, named by the content of the model, the state of the data's
                        files, and whatever else decides the numbers; what has its file is not done again
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image

from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import ConfigError
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.data.shards import Shards, hash_shards, name_shards
from swag_models.recipe.evaluation.accuracy.benchmarks import open_benchmark
from swag_models.recipe.evaluation.accuracy.evaluate import evaluate
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.probes.features import hash_file_states
from swag_models.recipe.evaluation.probes.probe import Method, open_train_and_test, probe
from swag_models.recipe.evaluation.report.content import Story
from swag_models.recipe.evaluation.report.html import SHOWN, Thumbnails, write_page
from swag_models.recipe.evaluation.report.markdown import write_markdown
from swag_models.recipe.evaluation.report.plots import write_png
from swag_models.recipe.evaluation.results import Evaluation, ImageResult, Probe
from swag_models.recipe.training.distributed import init_distributed
from swag_models.recipe.training.run_dir import find_versions

PAGE, TEXT, CURVES, CALIBRATION, MEASURED = (
    "index.html",
    "report.md",
    "curves.png",
    "calibration.png",
    "measured",
)
METHODS: tuple[Method, ...] = ("knn", "logistic")


def write_report(
    folder: str | Path,
    evaluations: Sequence[Evaluation],
    probes: Sequence[Probe] = (),
    *,
    date: str,
    thumbnails: Thumbnails = lambda evaluation, record: None,
    origins: Mapping[str, str] | None = None,
    facts: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """The page of these results, `folder`/index.html; report.md and its plots beside it.

    date: of today, as people are to read it. thumbnails: a record -> its picture, None if there is none to show. origins: of
    models, what else is known of each. facts: of the pictures that probes learn from, and of those that they are tested on,
    as a `EvalLoader` has them. OutputError if it cannot be written.
    """
    folder = Path(folder)
    story = Story(evaluations, probes, date, find_versions(), origins or {}, facts)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if story.curves:
            write_png(story.curves, folder / CURVES)
        if story.benchmarks:
            write_png(
                [plot for plots in story.reliability.values() for plot in plots],
                folder / CALIBRATION,
            )
        _write(folder / TEXT, write_markdown(story, SHOWN, CURVES, CALIBRATION))
        _write(folder / PAGE, write_page(story, thumbnails))
    return folder / PAGE


def collect_report(
    models: Sequence[str],
    benchmarks: Sequence[tuple[str, str]],
    folder: str | Path,
    *,
    date: str,
    train: str | None = None,
    test: str | None = None,
    shots: Sequence[int | float | None] = (1, 5, 10, None),
    device: str = "cpu",
    dtype: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = True,
) -> Path:
    """Measure each model on each benchmark, (its name, its folder), and probe it if there are `train` and `test`; then report.

    What has been measured before is taken from the folder. ConfigError for what cannot be, also if another process is at it.
    """
    if not models or not (benchmarks or train):
        raise ConfigError(
            "nothing to report; give a model, and --benchmarks NAME=FOLDER, or --train FOLDER and --test FOLDER"
        )
    if (train is None) != (test is None):
        raise ConfigError(
            f"--{'train' if train else 'test'} alone tells nothing; give --train and --test, or neither"
        )
    if (count := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ConfigError(
            f"a report is made by one process, not {count}; start it without torchrun"
        )
    folder = Path(folder)
    evaluations: list[Evaluation] = []
    probes: list[Probe] = []
    origins: dict[str, str] = {}
    albums: dict[tuple[str, str, str], ImageDataset] = {}
    facts: list[dict[str, Any]] = []
    labelled = open_train_and_test(train, test) if train and test else ()
    with _claim(folder / MEASURED) as measured, init_distributed() as ranks:
        for model in dict.fromkeys(models):
            candidate = open_evaluated_model(model, device=device, dtype=dtype)
            name = (
                model if candidate.name in origins else candidate.name
            )  # folders may hold models of the same name
            content = candidate.hash_content()
            origins[name] = (
                f"{candidate.preprocess}, {candidate.dtype} on {candidate.device.type}, SHA-256 {content}"
            )
            key = (
                candidate.name,
                candidate.classes,
                content,
                candidate.device.type,
                find_versions(),
            )
            opened = [
                (benchmark, place, open_benchmark(benchmark, place, candidate).data)
                for benchmark, place in dict.fromkeys(benchmarks)
            ]
            for benchmark, place, data in opened:  # all of them before anything that takes long
                title, sha256 = (
                    (data.title, data.sha256)
                    if isinstance(data, ImageDataset)
                    else (name_shards(data), hash_shards(data))
                )
                if isinstance(data, ImageDataset):
                    albums[benchmark, title, sha256] = data
                task = partial(
                    evaluate,
                    candidate,
                    place,
                    benchmark,
                    ranks=ranks,
                    batch_size=batch_size,
                    workers=workers,
                )
                values = _recall(
                    measured,
                    (*key, benchmark, title, sha256, hash_file_states(data)),
                    partial(task, progress=progress),
                )
                evaluations.append(replace(Evaluation.from_dict(values), model=name))
            if labelled:
                facts = [_find_facts(data, candidate) for data in labelled]
                hashes = [(each["sha256"], hash_file_states(data)) for each, data in zip(facts, labelled)]
                trial = partial(
                    probe, candidate, *labelled, methods=METHODS, shots=shots, batch_size=batch_size
                )
                found = _recall(
                    measured,
                    (*key, METHODS, shots, hashes),
                    partial(trial, workers=workers, progress=progress),
                )
                probes += [replace(Probe.from_dict(values), model=name) for values in found]
        pictures = partial(_find_picture, albums)
        return write_report(
            folder,
            evaluations,
            probes,
            date=date,
            thumbnails=pictures,
            origins=origins,
            facts=facts,
        )


def _recall(
    measured: Path, key: Sequence[Any], work: Callable[[], Evaluation | Sequence[Probe]]
) -> Any:
    """What the work gives, as JSON of its fields; it is done only if there is no file of this key."""
    path = measured / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"
    if not path.exists():
        text = json.dumps(work(), default=lambda result: result.to_dict())
        with disk_errors(measured):
            _write(path, text)
    return json.loads(path.read_text("utf-8"))


def _find_facts(data: Shards | ImageDataset, candidate: EvaluatedModel) -> dict[str, Any]:
    return open_eval_loader(
        data, candidate.fit, batch_size=1, rank=0, world_size=1, workers=0
    ).facts


def _find_picture(
    albums: Mapping[tuple[str, str, str], ImageDataset], evaluation: Evaluation, record: ImageResult
) -> Image.Image | None:
    """From the album it was read from; shards have no index, so of them nothing is shown."""
    album = albums.get((evaluation.benchmark, evaluation.facts["name"], evaluation.facts["sha256"]))
    return album.read(_index(album)[record.name]) if album else None


@cache
def _index(album: ImageDataset) -> dict[str, int]:
    return {album.name(index): index for index in range(len(album))}


@contextmanager
def _claim(measured: Path) -> Iterator[Path]:
    """Have the folder to oneself."""
    lock = FileLock(measured / ".lock")
    with disk_errors(measured):
        measured.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another process measures for {measured.parent}; wait for it, or choose another -o"
            ) from None
    try:
        yield measured
    finally:
        lock.release()


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as to:
        to.write_text(
            text, "utf-8", "backslashreplace"
        )  # a name of a class may have bytes that are no text
