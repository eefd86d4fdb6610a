"""The weights of an .onnx in a file beside it, for more than the 2 GiB of one protobuf message.

The .onnx names the file of its weights. New weights therefore get a name that the .onnx which is
replaced does not use: whenever a process is killed, PATH and the file that it names fit together.
"""

import contextlib
import filecmp
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from swag_models.errors import ConfigError

# Bytes of weights in one .onnx. Protobuf allows 2 GiB; larger weights are stored beside it.
MAX_SINGLE_FILE_SIZE = 1_500_000_000


def list_data_paths(path: Path) -> tuple[Path, Path]:
    """Return the names for the weights of an .onnx; the second is used while the first is in use.

    Files of these names belong to the export: they are replaced, or removed.
    """
    return path.with_name(f"{path.name}.data"), path.with_name(f"{path.name}.new.data")


def list_parts(path: Path) -> list[Path]:
    """Return all files that an export to `path` may write or remove."""
    return [path, *(list_data_paths(path) if path.suffix == ".onnx" else ())]


def check_replaceable(path: Path) -> None:
    """Raise ConfigError if something other than a file has a name that the export writes."""
    for file in list_parts(path):
        if file.exists() and not file.is_file():
            raise ConfigError(f"{file} exists and is not a file; choose another name, or remove it")


def choose_external_data(
    program: torch.export.ExportedProgram, external_data: bool | None, dtype: str
) -> bool:
    """Return whether the weights are stored beside the .onnx.

    Args:
        program: traced in the precision of the file, or in float32 for int8.
        external_data: what the caller asked for; None for what the size requires.
        dtype: precision of the file.

    Raises:
        ConfigError: the weights do not fit into one file, as the caller asked for.
    """
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if dtype == "int8":
        size //= 4
    if external_data is False and size > MAX_SINGLE_FILE_SIZE:
        raise ConfigError(
            f"external_data=False is not possible for {size / 1e9:.1f} GB of weights: one .onnx "
            "holds 2 GiB; leave it out, or use float16 or int8"
        )
    return external_data or size > MAX_SINGLE_FILE_SIZE


def move_into_place(temporary: Path, path: Path) -> int:
    """Give a verified file its final name, and its weights beside it theirs.

    Args:
        temporary: the file, in a folder of the same file system; its weights, if any, have the
            first name of `list_data_paths`.
        path: its name; what has this name is replaced, together with its weights.

    Returns:
        Size in bytes, external data included.
    """
    size, data = temporary.stat().st_size, None
    temporary_data = list_data_paths(temporary)[0]
    with _lock(path.parent):  # two runs at the same time would choose the same name
        if temporary_data.exists():
            size += temporary_data.stat().st_size
            data = _choose_data_path(path, temporary_data)
            _set_location(temporary, data.name)
            os.replace(temporary_data, data)
        os.replace(temporary, path)
        for unused in set(list_parts(path)) - {path, data}:
            with contextlib.suppress(OSError):  # it may stay: nothing refers to it
                unused.unlink()
    return size


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Wait until no other process is in this block for the folder, if the system can lock it."""
    descriptor = None
    with contextlib.suppress(ImportError, OSError):  # Windows, some network file systems
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _choose_data_path(path: Path, temporary_data: Path) -> Path:
    """The first name that the .onnx at `path` does not use, or has for the same weights."""
    first, second = list_data_paths(path)
    if not first.exists() or first.name not in _list_locations(path):
        return first
    return first if filecmp.cmp(first, temporary_data, shallow=False) else second


def _list_locations(path: Path) -> set[str]:
    """The files that an .onnx names; none for a file of another format."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (FileNotFoundError, DecodeError):
        return set()
    return {entry.value for entry in _list_entries(model)}


def _set_location(path: Path, name: str) -> None:
    """Name the file of the weights in an .onnx."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for entry in _list_entries(model):
        entry.value = name
    onnx.save(model, path)


def _list_entries(model: Any) -> list[Any]:
    """The entries of an onnx.ModelProto that name a file of weights."""
    return [
        entry
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    ]
