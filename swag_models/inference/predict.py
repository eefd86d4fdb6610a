"""A model put to work on pictures of any kind: classes with their probabilities, or embeddings.

Axes: N batch, D features, K classes, H W pixels.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swag_models.api import Name, check_dtype, get_spec, load_classes, load_model, load_preprocess
from swag_models.errors import ConfigError, ImageError
from swag_models.inference.acceleration import (
    accelerate,
    compile_forward,
    has_compiler,
    pick_dtype,
    repays_compiling,
    resizes_faster,
)
from swag_models.inference.image_sources import ImageRef, find_images, read_ahead
from swag_models.preprocess import Transform
from swag_models.runtime import count_cpus
from swag_models.spec import ImageSize

BATCH_SIZE, GPU_BATCH_SIZE = 32, 256
MAX_WORKERS = 16  # more threads than that wait for each other's Python
TURN = 16  # pictures a thread reads before the model's turn: of few, the faster threads would wait for the slowest

logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class Prediction:
    """One class of a picture: its name, its index among the logits, its softmax probability."""

    label: str
    index: int
    probability: float


class Skipped(NamedTuple):
    """A picture that could not be read, and why."""

    name: str
    reason: str


class Embeddings(NamedTuple):
    """Features (N, D) in float32 and the names of their pictures, in order, and the pictures that were skipped."""

    vectors: Tensor
    names: list[str]
    skipped: list[Skipped]


class Batch(NamedTuple):
    """Some pictures, in order, with why those that could not be read were skipped, by their index among the pictures.

    `values` has a row for each of the others, in float32; None if none is left.
    """

    pictures: Sequence[ImageRef]
    errors: dict[int, str]
    values: Tensor | None

    @property
    def names(self) -> list[str]:
        """Of the pictures that have a row."""
        return [
            picture.name for index, picture in enumerate(self.pictures) if index not in self.errors
        ]

    @property
    def skipped(self) -> list[Skipped]:
        return [Skipped(self.pictures[index].name, reason) for index, reason in self.errors.items()]


class Engine:
    """A model in inference, fed by threads that read pictures ahead of it; the order of the pictures is kept.

    model: what `load_model` takes. device, dtype: as torch's, or their names.
    fast: the best safe setting for the hardware: bfloat16 where that is faster, a RegNet's batch norms folded and its pixels
        channels last, compiled if the pictures at hand are so many that compiling repays, and pictures resized by torch where
        that is faster than Pillow. A dtype of your own is kept.
    compile: True compiles at once, False never; None leaves it to `fast`.
    batch_size: pictures in one forward pass; by default 32, on a GPU 256.
    workers: threads that read; by default one for each processor, at most 16.
    options: of `load_model`.

    ConfigError names a value that cannot be.
    """

    keeps_head: bool

    def __init__(
        self,
        model: Name,
        *,
        fast: bool = False,
        compile: bool | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        image_size: ImageSize | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        **options: Any,
    ) -> None:
        if fixed := sorted({"num_classes", "in_chans"} & set(options)):
            raise ConfigError(
                f"{type(self).__name__} keeps the model's own; leave {' and '.join(fixed)} out"
            )
        for name, value in {"batch_size": batch_size, "workers": workers}.items():
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}; give a positive number")
        head: dict[str, Any] = {} if self.keeps_head else {"num_classes": None}
        spec = get_spec(model)
        self.model = load_model(
            spec,
            device=device,
            dtype=None if fast else dtype,
            image_size=image_size,
            **head,
            **options,
        )
        if self.model.in_chans not in (1, 3):
            raise ConfigError(
                f"{spec.name} takes {self.model.in_chans} channels; pictures have 3, or as grey 1: call the model"
            )
        self.name = spec.name
        self.device = next(self.model.parameters()).device
        self.batch_size = batch_size or (
            BATCH_SIZE if self.device.type == "cpu" else GPU_BATCH_SIZE
        )
        self.workers = workers or min(MAX_WORKERS, count_cpus())
        self.preprocess = load_preprocess(spec, image_size=image_size)
        if fast:
            accelerate(self.model, check_dtype(dtype) if dtype else pick_dtype(self.device))
            self.preprocess = Transform(self.preprocess.preprocess, vectorised=resizes_faster())
        self.dtype = next(self.model.parameters()).dtype
        if compile and not has_compiler(self.device):
            raise ConfigError(
                f"compile is True, but torch.compile lacks what it needs for {self.device}; "
                f"install g++ and Python's headers (for a GPU also Triton), or leave it out"
            )
        self._compiled = compile_forward(self.forward) if compile else None
        self._may_compile = fast and compile is None
        self._warm = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> what the engine gives for each."""
        raise NotImplementedError

    def run(self, images: Any) -> Iterator[Batch]:
        """Batches of pictures with their results, in order; `images` is anything `find_images` takes."""
        pictures, size = find_images(images), self.batch_size
        overlap = self.device.type != "cpu"
        ahead = 2 * size if overlap else size * -(-TURN * self.workers // size)  # whole batches
        pixels = read_ahead(self._read, pictures, self.workers, ahead, overlap=overlap)
        for start in range(0, len(pictures), size):
            part = pictures[start : start + size]
            read = list(itertools.islice(pixels, size))
            errors = {index: each for index, each in enumerate(read) if isinstance(each, str)}
            given = [each for each in read if not isinstance(each, str)]
            values = (
                self._infer(torch.stack(given), len(pictures) - start - len(part))
                if given
                else None
            )
            yield Batch(part, errors, values)

    def _read(self, picture: ImageRef) -> Tensor | str:
        """A picture -> bytes (3, H, W), or what is wrong with it."""
        try:
            return self.preprocess.fit(picture.read())
        except ImageError as error:
            return str(error)

    @torch.inference_mode()
    def _infer(self, pixels: Tensor, left: int) -> Tensor:
        """Bytes (N, 3, H, W) -> results (N, ...) in float32 on the CPU; `left` pictures are still to come."""
        start = time.perf_counter()
        count = len(pixels)
        run: Callable[[Tensor], Tensor] = self.forward
        if (
            self._compiled and 2 * count > self.batch_size
        ):  # compiled for whole batches only: filling up costs less than half
            pixels, run = (
                torch.cat([pixels, pixels[-1:].expand(self.batch_size - count, -1, -1, -1)]),
                self._compiled,
            )
        inputs = self.preprocess.normalise(pixels.to(self.device)).to(self.dtype)
        if self.model.in_chans == 1:
            inputs = inputs.mean(1, keepdim=True)
        try:
            values = run(inputs)[:count].float().cpu()
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"{self.device} has too little memory for {len(inputs)} pictures at once; give a smaller batch_size"
            ) from None
        if self._may_compile and self._warm:  # the first batch takes longer than those to come
            seconds = (time.perf_counter() - start) / count * left
            self._may_compile = not repays_compiling(self.model, self.device, seconds)
            self._compiled = None if self._may_compile else compile_forward(self.forward)
        self._warm = True
        return values


