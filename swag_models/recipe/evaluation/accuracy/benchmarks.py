"""Benchmarks: public test sets with the classes of ImageNet-1k, and any labelled images."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swag_models.errors import ConfigError
from swag_models.paths import expand_path
from swag_models.recipe.classes.spec_classes import IMAGENET
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.sources import find_image_folder
from swag_models.recipe.evaluation.accuracy import folder_layouts
from swag_models.recipe.evaluation.accuracy.folder_layouts import REAL_URL, BenchmarkData
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.hashtags import load_imagenet

FOLDER = "folder"
MULTILABEL = "multilabel"  # measured by evaluation.multilabel
UNNAMED = (FOLDER, MULTILABEL)  # any labelled images, not those of a public test set


@dataclass(frozen=True)
class Benchmark:
    """A test set.

    Attributes:
        name: its name on the command line, as value of `--benchmark`.
        title: name for messages.
        source: what to download.
        subfolder: folder of the images in the release; users may give this folder or its parent.
        num_images: number of images of the complete release that are evaluated; None if it varies.
        open: opens the folder of the release for a model.
    """

    name: str
    title: str
    source: str
    subfolder: str
    num_images: int | None
    open: Callable[[Path, EvaluatedModel], BenchmarkData]


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name=FOLDER,
            title="Images",
            source="a folder of images for each class, or packed shards",
            subfolder="",
            num_images=None,
            open=folder_layouts.open_named_folders,
        ),
        Benchmark(
            name=MULTILABEL,
            title="Images with labels",
            source="a list of images and labels, COCO annotations, or packed shards",
            subfolder="",
            num_images=None,
            open=folder_layouts.open_named_folders,
        ),
        Benchmark(
            name="imagenet",
            title="ImageNet",
            source="ILSVRC2012_img_val.tar of image-net.org, sorted into a folder for each "
            "WordNet id",
            subfolder="val",
            num_images=50_000,
            open=folder_layouts.open_wnid_folders,
        ),
        Benchmark(
            name="imagenet-v2",
            title="ImageNet-V2",
            source="imagenetv2-matched-frequency.tar.gz of github.com/modestyachts/ImageNetV2",
            subfolder="imagenetv2-matched-frequency-format-val",
            num_images=10_000,
            open=folder_layouts.open_index_folders,
        ),
        Benchmark(
            name="imagenet-real",
            title="ImageNet ReaL",
            source="the validation images of ImageNet in a folder for each WordNet id, and beside "
            f"them real.json of {REAL_URL}",
            subfolder="val",
            num_images=46_837,  # those of ImageNet's 50,000 that have a label
            open=folder_layouts.open_real,
        ),
        Benchmark(
            name="imagenet-a",
            title="ImageNet-A",
            source="imagenet-a.tar of github.com/hendrycks/natural-adv-examples",
            subfolder="imagenet-a",
            num_images=7_500,
            open=folder_layouts.open_200_wnids,
        ),
        Benchmark(
            name="imagenet-r",
            title="ImageNet-R",
            source="imagenet-r.tar of github.com/hendrycks/imagenet-r",
            subfolder="imagenet-r",
            num_images=30_000,
            open=folder_layouts.open_200_wnids,
        ),
        Benchmark(
            name="sketch",
            title="ImageNet-Sketch",
            source="ImageNet-Sketch.zip of github.com/HaohanWang/ImageNet-Sketch",
            subfolder="sketch",
            num_images=50_889,
            open=folder_layouts.open_wnid_folders,
        ),
        Benchmark(
            name="objectnet",
            title="ObjectNet",
            source="objectnet-1.0.zip of objectnet.dev",
            subfolder="objectnet-1.0",
            num_images=18_574,  # those of the 113 classes that ImageNet has too
            open=folder_layouts.open_objectnet,
        ),
    )
}

PUBLISHED = {  # (model, benchmark) -> top-1 accuracy in percent
    # Singh et al. 2022, arXiv 2201.08371
    ("vit_h14_in1k", "imagenet-v2"): 81.1,
    ("vit_h14_in1k", "imagenet-real"): 90.5,
    ("vit_h14_in1k", "objectnet"): 69.5,
    # timm's results of regnety_1280.swag_ft_in1k
    ("regnety_128gf_in1k", "imagenet-v2"): 80.50,
    ("regnety_128gf_in1k", "imagenet-real"): 90.66,
    ("regnety_128gf_in1k", "imagenet-a"): 83.80,
    ("regnety_128gf_in1k", "imagenet-r"): 88.31,
    ("regnety_128gf_in1k", "sketch"): 64.11,
}


def open_benchmark(
    name: str,
    data: Shards | ImageDataset,
    model: EvaluatedModel,
    only_present: bool = False,
    skip_unmatched: bool = False,
) -> BenchmarkData:
    """Open a benchmark for a model.

    Args:
        name: key of `BENCHMARKS`.
        data: folder of the release; for "folder" and "multilabel", labelled images, shards, or an
            open data set with the classes of the model.
        model: the model; labels are numbered by its classes.
        only_present: allow only predictions of classes that have an image.
        skip_unmatched: leave out images of classes that the model does not have; for "folder" and
            "multilabel".

    Raises:
        ConfigError: the model has other classes, or a file is missing; the message says where to
            get it.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"invalid benchmark {name!r}: allowed {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if model.num_classes is None:
        raise ConfigError(
            f"invalid model {model.name}: it has features but no classes; choose one with a head"
        )
    # The labels of the public test sets are classes of ImageNet-1k.
    if name not in UNNAMED and model.synsets != tuple(load_imagenet()):
        raise ConfigError(
            f"invalid model {model.name}: {benchmark.title} needs the classes of ImageNet-1k; "
            "choose a model that has them"
        )
    if skip_unmatched and name not in UNNAMED:
        raise ConfigError(
            f"skip_unmatched is for {' and '.join(UNNAMED)}, not for {name}; leave it out"
        )
    if isinstance(data, ImageDataset):
        opened = BenchmarkData(data)
    elif name not in UNNAMED:
        opened = benchmark.open(_find_release(benchmark, data), model)
    elif root := find_image_folder(data):
        opened = folder_layouts.open_named_folders(root, model, skip_unmatched)
    else:
        opened = folder_layouts.open_shards(data, model)
    if not only_present:
        return opened
    if not isinstance(dataset := opened.data, ImageDataset):
        raise ConfigError(
            f"only_present needs the classes of all images in advance, which the shards {data} do "
            "not list; give an image folder"
        )
    # All labels of an image count, because any of them is a correct prediction.
    present = {label for labels in dataset.labels for label in labels}
    return BenchmarkData(dataset, tuple(sorted(present)))


def find_published(model: EvaluatedModel, benchmark: str) -> float | None:
    """Return the published top-1 accuracy of a model on a benchmark in percent, if any."""
    if benchmark == "imagenet" and model.published and model.published.dataset == IMAGENET:
        return model.published.top1
    return PUBLISHED.get((model.name, benchmark))


def _find_release(benchmark: Benchmark, data: Shards) -> Path:
    """Return the folder with the content of the release: `data` or its sub-folder."""
    root = expand_path(data, "data") if isinstance(data, (str, os.PathLike)) else None
    if root is not None and (root / benchmark.subfolder).is_dir():
        root /= benchmark.subfolder
    if root is None or not root.is_dir() or not os.listdir(root):
        raise ConfigError(
            f"{data} is not a folder with {benchmark.title}; get {benchmark.source}, and give the "
            "folder it was unpacked to"
        )
    return root
