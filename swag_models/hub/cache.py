"""Files of a model's sources that are on this machine, verified: cache folder, records, look-up.

A record holds the path and SHA-256 of the verified file of a source. Uses no network.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from swag_models.archives import is_zip
from swag_models.atomic import write_json
from swag_models.catalog import MODELS
from swag_models.decoding import decode_fields
from swag_models.errors import CacheError, CheckpointError
from swag_models.formatting import escape_unprintable
from swag_models.hub.download import hash_file
from swag_models.hub.hf_format import INDEX_FILE, read_index
from swag_models.hub.hub_names import parse_url
from swag_models.hub.huggingface import find_cached
from swag_models.hub.safetensors_header import is_safetensors, read_header
from swag_models.paths import read_regular
from swag_models.spec import SHA256, Source

logger = logging.getLogger("swag_models")
# Resolutions of modification times, in nanoseconds. A copy of a file may have a coarser time than
# the original: tar files and layers of container images have whole seconds, zip files have two.
TIME_UNITS = (1, 100, 1000, 10**6, 10**9, 2 * 10**9)
UNVERIFIED = -1
MAX_RECORD_BYTES = 1 << 16
PACKAGE_DATA = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class CacheRecord:
    """The verified file of a source.

    Attributes:
        url: URL of the source.
        path: path of the file; in a bundle, relative to the cache folder.
        sha256: SHA-256 of the file, 64 hex digits.
        size: size of the file in bytes.
        mtime_ns: modification time of the file, in nanoseconds since the epoch; `UNVERIFIED` if
            the file has to be hashed before it is used.
    """

    url: str
    path: str
    sha256: str
    size: int
    mtime_ns: int


def cache_folder() -> Path:
    """The folder in SWAG_MODELS_CACHE; by default `swag_models` in the platform's cache folder.

    Raises:
        CacheError: neither is known, for example for a user without a home folder.
    """
    if folder := os.environ.get("SWAG_MODELS_CACHE"):
        return _expand(folder)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expand(base) / "swag_models"


def _expand(folder: str) -> Path:
    """Replace `~` in the path of a cache folder; raise CacheError if no home folder is known."""
    if (expanded := os.path.expanduser(folder)).startswith("~"):
        raise CacheError(
            f"the home folder in {folder} is not known; set SWAG_MODELS_CACHE to a folder for "
            "downloaded weights"
        )
    return Path(expanded).absolute()


def is_unchanged(record: CacheRecord, source: Source) -> bool:
    """Whether the recorded file is still the one that was verified, judged by size and time."""
    # Hashing 2.5 GB on every load would take seconds; `swag-models verify` hashes again.
    try:
        status = os.stat(record.path)
    except (OSError, ValueError):
        return False
    same_time = status.st_mtime_ns in (record.mtime_ns // unit * unit for unit in TIME_UNITS)
    return (
        same_time
        and status.st_size == record.size
        and record.sha256.startswith(source.sha256 or "")
    )


def read_record(source: Source) -> CacheRecord | None:
    """The record of a source; None if it is missing or damaged, or if the source has none."""
    if is_shipped(source):
        return None
    try:
        values = json.loads(read_regular(record_path(source), MAX_RECORD_BYTES))
        record = decode_fields(CacheRecord, values, positive=False)
        record = replace(record, path=str(cache_folder() / record.path))
    except (OSError, ValueError, RecursionError):  # CacheError is an OSError too
        return None
    is_valid = record.url == source.url and SHA256.fullmatch(record.sha256)
    return record if is_valid else None


def write_record(source: Source, path: Path, digest: str, *, pin: bool) -> None:
    """Record a verified file.

    Args:
        source: where the file came from.
        path: the file.
        digest: its SHA-256.
        pin: the source has no published hash, so log that this one is expected from now on.
    """
    # Without a record, for example in a read-only cache, the next load hashes the file again.
    with contextlib.suppress(OSError, ValueError):
        target = record_path(source)
        status = path.stat()
        record = CacheRecord(source.url, str(path), digest, status.st_size, status.st_mtime_ns)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_json(target, asdict(record), unique=True)
        except FileNotFoundError:  # another process removed the temporary file, as below
            write_json(target, asdict(record), unique=True)
        for leftover in target.parent.glob(".*.tmp"):  # of processes that were killed
            leftover.unlink(missing_ok=True)
        if pin:
            logger.warning(
                "%s has no published hash: SHA-256 %s is pinned from now on in %s",
                escape_unprintable(source.url),
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


def find_source(source: Source) -> Path | None:
    """The verified file of a source with all its shards; None if it is not on this machine."""
    path = find_file(source)
    return path if path and has_shards(source, path) else None


def find_file(source: Source, shard_path: Path | None = None) -> Path | None:
    """The verified file of a source or shard; None if it is not on this machine.

    Args:
        source: source of the file.
        shard_path: for a shard, its only allowed path, in the folder of its index.
    """
    if not is_remote(source) and source.sha256 is None:  # the user's own file, which may change
        return path if (path := local_path(source)).is_file() else None
    # Files of this package are small, and hashed each time: a record could belong to another copy
    # of the package, and these files must load without a cache folder.
    record = read_record(source)
    if record and is_unchanged(record, source) and shard_path in (None, Path(record.path)):
        return Path(record.path)
    expected = expected_hash(source, record)
    for path in [shard_path] if shard_path else _candidates(source, record, expected):
        try:
            if not path.is_file():
                continue
            digest = hash_file(path)
        except OSError as error:
            logger.warning("%s is ignored: %s", path, error.strerror)
            continue
        if digest.startswith(expected or ""):  # a source may state leading digits only
            if expected is None and not is_complete(path):
                logger.warning("%s is ignored: it is truncated or not a weight file", path)
                continue
            if not is_shipped(source):
                write_record(source, path, digest, pin=expected is None)
            return path
        logger.warning("%s is ignored: its SHA-256 is %s, not %s", path, digest, expected)
    return None


def list_shards(source: Source, path: Path) -> list[tuple[Source, Path]]:
    """The shards that an index names.

    Args:
        source: source of the index, or of a model in one file, which has no shards.
        path: its local file.

    Returns:
        (source, required path) of each shard.
    """
    if not path.name.endswith(INDEX_FILE):
        return []
    base_url = source.url.rsplit("/", 1)[0]
    return [
        (replace(source, url=f"{base_url}/{name}", sha256=digest), path.parent / name)
        for name, digest in read_index(path).shards.items()
    ]


def has_shards(source: Source, path: Path) -> bool:
    """Whether all shards that an index names are in its folder and verified."""
    return all(
        find_file(shard, shard_path) == shard_path
        for shard, shard_path in list_shards(source, path)
    )


def is_remote(source: Source) -> bool:
    """Whether the source's file has to be downloaded."""
    return not source.url.startswith(("package://", "file://"))


