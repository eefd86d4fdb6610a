"""What an exported file says of itself: the same strings in ONNX's metadata_props and torch.export's extra files."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from swag_models.errors import ConfigError, ExportError
from swag_models.spec import Preprocess, decode_fields

SUFFIXES = (".onnx", ".pt2")


@dataclass(frozen=True)
class Metadata:
    """What a file says of itself; `input` and `output` are the names of its tensors, `classes` None where none are known."""

    name: str
    license: str
    license_url: str
    library: str
    dtype: str
    input: str
    output: str
    preprocess: Preprocess
    classes: tuple[str, ...] | None

    def to_strings(self) -> dict[str, str]:
        """One string a field, JSON where it has parts: ONNX's metadata_props, torch.export's extra_files."""
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_strings(cls, strings: dict[str, str]) -> Metadata:
        """The inverse of `to_strings`; ValueError if they were not made by it."""
        if missing := [field.name for field in fields(cls) if field.name not in strings]:
            raise ValueError(f"it says nothing of {', '.join(missing)}")
        values: dict[str, Any] = {field.name: strings[field.name] for field in fields(cls)}
        return decode_fields(
            cls,
            {**values, **{name: json.loads(values[name]) for name in ("preprocess", "classes")}},
            "",
        )


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """What a file of `export_model` says of itself, without its weights; ExportError if it is no such file."""
    path = Path(path)
    check_suffix(path)
    try:
        return Metadata.from_strings(_read_zip(path) if path.suffix == ".pt2" else _read_onnx(path))
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error}") from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path} is broken, or not from swag-models export: {error}") from None


def check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path} has no format that is known; end the name in {' or '.join(SUFFIXES)}"
        )


def import_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f".onnx needs {error.name}: pip install 'swag-models[export]'") from None


def _read_zip(path: Path) -> dict[str, str]:
    """The extra files of a .pt2."""
    with zipfile.ZipFile(path) as archive:
        names = [PurePosixPath(name) for name in archive.namelist()]
        extra = [
            name for name in names if name.parent.name in ("extra", "extra_files")
        ]  # the latter before torch 2.8
        return {name.name: archive.read(str(name)).decode() for name in extra}


def _read_onnx(path: Path) -> dict[str, str]:
    """The metadata of an .onnx."""
    import_onnx()
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(error) from None
    return {prop.key: prop.value for prop in model.metadata_props}
