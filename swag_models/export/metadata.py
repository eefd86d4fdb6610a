"""What an exported file states about itself.

It is stored in ONNX's metadata_props, torch.export's extra files or AOTInductor's metadata.
"""

import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from swag_models.archives import ZIP_ERRORS
from swag_models.decoding import decode_fields
from swag_models.errors import ConfigError, ExportError, plain_arguments
from swag_models.formatting import count_noun
from swag_models.paths import expand_path
from swag_models.runtime import import_extra
from swag_models.spec import Preprocess

COMPILED_SUFFIX = ".aoti.pt2"
EXPORT_SUFFIXES = (".onnx", ".pt2", COMPILED_SUFFIX)
ONNX_EXTRA = "swag-models[export]"
MAX_METADATA = 1 << 25  # bytes; names of 27,000 classes have less than 1 million


@dataclass(frozen=True)
class Metadata:
    """What an exported file states about itself.

    Attributes:
        name: name of the model.
        license: licence of the weights.
        license_url: URL of the licence's text.
        library: name and version of the library that wrote the file.
        dtype: internal precision; input and output are float32.
        input: name of the input tensor.
        output: name of the output tensor, "logits" or "features".
        preprocess: how an image becomes the input.
        classes: names in the order of the logits, None if unknown.
        multi_label: whether the probability of a class is the sigmoid of its logit, instead of the
            softmax of all.
    """

    name: str
    license: str
    license_url: str
    library: str
    dtype: str
    input: str
    output: str
    preprocess: Preprocess
    classes: tuple[str, ...] | None
    multi_label: bool = False  # earlier versions did not store it

    def to_strings(self) -> dict[str, str]:
        """One string per field; as JSON if it is not a string."""
        # Both formats store strings only.
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_strings(cls, strings: dict[str, str]) -> "Metadata":
        """The inverse of `to_strings`.

        Raises:
            ValueError: a field is missing or invalid.
        """
        required = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [name for name in required if name not in strings]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        names = [field.name for field in fields(cls) if field.name in strings]
        values: dict[str, Any] = {name: strings[name] for name in names}
        for name in {"preprocess", "classes", "multi_label"} & values.keys():
            values[name] = json.loads(values[name])
        return decode_fields(cls, values, "")


@plain_arguments
def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Read the metadata of a file that `export_model` wrote, without its weights.

    Raises:
        ExportError: the file cannot be read, or is not such a file.
    """
    path = expand_path(path)
    check_suffix(path)
    try:
        return Metadata.from_strings(METADATA_READERS[find_suffix(path)](path))
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error}") from None
    except ZIP_ERRORS as error:
        raise ExportError(f"{path} is damaged, or not from swag-models export: {error}") from None


def check_suffix(path: Path) -> None:
    """Raise ConfigError unless the suffix is that of a known format."""
    if find_suffix(path) not in EXPORT_SUFFIXES:
        raise ConfigError(
            f"invalid suffix {path.suffix!r} of {path}: allowed: {', '.join(EXPORT_SUFFIXES)}"
        )


def find_suffix(path: Path) -> str:
    """The suffix, which for a compiled model has two parts."""
    return COMPILED_SUFFIX if path.name.endswith(COMPILED_SUFFIX) else path.suffix


def _read_pt2(path: Path) -> dict[str, str]:
    """The extra files of a .pt2, which is a zip archive."""
    # torch.export.load would load the weights as well.
    with zipfile.ZipFile(path) as archive:
        members = [PurePosixPath(name) for name in archive.namelist()]
        # The folder is `extra_files` before torch 2.8, `extra` since.
        extra = [name for name in members if name.parent.name in ("extra", "extra_files")]
        _check_length(archive, map(str, extra), "extra files")
        return {name.name: archive.read(str(name)).decode() for name in extra}


def read_compiled(path: Path) -> dict[str, str]:
    """The metadata that AOTInductor stored in a .aoti.pt2, without loading its code.

    Raises:
        OSError: the file cannot be read.
        ValueError, zipfile.BadZipFile, ...: see `ZIP_ERRORS`.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("wrapper_metadata.json")]
        _check_length(archive, names, "metadata")
        if len(names) != 1:
            raise ValueError(f"it contains metadata of {count_noun(len(names), 'model')}, not of 1")
        strings = json.loads(archive.read(names[0]))
    if not isinstance(strings, dict) or not all(isinstance(v, str) for v in strings.values()):
        raise ValueError("its metadata are not strings")
    return strings


def _check_length(archive: zipfile.ZipFile, names: Iterable[str], what: str) -> None:
    """Raise ValueError if members of an archive are larger than metadata can be."""
    if (size := sum(archive.getinfo(name).file_size for name in names)) > MAX_METADATA:
        raise ValueError(f"its {what} have {size:,} bytes, more than {MAX_METADATA:,}")


def _read_onnx(path: Path) -> dict[str, str]:
    """The metadata_props of an .onnx."""
    # onnxruntime would load the weights as well.
    onnx = import_extra("onnx", ONNX_EXTRA, ".onnx")
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(error) from None
    return {prop.key: prop.value for prop in model.metadata_props}


METADATA_READERS = {".onnx": _read_onnx, ".pt2": _read_pt2, COMPILED_SUFFIX: read_compiled}
