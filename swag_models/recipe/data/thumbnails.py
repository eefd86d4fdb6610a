"""Compare images by thumbnails, to recognise near copies; numpy only.

Two measures, a coarse one to find candidates among millions of pairs, and a fine one to decide:

- `describe` makes unit vectors of the low frequencies of a thumbnail: its discrete cosine
  transform (Ahmed et al. 1974). Each frequency is even or odd in x, and mirroring changes only the
  signs of the odd ones, so one comparison finds mirrored copies as well.
- `measure_distance` aligns two thumbnails, which undoes crops and borders (with Gauss-Newton steps,
  as in Lucas and Kanade 1981), and compares what they have in common.

Axes: N thumbnails, 64 x 64 pixels, 3 channels (RGB); D coefficients.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from swag_models.errors import check_maximum, check_minimum, check_types

SIDE = 64  # pixels of a thumbnail
LUMA_FREQUENCIES, CHROMA_FREQUENCIES = 8, 4  # per axis; brightness shows more than colour
EVEN = LUMA_FREQUENCIES**2 // 2 - 1 + CHROMA_FREQUENCIES**2  # coefficients; half of all
WIDTH = 2 * EVEN + 1  # coefficients of a descriptor
MIN_CONTRAST = 1.0  # of 255; images with a smaller deviation have only one colour
ZOOM = 0.05  # share of the width and height that crops are expected to remove
SYMMETRIC = 0.1  # part of a similarity that is too small to say whether an image is mirrored
MIN_OVERLAP = 0.75  # share of the pixels that two aligned thumbnails have in common
SATURATED = 250.0  # of 255; brighter pixels may have been cut off when an image was made brighter
MAX_GAIN = 1.7  # of a change of brightness
COLOUR_BLOCKS = 8  # per axis, whose mean colours are compared
# Pixels per side at which thumbnails are aligned, one after another, and the steps at each
START_SIDE = 16
MIN_CORRELATION = 0.5  # of brightness at the start; copies have 0.8 or more, and most others less
ALIGNMENT_STEPS = ((START_SIDE, 4), (32, 4), (64, 2))
# Where an alignment starts, as (scale, shift) of y and of x: the shifts of a crop, both ways
IDENTITY = (1.0, 0.0, 1.0, 0.0)
STARTS = (
    IDENTITY,
    *(
        (scale, y * 0.02, scale, x * 0.02)
        for scale in (0.96, 1 / 0.96)
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    ),
)

Thumbnails = NDArray[np.uint8]
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


def check_distance(**distances: float | None) -> None:
    """Check options that are distances of near copies: from 0 to 1, or None.

    Raises:
        ConfigError: one is not.
    """
    check_types(int | float | None, **distances)
    check_minimum(0, **distances)
    check_maximum(1, **distances)


class Descriptors(NamedTuple):
    """Unit vectors of thumbnails, in two parts.

    Attributes:
        even: (N, D) coefficients that stay the same in a mirrored image.
        odd: (N, D) coefficients that change their signs.
    """

    even: Array
    odd: Array


def make_thumbnail(image: Image.Image) -> Thumbnails:
    """Return an RGB image of any size and shape as a thumbnail, uint8 (64, 64, 3)."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(small, np.uint8)


