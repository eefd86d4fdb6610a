"""Where files are kept, and what is known of each: one small record per source, the pin of those without published hash."""

from __future__ import annotations

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

from swag_models.atomic import atomic_write
from swag_models.spec import Source

logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class CacheRecord:
    """What is known of the file a source gave; its size and time tell cheaply whether it is still the file verified."""

    url: str
    path: str
    sha256: str
    size: int
    mtime_ns: int


def cache_folder() -> Path:
    """SWAG_MODELS_CACHE, else `swag_models` in the platform's cache folder."""
    if chosen := os.environ.get("SWAG_MODELS_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = xdg_cache()
    return base / "swag_models"


def xdg_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()


def is_unchanged(record: CacheRecord, source: Source) -> bool:
    """Whether the recorded file is still the one that was verified, judged by size and time."""
    try:
        status = os.stat(record.path)
    except OSError:
        return False
    same = (status.st_size, status.st_mtime_ns) == (record.size, record.mtime_ns)
    return same and record.sha256.startswith(source.sha256 or "")


def read_record(source: Source) -> CacheRecord | None:
    try:
        return CacheRecord(**json.loads(record_path(source).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def remember(source: Source, path: Path, digest: str, new_pin: bool) -> None:
    """CacheRecord a verified file; a cache that cannot be written only means that the file is hashed again next time."""
    status = path.stat()
    record = CacheRecord(source.url, str(path), digest, status.st_size, status.st_mtime_ns)
    target = record_path(source)
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, unique=True) as temporary:
            temporary.write_text(json.dumps(asdict(record), indent=2))
        if new_pin:
            logger.warning(
                "%s has no published hash: SHA-256 %s is pinned from now on in %s",
                source.url,
                digest,
                target,
            )


def record_path(source: Source) -> Path:
    parts = urlsplit(source.url)
    query = f"-{hashlib.sha256(parts.query.encode()).hexdigest()[:16]}" if parts.query else ""
    names = [parts.netloc or parts.scheme, *PurePosixPath(unquote(parts.path)).parts]
    safe = [
        re.sub(r"[:\\]", "_", name) for name in names if name not in ("/", "..")
    ]  # on Windows these part paths too
    path = cache_folder().joinpath("records", *safe)
    return path.with_name(f"{path.name}{query}.json")
