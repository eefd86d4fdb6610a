"""Read, write and convert weight files, without running code from a file.

Where the format allows it, tensors are memory-mapped from the file and not copied.
"""

import contextlib
import logging
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from swag_models.atomic import atomic_write
from swag_models.errors import CheckpointError, UnsafeCheckpointError
from swag_models.formatting import list_names
from swag_models.hub.hf_format import INDEX_FILE, read_index
from swag_models.layouts import find_unknown_keys, recognise_layout, translate_layout
from swag_models.spec import Backend, Layout

# Keys under which training code stores a state dict. If a file has several, the first is used.
WRAPPER_KEYS = ("model_ema", "state_dict", "model", "classy_state_dict", "base_model", "trunk")
MAX_WRAPPERS = 16  # levels of nesting
LEGACY_PICKLES = 5  # number of consecutive pickles in a file older than PyTorch 1.6
WRAPPER_PREFIX = re.compile(r"^((module|_orig_mod|model|backbone)\.)+")  # of a parameter's name
# What PyTorch's unpickler raises on a damaged file. A corrupted tensor size can also cause a
# MemoryError or OverflowError, and a corrupted module name an ImportError.
UNPICKLING_ERRORS: tuple[type[Exception], ...] = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ImportError,
    MemoryError,
    OverflowError,
    struct.error,
)
PICKLE_SUFFIXES = (".pth", ".pt", ".torch", ".bin")

logger = logging.getLogger("swag_models")


def read_state_dict(
    path: str | os.PathLike[str], *, backend: Backend = "mmap"
) -> dict[str, Tensor]:
    """Read the state dict of a .safetensors or PyTorch file onto the CPU, in the file's own layout.

    Args:
        path: the file, or the index of a sharded model (*.safetensors.index.json). The contents are
            recognised by the first bytes, not by the suffix.
        backend: "mmap" maps the file; "pread" reads it into memory, for network disks and for files
            that may change.

    Returns:
        Tensors by name, without the wrappers and name prefixes that training code adds.

    Raises:
        CheckpointError: not a weight file, damaged, or not of a ViT or RegNet.
        UnsafeCheckpointError: the file would run code. It was rejected before any code ran.
    """
    if backend not in get_args(Backend):
        raise CheckpointError(
            f"unknown backend {backend!r}; allowed: {', '.join(get_args(Backend))}"
        )
    path = Path(path)
    if path.name.endswith(INDEX_FILE):
        return _unwrap(_load_shards(path, backend), path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"cannot read weight file {path}: {error.strerror}") from None
    # A safetensors file begins with the length of its JSON header, 8 bytes, then the header.
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size:
        return _unwrap(_load_safetensors(path, backend), path)
    # torch.save writes a zip archive, which can be mapped; before 1.6 it wrote a bare pickle, which
    # cannot.
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _unwrap(_load_pickle(path, mmap=backend == "mmap" and head.startswith(b"PK")), path)
    raise CheckpointError(
        f"{path} is not a weight file: it starts with {head!r}, neither safetensors nor torch.save"
    )


def write_state_dict(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a state dict, atomically.

    Args:
        state: tensors by name.
        path: the suffix decides the format: .safetensors, or .pth, .pt, .torch or .bin for
            PyTorch's.

    Raises:
        CheckpointError: another suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        write = _save_safetensors
    elif path.suffix in PICKLE_SUFFIXES:
        write = _save_torch
    else:
        raise CheckpointError(
            f"cannot write {path}: end the name in .safetensors or {', '.join(PICKLE_SUFFIXES)}"
        )
    try:
        with atomic_write(path, unique=True) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            write(state, temporary)
            temporary.chmod(mode)  # safetensors makes files that only their owner can read
    # torch.save reports a failed write as RuntimeError.
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None


def _save_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, path, {"format": "pt"})


