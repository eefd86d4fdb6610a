"""Files of embeddings: .parquet, or .npy with the names in a .json file beside it.

Axes: N images, D features.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from swag_models.atomic import atomic_write, write_text
from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, describe_error, list_names
from swag_models.inference.predict import Embeddings, Skipped
from swag_models.paths import expand_path, read_regular, require_regular
from swag_models.runtime import import_extra

EMBEDDING_SUFFIXES = (".parquet", ".npy")
ROW_GROUP_SIZE = 8192  # rows of a Parquet file that are written or read at once
METADATA_KEY = "swag_models"
FLOATS = re.compile(r"(fixed_size_|large_)?list<\w+: float>")

Vectors = NDArray[np.float32]


def read_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Read a file that `write_embeddings` wrote.

    Args:
        path: a .parquet or .npy file.

    Returns:
        Vectors (N, D), names and skipped images. The vectors of a .npy file are memory-mapped.

    Raises:
        ConfigError: the file cannot be read, or does not contain embeddings.
    """
    path = expand_path(path)
    record = _read_record(path)
    metadata = record[METADATA_KEY]
    skipped = [Skipped(*fields) for fields in metadata["skipped"]]
    try:
        if path.suffix == ".npy":
            # copy on write: torch wants writable memory, and the file must not change
            values, names = np.load(path, mmap_mode="c"), record["names"]
        else:
            table = _import_pyarrow().parquet.read_table(path, columns=["name", "embedding"])
            names = table["name"].to_pylist()
            if not all(type(name) is str for name in names):
                raise ValueError("its names are not texts")
            flat = table["embedding"].combine_chunks().flatten().to_numpy()  # (N * D,)
            values = flat.reshape(-1, metadata["width"]).copy()
        if values.dtype != np.float32 or values.shape != (len(names), metadata["width"]):
            raise ValueError(
                f"it has {values.dtype} {values.shape} for {count_noun(len(names), 'name')} of "
                f"width {metadata['width']}"
            )
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = describe_error(error)
        raise ConfigError(f"{path} cannot be read: {reason}; embed the images again") from None
    return Embeddings(torch.from_numpy(values), names, skipped)


def read_intact_embeddings(path: Path) -> Embeddings:
    """Read a file as `read_embeddings` does, to its end.

    Raises:
        ConfigError: the file cannot be read, or was changed after it was written.
    """
    embeddings = read_embeddings(path)
    expected = read_embeddings_metadata(path)["rows_sha256"]
    if hash_rows(embeddings.vectors.numpy(), embeddings.names) != expected:
        raise ConfigError(f"{path} was changed or damaged after it was written")
    return embeddings


def read_embeddings_metadata(path: Path) -> dict[str, Any]:
    """Read how the embeddings in a file were computed, and which images were skipped.

    Raises:
        ConfigError: the file cannot be read, or does not contain embeddings.
    """
    metadata: dict[str, Any] = _read_record(path)[METADATA_KEY]
    return metadata


def write_embeddings_file(
    path: Path, vectors: Vectors, names: list[str], metadata: dict[str, Any]
) -> None:
    """Write embeddings, atomically.

    Args:
        path: a .parquet or .npy file.
        vectors: (N, D).
        names: N names.
        metadata: JSON values, returned by `read_embeddings_metadata`.
    """
    if path.suffix == ".npy":
        # The names come first: a .npy file is complete only with the .json file beside it.
        write_text(get_metadata_path(path), json.dumps({METADATA_KEY: metadata, "names": names}))
        with atomic_write(path) as temporary:
            _write_npy(temporary, vectors)
    else:
        with atomic_write(path) as temporary:
            _write_parquet(temporary, vectors, names, metadata)


def hash_rows(vectors: Vectors, names: Sequence[str]) -> str:
    """Return the SHA-256 of embeddings (N, D) and their names, which shows damage."""
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    digest.update(np.ascontiguousarray(vectors, dtype="<f4").data)
    return digest.hexdigest()


def check_embeddings_path(output: str | os.PathLike[str]) -> Path:
    """Check that embeddings can be written to a path, before they are computed.

    Args:
        output: path of the file to write.

    Returns:
        The same path.

    Raises:
        ConfigError: its folder is missing, its suffix is unknown, or pyarrow is not installed.
    """
    path = expand_path(output, "output")
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path.parent} is not a folder; create it, or choose another one for {path.name}"
        )
    if path.suffix not in EMBEDDING_SUFFIXES:
        raise ConfigError(f"unknown suffix of {path}; allowed: {' or '.join(EMBEDDING_SUFFIXES)}")
    if path.suffix == ".parquet":
        _import_pyarrow()
    return path