def is_shipped(source: Source) -> bool:
    """Whether the source's file is part of this package."""
    return source.url.startswith("package://")


def local_path(source: Source) -> Path:
    """The path that a package:// or file:// source refers to."""
    if is_shipped(source):
        return PACKAGE_DATA / source.url.removeprefix("package://")
    from urllib.request import url2pathname  # handles drive letters on Windows

    return Path(url2pathname(urlsplit(source.url).path))


def expected_hash(source: Source, record: CacheRecord | None) -> str | None:
    """The published SHA-256 or its leading digits; otherwise the one pinned on first use."""
    return source.sha256 or (record.sha256 if record else None)


def is_complete(path: Path) -> bool:
    """Whether a file without a known hash has the beginning and the end of a weight file.

    Without this check, a login page or a truncated file would be pinned on first use.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
        file.seek(0)
        if head.startswith(b"PK"):  # torch.save; a zip archive's directory is at its end
            return is_zip(path)
        if not is_safetensors(head, size):
            return head.startswith(b"\x80")  # a bare pickle, whose end cannot be checked
        try:
            read_header(file, size)
        except CheckpointError:
            return False
        return True


@functools.cache
def find_shared_names() -> frozenset[str]:
    """Return the file names in the catalog that stand for several files."""
    urls: dict[str, set[str]] = {}
    for source in (source for spec in MODELS for source in spec.sources):
        urls.setdefault(source.file_name, set()).add(source.url)
    return frozenset(name for name, places in urls.items() if len(places) > 1)


def _candidates(source: Source, record: CacheRecord | None, expected: str | None) -> Iterator[Path]:
    """Paths where the file may be, the most specific first."""
    if not is_remote(source):
        yield local_path(source)
        return
    cache = cache_folder()
    if record:
        yield Path(record.path)
    if expected:
        yield from sorted(cache.glob(f"files/{expected}*/*"))
    if expected is None and source.file_name in find_shared_names():
        return  # by its name, the file of another model could be taken for this one
    yield cache / source.file_name
    if source.url.startswith("hf://"):
        if path := find_cached(*parse_url(source.url)):
            yield path
    else:
        xdg_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        torch_home = os.path.expanduser(os.environ.get("TORCH_HOME") or f"{xdg_cache}/torch")
        yield Path(torch_home, "hub", "checkpoints", source.file_name)


@contextlib.contextmanager
def lock_if_possible(path: Path, work: str, timeout: float) -> Iterator[None]:
    """Let one process at a time do some work; continue without a lock where locks fail.

    Args:
        path: the lock file, whose folder is created.
        work: what another process is doing, for the message while waiting.
        timeout: seconds to wait before the work is done without the lock.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    with contextlib.suppress(OSError, NotImplementedError):  # Timeout is an OSError too
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("waiting for another process that is %s", work)
            lock.acquire(timeout=timeout)
    try:
        yield
    finally:
        lock.release()
