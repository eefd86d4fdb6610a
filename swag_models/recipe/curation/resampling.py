"""The last step from posts to labels: the repeat factor of each image."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from swag_models.recipe.curation import queries
from swag_models.recipe.curation.backends import Backend, remove_table
from swag_models.recipe.curation.sampling import (
    FACTOR_STEPS,
    Sampling,
    choose_threshold,
    count_steps_metaclip,
    repeat_factors,
    round_factor,
    scale_metaclip,
    weigh_classes_metaclip,
)
from swag_models.recipe.curation.steps import Facts

FACTORS = pa.schema({"class": pa.int32(), "repeat": pa.float64()})
WEIGHT_SCHEMA = pa.schema({"class": pa.int32(), "weight": pa.int64()})
STEP_FACTORS = pa.schema({"steps": pa.int64(), "repeat": pa.float64()})


def resample_labels(
    backend: Backend,
    labels: Path,
    classes: Path,
    sampling: Sampling,
    factors_path: Path,
    output: Path,
) -> Facts:
    """Compute the repeat factor of each class, and write the labels with those of their images.

    Args:
        backend: computes the tables.
        labels: folder written by `pipeline.choose_classes`.
        classes: file written by `pipeline.choose_classes`.
        sampling: how images are resampled.
        factors_path: Parquet file to write, see `FACTORS`; with "metaclip" the factors of images
            with one class.
        output: the labels to write, sorted by id: id, classes, repeat.
    """
    counts = pyarrow.parquet.read_table(classes)["images"].to_pylist()
    if sampling.kind == "metaclip":
        return _keep_labels(backend, labels, counts, sampling, factors_path, output)
    rarest, sizes = _count_images(backend, labels, "rarest")
    factors = repeat_factors(counts, [rarest[index] for index in range(len(counts))], sampling)
    table = pa.table({"class": range(len(factors)), "repeat": factors}, schema=FACTORS)
    stored = backend.store(table, factors_path).rename(rarest="class")
    backend.write(queries.finish_labels(backend.read(labels), stored), output)
    return _describe(rarest, sizes, counts, dict(enumerate(factors)))


def _keep_labels(
    backend: Backend,
    labels: Path,
    counts: list[int],
    sampling: Sampling,
    factors_path: Path,
    output: Path,
) -> Facts:
    """`resample_labels` for "metaclip", where all classes of an image decide its factor."""
    threshold = sampling.threshold or choose_threshold(counts)
    weights = weigh_classes_metaclip(counts, threshold)
    kept, weights_path, steps_path = (
        labels.with_name(name) for name in ("drawn", "weights.parquet", "steps.parquet")
    )
    weight_table = backend.store(
        pa.table({"class": range(len(counts)), "weight": weights}, schema=WEIGHT_SCHEMA),
        weights_path,
    )
    backend.map_parts(labels, kept, lambda part: queries.gather_kept(part, weight_table))
    images, sizes = _count_images(backend, kept, "steps")
    scale = scale_metaclip(images, sampling)
    factors = {steps: round_factor(steps / FACTOR_STEPS * scale) for steps in sorted(images)}
    step_table = backend.store(
        pa.table({"steps": list(factors), "repeat": list(factors.values())}, schema=STEP_FACTORS),
        steps_path,
    )
    backend.write(queries.finish_labels(backend.read(kept), step_table), output)
    alone = [
        round_factor(count_steps_metaclip(weight) / FACTOR_STEPS * scale) for weight in weights
    ]
    backend.store(
        pa.table({"class": range(len(counts)), "repeat": alone}, schema=FACTORS), factors_path
    )
    for scratch in (kept, weights_path, steps_path):
        remove_table(scratch)
    tail = [count for count in counts if count < threshold]
    return {
        **_describe(images, sizes, counts, factors),
        "threshold": threshold,
        "tail_classes": len(tail),
        "tail_labels": sum(tail),
    }


def _count_images(backend: Backend, labels: Path, key: str) -> tuple[Counter[int], Counter[int]]:
    """Number of images by a column of the labels, and by number of classes."""
    groups, sizes = Counter[int](), Counter[int]()
    for row in backend.fetch(queries.count_groups(backend.read(labels), key)).to_pylist():
        sizes[row["size"]] += row["images"]
        groups[row[key]] += row["images"]
    return groups, sizes


def _describe(
    images: Counter[int], sizes: Counter[int], counts: list[int], factors: Mapping[int, float]
) -> Facts:
    """The facts for the manifest.

    Args:
        images: number of images by rarest class, or by steps.
        sizes: number of images by number of classes.
        counts: number of images of each class.
        factors: the repeat factor for each key of `images`.
    """
    return {
        "images": sum(images.values()),
        "labels": sum(counts),
        # exact, and equal to the sum over all labels, since factors are multiples of 1/65536
        "samples": math.fsum(factors[key] * number for key, number in images.items()),
        "per_image": {str(size): sizes[size] for size in sorted(sizes)},
    }
