"""The miniature study: the paper's argument on generated scenes, from nothing, on a laptop's processor.

Two small networks are pre-trained by hashtags, with three ways of resampling images and two objectives, and brought to true
labels, beside the same networks without pre-training. Each is done with several seeds.

The folder of a study holds
  study.json            how large it is, in all but the number of seeds, of which more may come
  scenes/               the pictures; labels/ the held-out ones, split into some to learn from and the rest to test on
  curated-sqrt/, ...    vocabulary and labels for each sampling; shards-sqrt/, ... what is trained on
  runs/<task>/<run>/    training runs
  results/<task>.json   what a task found; one that has it is not done again
  report/               study.md, study.png, results.json with every number, and the best hashtag model of each network
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from studies.report import write_findings
from studies.scenes.gallery import write_scenes
from studies.scenes.posts import SceneImage, split_held_out
from studies.scenes.things import NAMES
from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import ConfigError
from swag_models.recipe.config import Run
from swag_models.recipe.curation.curate import Curation, curate
from swag_models.recipe.curation.sampling import Sampling
from swag_models.recipe.data.pack import pack
from swag_models.recipe.presets import get_preset
from swag_models.recipe.worker_pool import open_pool
from swag_models.runtime import count_cpus, import_extra

ARCHS = ("regnety_nano", "vit_nano")
SAMPLINGS = ("sqrt", "natural", "uniform")
Kind = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Study:
    """How large the study is.

    posts: pictures with hashtags. pool: held-out pictures of each thing that labels are drawn from; `test` more are tested on.
    shots: true labels of each thing. seeds: repetitions. length: factor of the lengths of all runs.
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
                raise ConfigError(f"{name} is {value}; give 1 or more")
        if not 0 < self.length < math.inf:
            raise ConfigError(f"length is {self.length}; give a number above 0")
        if not self.shots or max(self.shots) > self.pool or min(self.shots) < 1:
            raise ConfigError(
                f"shots are {self.shots}; give numbers from 1 to {self.pool}, the pictures to draw from"
            )


class StudyTask(NamedTuple):
    """One network with one seed: pre-trained with a sampling and an objective, or from scratch, and brought to true labels."""

    arch: str
    seed: int
    sampling: str | None = None  # None: from scratch
    objective: Kind = "softmax"

    @property
    def name(self) -> str:
        start = f"{self.sampling}-{self.objective}" if self.sampling else "scratch"
        return f"{self.arch}-{start}-{self.seed}"

    @property
    def main(self) -> bool:
        """Whether it is of the main question: with and without pre-training."""
        return self.sampling in (None, "sqrt") and self.objective == "softmax"

    def choose_transfers(self, most: bool) -> Sequence[str]:
        """How it is brought to true labels, or to the most of them: a linear classifier needs a pre-trained trunk."""
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
    """Do the study, or what is left of it, and return the folder of its report.

    processes: tasks at a time, each on one core. A script that calls this needs `if __name__ == "__main__":`.
    ConfigError if the folder is another study's.
    """
    folder, study = Path(folder), study or Study()
    if processes is not None and processes < 1:
        raise ConfigError(f"processes is {processes}; give 1 or more")
    claim_study_folder(folder, study)
    prepare_data(folder, study, progress)
    tasks = list_tasks(study)
    left = [task for task in tasks if not _record_of(folder, task).exists()]
    # The slowest ones first, so that no core is idle at the end.
    left.sort(key=lambda task: (task.sampling is None, not task.main))
    with tqdm(
        total=len(tasks),
        initial=len(tasks) - len(left),
        unit="task",
        disable=None if progress else True,
    ) as bar:
        if left:
            with open_pool(min(processes or count_cpus(), len(left)), _use_one_core) as pool:
                for done in as_completed(
                    [pool.submit(do_task, folder, study, task) for task in left]
                ):
                    bar.set_postfix_str(done.result())
                    bar.update()
    rows = [
        row for task in tasks for row in json.loads(_record_of(folder, task).read_text("utf-8"))
    ]
    facts = {"posts": study.posts, "things": len(NAMES), "test": study.test, "seeds": study.seeds}
    write_findings(folder / "report", rows, facts)
    for arch in ARCHS:
        main = [task for task in tasks if task.arch == arch and task.main and task.sampling]
        best = max(main, key=lambda task: _rate(task, rows))
        copy = folder / "report" / f"{arch}_hashtags"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / "runs" / best.name / "hashtags" / "model", copy)
    return folder / "report"


