"""A model as a file for other runtimes: `.onnx` for onnxruntime, `.pt2` for torch.export; checked before it has its name.

Images go in and logits or features come out as float32, whatever the precision inside; the batch is free, the image size fixed.
The preprocessing, the class names and the licence travel in the file.

Axes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swag_models import __version__
from swag_models.api import Name, get_spec, load_classes, load_model
from swag_models.errors import ConfigError, ExportError, ImageError
from swag_models.export.formats import (
    INPUT,
    Run,
    move_file,
    open_file,
    trace_model,
    write_onnx,
    write_pt2,
)
from swag_models.export.metadata import Metadata, check_suffix, import_onnx, read_metadata
from swag_models.inference.image_sources import ImageRef, find_images
from swag_models.models import Backbone
from swag_models.preprocess import Transform
from swag_models.spec import ImageSize, ModelSpec

__all__ = ["DTYPES", "OPSETS", "Metadata", "ExportReport", "export_model", "read_metadata"]

DTYPES = {".onnx": ("float32", "float16", "int8"), ".pt2": ("float32", "bfloat16", "float16")}
OPSETS = range(18, 24)  # ONNX's, as far as torch's exporter writes and onnxruntime runs them
LARGEST = 1e-4  # difference in float32, in units of the eager output's standard deviation
MEAN = {
    "float16": 0.01,
    "bfloat16": 0.05,
    "int8": math.inf,
}  # the same in other precisions, where single values stray
EXTREME = 1e4  # times a picture's range
LAST_BIT = 2**-23  # of a float32, in units of its value
KEPT = 0.99  # share of the pictures that must keep their answer
SIMILAR = 0.99  # without classes, the cosine similarity at which features count as kept
BATCH, MAX_CALIBRATED, MAX_CHECKED, MIN_SPLIT = 8, 128, 1000, 20  # pictures

logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class ExportReport:
    """A file written, and how it compares with the eager float32 model.

    `size` is in bytes, external data included; `largest` and `mean` are differences in units of the eager output's standard
    deviation; `kept` is the share of the `pictures` with the same top-1 class or, without classes, with similar features.
    """

    path: Path
    dtype: str
    size: int
    largest: float
    mean: float
    kept: float | None
    pictures: int


def export_model(
    model: Name | Backbone,
    path: str | os.PathLike[str],
    *,
    spec: ModelSpec | None = None,
    image_size: ImageSize | None = None,
    dtype: str | torch.dtype = "float32",
    opset: int = OPSETS[0],
    pictures: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ExportReport:
    """Write a model as .onnx or .pt2, by the suffix of `path`, once the written file has proven to give what the model gives.

    model: what `load_model` takes, to which `options` go; or a loaded model, left as it is; `spec` replaces its own.
    image_size: pixels, int or (height, width), default the model's.
    dtype: float32 or float16; bfloat16 for .pt2; int8 for .onnx, which makes a ViT's matrix products integer and scales their
        inputs batch by batch, and a RegNet integer throughout with ranges measured on pictures. int8 is checked on this
        processor; x86 without VNNI instructions may saturate where this one does not.
    opset: ONNX's, 18 to 23.
    pictures: a folder, which int8 needs. At least 99% of them (of 1,000, if there are more) must keep their top-1 class, or
        without classes give features of cosine similarity 0.99. From 20 pictures on, those are others than the (at most 128)
        that ranges are measured on. Those that cannot be read are skipped and logged. A model of one channel gets grey ones.

    The very file is read back and compared with eager float32 on noise, constants, black and white, in batches and one by one.
    In float32 it may be off by 1e-4 of the output's standard deviation; also on values 10,000 times as large, unless the model
    itself is unsteady there. In float16 it may be off by 1% in the mean, in bfloat16 by 5%.
    Weights of more than 1.5 GB go into PATH.data beside an .onnx.

    Raises ConfigError, ExportError or what `load_model` raises, and has then changed nothing at `path`.
    """
    path, dtype = Path(path), str(dtype).removeprefix("torch.")
    _check_request(path, dtype, opset, pictures)
    eager, spec = _load(model, spec, image_size, options)
    metadata = Metadata(
        name=spec.name,
        license=spec.license,
        license_url=spec.license_url,
        library=f"swag_models {__version__}",
        dtype=dtype,
        input=INPUT,
        output="features" if eager.num_classes is None else "logits",
        preprocess=replace(spec.preprocess, image_size=eager.image_size),
        classes=_name_classes(spec, eager.num_classes),
    )
    ranges = dtype == "int8" and spec.family == "regnet"
    calibration, checked = ([], []) if pictures is None else _split_pictures(pictures, ranges)
    transform = Transform(metadata.preprocess)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder) / path.name
            program = trace_model(
                eager, torch.float32 if dtype == "int8" else getattr(torch, dtype)
            )
            if path.suffix == ".pt2":
                write_pt2(program, made, metadata)
            else:
                write_onnx(
                    program,
                    made,
                    metadata,
                    opset,
                    _read_batches(calibration, transform, eager.in_chans) if ranges else None,
                )
            run = open_file(made)
            largest, mean = _check_deviation(run, eager, dtype)
            kept, count = _check_kept(run, eager, checked, transform) if checked else (None, 0)
            size = move_file(made, path)
    except (OSError, ExportError) as error:
        raise ExportError(f"{path} was not written: {error}") from None
    return ExportReport(path, dtype, size, largest, mean, kept, count)


def _check_request(
    path: Path, dtype: str, opset: int, pictures: str | os.PathLike[str] | None
) -> None:
    """ConfigError for what no export can satisfy, before any work."""
    check_suffix(path)
    if dtype not in DTYPES[path.suffix]:
        raise ConfigError(
            f"dtype {dtype} cannot go into {path.suffix}; allowed: {', '.join(DTYPES[path.suffix])} "
            "(onnxruntime computes in no bfloat16 on processors, and int8 is its own)"
        )
    if opset not in OPSETS:
        raise ConfigError(f"opset is {opset}; allowed: {OPSETS[0]} to {OPSETS[-1]}")
    if dtype == "int8" and pictures is None:
        raise ConfigError(
            "int8 needs a folder of pictures to be measured on: pictures=, or --calibrate FOLDER"
        )
    if pictures is not None and not os.path.isdir(pictures):
        raise ConfigError(
            f"{pictures} is not a folder; give one of pictures of the kind the model is for"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder; make it first")
    if path.suffix == ".onnx":
        import_onnx()


def _load(
    model: Name | Backbone,
    spec: ModelSpec | None,
    image_size: ImageSize | None,
    options: dict[str, Any],
) -> tuple[Backbone, ModelSpec]:
    """The model in float32 on the CPU, in eval mode and needing no gradients, and its spec."""
    made: Backbone
    if isinstance(model, Backbone):
        spec = spec or model.spec
        if spec is None:
            raise ConfigError(
                "this model does not say where it came from; make it with load_model, or give spec="
            )
        if image_size is not None or options:
            raise ConfigError(
                "a loaded model is exported as it is; load it with image_size and the like"
            )
        made = copy.deepcopy(model)
    else:
        if spec is not None:
            raise ConfigError("spec= goes with a loaded model; a name has its own")
        spec = get_spec(model)
        made = load_model(spec, image_size=image_size, **options)
    return made.to("cpu", torch.float32).eval().requires_grad_(False), spec


def _name_classes(spec: ModelSpec, num_classes: int | None) -> tuple[str, ...] | None:
    """The spec's class names, if the model has its head."""
    if spec.classes is None or num_classes is None:
        return None
    names = load_classes(spec)
    return names if len(names) == num_classes else None


