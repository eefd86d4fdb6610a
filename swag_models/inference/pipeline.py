"""Base class of `Classifier` and `Embedder`: threads read images, the model runs batches of them.

Axes: N batch, H W pixels.
"""

import itertools
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swag_models.api import load_model, load_preprocess
from swag_models.devices import check_dtype
from swag_models.errors import ConfigError, ImageError, check_maximum, check_types, plain_arguments
from swag_models.formatting import MAX_VALUE, count_noun, describe, escape_unprintable
from swag_models.hub.model_size import count_activations
from swag_models.image_formats import named_errors
from swag_models.inference.acceleration import (
    accelerate,
    compile_forward,
    compiling_pays_off,
    has_compiler,
    has_fast_resize,
    loading_pays_off,
    pick_dtype,
)
from swag_models.inference.batch_result import BatchResult
from swag_models.inference.compiled_cache import CachedForward, is_cacheable
from swag_models.inference.finite import check_finite
from swag_models.inference.image_sources import ImageRef, find_images, read_ahead
from swag_models.inference.loaded_model import eval_mode, take_model
from swag_models.model_metadata import NameOrModel
from swag_models.preprocess import Transform
from swag_models.runtime import count_cpus, find_free_memory
from swag_models.spec import ImageSize

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from swag_models.signatures import ForwardedOptions

BATCH_SIZE, GPU_BATCH_SIZE = 32, 256
MAX_BATCH_SIZE, MAX_THREADS = 2**20, 1024  # larger values are mistakes
MAX_FLOAT32 = torch.finfo(torch.float32).max
MAX_WORKERS = 16  # more threads would wait for the interpreter lock
# Images that each thread reads before the model runs. With fewer, most threads would be
# idle until the slowest image of the chunk is read.
IMAGES_PER_WORKER = 16


