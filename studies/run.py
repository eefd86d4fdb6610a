"""The miniature study: the paper's claims on generated scenes, on a laptop's CPU.

Two small networks are pre-trained on hashtags, with three ways of resampling images and two
objectives, and transferred to true labels. They are compared with the same networks without
pre-training, with several seeds.

The folder of a study contains
  study.json            its sizes, except the number of seeds, which can be increased
  scenes/               the images; labels/: held-out images to train on and to test on
  curated-<sampling>/   vocabulary and labels; shards-<sampling>/: the training data
  runs/<task>/<run>/    training runs
  results/<task>.json   the results of a task; a task with results is not run again
  report/               study.md, study.png, results.json, the best hashtag model of each network
"""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from studies.labels import write_labels
from studies.report import write_study_report
from studies.scenes.gallery import write_scenes
from studies.scenes.posts import SceneImage, split_held_out
from studies.scenes.things import NAMES
from studies.tasks import find_record, run_tasks, scale_run
from swag_models import load_model, load_preprocess
from swag_models.atomic import disk_errors
from swag_models.errors import ConfigError
from swag_models.recipe.curation.curate import Curation, curate
from swag_models.recipe.curation.sampling import Sampling
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.data.pack import pack
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.model import PublishInfo
from swag_models.recipe.training.trainer import train
from swag_models.resumable import WorkFolder, read_result, run_once
from swag_models.runtime import count_cpus, import_extra

ARCHS = ("regnety_nano", "vit_nano")
SAMPLINGS = ("sqrt", "natural", "uniform")
Objective = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Study:
    """Sizes of the study.

    Args:
        posts: number of images with hashtags.
        pool: number of held-out images of each thing that training labels are drawn from.
        test: number of further held-out images of each thing to test on.
        shots: numbers of true labels of each thing.
        seeds: number of seeds.
        length: factor for the length of every training run.
    """

    posts: int = 20_000
    pool: int = 30
    test: int = 30
    shots: tuple[int, ...] = (5, 25)
    seeds: int = 3
    length: float = 1.0

    def __post_init__(self) -> None:
        for name in ("posts", "pool", "test", "seeds"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value}; allowed: 1 or more")
        if not 0 < self.length < math.inf:
            raise ConfigError(f"length is {self.length}; allowed: a number above 0")
        if not self.shots or max(self.shots) > self.pool or min(self.shots) < 1:
            raise ConfigError(
                f"shots are {self.shots}; allowed: numbers from 1 to {self.pool}, the pool size"
            )


class StudyTask(NamedTuple):
    """One network and seed: pre-training, unless `sampling` is None, and transfer to labels."""

    arch: str
    seed: int
    sampling: str | None = None
    objective: Objective = "softmax"

    @property
    def name(self) -> str:
        start = f"{self.sampling}-{self.objective}" if self.sampling else "scratch"
        return f"{self.arch}-{start}-{self.seed}"

    @property
    def main(self) -> bool:
        """Whether the task is part of the main comparison, with and without pre-training."""
        return self.sampling in (None, "sqrt") and self.objective == "softmax"

    def choose_transfers(self, most: bool) -> Sequence[str]:
        """The kinds of transfer; `most` is true for the largest number of labels."""
        if not self.main:
            return ("linear",) if most else ()
        return ("finetune", "linear") if self.sampling else ("finetune",)


