"""The study on real images: what pre-training on people's keywords gives, and which choices matter.

    python -m studies.drawings.study OUTPUT DRAWINGS [--length 0.1]

Small networks are pre-trained on the drawings in several variants, measured on the held-out artist
as in `measure`, and transferred to the groups of Unicode with few labels (`task`). Only the number
of seeds may change when a study is resumed.

The folder of a study contains
  study.json                 its sizes, except the number of seeds
  curated/<data>/ shards/<data>/  the training data of the variants
  labels/                    few labelled images to train on, and those to test on
  runs/<task>/<run>/         training runs
  results/<task>.json        the results of a task; a task with results is not run again
  results.json               all results, from which `report` writes tables and plots
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from studies.drawings.build import check_drawings
from studies.drawings.held_out import LABELS_FILE, read_synsets
from studies.drawings.measure import measure_keywords, measure_neighbours, run_gallery, run_model
from studies.drawings.names import read_emoji, read_posts
from studies.drawings.sources import HELD_OUT_ARTIST
from studies.drawings.task import POOL, write_task
from studies.tasks import find_record, run_tasks, scale_run
from swag_models.atomic import disk_errors, write_json
from swag_models.errors import ConfigError, check_choice, check_minimum
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.curation.columns import Columns
from swag_models.recipe.curation.curate import Curation, curate
from swag_models.recipe.curation.sampling import EPOCH_RATIO, Sampling
from swag_models.recipe.data.pack import pack
from swag_models.recipe.evaluation.accuracy.evaluate import evaluate
from swag_models.recipe.evaluation.models import open_evaluated_model
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.distributed import init_distributed
from swag_models.recipe.training.model import PublishInfo
from swag_models.recipe.training.trainer import train
from swag_models.resumable import WorkFolder, read_result, run_once
from swag_models.runtime import count_cpus, find_versions

ARCHS = ("regnety_nano", "vit_nano")
IMAGE_SIZE = 64
STORED_SIDE = 72  # pixels of packed images
PRETRAINING = ("epochs=8", f"image_size={IMAGE_SIZE}")
TRANSFER = ("steps=200", f"image_size={IMAGE_SIZE}")
PUBLISH = PublishInfo(license="cc-by-4.0")  # of some of the artwork


class Data(NamedTuple):
    """How the training data are curated.

    Attributes:
        sampling: kind of `Sampling`.
        source: "hashtags", "captions" or "both".
        senses: which senses of an ambiguous word are used.
    """

    sampling: str = "sqrt"
    source: str = "hashtags"
    senses: str = "context"

    @property
    def name(self) -> str:
        """Its folder."""
        return "-".join(self)


class Variant(NamedTuple):
    """One way to pre-train.

    Attributes:
        data: how the data are curated.
        settings: differences from the preset.
    """

    data: Data = Data()
    settings: tuple[str, ...] = ()


MAIN, SCRATCH = "main", "scratch"  # with all defaults; without pre-training
VARIANTS = {
    MAIN: Variant(),
    "natural": Variant(Data(sampling="natural")),
    "uniform": Variant(Data(sampling="uniform")),
    "metaclip": Variant(Data(sampling="metaclip")),
    "idf": Variant(settings=("objective.weighting=idf",)),
    "sigmoid": Variant(settings=("objective.kind=sigmoid",)),
    "captions": Variant(Data(source="captions")),
    "both": Variant(Data(source="both")),
    "first sense": Variant(Data(senses="first")),
}
# kind of transfer -> preset and settings
TRANSFERS = {
    "finetune": ("finetune", ()),
    "finetune, head from hashtags": ("finetune", ("head_init=hashtags",)),
    "linear": ("linear", ()),
    "linear, head from hashtags": ("linear", ("head_init=hashtags",)),
}


@dataclass(frozen=True)
class DrawingsStudy:
    """Sizes of the study.

    Args:
        archs: the networks.
        shots: numbers of labels of each group.
        seeds: number of seeds.
        length: factor for the length of every training run.
        min_images: minimum number of images of a class.
    """

    archs: tuple[str, ...] = ARCHS[:1]
    shots: tuple[int, ...] = (1, 2, 5, 25)
    seeds: int = 3
    length: float = 1.0
    min_images: int = 6

    def __post_init__(self) -> None:
        for arch in self.archs:
            check_choice("archs", arch, *ARCHS)
        check_minimum(1, seeds=self.seeds, min_images=self.min_images)
        if not 0 < self.length < math.inf:
            raise ConfigError(f"length is {self.length}; allowed: a number above 0")
        if not self.shots or max(self.shots) > POOL or min(self.shots) < 1:
            raise ConfigError(f"shots are {self.shots}; allowed: numbers from 1 to {POOL}")


class DrawingsTask(NamedTuple):
    """One network, seed and variant: pre-training, unless from scratch, and transfer."""

    arch: str
    seed: int
    variant: str

    @property
    def name(self) -> str:
        """A unique file name."""
        return f"{self.arch}-{self.variant.replace(' ', '_')}-{self.seed}"

    def list_transfers(self, study: DrawingsStudy) -> list[tuple[str, int]]:
        """The kinds of transfer, and numbers of labels."""
        if self.variant == MAIN:
            return [(kind, shots) for shots in study.shots for kind in TRANSFERS]
        if self.variant == SCRATCH:
            return [("finetune", shots) for shots in study.shots]
        return [("linear", max(study.shots))]


def list_tasks(study: DrawingsStudy) -> list[DrawingsTask]:
    """Return all tasks, the slowest first."""
    return [
        DrawingsTask(arch, seed, variant)
        for variant in (*VARIANTS, SCRATCH)
        for arch in study.archs
        for seed in range(study.seeds)
    ]


def run_drawings_study(
    folder: str | os.PathLike[str],
    drawings: str | os.PathLike[str],
    study: DrawingsStudy | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    wordnet: str | os.PathLike[str] | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Run the study, or resume it.

    Args:
        folder: working folder.
        drawings: folder of `build_drawings`.
        study: sizes of the study.
        cache: folder of downloaded packages; by default that of the drawings.
        wordnet: as for `curate`.
        processes: number of parallel tasks, each on one CPU; by default one per CPU. They are
            spawned, so a script needs `if __name__ == "__main__":`.
        progress: whether to show progress bars.

    Returns:
        The path of results.json.

    Raises:
        ConfigError: the folder contains a study of other sizes, or there are no drawings.
    """
    folder, drawings, study = Path(folder), Path(drawings), study or DrawingsStudy()
    check_minimum(1, processes=processes)
    check_drawings(drawings)
    sizes = {name: value for name, value in asdict(study).items() if name != "seeds"}
    job = {**sizes, "drawings": str(drawings.resolve())}
    with disk_errors(folder, resumable=True), WorkFolder(folder, job, record="study.json"):
        packages = Path(cache) if cache is not None else drawings / "cache"
        write_task(folder / "labels", drawings, packages, study.shots, study.seeds)
        for data in dict.fromkeys(variant.data for variant in VARIANTS.values()):
            prepare_data(folder, drawings, data, study, wordnet, progress)
        tasks = list_tasks(study)
        do = partial(do_task, folder, drawings, study)
        run_tasks(folder, tasks, do, processes or count_cpus(), progress)
        rows = [row for task in tasks for row in read_result(find_record(folder, task), task, [])]
        values = {
            "facts": {**sizes, "seeds": study.seeds, "posts": len(read_posts(drawings))},
            "versions": find_versions("swag_models", "torch", "python"),
            "rows": rows,
        }
        write_json(folder / "results.json", values, indent=1)
    return folder / "results.json"