def _split_pictures(
    folder: str | os.PathLike[str], ranges: bool
) -> tuple[list[ImageRef], list[ImageRef]]:
    """(pictures to measure ranges on, pictures to check), each spread evenly over the folder."""
    found = find_images(folder)
    if ranges and len(found) < MIN_SPLIT:
        logger.warning(
            "%s has only %d pictures: ranges are measured on those that are checked",
            folder,
            len(found),
        )
        return found, found
    calibration = found[:: max(2, math.ceil(len(found) / MAX_CALIBRATED))] if ranges else []
    measured = set(calibration)
    others = [picture for picture in found if picture not in measured]
    return calibration, others[:: math.ceil(len(others) / MAX_CHECKED)]


def _read_batches(
    pictures: Sequence[ImageRef], transform: Transform, in_chans: int
) -> Iterator[Tensor]:
    """Pictures as model input, (N, C, H, W) at a time; those that cannot be read are left out, ConfigError if that is all."""
    skipped = 0
    for start in range(0, len(pictures), BATCH):
        inputs = []
        for picture in pictures[start : start + BATCH]:
            try:
                inputs.append(transform(picture.read()))
            except ImageError as error:
                logger.warning("skipped: %s", error)
                skipped += 1
        if inputs:
            images = torch.stack(inputs)  # (N, 3, H, W)
            yield images.mean(dim=1, keepdim=True) if in_chans == 1 else images
    if skipped == len(pictures):
        raise ConfigError(
            f"none of {skipped} pictures can be read; give a folder of pictures of the kind the model is for"
        )


