"""Several things per image: a sigmoid for each class against a softmax on one label per image.

Both models are fine-tuned from the same hashtag weights on the same images, for the same number of
steps. The softmax sees one of the labels of each image, chosen at random, as where people name one
thing per photo; the sigmoid sees all of them. Both are measured by mAP on further images.

The folder of the study contains
  train/, test/       images with 1 to 4 things; labels.csv has all their names, one.csv one of them
  runs/<kind>-<seed>/ training runs
  several.json        the measures of each run; several.md: their table
"""

from __future__ import annotations

import csv
import io
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from studies.scenes.scene import Scene, encode, name_scene
from studies.scenes.things import CLUBS, NAMES
from swag_models.atomic import atomic_write, disk_errors, write_json, write_text
from swag_models.errors import ConfigError
from swag_models.formatting import markdown_table
from swag_models.hub.progress import make_bar
from swag_models.recipe.evaluation.models import open_evaluated_model
from swag_models.recipe.evaluation.multilabel.evaluate import evaluate_multilabel
from swag_models.recipe.evaluation.multilabel.results import MEASURES
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.distributed import init_distributed
from swag_models.recipe.training.model import PublishInfo
from swag_models.recipe.training.trainer import train
from swag_models.resumable import WorkFolder, run_once

KINDS = {"multilabel": "labels.csv", "finetune": "one.csv"}  # preset -> its labels
MOST_THINGS = 4
IMAGE_SIZE = 64


@dataclass(frozen=True)
class SeveralStudy:
    """Sizes of the study.

    Args:
        train: number of images to train on.
        test: number of images to test on.
        steps: training steps of each run.
        seeds: number of runs of each kind.
    """

    train: int = 2_000
    test: int = 500
    steps: int = 500
    seeds: int = 3

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; allowed: 1 or more")


def plan_several(seed: int, split: str, number: int) -> Scene:
    """A scene with 1 to MOST_THINGS different things, all of them equally frequent."""
    key = f"{seed}/several/{split}/{number}"
    rng = random.Random(f"{key}/plan")
    things = rng.sample(NAMES, rng.randint(1, MOST_THINGS))
    return Scene(key, tuple(things), rng.choice(CLUBS))


def write_several(folder: Path, split: str, count: int, seed: int = 0) -> Path:
    """Write scenes and their labels; returns the file with all labels.

    Args:
        folder: where to write; created if missing.
        split: names the scenes, which differ between splits.
        count: number of images.
        seed: of the scenes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [plan_several(seed, split, number) for number in range(count)]
    for scene in scenes:
        with atomic_write(folder / f"{name_scene(scene)}.jpg") as path:
            path.write_bytes(encode(scene, IMAGE_SIZE))
    for name in KINDS.values():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("file_name", "labels"))
        for scene in scenes:
            # the order of the things is random
            things = scene.things if name == "labels.csv" else scene.things[:1]
            writer.writerow((f"{name_scene(scene)}.jpg", "|".join(things)))
        write_text(folder / name, text.getvalue())
    return folder / "labels.csv"


def run_several(
    folder: Path, study: SeveralStudy | None = None, arch: str = "vit_nano", progress: bool = True
) -> Path:
    """Run the study, or resume it.

    Returns:
        The path of the table.

    Raises:
        ConfigError: the folder contains a study of other sizes.
    """
    study = study or SeveralStudy()
    sizes = {name: value for name, value in asdict(study).items() if name != "seeds"}
    with (
        disk_errors(folder, resumable=True),
        WorkFolder(folder, {**sizes, "arch": arch}, record="study.json"),
    ):
        for split, count in (("train", study.train), ("test", study.test)):
            run_once(
                folder / f"{split}.json",
                [split, count],
                [folder / split],
                lambda split=split, count=count: str(  # type: ignore[misc]
                    write_several(folder / split, split, count)
                ),
            )
        rows = []
        tasks = [(kind, seed) for seed in range(study.seeds) for kind in KINDS]
        for kind, seed in make_bar(progress, tasks, unit=" runs"):
            rows.append(_run(folder, study, arch, kind, seed))
        write_json(folder / "several.json", rows, indent=1)
        write_text(folder / "several.md", format_rows(rows))
    return folder / "several.md"


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of the mean and the standard deviation over seeds, for each kind."""
    lines = []
    for kind in KINDS:
        cells = []
        for name in MEASURES:
            values = [row[name] for row in rows if row["kind"] == kind]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append((kind, *cells))
    return markdown_table(("preset", *MEASURES), lines) + "\n"


def _run(folder: Path, study: SeveralStudy, arch: str, kind: str, seed: int) -> dict[str, Any]:
    """Train one model, unless it is trained, and measure it."""
    run = get_preset(f"{arch}_{kind}").run
    run = replace(run, seed=seed, epochs=None, steps=study.steps)
    model = train(
        run,
        folder / "train" / KINDS[kind],
        folder / "runs" / f"{kind}-{seed}",
        progress=False,
        publish_info=PublishInfo(license="apache-2.0"),
    )
    with init_distributed() as dist:
        evaluation = evaluate_multilabel(
            open_evaluated_model(str(model)),
            folder / "test" / "labels.csv",
            dist=dist,
            progress=False,
        )
    values = {name: estimate.value for name, estimate in evaluation.measures.items()}
    return {"kind": kind, "seed": seed, **values}