def prepare_data(
    folder: Path,
    drawings: Path,
    data: Data,
    study: DrawingsStudy,
    wordnet: str | os.PathLike[str] | None,
    progress: bool,
) -> None:
    """Curate and pack the data of a variant, without near copies of held-out images."""
    curated, posts = folder / "curated" / data.name, drawings / "posts.jsonl"
    excluded = drawings / "shards" / "excluded.txt"
    sampling = Sampling(data.sampling, EPOCH_RATIO)  # runs of equal length, for metaclip too
    curate(
        [posts],
        curated,
        Curation(data.senses, study.min_images, sampling=sampling),
        columns=Columns(source=data.source),
        wordnet=wordnet,
        exclude=excluded if excluded.exists() else None,
        progress=progress,
    )
    pack(
        curated / LABELS_FILE,
        posts,
        folder / "shards" / data.name,
        shard_size=1000,
        image_short_side=STORED_SIDE,
        progress=progress,
    )


def do_task(folder: Path, drawings: Path, study: DrawingsStudy, task: DrawingsTask) -> str:
    """Train and measure the networks of a task, once. Returns the task's name."""
    record = find_record(folder, task)
    run_once(record, task, [], lambda: _do_task(folder, drawings, study, task))
    return task.name


def _do_task(
    folder: Path, drawings: Path, study: DrawingsStudy, task: DrawingsTask
) -> list[dict[str, Any]]:
    """The rows of the results."""
    runs, init, rows = folder / "runs" / task.name, None, list[dict[str, Any]]()

    def prepare(kind: str, settings: Sequence[str]) -> Run:
        run = get_preset(f"{task.arch}_{kind}").run
        # presets start from a model that the library includes
        run = override(replace(run, init=init), settings)
        return scale_run(run, study.length, task.seed)

    if task.variant != SCRATCH:
        variant = VARIANTS[task.variant]
        run = prepare("hashtags", [*PRETRAINING, *variant.settings])
        shards = folder / "shards" / variant.data.name
        model = train(run, shards, runs / "hashtags", progress=False, publish_info=PUBLISH)
        init, values = str(model), measure_pretrained(model, drawings)
        rows += [{"measure": name, "shots": 0, "value": value} for name, value in values.items()]
    for kind, shots in task.list_transfers(study):
        preset, settings = TRANSFERS[kind]
        model = train(
            prepare(preset, [*TRANSFER, *settings]),
            folder / "labels" / f"{shots}-{task.seed}",
            runs / f"{kind.replace(', ', '-').replace(' ', '_')}-{shots}",
            progress=False,
            publish_info=PUBLISH,
        )
        value = measure_accuracy(model, folder / "labels" / "test")
        rows.append({"measure": kind, "shots": shots, "value": value})
    return [{**task._asdict(), **row} for row in rows]