@torch.inference_mode()
def _check_deviation(run: Run, eager: Backbone, dtype: str) -> tuple[float, float]:
    """(largest, mean) deviation on inputs of the kind that pictures give; ExportError if it is too much there or far beyond."""
    shape = (eager.in_chans, *eager.image_size)
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    constants = torch.stack(
        [torch.full(shape, value) for value in (0.0, 1.0, -2.2, 2.7)]
    )  # the last two: black and white
    largest, mean = (
        max(pair)
        for pair in zip(*(_measure_deviation(run, eager, images) for images in (noise, constants)))
    )
    checks = [(largest, LARGEST) if dtype == "float32" else (mean, MEAN[dtype])]
    if dtype == "float32":
        # A RegNet's gates amplify rounding there until eager float32 itself is a whole standard deviation from float64, so what
        # a change of the input's last bit does is the yardstick; runtimes were found up to 13 times as far apart.
        extreme = torch.cat([noise[:1], constants[1:]]) * EXTREME
        nudged, _ = _measure_deviation(
            lambda images: eager(images * (1 + LAST_BIT)), eager, extreme
        )
        checks.append((_measure_deviation(run, eager, extreme)[0], max(LARGEST, 30 * nudged)))
    for deviation, tolerance in checks:
        if not deviation <= tolerance:  # also if it is not a number
            raise ExportError(
                f"as {dtype} it is {deviation:.3g} of the output's standard deviation from eager float32; "
                f"allowed are {tolerance:g}, try another dtype or format"
            )
    return largest, mean


def _measure_deviation(run: Run, eager: Run, images: Tensor) -> tuple[float, float]:
    """(largest, mean) difference in units of the eager output's standard deviation, batch and first image alone."""
    expected = eager(images)
    spread = float(expected.std()) or 1.0  # a fresh head gives zeros only
    differences = []
    for count in (len(images), 1):
        got = run(images[:count])
        if got.shape != expected[:count].shape or not got.isfinite().all():
            what = (
                "values that are not finite"
                if got.shape == expected[:count].shape
                else f"shape {tuple(got.shape)}"
            )
            raise ExportError(
                f"the exported model gives {what} for {count} images; try another dtype or format"
            )
        differences.append((got - expected[:count]).abs() / spread)
    return max(float(each.max()) for each in differences), max(
        float(each.mean()) for each in differences
    )


@torch.inference_mode()
def _check_kept(
    run: Run, eager: Backbone, pictures: Sequence[ImageRef], transform: Transform
) -> tuple[float, int]:
    """The share of pictures whose top-1 class, or without classes the features' direction, is kept, and of how many.

    ExportError if it is too low.
    """
    answers = []
    for images in _read_batches(pictures, transform, eager.in_chans):
        got, expected = run(images), eager(images)
        if eager.num_classes is None:
            answers.append(F.cosine_similarity(got.flatten(1), expected.flatten(1)) >= SIMILAR)
        else:
            answers.append(got.argmax(dim=1) == expected.argmax(dim=1))
    same = torch.cat(answers)
    kept = float(same.float().mean())
    if kept < KEPT:
        raise ExportError(
            f"{kept:.2%} of {len(same)} pictures keep their answer, {KEPT:.0%} must; "
            "try another dtype, or pictures of the kind the model is for"
        )
    return kept, len(same)
