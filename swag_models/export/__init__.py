"""Models as files for other runtimes: `.onnx`, `.pt2` of torch.export, compiled `.aoti.pt2`.

A file takes images and returns logits or features, both as float32 regardless of the internal
precision. It accepts any batch size, at a fixed image size or any that the model accepts, and
stores the preprocessing, the class names and the licence.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swag_models import __version__
from swag_models.api import Name, get_spec, load_classes, load_model
from swag_models.atomic import temporary_folder
from swag_models.errors import (
    ConfigError,
    ExportError,
    argument_errors,
    check_types,
    plain_arguments,
)
from swag_models.export.compiled import check_compiler, load_compiled, write_compiled
from swag_models.export.external_data import (
    check_replaceable,
    choose_external_data,
    move_into_place,
)
from swag_models.export.formats import (
    INPUT_NAME,
    load_file,
    trace_model,
    write_onnx,
    write_pt2,
)
from swag_models.export.metadata import (
    COMPILED_SUFFIX,
    ONNX_EXTRA,
    Metadata,
    check_suffix,
    find_suffix,
    read_metadata,
)
from swag_models.export.verification import (
    check_agreement,
    check_deviation,
    read_batches,
    split_images,
)
from swag_models.formatting import count_noun, describe, escape_unprintable
from swag_models.inference.acceleration import accelerate
from swag_models.models import Backbone, ViT
from swag_models.models.unwrap import unwrap
from swag_models.paths import expand_path
from swag_models.preprocess import Transform
from swag_models.runtime import import_extra
from swag_models.spec import ImageSize, ModelSpec

# Set before onnxruntime is imported: it would report its use to its authors over the network.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "DTYPES",
    "OPSETS",
    "ExportReport",
    "Metadata",
    "export_model",
    "load_compiled",
    "read_metadata",
]


def __dir__() -> list[str]:
    return sorted(__all__)


# torch.export has no counterpart of onnxruntime's int8 operators.
DTYPES = {
    ".onnx": ("float32", "float16", "bfloat16", "int8"),
    ".pt2": ("float32", "float16", "bfloat16"),
    COMPILED_SUFFIX: ("float32", "float16", "bfloat16"),
}
ALIASES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}  # as in Optimum
OPSETS = range(18, 24)  # of ONNX; those that torch's exporter writes and onnxruntime runs
BFLOAT16_OPSETS = range(22, 24)  # those in which a convolution may be in bfloat16
# How to avoid what layers of the user raise while torch copies and traces them.
HINT = "; undo changes of its layers, such as quantisation, weight norm or branches on values"


@dataclass(frozen=True)
class ExportReport:
    """An exported file, and its differences from the eager float32 model.

    Attributes:
        path: path of the file.
        dtype: internal precision.
        size: size in bytes, including external data.
        max_deviation: largest difference, in standard deviations of the eager output.
        mean_deviation: mean difference, in the same unit.
        agreement: fraction of the images with the same top-1 class or, without classes, with
            similar features; None if no images were passed.
        num_images: number of images that were compared.
    """

    path: Path
    dtype: str
    size: int
    max_deviation: float
    mean_deviation: float
    agreement: float | None
    num_images: int


@plain_arguments
def export_model(
    model: Name | nn.Module,
    path: str | os.PathLike[str],
    *,
    spec: ModelSpec | None = None,
    image_size: ImageSize | None = None,
    dynamic_size: bool = False,
    dtype: str | torch.dtype = "float32",
    opset: int | None = None,
    external_data: bool | None = None,
    classes: Sequence[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ExportReport:
    """Write a model as .onnx, .pt2 or .aoti.pt2, by the suffix of `path`, and verify the file.

    The file is loaded again and compared with eager float32 on noise, constants, black and white,
    in batches and one by one, with `dynamic_size` also in other sizes. In float32 it may deviate by
    1e-4 of the output's standard deviation, also for inputs 10,000 times as large, unless the model
    itself is unstable for them. The mean deviation may be 1% in float16 and 5% in bfloat16.

    Args:
        model: anything that `load_model` accepts, or a loaded model, possibly compiled or wrapped
            for parallel training, which is not changed.
        path: file to write. A .aoti.pt2 contains code compiled by AOTInductor for this kind of CPU,
            with the batch norms folded; experimental, on Linux only. See `load_compiled`.
        spec: spec of a loaded model, if it differs from the one that it was loaded with.
        image_size: pixels, int or (height, width); by default the model's.
        dynamic_size: accept any height and width: of a ViT multiples of the patch size from two
            patches, for which the graph resizes the position embedding, of another model from 33
            pixels. The metadata state `image_size`.
        dtype: float32, float16 or bfloat16 (also as fp32, fp16, bf16); int8 for .onnx. Inputs and
            outputs are float32 in any case. In a ViT, int8 quantises the matrix products and scales
            their inputs for each batch; others are quantised completely, with ranges calibrated on
            images. int8 is verified on this CPU only: x86 CPUs without VNNI instructions may
            saturate where this one does not. A bfloat16 .onnx is verified with each result rounded
            to bfloat16, because onnxruntime does not run it; docs/usage.md lists what does.
        opset: ONNX opset, 18 to 23; by default 18, and 22 for bfloat16, which needs it.
        external_data: store the weights of an .onnx beside it, in PATH.data; by default if they
            have more than 1.5 GB. Where an existing file uses this name for other weights, they are
            stored in PATH.new.data, so that no moment has a file with the weights of another.
        classes: class names in the order of the logits; by default those of the spec, if the number
            of classes is still the same.
        images: folder of images, required by int8. At least 99% of them (of 1,000, if there are
            more) must keep their top-1 class or, without classes, have features of cosine
            similarity 0.99 or more. With 20 images or more, separate images (at most 128) are used
            for calibration. Unreadable images are skipped and logged. A model with one channel gets
            greyscale images.
        options: further options of `load_model`.

    Raises:
        ConfigError: an argument is invalid, or a package is missing.
        ExportError: the file cannot be written, or differs from the model. `path` is unchanged.
    """
    check_types(ModelSpec | None, spec=spec)
    check_types(str | torch.dtype, dtype=dtype)
    check_types(bool, dynamic_size=dynamic_size)
    check_types(bool | None, external_data=external_data)
    path, dtype = expand_path(path), str(dtype).removeprefix("torch.")
    dtype = ALIASES.get(dtype, dtype)
    images = None if images is None else expand_path(images, "images")
    opset = _check_arguments(path, dtype, opset, external_data, images)
    compiled = find_suffix(path) == COMPILED_SUFFIX
    with _default_settings():
        eager, spec = _load_eager(model, spec, image_size, options)
        if dynamic_size and isinstance(eager, ViT) and eager.merge_tokens:
            raise ConfigError(
                "dynamic_size is not possible with merge_tokens, whose graph depends on the size; "
                "leave it out, or pass merge_tokens=0"
            )
        metadata = _make_metadata(spec, eager, dtype, classes)
        needs_ranges = dtype == "int8" and spec.family != "vit"
        calibration, checked = ([], []) if images is None else split_images(images, needs_ranges)
        transform = Transform(metadata.preprocess)
        batches = read_batches(calibration, transform, eager.in_chans) if needs_ranges else None
        # onnxruntime quantises a float32 graph.
        traced_dtype = torch.float32 if dtype == "int8" else getattr(torch, dtype)
        try:
            # In a temporary folder, because an .onnx refers to its .data file by the final name.
            with temporary_folder(path) as folder:
                temporary = folder / path.name
                with argument_errors("model", model, HINT):
                    traced = accelerate(copy.deepcopy(eager), traced_dtype) if compiled else eager
                    program = trace_model(traced, traced_dtype, dynamic_size=dynamic_size)
                if compiled:
                    write_compiled(program, temporary, metadata)
                elif path.suffix == ".pt2":
                    write_pt2(program, temporary, metadata)
                else:
                    beside = choose_external_data(program, external_data, dtype)
                    write_onnx(program, temporary, metadata, opset, batches, beside)
                # Verified as stored on disk, by the runtime that will run it.
                exported = load_file(temporary, dtype)
                max_deviation, mean_deviation = check_deviation(
                    exported, eager, dtype, dynamic_size=dynamic_size
                )
                agreement, num_images = None, 0
                if checked:
                    agreement, num_images = check_agreement(exported, eager, checked, transform)
                size = move_into_place(temporary, path)
        except (OSError, ExportError) as error:
            reason = str(error)
            if isinstance(error, OSError) and error.errno is None:  # NumPy's, for a full disk
                reason = f"the disk took only a part of it ({reason}); free some space"
            raise ExportError(f"{path} was not written: {reason}") from None
    return ExportReport(path, dtype, size, max_deviation, mean_deviation, agreement, num_images)


def _check_arguments(
    path: Path, dtype: str, opset: int | None, external_data: bool | None, images: Path | None
) -> int:
    """Raise ConfigError for invalid arguments, before any work; return the opset."""
    check_suffix(path)
    suffix = find_suffix(path)
    if dtype not in DTYPES[suffix]:
        raise ConfigError(
            f"invalid dtype {escape_unprintable(dtype, 100)} for {suffix}: allowed: "
            f"{', '.join(DTYPES[suffix])}; use .onnx for int8"
        )
    opsets = BFLOAT16_OPSETS if (suffix, dtype) == (".onnx", "bfloat16") else OPSETS
    opset = opsets[0] if opset is None else opset
    if type(opset) is not int or opset not in opsets:
        raise ConfigError(
            f"invalid opset {describe(opset)} for {dtype}: allowed: {opsets[0]} to {opsets[-1]}"
        )
    if external_data is not None and suffix != ".onnx":
        raise ConfigError(f"external_data is for .onnx; a {suffix} is always one file")
    if dtype == "int8" and images is None:
        raise ConfigError("int8 needs a folder of images to calibrate on: pass images=")
    if images is not None and not os.path.isdir(images):
        raise ConfigError(
            f"{images} is not a folder; pass a folder of images of the kind the model is for"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a folder; create it first")
    check_replaceable(path)
    if suffix == COMPILED_SUFFIX:
        check_compiler()
    if suffix == ".onnx":  # checked now, not after minutes of tracing
        for module in ("onnx", "onnxruntime", "onnxscript"):
            import_extra(module, ONNX_EXTRA, ".onnx")
    return opset


@contextmanager
def _default_settings() -> Iterator[None]:
    """Trace and compare without the caller's autocast, default dtype and default device."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _load_eager(
    model: Name | nn.Module,
    spec: ModelSpec | None,
    image_size: ImageSize | None,
    options: dict[str, Any],
) -> tuple[Backbone, ModelSpec]:
    """The model in float32 on the CPU, in eval mode without gradients, and its spec."""
    eager: Backbone
    if isinstance(model, nn.Module):
        model = unwrap(model, "export")
        spec = spec or model.spec
        if spec is None:
            raise ConfigError(
                "cannot export a model of unknown origin: make it with load_model, or pass spec="
            )
        if image_size is not None or options:
            names = [*(["image_size"] if image_size is not None else []), *options]
            raise ConfigError(
                f"invalid {', '.join(names)} for a loaded model, which is exported unchanged; "
                "pass load_model's options to load_model"
            )
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            raise ConfigError(
                "cannot export a model on the meta device, which has no weights; load them first"
            )
        with argument_errors("model", model, HINT):
            # `.to` and `.eval` below would change the caller's model.
            eager = copy.deepcopy(model).to("cpu", torch.float32)
        if "_original_forward" in vars(eager):  # accelerate's, under its own autocast
            del eager.forward
    else:
        if spec is not None:
            raise ConfigError("invalid spec= for a model's name: pass it with a loaded model")
        spec = get_spec(model)
        eager = load_model(spec, image_size=image_size, **options).to("cpu", torch.float32)
    return eager.eval().requires_grad_(False), spec


