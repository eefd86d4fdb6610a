"""Files of torch.save: their structure, and where each tensor is stored.

torch.load is not used: with `weights_only=True` it rejects what training scripts store beside the
weights, a crafted file can keep it busy for hours, and its errors advise running the file's code.
There are two formats:
- a zip archive with data.pkl and one file for each storage (torch 1.6 and later);
- "legacy", a sequence of pickles followed by the storages (before 1.6).
"""

import io
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import torch

from swag_models.archives import ZIP_ERRORS
from swag_models.errors import CheckpointError
from swag_models.formatting import describe
from swag_models.pickle_reader import PickleReader, Reference
from swag_models.stored_tensor import OddTensor, Region, Storage, StoredTensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_PICKLE = 2**28  # bytes of data.pkl
MAX_EXPANSION = 64  # decompressed bytes of an archive per byte of the file
SHARD = "a part of a DTensor"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a file in a zip archive: lengths of name and extra
ENCRYPTED = 1  # bit of a zip entry's flags
STORAGE_TYPE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage")
STORAGE_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "Untyped": None,
}
# Tensors that are not plain arrays of values, by the function that makes them.
ODD_TENSORS = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (device meta)",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch.nested._internal.nested_tensor._rebuild_njt": "a nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device",
}


class TorchFile(NamedTuple):
    """Contents of a file of torch.save.

    Attributes:
        content: what was saved, with StoredTensors, OddTensors and Placeholders.
        calls: names of functions that unpickling would call; none was called.
        objects: names of the classes of other objects.
    """

    content: Any
    calls: list[str]
    objects: list[str]