class Classifier(Engine):
    """A model with its preprocessing and class names: pictures -> most probable classes; see `Engine` for the options.

    ConfigError if the model has no classes.
    """

    keeps_head = True

    def __init__(self, model: Name, **options: Any) -> None:
        spec = get_spec(model)
        self.classes = load_classes(spec)
        super().__init__(spec, **options)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, K)
        return self.model(x)

    def __call__(self, images: Any, top_k: int = 5) -> list[list[Prediction]]:
        """The `top_k` most probable classes of each picture, best first; none for one that cannot be read, which is logged.

        A model with fewer classes gives them all. `images` is anything `find_images` takes: a path, folder, shell pattern,
        tar shard, PIL image, array or tensor, or a list of those.
        """
        found: list[list[Prediction]] = []
        for _, predictions, reason in self.stream(images, top_k):
            if reason:
                logger.warning("skipped: %s", reason)
            found.append(predictions)
        return found

    def stream(
        self, images: Any, top_k: int = 5
    ) -> Iterator[tuple[str, list[Prediction], str | None]]:
        """(name, most probable classes, None) of each picture as it is done, or (name, [], reason) if it cannot be read."""
        if top_k < 1:
            raise ConfigError(f"top_k is {top_k}; give 1 or more")
        for batch in self.run(images):
            rows = iter([] if batch.values is None else self._rank(batch.values, top_k))
            for index, picture in enumerate(batch.pictures):
                reason = batch.errors.get(index)
                yield picture.name, [] if reason else next(rows), reason

    def _rank(self, logits: Tensor, top_k: int) -> list[list[Prediction]]:
        top = logits.softmax(dim=-1).topk(min(top_k, logits.shape[1]))
        return [
            [Prediction(self.classes[index], index, value) for value, index in zip(values, indices)]
            for values, indices in zip(top.values.tolist(), top.indices.tolist())
        ]


class Embedder(Engine):
    """A model with its preprocessing: pictures -> features before the head (D); see `Engine` for the options."""

    keeps_head = False

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, D)
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)

    def __call__(self, images: Any) -> Embeddings:
        """Features of each picture in order; pictures that cannot be read have no row, they are in `skipped` and logged.

        `images` is anything `find_images` takes: a path, folder, shell pattern, tar shard, PIL image, array or tensor, or a
        list of those.
        """
        vectors, names, skipped = [torch.empty(0, self.model.num_features)], [], []
        for batch in self.run(images):
            names += batch.names
            skipped += batch.skipped
            vectors += [] if batch.values is None else [batch.values]
        for each in skipped:
            logger.warning("skipped: %s", each.reason)
        return Embeddings(torch.cat(vectors), names, skipped)