def compute_descriptors(thumbnails: Thumbnails, zoom: float = 0.0) -> Descriptors:
    """Return the descriptors of thumbnails (N, 64, 64, 3).

    Args:
        thumbnails: the thumbnails.
        zoom: share of the width and height around the centre to leave out.

    Returns:
        Vectors of length 1; of length 0 for an image of one colour, which resembles nothing.
    """
    centres = (np.arange(SIDE) + 0.5 - SIDE / 2) * (1 - zoom) + SIDE / 2 - 0.5
    basis: Array = _cosine_basis(LUMA_FREQUENCIES) @ _interpolate(centres, SIDE)
    values = np.einsum("us,nstc->nutc", basis, thumbnails.astype(np.float32), optimize=True)
    values = np.einsum("vt,nutc,kc->nuvk", basis, values, _OPPONENT, optimize=True)
    luma, chroma = values[..., 0], values[:, :CHROMA_FREQUENCIES, :CHROMA_FREQUENCIES, 1:]
    count = len(thumbnails)
    # Not the first coefficient, the brightness; but the mean colour.
    even = [luma[:, :, 0::2].reshape(count, -1)[:, 1:], chroma[:, :, 0::2].reshape(count, -1)]
    odd = [luma[:, :, 1::2].reshape(count, -1), chroma[:, :, 1::2].reshape(count, -1)]
    rows = np.concatenate([*even, *odd], axis=1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.where(norms > MIN_CONTRAST * SIDE, rows / np.maximum(norms, 1e-6), 0)
    parts = np.split(rows.astype(np.float32), [EVEN], axis=1)
    return Descriptors(*map(np.ascontiguousarray, parts))


def compare_descriptors(one: Descriptors, other: Descriptors) -> Array:
    """Return the similarities (N, M), at most 1, of images or of their mirror images."""
    return one.even @ other.even.T + np.abs(one.odd @ other.odd.T)


def list_orientations(one: Descriptors, other: Descriptors) -> tuple[bool, ...]:
    """Whether two images, or one and the mirror image of the other, have to be compared.

    Args:
        one: descriptors of one image.
        other: descriptors of another one.

    Returns:
        False for as they are, True for mirrored; both for images that are nearly symmetric.
    """
    product = float((one.odd * other.odd).sum())
    return (product < 0,) if abs(product) > SYMMETRIC else (False, True)


def measure_distance(one: Thumbnails, other: Thumbnails, limit: float) -> float:
    """Return how much two thumbnails differ after they were aligned.

    Brightness and contrast are matched first. The distance is the larger of two numbers: the
    largest difference of the mean colours of a block, of 8 x 8, in standard deviations of the
    image; and the square root of 1 - r, where r is the correlation of all pixels.

    Args:
        one: (64, 64, 3).
        other: the same.
        limit: the largest distance of interest; thumbnails that are much closer are not aligned.

    Returns:
        0 for equal thumbnails; about 1 for images that have nothing in common.
    """
    a, b = one.astype(np.float32), other.astype(np.float32)
    distance = _compare_aligned(a, b, IDENTITY)
    # In both directions, because each finds some crops that the other one misses.
    for moved, fixed in ((a, b), (b, a)):
        if distance > limit / 2:
            shift = _align(moved, fixed)
            if shift is not None:
                distance = min(distance, _compare_aligned(moved, fixed, shift))
    return distance


def _compare_aligned(one: Array, other: Array, shift: tuple[float, ...]) -> float:
    sampled, kept, rows, columns = _sample(one, other, shift)
    if sampled.size < MIN_OVERLAP * other.size:
        return 1.0
    distances = [_compare(sampled, kept, rows, columns)]
    # Making an image brighter cuts off its brightest pixels, so the same is done to the other.
    dark = (sampled < SATURATED) & (kept < SATURATED)
    if not dark.all() and dark.mean() > 0.02:
        gain = float((sampled * kept)[dark].sum() / max(1.0, (kept * kept)[dark].sum()))
        if 1 < gain < MAX_GAIN:
            kept = np.minimum(kept * np.float32(gain), 255)
        elif 1 / MAX_GAIN < gain < 1:
            sampled = np.minimum(sampled / np.float32(gain), 255)
        distances.append(_compare(sampled, kept, rows, columns))
    return min(distances)


def _compare(one: Array, other: Array, rows: Mask, columns: Mask) -> float:
    one, other = _standardise(one), _standardise(other)
    difference = np.zeros(
        (SIDE, SIDE, 3), np.float32
    )  # what they do not have in common counts as 0
    difference[np.ix_(rows, columns)] = one - other
    size = SIDE // COLOUR_BLOCKS
    blocks = difference.reshape(COLOUR_BLOCKS, size, COLOUR_BLOCKS, size, 3).mean(axis=(1, 3))
    correlation = float((one * other).mean())
    return max(float(np.abs(blocks).max()), max(0.0, 1 - correlation) ** 0.5)


def _align(one: Array, other: Array) -> tuple[float, ...] | None:
    """Find the (scale, shift) of y and x at which `one` is sampled to resemble `other` most.

    Returns:
        None if they have too little in common.
    """
    pyramid = {SIDE: (one.mean(axis=2, keepdims=True), other.mean(axis=2, keepdims=True))}
    for side in (2 * START_SIDE, START_SIDE):
        pyramid[side] = tuple(map(_halve, pyramid[2 * side]))  # type: ignore[assignment]

    start, correlation = _choose_start(*(values[..., 0] for values in pyramid[START_SIDE]))
    if correlation < MIN_CORRELATION:
        return None
    shift = np.array(start)
    for side, steps in ALIGNMENT_STEPS:
        for _ in range(steps):
            sampled, kept, rows, columns = _sample(*pyramid[side], shift)
            if sampled.size < MIN_OVERLAP * side * side:
                return tuple(shift)
            step = _improve(_standardise(sampled), _standardise(kept), rows, columns)
            shift = shift + step.clip(-ZOOM, ZOOM)
            if np.abs(step).max() < 0.01 / side:  # a hundredth of a pixel
                break
    return tuple(shift)


def _choose_start(one: Array, other: Array) -> tuple[tuple[float, ...], float]:
    """The best of STARTS for two small grey images (16, 16), and the correlation there."""
    matrices_y, matrices_x, inside = _stack_starts()
    sampled = matrices_y @ one @ matrices_x.transpose(0, 2, 1)
    counts = inside.sum(axis=(1, 2))

    def centre(values: NDArray[Any]) -> NDArray[Any]:
        means = (values * inside).sum(axis=(1, 2)) / counts
        return (values - means[:, None, None]) * inside

    a, b = centre(sampled), centre(np.broadcast_to(other, sampled.shape))
    norms = (a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2))
    correlations = (a * b).sum(axis=(1, 2)) / np.sqrt(np.maximum(norms, 1e-6))
    best = int(correlations.argmax())
    return STARTS[best], float(correlations[best])


