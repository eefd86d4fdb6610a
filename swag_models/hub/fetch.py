"""A model's sources -> one verified local file. Imports no torch.

In the cache folder:
  files/<sha256>/<name>      weights, by content: never changed once there
  records/<host>/<path>.json which file a source gave, its SHA-256, size and time: the pin of a source without published hash
  parts/                     downloads under way
  locks/                     who is downloading; only to save work, nothing relies on them
  <name>                     where a file copied by hand is found
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from swag_models.errors import CacheError, FetchError, HashMismatchError
from swag_models.hub.cache import (
    CacheRecord,
    cache_folder,
    is_unchanged,
    read_record,
    record_path,
    remember,
    xdg_cache,
)
from swag_models.hub.download import download, hash_file, remove_parts
from swag_models.hub.hf_format import CONFIG_FILE, INDEX_FILE, read_index
from swag_models.hub.huggingface import (
    COMMIT,
    PREFIX,
    UnreachableError,
    download_file,
    find_cached,
    find_commit,
    parse_url,
)
from swag_models.spec import ModelSpec, Progress, Source

logger = logging.getLogger("swag_models")
PACKAGE_DATA = Path(__file__).parents[1] / "weights"
TRUE = {"1", "true", "yes", "on"}
LOCK_TIMEOUT = 3600  # seconds to wait for another process before going on without it


@dataclass(frozen=True)
class HashCheck:
    """The outcome of verifying one file: whole or not, and the digest found."""

    url: str
    path: str
    sha256: str
    ok: bool


def fetch_weights(spec: ModelSpec, *, progress: Progress = True) -> Path:
    """The verified local weight file of a model: from this machine if any source's file is here, else downloaded.

    Sources are tried in the catalog's order. FetchError lists each with its reason, and where to put a file by hand.
    """
    if path := find_weights(spec):
        return path
    reasons = []
    for source in spec.sources:
        try:
            return _download_source(source, spec, progress)
        except CacheError:
            raise
        except FetchError as error:
            reasons.append(f"  {source.url}: {error}")
    lines = [f"no source could give the weights of {spec.name}:", *reasons]
    if by_hand := [
        f"  {cache_folder() / source.file_name}" for source in spec.sources if _is_remote(source)
    ]:
        lines += ["A file copied by hand is found at", *by_hand]
    raise FetchError("\n".join(lines))


def fetch_config(repo: str, revision: str) -> Path:
    """config.json of a Hub repository as `revision` stands now, in a folder named after the commit.

    One request for a branch or tag, none for a commit that is here. Without network, the version that was here last, with a
    notice; FetchError if there is none.
    """
    cached = find_cached(repo, revision, CONFIG_FILE)
    if cached and (COMMIT.fullmatch(revision) or is_offline()):
        return cached
    if is_offline():
        raise FetchError(
            f"{PREFIX}{repo}@{revision} is not on this machine, and offline is asked for"
        )
    try:
        if cached and find_commit(repo, revision, CONFIG_FILE) == cached.parent.name:
            return cached
        return download_file(repo, revision, CONFIG_FILE, progress=False)
    except UnreachableError as error:
        if cached is None:
            raise
        logger.warning(
            "%s: %s is used as it was here last, at %s",
            error,
            f"{PREFIX}{repo}@{revision}",
            cached.parent.name,
        )
        return cached


def find_weights(spec: ModelSpec) -> Path | None:
    """The verified weight file of a model if it is on this machine already; asks no network."""
    records = ((source, read_record(source)) for source in spec.sources)
    known = (
        (source, Path(record.path))
        for source, record in records
        if record and is_unchanged(record, source)
    )
    recorded = next((path for source, path in known if _has_shards(source, path)), None)
    return recorded or next(
        (path for source in spec.sources if (path := _find_source(source))), None
    )


def verify_weights(spec: ModelSpec) -> list[HashCheck]:
    """Read every local file of a model's sources again and compare it with its published or pinned hash."""
    checks = []
    found = [(source, _find_file(source)) for source in spec.sources]
    found += [
        (shard, place)
        for source, path in found
        if path
        for shard, place in _list_shards(source, path)
    ]
    for source, path in found:
        record = read_record(source)
        if record is None and path is None:
            continue
        path = path or Path(record.path)  # type: ignore[union-attr]
        digest = hash_file(path) if path.is_file() else "missing"
        expected = (
            record.sha256
            if record and record.sha256.startswith(source.sha256 or "")
            else source.sha256 or ""
        )
        checks.append(HashCheck(source.url, str(path), digest, digest.startswith(expected)))
    return checks