def _make_metadata(
    spec: ModelSpec, eager: Backbone, dtype: str, classes: Sequence[str] | None
) -> Metadata:
    """What is stored in the file about the model, its inputs and its outputs."""
    return Metadata(
        name=spec.name,
        license=spec.license,
        license_url=spec.license_url,
        library=f"swag_models {__version__}",
        dtype=dtype,
        input=INPUT_NAME,
        output="logits" if eager.num_classes else "features",
        preprocess=replace(spec.preprocess, image_size=eager.image_size),
        classes=_list_classes(spec, eager.num_classes, classes),
        multi_label=spec.multi_label,
    )


def _list_classes(
    spec: ModelSpec, num_classes: int, classes: Sequence[str] | None
) -> tuple[str, ...] | None:
    """The caller's class names, or the spec's; None if the model has another number of classes."""
    if classes is not None:
        check_types(list | tuple, classes=classes)
        if len(classes) != num_classes or not all(isinstance(name, str) for name in classes):
            raise ConfigError(
                f"{count_noun(len(classes), 'class name')} for "
                f"{count_noun(num_classes or None, 'class')}; pass one string each"
            )
        return tuple(classes)
    if spec.classes is None or not num_classes:
        return None
    names = load_classes(spec)
    # A new head of another size has no known names.
    return names if len(names) == num_classes else None