def _save_torch(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save(dict(state), path)


def convert_checkpoint(
    source: str | os.PathLike[str], target: str | os.PathLike[str], layout: Layout
) -> None:
    """Rewrite a weight file in another layout.

    Args:
        source: a weight file, as for `read_state_dict`.
        target: the new file, as for `write_state_dict`.
        layout: naming scheme of the new file: "swag", "torchvision" or "timm".

    Raises:
        CheckpointError: `source` cannot be read, `target` cannot be written, or the file has
            tensors that no layout has; lists them.
    """
    state = read_state_dict(source)
    if unknown := find_unknown_keys(state):
        raise CheckpointError(f"{source} has tensors that no layout has: {list_names(unknown)}")
    write_state_dict(translate_layout(state, layout), target)


def _load_safetensors(path: Path, backend: Backend) -> dict[str, Tensor]:
    try:
        return load_file(path, backend=backend)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or incomplete: {error}") from None


def _load_shards(path: Path, backend: Backend) -> dict[str, Tensor]:
    """Load all shards of an index; each must contain exactly the tensors that the index names."""
    index = read_index(path)
    state: dict[str, Tensor] = {}
    for name in index.shards:
        shard = path.parent / name
        if not shard.is_file():
            raise CheckpointError(f"{path} names {name}, which is not in the same folder")
        tensors = _load_safetensors(shard, backend)
        expected = {key for key, file in index.tensors.items() if file == name}
        if different := sorted(expected ^ set(tensors)):
            raise CheckpointError(
                f"{shard} does not hold the tensors that {path.name} lists; "
                f"they differ in {list_names(different)}"
            )
        state |= tensors
    return state


def _load_pickle(path: Path, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except UNPICKLING_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):
            if names := _read_imports(path):
                raise UnsafeCheckpointError(
                    f"{path} was rejected, nothing in it ran: besides tensors it needs "
                    f"{list_names(names)}. Only state dicts are loaded: save model.state_dict() "
                    "alone, or safetensors"
                ) from None
            if "Unsupported operand" in str(error):
                reason = (
                    "if it is not damaged, it is a pickle of protocol 4 or newer; "
                    "save it with torch.save's default"
                )
        raise CheckpointError(
            f"{path} is damaged, incomplete or not a weight file: {reason}"
        ) from None


def _read_imports(path: Path) -> list[str]:
    """List what a pickle would import besides tensors and dicts, by its opcodes, running none."""
    names: dict[str, None] = {}
    with (
        contextlib.suppress(*UNPICKLING_ERRORS, zipfile.BadZipFile),
        contextlib.ExitStack() as stack,
    ):
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        if zipfile.is_zipfile(file):
            archive = stack.enter_context(zipfile.ZipFile(file))
            file = stack.enter_context(
                archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))
            )
        else:
            file.seek(0)
        for _ in range(LEGACY_PICKLES):
            strings = [""]  # STACK_GLOBAL takes the last two: module and name
            for opcode, argument, _position in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names[str(argument).replace(" ", ".")] = None
                elif opcode.name == "STACK_GLOBAL":
                    names[".".join(strings[-2:])] = None
                elif isinstance(argument, str):
                    strings.append(argument)
    return [
        name.removeprefix("__builtin__.")
        for name in names
        if not name.startswith(("torch.", "collections."))
    ]


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict inside the wrappers that training code puts around it."""
    wrapper = "the file"
    for _ in range(MAX_WRAPPERS):
        if not isinstance(loaded, Mapping):
            break
        state = {
            WRAPPER_PREFIX.sub("", str(key)): value
            for key, value in loaded.items()
            if key != "n_averaged"  # the counter of torch's AveragedModel
        }
        if recognise_layout(state) is not None:
            if odd := [key for key, value in state.items() if not isinstance(value, Tensor)]:
                raise CheckpointError(f"{path}: not tensors: {list_names(odd)}")
            return state
        present = [key for key in WRAPPER_KEYS if isinstance(loaded.get(key), Mapping)]
        if not present:
            keys = ", ".join(map(str, list(loaded)[:5])) or "no keys"
            raise CheckpointError(
                f"{path} holds no ViT or RegNet in the swag, torchvision or timm layout: "
                f"{wrapper} has {keys}"
            )
        if len(present) > 1:
            logger.warning("%s holds %s: using %s", path, " and ".join(present), present[0])
        wrapper, loaded = present[0], loaded[present[0]]
    raise CheckpointError(f"{path} holds no state dict: {wrapper} is a {type(loaded).__name__}")