def is_offline() -> bool:
    """Whether SWAG_MODELS_OFFLINE or HF_HUB_OFFLINE asks for no network."""
    return any(
        os.environ.get(name, "").lower() in TRUE
        for name in ("SWAG_MODELS_OFFLINE", "HF_HUB_OFFLINE")
    )


def _find_source(source: Source) -> Path | None:
    """This source's file where it already lies, its content verified, and with all its shards; None if it is nowhere."""
    path = _find_file(source)
    return path if path and _has_shards(source, path) else None


def _list_shards(source: Source, path: Path) -> list[tuple[Source, Path]]:
    """The files beside a sharded model's index: as sources, and where they belong. None for a model in one file."""
    if not path.name.endswith(INDEX_FILE):
        return []
    folder = source.url.rsplit("/", 1)[0]
    return [
        (replace(source, url=f"{folder}/{name}", sha256=digest), path.parent / name)
        for name, digest in read_index(path).shards.items()
    ]


def _has_shards(source: Source, path: Path) -> bool:
    return all(_find_file(shard, place) == place for shard, place in _list_shards(source, path))


def _find_file(source: Source, place: Path | None = None) -> Path | None:
    """The verified file of a source, or of a shard, which has but one place to be."""
    if not _is_remote(source) and source.sha256 is None:  # the user's own file, free to change
        return path if (path := _local_path(source)).is_file() else None
    record = read_record(source)
    if record and is_unchanged(record, source) and place in (None, Path(record.path)):
        return Path(record.path)
    expected = _expected_hash(source, record)
    for path in [place] if place else _candidates(source, record, expected):
        try:
            if not path.is_file():
                continue
            digest = hash_file(path)
        except OSError as error:
            logger.warning("%s is ignored: %s", path, error.strerror)
            continue
        if digest.startswith(expected or ""):
            if expected is None and not _looks_whole(path):
                logger.warning("%s is ignored: it is cut short or no weight file", path)
                continue
            remember(source, path, digest, new_pin=expected is None)
            return path
        logger.warning("%s is ignored: its SHA-256 is %s, not %s", path, digest, expected)
    return None


def _candidates(source: Source, record: CacheRecord | None, expected: str | None) -> Iterator[Path]:
    """Where the file might lie, nearest first."""
    if not _is_remote(source):
        yield _local_path(source)
        return
    cache = cache_folder()
    if record:
        yield Path(record.path)
    if expected:
        yield from sorted(cache.glob(f"files/{expected}*/*"))
    yield cache / source.file_name
    if source.url.startswith("hf://"):
        if path := find_cached(*parse_url(source.url)):
            yield path
    else:
        torch_home = Path(os.environ.get("TORCH_HOME") or xdg_cache() / "torch").expanduser()
        yield torch_home / "hub" / "checkpoints" / source.file_name


def _download_source(source: Source, spec: ModelSpec, progress: Progress) -> Path:
    """The source's file, with its shards, brought here and verified, or a FetchError with the reason."""
    if not _is_remote(source):
        raise FetchError(_explain_local(source))
    if is_offline():
        raise FetchError("offline, and not on this machine")
    with _lock(source):
        if found := _find_source(source):  # another process brought it while this one waited
            return found
        path = _bring(source, progress)
        for shard, place in _list_shards(source, path):
            if _find_file(shard, place) != place and _bring(shard, progress) != place:
                raise FetchError(f"{place.name} did not come to where its index is, {path}")
        see = f", see {spec.license_url}" if spec.license_url else ""
        logger.warning("%s: the weights are licensed %s%s", spec.name, spec.license.upper(), see)
        return path


def _bring(source: Source, progress: Progress) -> Path:
    """One file downloaded, verified and recorded."""
    record = read_record(source)
    expected = _expected_hash(source, record)
    try:
        path, digest = _download_verified(source, expected, progress)
    except HashMismatchError as error:
        if source.sha256:
            raise
        hint = f"pinned on first use; if the change is expected, delete {record_path(source)}"
        raise HashMismatchError(f"{error} ({hint})") from None
    remember(source, path, digest, new_pin=expected is None)
    return path


