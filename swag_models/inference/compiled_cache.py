"""Compiled forward passes in the cache folder, so that each machine compiles a model once.

A compiled file is native code. It is used only from a folder of the user's own that no other user
can write to, and only if it is complete.

Axes: N batch, C channels, H W pixels.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swag_models import __version__, models
from swag_models.archives import ZIP_ERRORS
from swag_models.atomic import temporary_folder
from swag_models.errors import CacheError, ExportError
from swag_models.formatting import describe_error
from swag_models.hub.cache import cache_folder, lock_if_possible
from swag_models.inference.acceleration import compile_forward
from swag_models.inference.native_code import compile_package, list_instructions, load_package
from swag_models.models import Backbone

logger = logging.getLogger("swag_models")

Forward = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> rows (N, ...)

MAX_BYTES = 20 * 10**9  # of all compiled files; the least recently used ones are removed
FREE_PER_WEIGHT = 4  # bytes of free disk space for each byte of weights, while compiling
MIN_FREE = 10**8  # bytes
LOCK_TIMEOUT = 30 * 60  # seconds
MAX_DEVIATION = 0.05  # mean, in standard deviations of the output; as for exported bfloat16


class CachedForward:
    """A forward pass, compiled at one input shape, from the cache or stored there.

    Where the cache cannot be used, `torch.compile` compiles it for this process.

    Args:
        model: the model that `forward` runs, in eval mode on the CPU.
        forward: what to compile.
        output: what it returns, for example "logits".
    """

    def __init__(self, model: Backbone, forward: Forward, output: str) -> None:
        self.model, self.forward, self.output = model, forward, output
        self._state: list[tuple[Any, int]] = []
        self._path: Path | None = None
        self._run: Forward | None = None

    def is_stored(self, x: Tensor) -> bool:
        """Whether the code for inputs like `x` (N, C, H, W) is in the cache."""
        try:
            return self._find_path(x).is_file()
        except CacheError:
            return False

    def __call__(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, ...)
        if self._run is None or self._is_changed():
            self._run = self._load_or_compile(x)
        return self._run(x.contiguous())  # compiled code does not check strides

    def _load_or_compile(self, x: Tensor) -> Forward:
        try:
            path = self._find_path(x)
            return _load(path) or self._compile(path, x)
        except (CacheError, ExportError) as error:
            logger.warning("compiled for this process only: %s", error)
            return compile_forward(self.forward)

    def _compile(self, path: Path, x: Tensor) -> Forward:
        """Compile and store the code, unless another process does."""
        _check_space(path, self.model)
        with _lock(path):
            if run := _load(path):  # stored by another process in the meantime
                return run
            try:
                with temporary_folder(path) as folder:
                    temporary = folder / path.name
                    with torch.inference_mode(False), torch.no_grad():
                        sample = x.clone(memory_format=torch.contiguous_format)
                        module = _Module(self.model, self.forward)
                        program = torch.export.export(module, (sample,), strict=False)
                        compile_package(program, temporary, {})
                        run = load_package(temporary)
                        _check_deviation(run(sample), self.forward(sample))
                    os.replace(temporary, path)
                _remove_oldest(path)
            except OSError as error:
                raise CacheError(f"{path} cannot be written: {describe_error(error)}") from None
            except (CacheError, ExportError):
                raise
            except Exception as error:  # torch raises errors of many classes
                reason = f"{type(error).__name__}: {describe_error(error)}"
                raise ExportError(f"torch cannot export the model ({reason})") from None
        return run

    def _find_path(self, x: Tensor) -> Path:
        """The file for inputs like `x`, which need not exist."""
        if self._path is None or self._is_changed():
            self._state = _list_state(self.model)
            self._path = open_cache() / f"{_make_key(self.model, self.output, x)}.aoti.pt2"
        return self._path

    def _is_changed(self) -> bool:
        """Whether a module was replaced or weights were changed since the code was looked up."""
        state = _list_state(self.model)
        return len(state) != len(self._state) or any(
            new is not old or version != old_version
            for (new, version), (old, old_version) in zip(state, self._state)
        )


class _Module(nn.Module):
    """A function of a model, as a module that torch.export accepts."""

    def __init__(self, model: nn.Module, run: Forward) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def is_cacheable(model: nn.Module) -> bool:
    """Whether the weights and the description of a model determine what it computes."""
    return (
        sys.platform == "linux"
        and all(
            # torch.export does not trace tensors that were made in inference mode
            parameter.device.type == "cpu" and not parameter.is_inference()
            for parameter in model.parameters()
        )
        and all(
            type(module).__module__.partition(".")[0] in ("torch", "swag_models")
            and not module._forward_hooks
            and not module._forward_pre_hooks
            for module in model.modules()
        )
    )


def open_cache() -> Path:
    """Return the folder of compiled code, which is created if missing.

    Raises:
        CacheError: it cannot be created, or other users can write to it.
    """
    user = os.geteuid()
    folder = cache_folder() / f"compiled-{user}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise CacheError(f"{folder} cannot be created: {describe_error(error)}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o077:
        raise CacheError(
            f"{folder} is not a folder that only this user can read and write, so code in it is "
            "not trusted; delete it, or set SWAG_MODELS_CACHE to another folder"
        )
    return folder


def _load(path: Path) -> Forward | None:
    """Load a stored file; None if it is missing, or damaged and now removed."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise ExportError("it is not a file of this user")
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch does not check sums of native code
                raise ExportError(f"{damaged} is damaged")
        run = load_package(path)
    except FileNotFoundError:
        return None
    except (OSError, ExportError, *ZIP_ERRORS) as error:
        logger.warning("%s is compiled again: %s", path, describe_error(error))
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):  # a read-only cache
        os.utime(path)  # marks it as used
    return run


