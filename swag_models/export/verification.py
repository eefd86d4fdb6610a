"""Compare an exported model with the eager one, on synthetic inputs and on images.

Axes: N batch, C channels, H W pixels.
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from swag_models.errors import ConfigError, ExportError, ImageError
from swag_models.export.formats import ModelFunction, find_sides
from swag_models.formatting import count_noun
from swag_models.image_formats import named_errors
from swag_models.inference.image_sources import ImageRef, find_images
from swag_models.models import Backbone
from swag_models.preprocess import Transform

# Deviations are in units of the standard deviation of the eager float32 output.
MAX_FLOAT32_DEVIATION = 1e-4
# In other precisions single values can differ more, so the mean is limited; int8 is checked by
# agreement.
MAX_MEAN_DEVIATION = {"float16": 0.01, "bfloat16": 0.05, "int8": math.inf}
EXTREME_SCALE = 1e4  # times the range of image values
FLOAT32_EPSILON = 2**-23  # relative change by the last bit
MIN_AGREEMENT = 0.99  # fraction of the images
MIN_COSINE_SIMILARITY = 0.99  # of the features, to agree in a model without classes
VERIFICATION_BATCH_SIZE = 8  # images
MAX_CALIBRATION_IMAGES = 128
MAX_CHECKED_IMAGES = 1000
MIN_IMAGES_TO_SPLIT = 20  # with fewer, the same images are calibrated on and checked

logger = logging.getLogger("swag_models")


def split_images(
    folder: str | os.PathLike[str], needs_ranges: bool
) -> tuple[list[ImageRef], list[ImageRef]]:
    """Split a folder into images to calibrate ranges on and images to check.

    Args:
        folder: folder of images, searched recursively.
        needs_ranges: whether to calibrate; the first part is empty otherwise.

    Returns:
        (calibration images, checked images), each spread evenly over the folder.
    """
    image_refs = find_images(folder)
    if needs_ranges and len(image_refs) < MIN_IMAGES_TO_SPLIT:
        logger.warning(
            "%s has only %s: ranges are calibrated on the images that are checked",
            folder,
            count_noun(len(image_refs), "image"),
        )
        return image_refs, image_refs
    calibration: list[ImageRef] = []
    if needs_ranges:
        # At most every second image, so that at least half of them are left to check.
        calibration = image_refs[:: max(2, math.ceil(len(image_refs) / MAX_CALIBRATION_IMAGES))]
    used = set(calibration)
    unused = [image_ref for image_ref in image_refs if image_ref not in used]
    return calibration, unused[:: math.ceil(len(unused) / MAX_CHECKED_IMAGES)]


def read_batches(
    image_refs: Sequence[ImageRef], transform: Transform, in_chans: int
) -> Iterator[Tensor]:
    """Yield images as model input (N, C, H, W); unreadable ones are skipped and logged.

    Raises:
        ConfigError: no image can be read.
    """
    num_skipped = 0
    for start in range(0, len(image_refs), VERIFICATION_BATCH_SIZE):
        inputs = []
        for image_ref in image_refs[start : start + VERIFICATION_BATCH_SIZE]:
            try:
                image = image_ref.read()
                with named_errors(image_ref.name):
                    inputs.append(transform(image))
            except ImageError as error:
                logger.warning("skipped: %s", error)
                num_skipped += 1
        if inputs:
            images = torch.stack(inputs)  # (N, 3, H, W)
            yield images.mean(dim=1, keepdim=True) if in_chans == 1 else images
    if num_skipped == len(image_refs):
        raise ConfigError(
            f"none of {count_noun(num_skipped, 'image')} can be read; "
            "pass a folder of images of the kind the model is for"
        )


@torch.inference_mode()
def check_deviation(
    exported: ModelFunction, eager: Backbone, dtype: str, *, dynamic_size: bool = False
) -> tuple[float, float]:
    """Compare the outputs on noise, constants, black and white, and far beyond their range.

    Args:
        exported: the exported model.
        eager: the model in float32.
        dtype: precision of the exported model.
        dynamic_size: compare on noise of other sizes as well.

    Returns:
        (maximum, mean) deviation on inputs in the range of images.

    Raises:
        ExportError: the deviation is too large.
    """
    shape = (eager.in_chans, *eager.image_size)
    noise = _make_noise(3, shape)
    # After normalisation, black is about -2.2 and white about 2.7.
    constants = torch.stack([torch.full(shape, value) for value in (0.0, 1.0, -2.2, 2.7)])
    batches = [noise, constants]
    if dynamic_size:
        batches += [_make_noise(2, (eager.in_chans, *size)) for size in _list_sizes(eager)]
    deviations = [_measure_deviation(exported, eager, images) for images in batches]
    max_deviation, mean_deviation = (max(values) for values in zip(*deviations))
    if dtype == "float32":
        checks = [(max_deviation, MAX_FLOAT32_DEVIATION)]
        # A RegNet's gates amplify rounding on extreme inputs until eager float32 itself is a whole
        # standard deviation from float64. The tolerance there is therefore relative to the effect
        # of the input's last bit; runtimes deviated by up to 13 times as much.
        extreme = torch.cat([noise[:1], constants[1:]]) * EXTREME_SCALE
        last_bit, _ = _measure_deviation(
            lambda images: eager(images * (1 + FLOAT32_EPSILON)), eager, extreme
        )
        extreme_deviation, _ = _measure_deviation(exported, eager, extreme)
        checks.append((extreme_deviation, max(MAX_FLOAT32_DEVIATION, 30 * last_bit)))
    else:
        checks = [(mean_deviation, MAX_MEAN_DEVIATION[dtype])]
    for deviation, tolerance in checks:
        if not deviation <= tolerance:  # written so that NaN fails
            raise ExportError(
                f"as {dtype} it deviates from eager float32 by {deviation:.3g} of the output's "
                f"standard deviation, allowed: {tolerance:g}; try another dtype or format"
            )
    return max_deviation, mean_deviation


def _list_sizes(eager: Backbone) -> list[tuple[int, int]]:
    """The smallest size, and larger ones than the model's; of a RegNet also odd ones."""
    (step, minimum), (height, width) = find_sides(eager), eager.image_size
    return [(minimum, minimum + step), (height + step, width), (height, 2 * width - step)]