@lru_cache(maxsize=1)
def _stack_starts() -> tuple[Array, Array, Array]:
    """The matrices of all STARTS for y and for x, and 1 for each pixel that is inside."""
    side, stacks = START_SIDE, ([], [], [])  # type: ignore[var-annotated]
    for start in STARTS:
        masks = []
        for axis in (0, 1):
            matrix = np.zeros((side, side), np.float32)
            sampling, mask = _make_sampling(side, *start[2 * axis : 2 * axis + 2])
            matrix[mask] = sampling
            stacks[axis].append(matrix)
            masks.append(mask)
        stacks[2].append(np.outer(*masks).astype(np.float32))
    matrices_y, matrices_x, inside = map(np.stack, stacks)
    return matrices_y, matrices_x, inside


def _improve(one: Array, other: Array, rows: Mask, columns: Mask) -> NDArray[Any]:
    """One Gauss-Newton step of (scale, shift) of y and x."""
    side = len(rows)
    slope_y, slope_x = (slope * side for slope in np.gradient(one, axis=(0, 1)))
    grid = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    y, x = grid[rows][:, None, None], grid[columns][None, :, None]
    slopes = [slope_y * y, slope_y, slope_x * x, slope_x]
    jacobian = np.stack([slope.ravel() for slope in slopes], axis=1).astype(np.float64)
    normal = jacobian.T @ jacobian
    normal[np.diag_indices(4)] = normal.diagonal() * 1.01 + 1e-6  # never singular
    return np.linalg.solve(normal, jacobian.T @ (other - one).ravel())


def _sample(
    one: Array, other: Array, shift: tuple[float, ...] | NDArray[np.float64]
) -> tuple[Array, Array, Mask, Mask]:
    """Sample `one` at shifted places; keep the rows and columns of both where these are inside."""
    side = len(one)
    matrix_y, rows = _make_sampling(side, *map(float, shift[:2]))
    matrix_x, columns = _make_sampling(side, *map(float, shift[2:]))
    sampled = (matrix_y @ one.reshape(side, -1)).reshape(-1, side, one.shape[2])
    return matrix_x @ sampled, other[np.ix_(rows, columns)], rows, columns


@lru_cache(maxsize=64)  # every alignment begins at the same shifts
def _make_sampling(side: int, scale: float, offset: float) -> tuple[Array, Mask]:
    """Matrix that samples a row of pixels at shifted places, and which of these are inside it."""
    places = (((np.arange(side) + 0.5) / side - 0.5) * scale + 0.5 + offset) * side - 0.5
    inside = (places >= -0.5) & (places <= side - 0.5)
    return _interpolate(places[inside], side), inside


def _interpolate(places: NDArray[Any], side: int) -> Array:
    """Matrix (len(places), side) of linear interpolation; pixel 0 has its centre at 0."""
    places = np.clip(places, 0, side - 1)
    first = np.minimum(places.astype(np.int64), side - 2)
    share, rows = (places - first).astype(np.float32), np.arange(len(places))
    matrix = np.zeros((len(places), side), np.float32)
    matrix[rows, first], matrix[rows, first + 1] = 1 - share, share
    return matrix


def _standardise(values: Array) -> Array:
    """Values with mean 0 and standard deviation 1."""
    if not values.size:
        return values
    values = values - values.mean()
    return values / np.float32(max(MIN_CONTRAST, float(np.sqrt((values * values).mean()))))


def _halve(values: Array) -> Array:
    side = len(values) // 2
    return values.reshape(side, 2, side, 2, -1).mean(axis=(1, 3))


def _cosine_basis(count: int) -> Array:
    """The first `count` rows of the orthonormal discrete cosine transform of 64 values."""
    angles = np.pi * np.outer(np.arange(count), np.arange(SIDE) + 0.5) / SIDE
    basis = np.cos(angles) * np.sqrt(2 / SIDE)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def _make_opponent() -> Array:
    """Orthonormal rows: brightness, red minus blue, red and blue minus green."""
    rows = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


_OPPONENT = _make_opponent()
