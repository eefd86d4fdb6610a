"""What a model is measured on: public test sets of ImageNet's classes, as they are released, or pictures of one's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swag_models.errors import ConfigError
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.sources import find_image_folder
from swag_models.recipe.evaluation.accuracy import datasets
from swag_models.recipe.evaluation.accuracy.datasets import REAL, Task
from swag_models.recipe.evaluation.models import IMAGENET, EvaluatedModel
from swag_models.recipe.hashtags import load_imagenet

FOLDER = "folder"
ANY, OWN = "any of its labels is a hit", "its 200 classes compete"


@dataclass(frozen=True)
class Benchmark:
    """A test set. source: what to download. place: where its pictures may lie within the folder that is given.

    pictures: how many count, of the whole release. rule: what sets it apart.
    """

    name: str
    title: str
    source: str
    place: str
    pictures: int | None
    rule: str
    open: Callable[[Path, EvaluatedModel], Task]


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            FOLDER,
            "Pictures",
            "a folder of pictures for each class, or packed shards",
            "",
            None,
            "",
            datasets.open_folder,
        ),
        Benchmark(
            "imagenet",
            "ImageNet",
            "ILSVRC2012_img_val.tar of image-net.org, sorted into a folder for each WordNet id",
            "val",
            50_000,
            "",
            datasets.open_all,
        ),
        Benchmark(
            "imagenet-v2",
            "ImageNet-V2",
            "imagenetv2-matched-frequency.tar.gz of github.com/modestyachts/ImageNetV2",
            "imagenetv2-matched-frequency-format-val",
            10_000,
            "",
            datasets.open_numbered,
        ),
        Benchmark(
            "imagenet-real",
            "ImageNet ReaL",
            f"ImageNet's validation pictures in a folder for each WordNet id, and beside them real.json of {REAL}",
            "val",
            46_837,
            ANY,
            datasets.open_real,
        ),
        Benchmark(
            "imagenet-a",
            "ImageNet-A",
            "imagenet-a.tar of github.com/hendrycks/natural-adv-examples",
            "imagenet-a",
            7_500,
            OWN,
            datasets.open_some,
        ),
        Benchmark(
            "imagenet-r",
            "ImageNet-R",
            "imagenet-r.tar of github.com/hendrycks/imagenet-r",
            "imagenet-r",
            30_000,
            OWN,
            datasets.open_some,
        ),
        Benchmark(
            "sketch",
            "ImageNet-Sketch",
            "ImageNet-Sketch.zip of github.com/HaohanWang/ImageNet-Sketch",
            "sketch",
            50_889,
            "",
            datasets.open_all,
        ),
        Benchmark(
            "objectnet",
            "ObjectNet",
            "objectnet-1.0.zip of objectnet.dev",
            "objectnet-1.0",
            18_574,
            ANY,
            datasets.open_objectnet,
        ),
    )
}

PUBLISHED = {  # top-1 of (model, benchmark)
    ("vit_h14_in1k", "imagenet-v2"): 81.1,  # of the paper, arXiv 2201.08371, as are the next two
    ("vit_h14_in1k", "imagenet-real"): 90.5,
    ("vit_h14_in1k", "objectnet"): 69.5,
    (
        "regnety_128gf_in1k",
        "imagenet-v2",
    ): 80.50,  # of timm's results of regnety_1280.swag_ft_in1k, as are the rest
    ("regnety_128gf_in1k", "imagenet-real"): 90.66,
    ("regnety_128gf_in1k", "imagenet-a"): 83.80,
    ("regnety_128gf_in1k", "imagenet-r"): 88.31,
    ("regnety_128gf_in1k", "sketch"): 64.11,
}


def open_benchmark(
    name: str, data: Shards, candidate: EvaluatedModel, only_present: bool = False
) -> Task:
    """The pictures of a benchmark in the folder of its release, or of one's own, with the classes of a model.

    only_present: no classes compete but those of the pictures. ConfigError says what is missing, and where to get it.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark {name!r} is not known; allowed: {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if candidate.num_classes is None:
        raise ConfigError(
            f"{candidate.name} gives features and has no classes; give a model with a head"
        )
    if name != FOLDER and candidate.synsets != tuple(load_imagenet()):
        raise ConfigError(
            f"{benchmark.title} has the classes of ImageNet-1k, {candidate.name} has others; give a model of those"
        )
    root = find_image_folder(data) if name == FOLDER else _find_release(benchmark, data)
    task = (
        datasets.open_shards(data, candidate) if root is None else benchmark.open(root, candidate)
    )
    if not only_present:
        return task
    if not isinstance(album := task.data, ImageDataset):
        raise ConfigError(
            f"only_present needs to know the classes of all pictures beforehand, and {data} has no index"
        )
    return Task(
        album,
        tuple(sorted({label for labels in album.labels for label in labels})),
    )


def find_published(candidate: EvaluatedModel, benchmark: str) -> float | None:
    """The top-1 that is stated for a model on a benchmark, in percent, if one is."""
    if benchmark == "imagenet" and candidate.published and candidate.published.dataset == IMAGENET:
        return candidate.published.top1
    return PUBLISHED.get((candidate.name, benchmark))


def _find_release(benchmark: Benchmark, data: Shards) -> Path:
    """The folder that has what the release has."""
    root = Path(data) if isinstance(data, (str, os.PathLike)) else None
    if root is not None and (root / benchmark.place).is_dir():
        root /= benchmark.place
    if root is None or not root.is_dir() or not os.listdir(root):
        raise ConfigError(
            f"{data} is no folder with {benchmark.title}; get {benchmark.source}, and give the folder it was unpacked to"
        )
    return root