def list_tasks(study: Study) -> list[StudyTask]:
    """Every network, from scratch, pre-trained with each sampling, and with the other objective."""
    tasks = []
    for seed in range(study.seeds):
        for arch in ARCHS:
            tasks += [StudyTask(arch, seed, sampling) for sampling in (*SAMPLINGS, None)]
            tasks += [StudyTask(arch, seed, "sqrt", "sigmoid")]
    return tasks


def claim_study_folder(folder: Path, study: Study) -> None:
    """Write study.json, or compare."""
    sizes = json.loads(
        json.dumps({name: value for name, value in asdict(study).items() if name != "seeds"})
    )
    path = folder / "study.json"
    before = json.loads(path.read_text("utf-8")) if path.exists() else sizes
    for name, value in sizes.items():
        if before.get(name) != value:
            raise ConfigError(
                f"{folder} holds a study with {name} {before.get(name)}, not {value}; choose another folder"
            )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, unique=True) as to:
            to.write_text(json.dumps(sizes, indent=1) + "\n", "utf-8")


def prepare_data(folder: Path, study: Study, progress: bool) -> None:
    """Scenes, labels and shards."""
    scenes = folder / "scenes"
    write_scenes(scenes, study.posts, len(NAMES) * (study.pool + study.test), progress=progress)
    for sampling in SAMPLINGS:
        curated, shards = folder / f"curated-{sampling}", folder / f"shards-{sampling}"
        choices = Curation(sampling=Sampling(kind=sampling))
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
    drawn, tested = (
        _group(scenes, pictures) for pictures in split_held_out(study.pool, study.test)
    )
    sets = {
        f"{shots}-{seed}": (seed, shots) for shots in study.shots for seed in range(study.seeds)
    }
    for name in ("test", *sets):
        if (target := folder / "labels" / name).exists():
            continue
        temporary = target.with_name(f".{name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        for thing in NAMES:
            (temporary / thing).mkdir(parents=True)
            for path in tested[thing] if name == "test" else draw(drawn[thing], *sets[name]):
                shutil.copyfile(path, temporary / thing / path.name)
        temporary.rename(target)


def draw(paths: list[Path], seed: int, count: int) -> list[Path]:
    """Some of the pictures, other ones for each seed; fewer of them are among the more.

    Three seeds share an order of the pictures, a third of it apart; they do not depend on how many seeds there are.
    """
    turn, third = divmod(seed, 3)
    order = random.Random(turn).sample(paths, len(paths)) if turn else paths
    start = third * len(order) // 3
    return [order[(start + place) % len(order)] for place in range(count)]


def do_task(folder: Path, study: Study, task: StudyTask) -> str:
    """Train and measure what a task asks for, and record it; its name."""
    from swag_models.recipe.training.run_dir import PublishInfo
    from swag_models.recipe.training.trainer import train

    told = PublishInfo(
        name=task.name,
        license="apache-2.0",
        license_url="https://www.apache.org/licenses/LICENSE-2.0",
    )
    about = task._asdict()
    rows: list[dict[str, Any]] = []
    runs, init = folder / "runs" / task.name, None
    if task.sampling:
        run = _scale(get_preset(f"{task.arch}_hashtags").run, study, task.seed)
        run = replace(run, objective=replace(run.objective, kind=task.objective))
        model = train(
            run, folder / f"shards-{task.sampling}", runs / "hashtags", progress=False, about=told
        )
        rows.append(
            {
                **about,
                "measure": "hashtags",
                "shots": 0,
                **measure(model, folder / "labels" / "test", NAMES),
            }
        )
        init = str(model)
    for shots in study.shots:
        data = folder / "labels" / f"{shots}-{task.seed}"
        for kind in task.choose_transfers(shots == max(study.shots)):
            run = replace(
                _scale(get_preset(f"{task.arch}_{kind}").run, study, task.seed), init=init
            )
            model = train(run, data, runs / f"{kind}-{shots}", progress=False, about=told)
            rows.append(
                {
                    **about,
                    "measure": kind,
                    "shots": shots,
                    **measure(model, folder / "labels" / "test", None),
                }
            )
    record = _record_of(folder, task)
    record.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(record, unique=True) as to:
        to.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return task.name


def measure(model: Path, test: Path, things: Sequence[str] | None) -> dict[str, float]:
    """Top-1 accuracy in percent, the mean over things: all of them, and the rarer half of them.

    `things` are looked for among the hashtags of the model's vocabulary, and only they compete; None if its classes are things.
    """
    import torch

    from swag_models import load_model, load_preprocess
    from swag_models.recipe.data.eval_loader import open_eval_loader

    network, preprocess = load_model(model), load_preprocess(model)
    labels = sorted(NAMES)  # the classes of a folder
    names = things or labels
    columns = find_class_indices(model, things) if things else list(range(len(NAMES)))
    hits: dict[str, list[bool]] = defaultdict(list)
    for batch in open_eval_loader(
        test, preprocess.fit, batch_size=100, rank=0, world_size=1, workers=0
    ):
        with torch.inference_mode():
            found = network(preprocess.normalise(batch.images))[:, columns].argmax(1)
        for each, (label,) in zip(found.tolist(), batch.classes):
            hits[labels[label]].append(names[each] == labels[label])
    accuracy = {thing: 100 * sum(each) / len(each) for thing, each in hits.items()}
    tail = NAMES[len(NAMES) // 2 :]
    return {
        "all": sum(accuracy.values()) / len(NAMES),
        "tail": sum(accuracy[thing] for thing in tail) / len(tail),
    }


def find_class_indices(model: Path, things: Sequence[str]) -> list[int]:
    """The class of each thing's own hashtag, as people write it."""
    table = import_extra("pyarrow.parquet").read_table(
        model / "vocabulary.parquet", columns=["class", "hashtags"]
    )
    classes = {hashtag: row["class"] for row in table.to_pylist() for hashtag in row["hashtags"]}
    if missing := [thing for thing in things if thing not in classes]:
        raise ConfigError(
            f"no class of {model} has the hashtag {missing[0]!r}; more posts are needed"
        )
    return [classes[thing] for thing in things]


def _scale(run: Run, study: Study, seed: int) -> Run:
    """The run with a seed, and as long as the study has it."""
    if run.steps:
        return replace(run, seed=seed, steps=max(1, round(run.steps * study.length)))
    assert run.epochs
    return replace(run, seed=seed, epochs=run.epochs * study.length)


def _group(scenes: Path, pictures: Sequence[SceneImage]) -> dict[str, list[Path]]:
    """The files of held-out pictures, by thing."""
    found: dict[str, list[Path]] = defaultdict(list)
    for picture in pictures:
        found[picture.row["thing"]].append(scenes / picture.path)
    return found


def _rate(task: StudyTask, rows: Sequence[dict[str, Any]]) -> float:
    """Accuracy by hashtags, which needs no true label."""
    own = {
        "arch": task.arch,
        "seed": task.seed,
        "sampling": task.sampling,
        "objective": task.objective,
        "measure": "hashtags",
    }
    return next(
        float(row["all"]) for row in rows if all(row[name] == value for name, value in own.items())
    )


def _record_of(folder: Path, task: StudyTask) -> Path:
    return folder / "results" / f"{task.name}.json"


def _use_one_core() -> None:
    import torch

    torch.set_num_threads(1)