def run_study(
    folder: str | os.PathLike[str],
    study: Study | None = None,
    *,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Run the study, or resume it.

    Args:
        folder: working folder.
        study: sizes of the study.
        processes: number of parallel tasks, each on one CPU; by default one per CPU. They are
            spawned, so a script needs `if __name__ == "__main__":`.
        progress: whether to show progress bars.

    Returns:
        The folder of the report.

    Raises:
        ConfigError: the folder contains a study of other sizes.
    """
    folder, study = Path(folder), study or Study()
    if processes is not None and processes < 1:
        raise ConfigError(f"processes is {processes}; allowed: 1 or more")
    with disk_errors(folder, resumable=True), open_study_folder(folder, study):
        prepare_data(folder, study, progress)
        tasks = list_tasks(study)
        # the slowest first
        order = sorted(tasks, key=lambda task: (task.sampling is None, not task.main))
        do = partial(do_task, folder, study)
        run_tasks(folder, order, do, processes or count_cpus(), progress)
        return _write_report(folder, study, tasks)


def open_study_folder(folder: Path, study: Study) -> WorkFolder:
    """The folder of a study, locked by one process. The number of seeds can be increased."""
    sizes = {name: value for name, value in asdict(study).items() if name != "seeds"}
    return WorkFolder(folder, sizes, record="study.json")


def _write_report(folder: Path, study: Study, tasks: Sequence[StudyTask]) -> Path:
    """Write the report and copy the best model of each network into it."""
    rows = [
        row for task in tasks for row in read_result(find_record(folder, task), task._asdict(), [])
    ]
    facts = {"posts": study.posts, "things": len(NAMES), "test": study.test, "seeds": study.seeds}
    write_study_report(folder / "report", rows, facts)
    for arch in ARCHS:
        main = [task for task in tasks if task.arch == arch and task.main and task.sampling]
        best = max(main, key=lambda task: _hashtag_accuracy(task, rows))
        published = folder / "report" / f"{arch}_hashtags"
        shutil.rmtree(published, ignore_errors=True)
        shutil.copytree(folder / "runs" / best.name / "hashtags" / "model", published)
    return folder / "report"


def list_tasks(study: Study) -> list[StudyTask]:
    """Each network and seed: each sampling, from scratch, and the sigmoid objective."""
    tasks = []
    for seed in range(study.seeds):
        for arch in ARCHS:
            tasks += [StudyTask(arch, seed, sampling) for sampling in (*SAMPLINGS, None)]
            tasks += [StudyTask(arch, seed, "sqrt", "sigmoid")]
    return tasks


def prepare_data(folder: Path, study: Study, progress: bool) -> None:
    """Write scenes, shards and labelled folders; finished parts are reused."""
    scenes = folder / "scenes"
    write_scenes(scenes, study.posts, len(NAMES) * (study.pool + study.test), progress=progress)
    for sampling in SAMPLINGS:
        curated, shards = folder / f"curated-{sampling}", folder / f"shards-{sampling}"
        # the senses with which the published results were made
        choices = Curation("first", sampling=Sampling(kind=sampling))
        curate(
            [scenes / "posts.jsonl"],
            curated,
            choices,
            wordnet=scenes / "wordnet",
            progress=progress,
        )
        size = max(1, study.posts // 20)
        pack(
            curated / "labels.parquet",
            scenes / "posts.jsonl",
            shards,
            shard_size=size,
            progress=progress,
        )
    pool, test = (
        _group_by_thing(scenes, images) for images in split_held_out(study.pool, study.test)
    )
    write_labels(folder / "labels", pool, test, study.shots, study.seeds)


def do_task(folder: Path, study: Study, task: StudyTask) -> str:
    """Train and evaluate the networks of a task, once. Returns the task's name."""
    record, key = find_record(folder, task), task._asdict()
    run_once(record, key, [], lambda: _do_task(folder, study, task))
    return task.name


def _do_task(folder: Path, study: Study, task: StudyTask) -> list[dict[str, Any]]:
    """The rows of the report: one for each training run."""
    publish_info = PublishInfo(
        name=task.name,
        license="apache-2.0",
        license_url="https://www.apache.org/licenses/LICENSE-2.0",
    )
    test, runs, init = folder / "labels" / "test", folder / "runs" / task.name, None
    rows: list[dict[str, Any]] = []
    if task.sampling:
        run = scale_run(get_preset(f"{task.arch}_hashtags").run, study.length, task.seed)
        run = replace(run, objective=replace(run.objective, kind=task.objective))
        shards = folder / f"shards-{task.sampling}"
        model = train(run, shards, runs / "hashtags", progress=False, publish_info=publish_info)
        rows.append({"measure": "hashtags", "shots": 0, **measure(model, test, NAMES)})
        init = str(model)
    for shots in study.shots:
        labelled = folder / "labels" / f"{shots}-{task.seed}"
        for kind in task.choose_transfers(shots == max(study.shots)):
            run = scale_run(get_preset(f"{task.arch}_{kind}").run, study.length, task.seed)
            run, output = replace(run, init=init), runs / f"{kind}-{shots}"
            model = train(run, labelled, output, progress=False, publish_info=publish_info)
            rows.append({"measure": kind, "shots": shots, **measure(model, test, None)})
    return [{**task._asdict(), **row} for row in rows]


def measure(model: Path, test: Path, things: Sequence[str] | None) -> dict[str, float]:
    """Top-1 accuracy in percent, averaged over things.

    Args:
        model: a published folder.
        test: a folder with one sub-folder of images for each thing.
        things: names that are looked up among the hashtags of the model's vocabulary; only their
            classes can be predicted. None if the model's classes are the things.

    Returns:
        The mean over "all" things, and over the "tail", the rarer half of them.
    """
    network, preprocess = load_model(model), load_preprocess(model)
    labels = sorted(NAMES)  # the classes of a folder are sorted by name
    names = things or labels
    columns = find_class_indices(model, things) if things else list(range(len(NAMES)))
    hits: dict[str, list[bool]] = defaultdict(list)
    for batch in open_eval_loader(
        test, preprocess.fit, batch_size=100, rank=0, world_size=1, workers=0
    ):
        with torch.inference_mode():
            top1 = network(preprocess.normalise(batch.images))[:, columns].argmax(1)
        for index, (label,) in zip(top1.tolist(), batch.classes):
            hits[labels[label]].append(names[index] == labels[label])
    accuracy = {
        thing: 100 * sum(thing_hits) / len(thing_hits) for thing, thing_hits in hits.items()
    }
    tail = NAMES[len(NAMES) // 2 :]
    return {
        "all": sum(accuracy.values()) / len(NAMES),
        "tail": sum(accuracy[thing] for thing in tail) / len(tail),
    }


def find_class_indices(model: Path, things: Sequence[str]) -> list[int]:
    """The class index of the hashtag that names each thing."""
    table = import_extra("pyarrow.parquet").read_table(
        model / "vocabulary.parquet", columns=["class", "hashtags"]
    )
    classes = {hashtag: row["class"] for row in table.to_pylist() for hashtag in row["hashtags"]}
    if missing := [thing for thing in things if thing not in classes]:
        raise ConfigError(f"no class of {model} has the hashtag {missing[0]!r}; use more posts")
    return [classes[thing] for thing in things]


def _group_by_thing(scenes: Path, images: Sequence[SceneImage]) -> dict[str, list[Path]]:
    """The files of held-out images, by thing."""
    paths: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        paths[image.row["thing"]].append(scenes / image.path)
    return paths


def _hashtag_accuracy(task: StudyTask, rows: Sequence[dict[str, Any]]) -> float:
    """Accuracy by hashtags, which uses no true labels."""
    fields = {**task._asdict(), "measure": "hashtags"}
    return next(
        float(row["all"])
        for row in rows
        if all(row[name] == value for name, value in fields.items())
    )