def _explain_local(source: Source) -> str:
    """Why a file that should be on this machine does not do."""
    path = _local_path(source)
    if not path.is_file():
        return "no such file"
    for part, place in [(source, path), *_list_shards(source, path)]:
        which = "" if place == path else f"{place.name}: "
        if not place.is_file():
            return f"{which}no such file"
        if not (found := hash_file(place)).startswith(part.sha256 or ""):
            return f"{which}SHA-256 is {found}, not {part.sha256}"
    return "it changed while it was read; try again"


def _download_verified(
    source: Source, expected: str | None, progress: Progress
) -> tuple[Path, str]:
    """(final path, SHA-256) of a complete download with the expected hash, or with none to expect."""
    if source.url.startswith("hf://"):
        path = download_file(*parse_url(source.url), progress)
        digest = hash_file(path)
        if not digest.startswith(expected or ""):
            raise HashMismatchError(f"SHA-256 is {digest}, not {expected}")
        return path, digest
    cache, key = cache_folder(), _key(source)
    while True:
        part, digest = download(
            _mirrored(source.url), cache / "parts", key=key, sha256=expected, progress=progress
        )
        path = cache / "files" / digest / source.file_name
        try:
            whole = expected is not None or _looks_whole(part)
            if whole:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, path)
        except FileNotFoundError:  # another process finished the same download and cleaned up
            if path.is_file():
                return path, digest
            continue
        except OSError as error:
            raise CacheError(
                f"cannot write {path}: {error.strerror}; set SWAG_MODELS_CACHE to another folder"
            ) from None
        remove_parts(cache / "parts", key)
        if not whole:
            raise FetchError("what came is cut short or no weight file")
        return path, digest


@contextlib.contextmanager
def _lock(source: Source) -> Iterator[None]:
    """One download of a source at a time, where locks work; where they do not, go on without."""
    from filelock import FileLock, Timeout

    folder = cache_folder() / "locks"
    lock = FileLock(folder / f"{_key(source)}.lock")
    with contextlib.suppress(OSError, NotImplementedError):  # filelock's Timeout is an OSError too
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("waiting for another process that downloads %s", source.url)
            lock.acquire(timeout=LOCK_TIMEOUT)
    try:
        yield
    finally:
        lock.release()


def _expected_hash(source: Source, record: CacheRecord | None) -> str | None:
    """The published digest, or its beginning; else the one pinned on first use."""
    return source.sha256 or (record.sha256 if record else None)


def _looks_whole(path: Path) -> bool:
    """Whether a file without a known hash has the beginning and the end of a weight file."""
    with path.open("rb") as file:
        head = file.read(8)
        if head.startswith(b"PK"):
            return zipfile.is_zipfile(path)
        length = int.from_bytes(head, "little")
        if length >= path.stat().st_size:
            return head.startswith(b"\x80")  # a bare pickle
        try:
            header = json.loads(file.read(length))
            end = max(
                (
                    value["data_offsets"][1]
                    for name, value in header.items()
                    if name != "__metadata__"
                ),
                default=0,
            )
            return path.stat().st_size == 8 + length + int(end)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return False


def _mirrored(url: str) -> str:
    """The URL with scheme and host replaced by SWAG_MODELS_MIRROR, if that is set."""
    mirror = os.environ.get("SWAG_MODELS_MIRROR")
    if mirror and "://" not in mirror:
        raise FetchError(
            f"SWAG_MODELS_MIRROR is {mirror!r}; give an address such as https://mirror.example"
        )
    return mirror.rstrip("/") + "/" + url.split("/", 3)[3] if mirror else url


def _local_path(source: Source) -> Path:
    if source.url.startswith("package://"):
        return PACKAGE_DATA / source.url.removeprefix("package://")
    from urllib.request import url2pathname  # which knows Windows' drives

    return Path(url2pathname(urlsplit(source.url).path))


def _is_remote(source: Source) -> bool:
    return not source.url.startswith(("package://", "file://"))


def _key(source: Source) -> str:
    """A short file name for the source, its version of the content included."""
    return hashlib.sha256(f"{source.url} {source.sha256}".encode()).hexdigest()[:16]