class InferencePipeline:
    """Runs a model on images, in order, while threads read the next ones.

    Args:
        model: anything that `load_model` accepts; or a model in memory, also inside of
            `torch.compile`, DDP or a PEFT model. It is used as it is: later training changes the
            results. Batches run in eval mode, and every module then gets its own mode back.
        fast: whether to use the fastest safe setting for the hardware: bfloat16 where that is
            faster (unless `dtype` is set); for convolutional models, folded batch norms and
            channels last; torch.compile if there are enough images to amortise it; images resized
            by torch where that is faster than Pillow; scaled decoding.
        compile: whether to use torch.compile; by default `fast` decides. Compiled code of a model
            by name is kept in the cache folder and reused, on a CPU under Linux.
        device: torch device or its name; by default "auto": a CUDA GPU (under torchrun that of this
            process), else MPS, else the CPU. A model in memory stays where it is by default, and
            with `device`, `dtype` or `fast` is copied.
        dtype: torch dtype or its name; by default float32, or that of the model in memory.
        image_size: image size in pixels; by default the model's.
        batch_size: images per forward pass; by default 32, or 256 on a GPU.
        workers: number of threads that read images; by default one per CPU, at most 16.
        scaled_decoding: whether to decode JPEG files at 1/2, 1/4 or 1/8 of their size where that
            is still at least 2.7 times the resized image; by default `fast` decides.
        options: further options of `load_model`; none for a model in memory.

    Raises:
        ConfigError: an option has an invalid value; the message names it.
    """

    keeps_head: bool
    purpose: str  # what it does with a model, for messages

    @plain_arguments
    def __init__(
        self,
        model: NameOrModel,
        *,
        fast: bool = False,
        compile: bool | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        image_size: ImageSize | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        scaled_decoding: bool | None = None,
        **options: "Unpack[ForwardedOptions]",
    ) -> None:
        self._check_forwarded(options)
        check_types(bool, fast=fast)
        check_types(bool | None, compile=compile, scaled_decoding=scaled_decoding)
        for name, value in {"batch_size": batch_size, "workers": workers}.items():
            if value is not None and (type(value) is not int or value < 1):  # bool is an int
                raise ConfigError(f"invalid {name} {describe(value)}: allowed: 1 or more")
        check_maximum(MAX_BATCH_SIZE, batch_size=batch_size)
        check_maximum(MAX_THREADS, workers=workers)
        if fast:
            check_dtype(dtype)  # before the weights, whose download can take long
        # With `fast`, weights are cast after batch norms are folded, which is more accurate.
        early_dtype = None if fast else dtype
        if isinstance(model, nn.Module):
            self.model = take_model(
                model, self.purpose, options, device, early_dtype, image_size, fast=fast
            )
            spec = self.model.describe()
        else:
            without_head: dict[str, Any] = {} if self.keeps_head else {"num_classes": None}
            self.model = load_model(
                model,
                device="auto" if device is None else device,
                dtype=early_dtype,
                image_size=image_size,
                **without_head,
                **options,
            )
            assert self.model.spec is not None  # `load_model` sets it
            spec = self.model.spec
        self.spec = spec
        if self.model.in_chans not in (1, 3):
            raise ConfigError(
                f"{spec.name} takes {count_noun(self.model.in_chans, 'channel')}, but images have "
                "3, or 1 in greyscale; call the model directly"
            )
        self.name = spec.name
        default_batch_size = BATCH_SIZE if self.device.type == "cpu" else GPU_BATCH_SIZE
        self.batch_size = batch_size or default_batch_size
        self.workers = workers or min(MAX_WORKERS, count_cpus())
        self.preprocess = load_preprocess(spec, image_size=image_size)
        if fast:
            chosen = pick_dtype(self.device) if dtype is None else check_dtype(dtype)
            accelerate(self.model, chosen)
        self.preprocess = Transform(
            self.preprocess.preprocess,
            vectorised=fast and has_fast_resize(),
            scaled=fast if scaled_decoding is None else scaled_decoding,
        )
        if compile and not has_compiler(self.device):
            raise ConfigError(
                f"compile=True is not possible on {self.device}, since torch.compile lacks a "
                f"requirement; install g++ and Python's headers (for a GPU also Triton), or omit it"
            )
        self._by_name = not isinstance(model, nn.Module)
        self._compiled = self._make_compiled() if compile else None
        self._may_compile = fast and compile is None
        self._candidate = self._make_compiled() if self._may_compile else None
        self._spent = 0.0  # seconds in which batches ran uncompiled
        self._is_warm = False  # whether a batch has been processed

    @classmethod
    def _check_forwarded(cls, options: Mapping[str, Any]) -> None:
        """Raise ConfigError for options of `load_model` that a pipeline does not have."""
        if fixed := sorted({"num_classes", "in_chans"} & set(options)):
            raise ConfigError(
                f"{cls.__name__} uses the {' and '.join(fixed)} of the model; "
                f"leave {'it' if len(fixed) == 1 else 'them'} out"
            )
        if wrong := sorted({"features_only", "out_indices"} & set(options)):
            raise ConfigError(f"{cls.__name__} has no option {wrong[0]}; use load_model")
        if options.get("global_pool") == "":
            raise ConfigError(f"{cls.__name__} needs pooled features; leave global_pool out")

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code exists in this process only; a copy compiles it again.
        state = {**vars(self), "_compiled": self._compiled is not None}
        return {**state, "_candidate": self._candidate is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._compiled = self._make_compiled() if state["_compiled"] else None
        self._candidate = self._make_compiled() if state["_candidate"] else None

    def _make_compiled(self) -> Callable[[Tensor], Tensor]:
        """The forward pass, compiled when it is called for the first time."""
        # Of a model in memory, whose code may be the user's, compiled code is not kept.
        if self._by_name and is_cacheable(self.model):
            output = "logits" if self.keeps_head else "features"
            return CachedForward(self.model, self.forward, output)
        return compile_forward(self.forward)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights."""
        return next(self.model.parameters()).dtype

    def __repr__(self) -> str:
        height, width = self.preprocess.preprocess.size
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{type(self).__name__}({escape_unprintable(self.name, MAX_VALUE)}, "
            f"{self._describe_output()}, {height}x{width} px, {dtype}, {self.device})"
        )

    def _describe_output(self) -> str:
        """What there is for each image, for `__repr__`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Run the model on a batch.

        Args:
            x: normalised images (N, 3, H, W).

        Returns:
            One row for each image (N, ...).
        """
        raise NotImplementedError

    def run(self, images: Any) -> Generator[BatchResult, None, None]:
        """Process images batch by batch.

        Args:
            images: anything that `find_images` takes.

        Yields:
            The result of each batch, in order.
        """
        refs, size = find_images(images), self.batch_size
        self._check_memory(min(len(refs), size))
        overlap = self.device.type != "cpu"  # see `read_ahead`
        # on a CPU, the smallest number of whole batches with enough images for all threads
        ahead = 2 * size if overlap else size * -(-IMAGES_PER_WORKER * self.workers // size)
        reading = read_ahead(self._read, refs, self.workers, ahead, overlap=overlap)
        # `closing`, because some versions of Python close an inner generator only when the outer
        # one is deleted, and its threads would live on until then.
        with closing(reading) as results:
            for start in range(0, len(refs), size):
                batch = refs[start : start + size]
                pixels: list[Tensor] = []
                errors: dict[int, str] = {}
                for index, result in enumerate(itertools.islice(results, size)):
                    if isinstance(result, str):
                        errors[index] = result
                    else:
                        pixels.append(result)
                remaining = len(refs) - start - len(batch)
                values = self._infer(torch.stack(pixels), remaining) if pixels else None
                yield BatchResult(batch, errors, values)

    def _check_memory(self, count: int) -> None:
        """Raise ConfigError if a batch of this number of images cannot fit into the memory.

        Without it the system would start to swap, or kill the process. A GPU raises an error.
        """
        free = find_free_memory() if self.device.type == "cpu" else None
        height, width = self.preprocess.preprocess.size
        values = 3 * height * width + count_activations(self.spec.config, (height, width))
        needed = count * values * self.dtype.itemsize
        if free is not None and needed > free:
            raise ConfigError(
                f"{count_noun(count, 'image')} of {height}x{width} pixels need more than "
                f"{needed / 1e9:,.0f} GB of memory at once, and {free / 1e9:,.0f} GB are free; "
                "lower image_size or batch_size"
            )

    def _read(self, image: ImageRef) -> Tensor | str:
        """Read and resize an image: uint8 (3, H, W), or the reason why it cannot be read."""
        try:
            pixels = image.read(self.preprocess.decode)
            with named_errors(image.name):
                return self.preprocess.fit(pixels)
        except ImageError as error:
            return str(error)

    @torch.inference_mode()
    def _infer(self, pixels: Tensor, remaining: int) -> Tensor:
        """Run the model on uint8 pixels (N, 3, H, W); returns float32 rows (N, ...) on the CPU.

        `remaining` is the number of images after this batch.
        """
        start = time.perf_counter()
        count = len(pixels)
        run: Callable[[Tensor], Tensor] = self.forward
        # Compiled code accepts only whole batches. Padding a batch that is more than half full
        # costs less than running it uncompiled.
        if self._compiled and 2 * count > self.batch_size:
            padding = pixels[-1:].expand(self.batch_size - count, -1, -1, -1)
            pixels, run = torch.cat([pixels, padding]), self._compiled
        try:
            inputs = self.preprocess.normalise(pixels.to(self.device)).to(self.dtype)
            if self.model.in_chans == 1:
                inputs = inputs.mean(1, keepdim=True)  # (N, 1, H, W)
            with eval_mode(self.model):
                values = run(inputs)[:count].float().cpu()
                # Classes may be switched off by a bias of -inf.
                numbers = values.clamp(min=-MAX_FLOAT32) if self.keeps_head else values
                check_finite(numbers, self.model, self.name)
        except RuntimeError as error:
            # The allocator of the CPU raises no error of its own class.
            if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):
                raise
            raise ConfigError(
                f"{self.device} has too little memory for {count_noun(len(pixels), 'image')} at "
                "once; lower batch_size"
            ) from None
        # The first batch is not timed, because it is slower than the others.
        if self._may_compile and self._is_warm:
            passed = time.perf_counter() - start
            self._spent += passed
            self._choose_compiled(inputs, passed / count * remaining)
        self._is_warm = True
        return values

    def _choose_compiled(self, inputs: Tensor, seconds: float) -> None:
        """Run the next batches compiled if that saves time.

        Args:
            inputs: a batch (N, C, H, W).
            seconds: how long the remaining images would take uncompiled.
        """
        candidate, whole = self._candidate, len(inputs) == self.batch_size
        pays_off = compiling_pays_off(self.model, self.device, seconds)
        # Stored code costs little; as much time is likely to follow as has passed.
        if not pays_off and whole and isinstance(candidate, CachedForward):
            seconds += self._spent
            pays_off = loading_pays_off(self.model, seconds) and candidate.is_stored(inputs)
        if pays_off:
            self._compiled, self._may_compile = candidate, False
