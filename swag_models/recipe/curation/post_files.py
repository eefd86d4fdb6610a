"""Find files of posts, and recognise their formats by their names; read lists of posts."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from swag_models.errors import ConfigError
from swag_models.formatting import escape_unprintable
from swag_models.paths import describe_left_out, expand_path, read_lines, walk_files

POST_FORMATS = dict.fromkeys((".jsonl", ".ndjson", ".json"), "json")
POST_FORMATS |= {".csv": "csv", ".tab": "csv", ".tsv": "tsv"}
POST_FORMATS |= {".tar": "tar", ".tgz": "tar", ".parquet": "parquet"}
# Tables of YFCC100M without user tags; each has its photos' ids in the first column.
YFCC_COMPANIONS = ("autotags", "exif", "hash", "lines", "places")

logger = logging.getLogger("swag_models")


def find_format(path: Path) -> str:
    """Recognise the format of a file from its name.

    Returns:
        A key of `READERS`, or "parquet".

    Raises:
        ConfigError: the name has no known suffix.
    """
    stem = path.name.lower().removesuffix(".gz").removesuffix(".bz2")
    if format := POST_FORMATS.get(Path(stem).suffix):
        return format
    if stem.startswith("yfcc100m"):
        if stem.startswith(tuple(f"yfcc100m_{name}" for name in YFCC_COMPANIONS)):
            raise ConfigError(
                f"{path} is a table of YFCC100M without user tags; give yfcc100m_dataset, whose "
                "edition of 25 columns has the hashes"
            )
        return "yfcc"
    formats = ", ".join(dict.fromkeys(POST_FORMATS.values()))
    raise ConfigError(
        f"unknown format of {path}: allowed: {' '.join(POST_FORMATS)}, or those with .gz or .bz2; "
        f"rename it, or choose a format=, one of {formats}, yfcc"
    )


def find_files(inputs: Sequence[str | os.PathLike[str]], format: str | None) -> list[Path]:
    """List the files of posts.

    Args:
        inputs: files, and folders that are searched for files with a known suffix, also through
            links. The number of other files is logged.
        format: the format of all files; by default recognised from each file's name.

    Returns:
        Files in the order of `inputs`, those of a folder sorted by name.

    Raises:
        ConfigError: an input is missing, a folder has no file of posts, or a format is unknown.
    """
    files, left_out = list[Path](), Counter[str]()
    for path in (expand_path(path, "posts") for path in inputs):
        if not path.exists():
            raise ConfigError(f"{path} does not exist; pass files of posts, or folders of them")
        is_folder = path.is_dir()
        found = sorted(walk_files(path, _has_suffix, left_out)) if is_folder else [path]
        matches = [file for file in found if file.is_file()]
        # named pipes, sockets, devices, and links that lead nowhere
        left_out["not a regular file"] += len(found) - len(matches)
        if not matches:
            raise ConfigError(
                f"{path} has no file of posts; allowed: {' '.join(POST_FORMATS)}, "
                "or those with .gz or .bz2"
            )
        files += matches
    if +left_out:  # a count above 0
        line = f"left out beside the posts: {describe_left_out(left_out)}"
        logger.warning("%s", escape_unprintable(line, 499))
    if not format:
        for path in files:
            find_format(path)  # raises for an unknown format before any work is done
    return files


def _has_suffix(name: str) -> bool:
    stem = name.lower().removesuffix(".gz").removesuffix(".bz2")
    return Path(stem).suffix in POST_FORMATS or stem.startswith("yfcc100m_dataset")


def read_values(path: str | os.PathLike[str] | None) -> list[str]:
    """The distinct lines of a text file of ids and hashes of posts, sorted; empty without a file.

    Raises:
        ConfigError: the file cannot be read.
    """
    if path is None:
        return []
    lines = read_lines(expand_path(path), "a text file with one id or hash per line", path)
    return sorted({line.strip() for line in lines} - {""})