def get_metadata_path(path: Path) -> Path:
    """The file with the metadata: a .parquet file itself, or the .json file beside a .npy file."""
    return path.with_suffix(".json") if path.suffix == ".npy" else path


def _import_pyarrow() -> Any:
    """Import pyarrow with its module for Parquet files."""
    purpose = "a .parquet file (unlike .npy)"
    import_extra("pyarrow.parquet", "swag-models[embed]", purpose)
    return import_extra("pyarrow", "swag-models[embed]", purpose)


def _read_record(path: Path) -> dict[str, Any]:
    """The metadata under METADATA_KEY; for .npy also the names under "names"."""
    pyarrow = None if path.suffix == ".npy" else _import_pyarrow()
    require_regular(path)
    try:
        if pyarrow:
            schema = pyarrow.parquet.read_schema(path)
            _check_columns(schema)
            text = (schema.metadata or {})[METADATA_KEY.encode()]
            record = {METADATA_KEY: parse_json(text), "names": []}
        else:
            record = parse_json(read_regular(get_metadata_path(path)))
        _check_record(record)
        return {METADATA_KEY: record[METADATA_KEY], "names": record["names"]}
    except FileNotFoundError:
        raise ConfigError(
            f"{get_metadata_path(path)} does not exist; swag-models embed writes it"
        ) from None
    except KeyError:
        reason = "it does not say how its rows were computed"
    except (OSError, ValueError, TypeError) as error:  # pyarrow raises ValueErrors
        reason = str(error)
    raise ConfigError(f"{get_metadata_path(path)} was not written by swag-models embed: {reason}")


def _check_columns(schema: Any) -> None:
    """Raise ValueError unless a Parquet file has the columns that `_write_parquet` writes."""
    types = [str(column.type) for column in schema]
    expected = "name (string) and embedding (fixed_size_list<element: float>)"
    if schema.names != ["name", "embedding"] or types[0] != "string" or not FLOATS.match(types[1]):
        columns = [f"{name} ({kind})" for name, kind in zip(schema.names, types)]
        raise ValueError(f"its columns are {list_names(columns, 4) or 'none'}, not {expected}")


def _check_record(record: Any) -> None:
    """Raise ValueError, KeyError or TypeError if metadata and names have other types."""
    metadata, names = record[METADATA_KEY], record["names"]
    for name in ("width", "images", "rank", "world_size"):
        if type(metadata[name]) is not int or metadata[name] < 0:
            raise ValueError(f"{name} is {metadata[name]!r}")
    if not (metadata["rank"] < metadata["world_size"] and metadata["width"] > 0):
        raise ValueError(f"rank is {metadata['rank']} of {metadata['world_size']}")
    if not (isinstance(names, list) and all(type(name) is str for name in names)):
        raise ValueError("names is not a list of texts")
    for name in ("files_hash", "rows_sha256"):
        int(metadata[name], 16)
    for pair in metadata["skipped"]:
        if [type(part) for part in pair] != [str, str]:
            raise ValueError(f"skipped has {pair!r}")


def _write_npy(path: Path, vectors: Vectors) -> None:
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(vectors)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(vectors.data)  # np.save does not report a full disk


def _write_parquet(
    path: Path, vectors: Vectors, names: list[str], metadata: dict[str, Any]
) -> None:
    pyarrow = _import_pyarrow()
    width = vectors.shape[1]
    columns = [
        pyarrow.field("name", pyarrow.string()),
        pyarrow.field("embedding", pyarrow.list_(pyarrow.float32(), width)),
    ]
    schema = pyarrow.schema(columns, metadata={METADATA_KEY: json.dumps(metadata)})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(names), ROW_GROUP_SIZE):
            rows = slice(start, start + ROW_GROUP_SIZE)
            arrays = [
                pyarrow.array(names[rows], pyarrow.string()),
                pyarrow.FixedSizeListArray.from_arrays(
                    pyarrow.array(vectors[rows].reshape(-1)), width
                ),
            ]
            writer.write_table(pyarrow.table(arrays, schema=schema))