def _make_key(model: Backbone, output: str, x: Tensor) -> str:
    """A file name for what the code depends on: weights, shapes, CPU, settings and versions."""
    sources = hashlib.sha256()
    for file in sorted(Path(models.__path__[0]).glob("*.py")):
        sources.update(file.read_bytes())
    spec = model.describe()
    description = {
        "versions": [__version__, torch.__version__, sources.hexdigest()],
        "instructions": list_instructions(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "model": [repr(model), repr(spec.config), model.image_size, model.global_pool],
        "merge_tokens": getattr(model, "merge_tokens", 0),
        "output": output,
        "input": [list(x.shape), str(x.dtype)],
    }
    digest = hashlib.sha256(json.dumps(description).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().contiguous().flatten().view(torch.uint8)
        digest.update(values.numpy().data)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", spec.name)[:40]
    return f"{name}-{digest.hexdigest()[:32]}"


def _list_state(model: nn.Module) -> list[tuple[Any, int]]:
    """Modules and tensors of a model, with the version counters of the tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
    return [*((module, 0) for module in model.modules()), *zip(tensors, versions)]


def _lock(path: Path) -> contextlib.AbstractContextManager[None]:
    """Let one process at a time compile a file, where locks work; files are replaced atomically."""
    lock = path.with_name(f".{path.name[-41:-39]}.lock")  # at most 256 files
    return lock_if_possible(lock, f"compiling {path.name}", LOCK_TIMEOUT)


def _check_space(path: Path, model: nn.Module) -> None:
    """Raise CacheError if a file cannot be stored, before minutes of compiling."""
    if not os.access(path.parent, os.W_OK):
        raise CacheError(f"{path.parent} is read-only")
    needed = MIN_FREE + FREE_PER_WEIGHT * count_bytes(model)
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise CacheError(
            f"{path.parent} has {free / 1e9:.1f} GB free, and compiling needs {needed / 1e9:.1f} GB"
        )


def count_bytes(model: nn.Module) -> int:
    """Size of the weights in bytes."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def _check_deviation(output: Tensor, expected: Tensor) -> None:
    """Raise ExportError if compiled code computes something else."""
    finite = expected.isfinite()  # classes may be switched off by -inf
    expected, output = expected[finite].float(), output[finite].float()
    deviation = float((output - expected).abs().mean() / (expected.std() + 1e-6))
    if not deviation <= MAX_DEVIATION:  # also for NaN
        raise ExportError(f"the compiled code deviates by {deviation:.1%}")


def _remove_oldest(kept: Path) -> None:
    """Remove the least recently used files until all have at most MAX_BYTES, except one."""
    total = kept.stat().st_size
    with contextlib.suppress(OSError):  # another process may remove the same files
        others = [path for path in kept.parent.glob("*.aoti.pt2") if path != kept]
        for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
            total += path.stat().st_size
            if total > MAX_BYTES:
                path.unlink(missing_ok=True)