def measure_accuracy(model: Path, test: Path) -> float:
    """The mean over classes of the top-1 accuracy, in percent.

    Args:
        model: a published folder.
        test: a folder with a sub-folder of images for each class.
    """
    with init_distributed() as dist:
        opened = open_evaluated_model(str(model))
        return evaluate(opened, str(test), dist=dist, progress=False).mean_per_class.value


def measure_pretrained(model: Path, drawings: Path) -> dict[str, float]:
    """Measure a hashtag model on the held-out artist, in percent.

    Args:
        model: a published folder.
        drawings: folder of `build_drawings`.

    Returns:
        The most probable class is a keyword ("keyword, first"), or one of the first five; the same
        for keywords of the rarer half of the classes ("rare keyword, first five"); and the same
        emoji by another artist is among the five nearest training images ("neighbours").
    """
    opened, folder = open_evaluated_model(str(model)), drawings / HELD_OUT_ARTIST
    outputs = run_model(opened, folder / "images", progress=False)
    gallery = run_gallery(opened, drawings, progress=False)
    synsets = opened.synsets or ()  # classes are numbered from the most frequent one
    rare, keywords = set(synsets[len(synsets) // 2 :]), read_synsets(folder)
    rare_keywords = {name: [x for x in own if x in rare] for name, own in keywords.items()}
    found = measure_keywords(synsets, outputs, keywords)
    found_rare = measure_keywords(synsets, outputs, rare_keywords)
    neighbours = measure_neighbours(outputs, read_emoji(folder), gallery, read_emoji(drawings))
    return {
        "keyword, first": found["keyword_top1"]["value"],
        "keyword, first five": found["keyword_top5"]["value"],
        "rare keyword, first five": found_rare["keyword_top5"]["value"],
        "neighbours": neighbours["neighbours_top5"]["value"],
    }
