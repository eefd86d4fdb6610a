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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from swag_models.cache import Record, cache_folder, is_unchanged, read_record, record_path, remember, xdg_cache
from swag_models.errors import CacheError, FetchError, HashMismatchError
from swag_models.spec import ModelSpec, Source
from swag_models.transfer import Progress, download, hash_file, remove_parts

logger = logging.getLogger("swag_models")
PACKAGE_DATA = Path(__file__).parent / "weights"
TRUE = {"1", "true", "yes", "on"}
LOCK_TIMEOUT = 3600  # seconds to wait for another process before going on without it


@dataclass(frozen=True)
class Check:
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
    by_hand = [f"  {cache_folder() / source.file_name}" for source in spec.sources if _is_remote(source)]
    lines = [f"no source could give the weights of {spec.name}:", *reasons, "A file copied by hand is found at", *by_hand]
    raise FetchError("\n".join(lines))


def find_weights(spec: ModelSpec) -> Path | None:
    """The verified weight file of a model if it is on this machine already; asks no network."""
    records = ((source, read_record(source)) for source in spec.sources)
    known = (Path(record.path) for source, record in records if record and is_unchanged(record, source))
    return next(known, None) or next((path for source in spec.sources if (path := _find_source(source))), None)


def verify_weights(spec: ModelSpec) -> list[Check]:
    """Read every local file of a model's sources again and compare it with its published or pinned hash."""
    checks = []
    for source in spec.sources:
        path = _find_source(source)
        record = read_record(source)
        if record is None and path is None:
            continue
        path = path or Path(record.path)  # type: ignore[union-attr]
        digest = hash_file(path) if path.is_file() else "missing"
        expected = record.sha256 if record else source.sha256 or ""
        checks.append(Check(source.url, str(path), digest, digest.startswith(expected)))
    return checks


def is_offline() -> bool:
    """Whether SWAG_MODELS_OFFLINE or HF_HUB_OFFLINE asks for no network."""
    return any(os.environ.get(name, "").lower() in TRUE for name in ("SWAG_MODELS_OFFLINE", "HF_HUB_OFFLINE"))


def _find_source(source: Source) -> Path | None:
    """This source's file where it already lies, its content verified; None if it is nowhere."""
    if not _is_remote(source) and source.sha256 is None:  # the user's own file, free to change
        return path if (path := _local_path(source)).is_file() else None
    record = read_record(source)
    if record and is_unchanged(record, source):
        return Path(record.path)
    expected = _expected_hash(source, record)
    for path in _candidates(source, record, expected):
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


def _candidates(source: Source, record: Record | None, expected: str | None) -> Iterator[Path]:
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
        from huggingface_hub import try_to_load_from_cache

        repo, revision, name = _parse_hf(source.url)
        if isinstance(path := try_to_load_from_cache(repo, name, revision=revision), str):
            yield Path(path)
    else:
        torch_home = Path(os.environ.get("TORCH_HOME") or xdg_cache() / "torch").expanduser()
        yield torch_home / "hub" / "checkpoints" / source.file_name


def _download_source(source: Source, spec: ModelSpec, progress: Progress) -> Path:
    """The source's file brought here and verified, or a FetchError with the reason."""
    if not _is_remote(source):
        path = _local_path(source)
        found = hash_file(path) if path.is_file() else None
        raise FetchError("no such file" if found is None else f"SHA-256 is {found}, not {source.sha256}")
    if is_offline():
        raise FetchError("offline, and not on this machine")
    with _lock(source):
        if found_path := _find_source(source):  # another process brought it while this one waited
            return found_path
        record = read_record(source)
        expected = _expected_hash(source, record)
        try:
            path, digest = _download_verified(source, expected, progress)
        except HashMismatchError as error:
            pin = f" (pinned on first use; if the change is expected, delete {record_path(source)})" if record else ""
            raise HashMismatchError(f"{error}{pin}") from None
        logger.warning("%s: the weights are licensed %s, see %s", spec.name, spec.license.upper(), spec.license_url)
        remember(source, path, digest, new_pin=expected is None)
        return path


def _download_verified(source: Source, expected: str | None, progress: Progress) -> tuple[Path, str]:
    """(final path, SHA-256) of a complete download with the expected hash, or with none to expect."""
    if source.url.startswith("hf://"):
        path = _download_hf(source.url, progress)
        digest = hash_file(path)
        if not digest.startswith(expected or ""):
            raise HashMismatchError(f"SHA-256 is {digest}, not {expected}")
        return path, digest
    cache, key = cache_folder(), _key(source)
    while True:
        part, digest = download(_mirrored(source.url), cache / "parts", key=key, sha256=expected, progress=progress)
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
            raise CacheError(f"cannot write {path}: {error.strerror}; set SWAG_MODELS_CACHE to another folder") from None
        remove_parts(cache / "parts", key)
        if not whole:
            raise FetchError("what came is cut short or no weight file")
        return path, digest


def _download_hf(url: str, progress: Progress) -> Path:
    """A file of a Hugging Face repository, in the Hub client's own cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    transport_error: type[BaseException] = HfHubHTTPError.__bases__[0]  # of httpx or httpx2, as the client's version has it
    repo, revision, name = _parse_hf(url)
    silence = not progress and not are_progress_bars_disabled()
    try:
        if silence:
            disable_progress_bars()
        bar: dict[str, Any] = {"tqdm_class": progress} if isinstance(progress, type) else {}
        return Path(hf_hub_download(repo, name, revision=revision, **bar))
    except (OSError, ValueError, transport_error) as error:
        cause = error.__cause__ or error
        raise FetchError((str(cause) or type(cause).__name__).strip().split("\n")[0]) from None
    finally:
        if silence:
            enable_progress_bars()


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


def _expected_hash(source: Source, record: Record | None) -> str | None:
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
            end = max((value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"), default=0)
            return path.stat().st_size == 8 + length + int(end)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return False


def _mirrored(url: str) -> str:
    """The URL with scheme and host replaced by SWAG_MODELS_MIRROR, if that is set."""
    mirror = os.environ.get("SWAG_MODELS_MIRROR")
    if mirror and "://" not in mirror:
        raise FetchError(f"SWAG_MODELS_MIRROR is {mirror!r}; give an address such as https://mirror.example")
    return mirror.rstrip("/") + "/" + url.split("/", 3)[3] if mirror else url


def _parse_hf(url: str) -> tuple[str, str, str]:
    """hf://org/repo[@revision]/file -> (org/repo, revision, file)."""
    org, repo, name = url.removeprefix("hf://").split("/", 2)
    repo, _, revision = repo.partition("@")
    return f"{org}/{repo}", revision or "main", name


def _local_path(source: Source) -> Path:
    if source.url.startswith("package://"):
        return PACKAGE_DATA / source.url.removeprefix("package://")
    return Path(unquote(urlsplit(source.url).path))


def _is_remote(source: Source) -> bool:
    return not source.url.startswith(("package://", "file://"))


def _key(source: Source) -> str:
    """A short file name for the source, its version of the content included."""
    return hashlib.sha256(f"{source.url} {source.sha256}".encode()).hexdigest()[:16]