def _make_noise(count: int, shape: tuple[int, ...]) -> Tensor:
    """Normally distributed inputs (N, *shape), the same in every call."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def _measure_deviation(
    exported: ModelFunction, eager: ModelFunction, images: Tensor
) -> tuple[float, float]:
    """(maximum, mean) deviation on images (N, C, H, W), as a batch and for the first one alone."""
    expected = eager(images)
    std = float(expected.std()) or 1.0  # a new head outputs only zeros
    max_deviation, mean_deviation = 0.0, 0.0
    # Both sizes, because an exporter may have fixed the batch size of the sample.
    for count in (len(images), 1):
        output = exported(images[:count])
        if output.shape != expected[:count].shape:
            raise ExportError(
                f"the exported model returns shape {tuple(output.shape)} for "
                f"{count_noun(count, 'image')}; try another dtype or format"
            )
        if not output.isfinite().all():
            raise ExportError(
                f"the exported model returns non-finite values for {count_noun(count, 'image')}; "
                "try another dtype or format"
            )
        deviations = (output - expected[:count]).abs() / std
        max_deviation = max(max_deviation, float(deviations.max()))
        mean_deviation = max(mean_deviation, float(deviations.mean()))
    return max_deviation, mean_deviation


@torch.inference_mode()
def check_agreement(
    exported: ModelFunction,
    eager: Backbone,
    image_refs: Sequence[ImageRef],
    transform: Transform,
) -> tuple[float, int]:
    """Compare the top-1 classes or, without classes, the directions of the features.

    Returns:
        (fraction of the images that agree, number of images that were read).

    Raises:
        ExportError: too few images agree.
    """
    agreements = []
    for images in read_batches(image_refs, transform, eager.in_chans):
        output, expected = exported(images), eager(images)
        if not eager.num_classes:
            similarity = F.cosine_similarity(output.flatten(1), expected.flatten(1))  # (N,)
            agreements.append(similarity >= MIN_COSINE_SIMILARITY)
        else:
            agreements.append(output.argmax(dim=1) == expected.argmax(dim=1))
    agrees = torch.cat(agreements)  # (number of images,)
    agreement = float(agrees.float().mean())
    if agreement < MIN_AGREEMENT:
        raise ExportError(
            f"it agrees with the original on {agreement:.2%} of "
            f"{count_noun(len(agrees), 'image')}, allowed: at least {MIN_AGREEMENT:.0%}; try "
            "another dtype, or images of the kind the model is for"
        )
    return agreement, len(agrees)
