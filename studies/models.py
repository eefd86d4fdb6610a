"""Train the model of drawings that ships with the library, and measure it.

    python -m studies models OUTPUT DRAWINGS

A RegNetY learns the keywords of the drawings and the hashtags of some generated scenes. A rerun
resumes. The test images choose nothing: the one setting that is chosen after training, the shift
of the head's biases, is chosen on the validation images.

The folder contains
  scenes/ curated/ shards/ val/ twemoji/ clipart_test/   the data
  runs/<model>/                 training
  models/<model>/               the published folder, with 16-bit weights
  models/<model>.json           the shift, and the accuracy on validation images with each
  measured.json                 all measures
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from studies.drawings.build import check_drawings, curate_drawings
from studies.drawings.held_out import read_synsets
from studies.drawings.measure import measure_drawings, measure_keywords, run_model
from studies.drawings.split import SPLITS
from studies.scenes import write_scenes
from swag_models import load_model
from swag_models.atomic import disk_errors, write_json
from swag_models.hub.download import hash_file
from swag_models.hub.hf_format import VOCABULARY_FILE, WEIGHTS_FILE
from swag_models.publish.save import save
from swag_models.recipe.config_overrides import override
from swag_models.recipe.evaluation.models import open_evaluated_model
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.model import PublishInfo
from swag_models.recipe.training.trainer import train
from swag_models.resumable import WorkFolder, run_once
from swag_models.runtime import import_extra

MODEL = "regnety_200mf_hashtags"
POSTS, SIDE = 3000, 96  # number of scenes and their pixels
MIN_IMAGES = 6  # of a class
STORED_SIDE = 112  # pixels of packed images
SHIFTS = (0.0, 0.1, 0.2, 0.3, 0.4)  # see `shift_biases`
# Percentage points below the best accuracy, for a smaller shift: general words such as "animal"
# come first less often.
TOLERANCE = 0.5
PUBLISH = PublishInfo(
    license="cc-by-4.0",  # of some of the artwork
    license_url="https://creativecommons.org/licenses/by/4.0/",
)


class Head(NamedTuple):
    """Number of training images of each class, and their WordNet ids, in the order of logits."""

    images: torch.Tensor
    synsets: Sequence[str]


def train_models(
    folder: str | os.PathLike[str],
    drawings: str | os.PathLike[str],
    *,
    settings: Sequence[str] = (),
    wordnet: str | os.PathLike[str] | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Train, round and measure the model, or resume.

    Args:
        folder: working folder.
        drawings: folder of `build_drawings`.
        settings: replace values of the preset, as for `override`: "epochs=1" for a trial.
        wordnet: as for `curate`.
        processes: as for `build_drawings`.
        progress: whether to show progress bars.

    Returns:
        The path of measured.json.

    Raises:
        ConfigError: the folder contains other work, or there are no drawings.
    """
    folder, drawings = Path(folder), Path(drawings)
    check_drawings(drawings)
    job = {"drawings": str(drawings.resolve()), "settings": list(settings)}
    with disk_errors(folder, resumable=True), WorkFolder(folder, job, record="models.json"):
        write_scenes(folder / "scenes", POSTS, 0, SIDE, processes=processes, progress=progress)
        curate_drawings(
            drawings,
            folder,
            [drawings / "posts.jsonl", folder / "scenes" / "posts.jsonl"],
            min_images=MIN_IMAGES,
            image_short_side=STORED_SIDE,
            wordnet=wordnet,
            processes=processes,
            progress=progress,
        )
        trained = train(
            override(get_preset(MODEL).run, settings),
            folder / "shards",
            folder / "runs" / MODEL,
            val=folder / "val" / "shards",
            progress=progress,
            publish_info=PUBLISH,
        )
        model = folder / "models" / MODEL
        finish_model(trained, model, folder, drawings)
        measured = [
            measure_drawings(str(model), drawings, split, wordnet=wordnet, progress=progress)
            for split in SPLITS[1:]
        ]
        write_json(folder / "measured.json", measured, indent=1)
    return folder / "measured.json"


def finish_model(trained: Path, target: Path, folder: Path, drawings: Path) -> None:
    """Publish a trained model again, with shifted biases and weights of 16 bits.

    Args:
        trained: the published folder.
        target: the folder to write.
        folder: of `train_models`.
        drawings: folder of `build_drawings`, with the validation images.
    """
    head = read_head(folder / "curated" / VOCABULARY_FILE)
    run_once(
        target.with_suffix(".json"),
        hash_file(trained / WEIGHTS_FILE),
        [target],
        lambda: _finish_model(trained, target, head, drawings),
    )


def _finish_model(trained: Path, target: Path, head: Head, drawings: Path) -> dict[str, Any]:
    outputs = run_model(
        open_evaluated_model(str(trained)), drawings / "val" / "images", progress=False
    )
    keywords = read_synsets(drawings / "val")
    top1 = {
        shift: measure_keywords(
            head.synsets,
            outputs._replace(logits=outputs.logits + shift_biases(head, shift)),
            keywords,
        )["keyword_top1"]["value"]
        for shift in SHIFTS
    }
    best = min(shift for shift in SHIFTS if top1[shift] >= max(top1.values()) - TOLERANCE)
    model = load_model(trained)
    with torch.no_grad():
        model.get_parameter("head.fc.bias").add_(shift_biases(head, best))
    save(model.half(), target)
    return {"shift": best, "val_top1": {str(shift): value for shift, value in top1.items()}}


def read_head(vocabulary: Path) -> Head:
    """Read the classes of a vocabulary.

    Args:
        vocabulary: file of `curate`.
    """
    table = import_extra("pyarrow.parquet").read_table(vocabulary).to_pydict()
    order = np.argsort(table["class"])
    images = torch.tensor([table["images"][index] for index in order], dtype=torch.float32)
    return Head(images, [table["synset"][index] for index in order])


def shift_biases(head: Head, shift: float) -> torch.Tensor:
    """Return what to add to the logits (K): `shift` times the log of each class's images.

    Sampling shows rare classes more often than they are, so that logits are too high for them
    where images come as they are (logit adjustment, Menon et al., arXiv 2007.07314).

    Args:
        head: the classes.
        shift: 0 adds nothing; 1 would undo uniform sampling.
    """
    return shift * head.images.clamp(min=1).log()
