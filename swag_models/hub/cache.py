"""The cache folder and its records: the verified file of each source, and its SHA-256."""

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from swag_models.atomic import write_json
from swag_models.spec import Source

logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class CacheRecord:
    """The verified file of a source.

    Attributes:
        url: URL of the source.
        path: path of the file.
        sha256: SHA-256 of the file, 64 hex digits.
        size: size of the file in bytes.
        mtime_ns: modification time of the file, in nanoseconds since the epoch.
    """

    url: str
    path: str
    sha256: str
    size: int
    mtime_ns: int


def cache_folder() -> Path:
    """The folder in SWAG_MODELS_CACHE; by default `swag_models` in the platform's cache folder."""
    if folder := os.environ.get("SWAG_MODELS_CACHE"):
        return Path(folder).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = xdg_cache()
    return base / "swag_models"


def xdg_cache() -> Path:
    """The user's cache folder by the XDG Base Directory Specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()


def is_unchanged(record: CacheRecord, source: Source) -> bool:
    """Whether the recorded file is still the one that was verified, judged by size and time."""
    # Hashing 2.5 GB on every load would take seconds; `swag-models verify` hashes again.
    try:
        status = os.stat(record.path)
    except OSError:
        return False
    same_file = (status.st_size, status.st_mtime_ns) == (record.size, record.mtime_ns)
    return same_file and record.sha256.startswith(source.sha256 or "")


def read_record(source: Source) -> CacheRecord | None:
    """The record of a source; None if it is missing or damaged."""
    try:
        return CacheRecord(**json.loads(record_path(source).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_record(source: Source, path: Path, digest: str, *, pin: bool) -> None:
    """Record a verified file.

    Args:
        source: where the file came from.
        path: the file.
        digest: its SHA-256.
        pin: the source has no published hash, so log that this one is expected from now on.
    """
    status = path.stat()
    record = CacheRecord(source.url, str(path), digest, status.st_size, status.st_mtime_ns)
    target = record_path(source)
    # Without a record, for example in a read-only cache, the next load hashes the file again.
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, asdict(record), unique=True)
        if pin:
            logger.warning(
                "%s has no published hash: SHA-256 %s is pinned from now on in %s",
                source.url,
                digest,
                target,
            )


def record_path(source: Source) -> Path:
    """The record's path in the cache folder, named after the source's host and path."""
    parts = urlsplit(source.url)
    query = f"-{hashlib.sha256(parts.query.encode()).hexdigest()[:16]}" if parts.query else ""
    names = [parts.netloc or parts.scheme, *PurePosixPath(unquote(parts.path)).parts]
    # ":" and "\" separate parts of a path on Windows; ".." would leave the cache folder.
    safe_names = [re.sub(r"[:\\]", "_", name) for name in names if name not in ("/", "..")]
    path = cache_folder().joinpath("records", *safe_names)
    return path.with_name(f"{path.name}{query}.json")