def read_zip(file: BinaryIO, file_size: int) -> TorchFile:
    """Read the structure of a zip archive that torch.save wrote.

    Args:
        file: the file.
        file_size: its size in bytes.

    Raises:
        CheckpointError: the archive is damaged, or was not written by torch.save.
    """
    try:
        archive = zipfile.ZipFile(file)
    except ZIP_ERRORS as error:
        raise CheckpointError(f"its zip archive is damaged: {error}") from None
    names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError("it is a TorchScript archive; save model.state_dict() instead")
    if any(name.endswith(".npy") for name in names):
        raise CheckpointError("it is a NumPy archive (npz); save model.state_dict() instead")
    pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise CheckpointError("it is a zip archive, but was not written by torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    total = 0

    def locate(name: str) -> Region:
        nonlocal total
        region = _locate_entry(archive, folder + name, file, file_size)
        if region.archive is not None:
            total += region.size
        if total > MAX_EXPANSION * file_size:
            raise CheckpointError(f"decompressed it has more than {MAX_EXPANSION} times its size")
        return region

    def read(name: str, limit: int) -> bytes:
        region = locate(name)
        if region.size > limit:
            raise CheckpointError(f"its {name} has {region.size:,} bytes, more than {limit:,}")
        if region.archive is not None:
            try:
                return region.archive.read(region.entry)
            except ZIP_ERRORS as error:
                raise CheckpointError(f"its {name} is damaged: {error}") from None
        file.seek(region.start)
        return file.read(region.size)

    if f"{folder}byteorder" in names and read("byteorder", 16) == b"big":
        raise CheckpointError("its values are big-endian; save it again on another machine")
    storages: dict[str, Storage] = {}

    def find_storage(key: str, dtype: torch.dtype | None, size: int) -> Storage:
        if key not in storages:
            storages[key] = Storage(dtype, size, locate(f"data/{key}"))
        return storages[key]

    reader = _make_reader(find_storage)
    content = reader.read(io.BytesIO(read("data.pkl", MAX_PICKLE)))
    return TorchFile(content, list(reader.calls), list(reader.objects))


def _locate_entry(archive: zipfile.ZipFile, name: str, file: BinaryIO, file_size: int) -> Region:
    """Find the bytes of a file in a zip archive."""
    try:
        entry = archive.getinfo(name)
        file.seek(entry.header_offset)
        signature, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    except ZIP_ERRORS:
        raise CheckpointError(f"its zip archive has no {name}") from None
    start = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if (
        signature != b"PK\x03\x04"
        or entry.flag_bits & ENCRYPTED
        or start + entry.compress_size > file_size
    ):
        raise CheckpointError(f"{name} in its zip archive is damaged or encrypted")
    if entry.compress_type == zipfile.ZIP_STORED:
        # Read without zipfile, whose checksums torch.save may have left out.
        return Region(start, min(entry.file_size, entry.compress_size))
    return Region(start, entry.file_size, archive, name)


def read_legacy(file: BinaryIO, file_size: int) -> TorchFile:
    """Read the structure of a file that torch.save wrote before version 1.6.

    Args:
        file: the file, at its first byte.
        file_size: its size in bytes.

    Raises:
        CheckpointError: the file is damaged, or was not written by torch.save.
    """
    storages: dict[str, Storage] = {}

    def find_storage(key: str, dtype: torch.dtype | None, size: int) -> Storage:
        return storages.setdefault(key, Storage(dtype, size))

    def read(reader: PickleReader | None = None) -> Any:
        return (reader or _make_reader(find_storage)).read(file)

    reader = _make_reader(find_storage)
    first = read(reader)
    if type(first) is not int or first != LEGACY_MAGIC:
        names = TorchFile(first, list(reader.calls), list(reader.objects))
        if names.calls or names.objects:  # reported by name
            return names
        raise CheckpointError("it is a pickle, but was not written by torch.save")
    read()  # version of the format
    read()  # properties of the machine
    content = read(reader)
    keys = read()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError("its list of storages is damaged")
    for key in keys:
        size = int.from_bytes(file.read(8), "little")
        storage = storages.get(key)
        if storage is None or storage.size != size or storage.region is not None:
            raise CheckpointError(f"its storage {key} is damaged")
        num_bytes = size * (storage.dtype.itemsize if storage.dtype else 1)
        storage.region = Region(file.tell(), num_bytes)
        if file.tell() + num_bytes > file_size:
            raise CheckpointError("it is cut short")
        file.seek(num_bytes, io.SEEK_CUR)
    return TorchFile(content, list(reader.calls), list(reader.objects))


def _make_reader(
    find_storage: Callable[[str, torch.dtype | None, int], Storage],
) -> PickleReader:
    """Return a reader of pickles that makes StoredTensors."""

    def load_persistent(identity: Any) -> Any:
        try:
            if identity[0] in ("module", b"module"):  # the class of a pickled module
                return identity[1]
            kind, storage_type, key, _location, size, *view = identity
        except (TypeError, ValueError, LookupError):
            raise CheckpointError("its pickle has an unknown persistent id") from None
        match = isinstance(storage_type, Reference) and STORAGE_TYPE.fullmatch(storage_type.name)
        if not match or match[1] not in STORAGE_DTYPES or kind not in ("storage", b"storage"):
            raise CheckpointError(f"its pickle has a storage of type {describe(storage_type)}")
        if not isinstance(key, (str, int)) or type(size) is not int or not 0 <= size < 2**60:
            raise CheckpointError("its pickle has a damaged storage")
        if view not in ([], [None]):
            raise CheckpointError("its pickle has views of storages; save it with torch >= 1.0")
        return find_storage(str(key), STORAGE_DTYPES[match[1]], size)

    def rebuild(
        storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any
    ) -> StoredTensor | OddTensor:
        if not isinstance(storage, Storage) or storage.dtype is None:
            raise CheckpointError("its pickle has a tensor without storage")
        if any(isinstance(value, dict) and value.get("neg") for value in rest):
            return OddTensor("a view of negated values")
        return StoredTensor(storage, storage.dtype, offset, shape, stride)

    def rebuild_untyped(
        storage: Any,
        offset: Any,
        shape: Any,
        stride: Any,
        _grad: Any,
        _hooks: Any,
        dtype: Any,
        *_: Any,
    ) -> StoredTensor:
        kind = getattr(torch, dtype.name.removeprefix("torch."), None)
        if not isinstance(storage, Storage) or not isinstance(kind, torch.dtype):
            raise CheckpointError("its pickle has a tensor without storage or dtype")
        return StoredTensor(storage, kind, offset, shape, stride)

    def rebuild_from_type(function: Any, _type: Any, arguments: Any, _state: Any) -> Any:
        if not isinstance(function, Reference) or function.name not in functions:
            return OddTensor("a tensor of a subclass")
        if isinstance(_type, Reference) and _type.name.endswith(".DTensor"):
            return OddTensor(SHARD)
        return functions[function.name](*arguments)

    functions: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": rebuild,
        "torch._utils._rebuild_tensor_v2": rebuild,
        "torch._utils._rebuild_tensor_v3": rebuild_untyped,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *_: data,
        "torch._tensor._rebuild_from_type_v2": rebuild_from_type,
    }
    for name, kind in ODD_TENSORS.items():
        functions[name] = lambda *_, kind=kind: OddTensor(kind)
    return PickleReader(functions, load_persistent)
