"""Read, write and convert weight files, without running code from a file.

Where the file system allows it, tensors are memory-mapped from the file and not copied.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from swag_models.atomic import atomic_write
from swag_models.dcp_folder import METADATA_FILE, PART_SUFFIX, DcpFolder
from swag_models.errors import CheckpointError, UnsafeCheckpointError
from swag_models.formatting import describe_error, list_names
from swag_models.hub.hf_format import INDEX_FILE, read_index
from swag_models.hub.safetensors_header import is_safetensors
from swag_models.layouts import find_unknown_keys, translate_layout
from swag_models.paths import expand_path, open_regular
from swag_models.safetensors_file import read_safetensors
from swag_models.spec import Backend, Layout
from swag_models.stored_tensor import (
    OddTensor,
    StoredTensor,
    TensorReader,
)
from swag_models.torch_file import SHARD, TorchFile, read_legacy, read_zip
from swag_models.weight_folder import BIN_INDEX_FILE, find_weight_files, read_folder_config
from swag_models.wrappers import find_class_names, find_state_dict

logger = logging.getLogger("swag_models")
PICKLE_SUFFIXES = (".pth", ".pt", ".torch", ".bin")
# What a file that is not a weight file may be, by its first bytes.
OTHER_FORMATS = {
    b"<": "HTML or XML, for example a login page",
    b"version https://git-lfs": "a Git LFS pointer; run: git lfs pull",
    b"\x1f\x8b": "compressed by gzip; decompress it first",
    b"\xfd7zXZ": "compressed by xz; decompress it first",
    b"BZh": "compressed by bzip2; decompress it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; decompress it first",
    b"\x89HDF": "HDF5, for example of Keras",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "GGUF",
    b"{": f"JSON; of a sharded model, only an index named {INDEX_FILE} is read",
    b"\x08": "perhaps ONNX",
}
# Parameters, and the counters of batch norms.
WEIGHT_DTYPES = {torch.float32, torch.float16, torch.bfloat16, torch.float64}
COUNTER_DTYPES = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


class Weights(NamedTuple):
    """What a weight file contains.

    Attributes:
        state: tensors by name, in the file's own layout.
        class_names: lists of names that may be those of its classes.
    """

    state: dict[str, Tensor]
    class_names: list[tuple[str, ...]]


def read_state_dict(
    path: str | os.PathLike[str], *, backend: Backend = "mmap", key: str | None = None
) -> dict[str, Tensor]:
    """Read the state dict of a .safetensors or PyTorch file onto the CPU, in the file's own layout.

    Args:
        path: the file, or the index of a sharded model (*.safetensors.index.json). The contents are
            recognised by the first bytes, not by the suffix.
        backend: "mmap" maps the file, and reads it where it cannot be mapped; "pread" reads it into
            memory, for network disks and for files that may change.
        key: which state dict to take if the file has several: the keys and the prefix of parameter
            names that lead to it, joined by dots, for example "teacher" or "state_dict.model". By
            default the only one, or the only one of averaged weights (EMA), which is logged.

    Returns:
        Tensors by name, without the wrappers and name prefixes that training code adds. Other
        tensors beside them are left out and logged.

    Raises:
        ConfigError: a path or backend that is not allowed.
        CheckpointError: not a weight file, damaged, not of a ViT, RegNet or ResNet, or with
            several state dicts.
        UnsafeCheckpointError: the file would run code. It was rejected before any code ran.
    """
    return read_weights(path, backend=backend, key=key).state


def read_weights(
    path: str | os.PathLike[str], *, backend: Backend = "mmap", key: str | None = None
) -> Weights:
    """Read a state dict, as `read_state_dict`, and the class names that are beside it."""
    if backend not in get_args(Backend):
        raise CheckpointError(
            f"unknown backend {backend!r}; allowed: {', '.join(get_args(Backend))}"
        )
    path = expand_path(path, "weights")
    if path.is_dir() or path.name == METADATA_FILE or path.suffix == PART_SUFFIX:
        return _read_folder(path if path.is_dir() else path.parent, backend, key)
    if path.name.endswith((INDEX_FILE, BIN_INDEX_FILE)):
        state = find_state_dict(_read_shards(path, backend), path, key)
        _check_tensors(state, path)
        return Weights(state, [])
    with _open_file(path) as (file, size):
        content, calls, objects = _read_content(file, size)
        if calls := [name for name in calls if name not in _list_trusted()]:
            raise UnsafeCheckpointError(
                f"{path} was rejected, nothing in it ran: besides tensors it calls "
                f"{list_names(calls)}. Save model.state_dict() alone, or as safetensors; to ignore "
                "a call that you know, list it in torch.serialization.add_safe_globals"
            )
        state = find_state_dict(content, path, key, objects)
        _check_tensors(state, path)
        reader = TensorReader(path, file, size, backend)
        state = {name: reader.read(tensor) for name, tensor in state.items()}
        return Weights(state, find_class_names(content))


def _read_folder(folder: Path, backend: Backend, key: str | None) -> Weights:
    """Read the weights in a folder that a trainer wrote."""
    with _named_errors(folder):
        path, others = find_weight_files(folder)
        if others:
            logger.warning("%s: using %s, not %s", folder, path.name, list_names(others))
        if not path.is_dir():
            weights = read_weights(path, backend=backend, key=key)
            names = find_class_names(read_folder_config(folder))
            return Weights(weights.state, [*names, *weights.class_names])
        content = DcpFolder(path)
        state = find_state_dict(content.tensors, path, key)
        _check_tensors(state, path)
        return Weights({name: content.read(tensor) for name, tensor in state.items()}, [])


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
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    layout: Layout,
    *,
    backend: Backend = "mmap",
    key: str | None = None,
) -> None:
    """Rewrite a weight file in another layout.

    Args:
        source: a weight file, as for `read_state_dict`.
        target: the new file, as for `write_state_dict`.
        layout: naming scheme of the new file: "swag", "torchvision" or "timm".
        backend, key: as for `read_state_dict`.

    Raises:
        CheckpointError: `source` cannot be read, `target` cannot be written, or the file has
            tensors that no layout has; lists them.
    """
    state = read_state_dict(source, backend=backend, key=key)
    if unknown := find_unknown_keys(state):
        raise CheckpointError(f"{source} has tensors that no layout has: {list_names(unknown)}")
    write_state_dict(translate_layout(state, layout), expand_path(target, "target"))


@contextlib.contextmanager
def _open_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a weight file: (the file, its size in bytes)."""
    with _named_errors(path), open_regular(path) as file:
        yield file, os.fstat(file.fileno()).st_size


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Add the path of the file to the message of an error in the `with` block."""
    try:
        yield
    except UnsafeCheckpointError:
        raise
    except CheckpointError as error:
        reason = str(error.args[0])
        if str(path) in reason:
            raise
        raise CheckpointError(f"{path} cannot be read as a weight file: {reason}") from None
    except OSError as error:
        reason = describe_error(error)
        raise CheckpointError(f"cannot read weight file {path}: {reason}") from None


def _read_content(file: BinaryIO, size: int) -> TorchFile:
    """Read the structure of a file in the format that its first bytes show."""
    head = file.read(64)
    file.seek(0)
    if is_safetensors(head, size):
        return TorchFile(read_safetensors(file, size), [], [])
    if head.startswith(b"PK\x03\x04"):
        return read_zip(file, size)
    if head.startswith(b"\x80"):
        return read_legacy(file, size)
    kind = next(
        (kind for start, kind in OTHER_FORMATS.items() if head.startswith(start)),
        "neither safetensors nor torch.save",
    )
    if head[8:9] == b"{":
        kind = "safetensors, cut short"
    raise CheckpointError(f"it starts with {head[:16]!r} ({kind})" if head else "it is empty")


def _read_shards(path: Path, backend: Backend) -> dict[str, Tensor]:
    """Read all shards of an index; each must contain exactly the tensors that the index names."""
    index = read_index(path)
    names: dict[str, set[str]] = {}
    for name, file_name in index.tensors.items():
        names.setdefault(file_name, set()).add(name)
    state: dict[str, Tensor] = {}
    for file_name in index.shards:
        shard = path.parent / file_name
        if not shard.is_file():
            raise CheckpointError(f"{path} names {file_name}, which is not in the same folder")
        with _open_file(shard) as (file, size):
            tensors = _read_shard(file, size)
            if different := sorted(names[file_name] ^ set(tensors)):
                raise CheckpointError(
                    f"{shard} does not contain the tensors that {path.name} lists; "
                    f"they differ in {list_names(different)}"
                )
            reader = TensorReader(shard, file, size, backend)
            state |= {name: reader.read(tensor) for name, tensor in tensors.items()}
    return state


def _read_shard(file: BinaryIO, size: int) -> dict[str, StoredTensor]:
    """Read where the tensors of a shard are."""
    content = _read_content(file, size)[0]
    if not isinstance(content, dict) or not all(
        isinstance(value, StoredTensor) for value in content.values()
    ):
        raise CheckpointError("it is not a part of a state dict")
    return content


def _list_trusted() -> set[str]:
    """Return the names that the user allowed with torch.serialization.safe_globals."""
    return {
        entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
        for entry in torch.serialization.get_safe_globals()
    }


def _check_tensors(state: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError for a value that is not a dense tensor of ordinary numbers."""
    problems = []
    for name, value in state.items():
        if isinstance(value, OddTensor):
            problems.append(f"{name} is {value.kind}")
        elif not isinstance(value, (Tensor, StoredTensor)):
            problems.append(f"{name} is a {getattr(value, 'name', type(value).__name__)}")
        elif isinstance(value, StoredTensor) and value.repeats:
            problems.append(f"{name} repeats its values")
        elif value.dtype not in WEIGHT_DTYPES | COUNTER_DTYPES:
            problems.append(f"{name} is {value.dtype}")
    if problems:
        hint = "allowed: dense tensors of float16, bfloat16, float32 or float64"
        if any(problem.endswith(SHARD) for problem in problems):
            hint = "save what get_model_state_dict gathers with full_state_dict=True, or with DCP"
        raise CheckpointError(
            f"{path} has values that are not weights: {list_names(problems, 3)}; {hint}"
        )
