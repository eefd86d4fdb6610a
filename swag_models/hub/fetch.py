"""Turn a model's sources into one verified local file. Imports no torch.

This module chooses the source; download.py downloads a single URL. The cache folder contains:
  files/<sha256>/<name>      weights by content; never changed once stored
  records/<host>/<path>.json the verified file of a source (cache.py)
  parts/                     unfinished downloads (part_file.py)
  locks/                     one lock file per download
  <name>                     a file that the user copied there
A bundle (bundle.py) is a cache folder, too.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from swag_models.errors import MAX_MESSAGE, CacheError, FetchError, HashMismatchError
from swag_models.formatting import describe_error, spell_license
from swag_models.hub.cache import (
    cache_folder,
    expected_hash,
    find_file,
    find_source,
    has_shards,
    is_complete,
    is_remote,
    is_unchanged,
    list_shards,
    local_path,
    lock_if_possible,
    read_record,
    record_path,
    write_record,
)
from swag_models.hub.download import ClaimedSizeError, download, hash_file
from swag_models.hub.hf_format import CONFIG_FILE
from swag_models.hub.hub_errors import UnreachableError
from swag_models.hub.hub_names import PREFIX, parse_url
from swag_models.hub.hub_rules import COMMIT
from swag_models.hub.huggingface import check_content, download_file, find_cached, find_commit
from swag_models.hub.part_file import remove_parts
from swag_models.spec import SHA256, ModelSpec, Progress, Source

logger = logging.getLogger("swag_models")
TRUE_VALUES = {"1", "true", "yes", "on"}
LOCK_TIMEOUT = 3600  # seconds to wait for another process before downloading as well


@dataclass(frozen=True)
class HashCheck:
    """Result of verifying one file.

    Attributes:
        url: URL of the source.
        path: path of the file.
        sha256: SHA-256 of the file as it is now, or why there is none, for example "missing".
        ok: whether it is the published or pinned hash.
    """

    url: str
    path: str
    sha256: str
    ok: bool


def fetch_weights(spec: ModelSpec, *, progress: Progress = True) -> Path:
    """The verified local weight file of a model, downloaded if it is not on this machine.

    Args:
        spec: the model's spec; its sources are tried in order.
        progress: whether to draw a bar on a terminal, or the tqdm class to draw it with.

    Returns:
        Path of the file, or of the index of a sharded model, whose shards are beside it.

    Raises:
        FetchError: no source works; the message lists the reason for each, and where to copy a
            file by hand.
        CacheError: the cache folder cannot be written, or its disk is full.
    """
    if path := find_weights(spec):
        return path
    reasons: dict[str, FetchError] = {}
    for source in spec.sources:
        try:
            path = _fetch_source(source, spec, progress)
        except ClaimedSizeError as error:  # perhaps wrong; the next source may state another size
            reasons[source.url] = error
        except CacheError:  # the next source could not be stored either
            raise
        except FetchError as error:
            reasons[source.url] = error
        else:
            _remove_parts(spec)
            return path
    raise _explain_failure(spec, reasons)


def _explain_failure(spec: ModelSpec, reasons: Mapping[str, FetchError]) -> FetchError:
    """The error for a model none of whose sources worked, with the reason for each."""
    details = [f"{url}: {error}" for url, error in reasons.items()] or ["it has no sources"]
    files = [source.file_name for source in spec.sources if is_remote(source)]
    if files:
        names = " or ".join(map(str, [cache_folder() / files[0], *files[1:]]))
        details.append(f"to use a file copied by hand, store it as {names}")
    text = f"no source provided the weights of {spec.name}: {'; '.join(details)}"
    if len(text) > MAX_MESSAGE:  # the leading digits are enough to tell hashes apart
        text = SHA256.sub(lambda match: match[0][:16], text)
    full = any(isinstance(error, CacheError) for error in reasons.values())
    return CacheError(text) if full else FetchError(text)


def _remove_parts(spec: ModelSpec) -> None:
    """Delete what unfinished downloads from any source of a complete model left behind."""
    with contextlib.suppress(OSError):
        for source in filter(is_remote, spec.sources):
            remove_parts(cache_folder() / "parts", _make_key(source))


def fetch_config(repo: str, revision: str, file: str = CONFIG_FILE) -> Path:
    """A small file of a Hub repository, in a folder named after the commit.

    Sends one request for a branch or tag, and none for a commit that is on this machine. If the
    Hub cannot be reached, uses the commit in the client's cache and logs it.

    Args:
        repo: org/repo.
        revision: branch, tag or commit.
        file: its name.

    Raises:
        FetchError: the file does not exist, or is not cached and cannot be downloaded.
    """
    cached = find_cached(repo, revision, file)
    # A commit never changes; a branch or tag has to be looked up.
    if cached and (COMMIT.fullmatch(revision) or is_offline()):
        return cached
    if is_offline():
        raise FetchError(
            f"{PREFIX}{repo}@{revision} is not on this machine, and offline mode is set; "
            "unset SWAG_MODELS_OFFLINE and HF_HUB_OFFLINE to download it"
        )
    try:
        if cached and find_commit(repo, revision, file) == cached.parent.name:
            return cached
        path = download_file(repo, revision, file, progress=False)
        check_content(path, hash_file(path))
        return path
    except UnreachableError as error:
        if cached is None:
            raise
        logger.warning(
            "%s: using the cached %s, commit %s",
            error,
            f"{PREFIX}{repo}@{revision}",
            cached.parent.name,
        )
        return cached


def find_weights(spec: ModelSpec) -> Path | None:
    """The verified weight file of a model if it is on this machine; sends no request."""
    # All records are checked first, because that needs no hashing.
    for source in spec.sources:
        record = read_record(source)
        if record and is_unchanged(record, source) and has_shards(source, Path(record.path)):
            return Path(record.path)
    return next((path for source in spec.sources if (path := find_source(source))), None)


def verify_weights(spec: ModelSpec) -> list[HashCheck]:
    """Hash every local file of a model again and compare it with its published or pinned hash."""
    files = [(source, find_file(source)) for source in spec.sources]
    shards = [shard for source, path in files if path for shard in list_shards(source, path)]
    checks = []
    for source, path in [*files, *shards]:
        record = read_record(source)
        if record is None and path is None:
            continue
        path = path or Path(record.path)  # type: ignore[union-attr]
        try:
            digest = hash_file(path) if os.path.isfile(path) else "missing"
        except OSError as error:
            digest = f"unreadable: {describe_error(error)}"
        # The record has all digits, of which the source may state only the leading ones.
        expected = source.sha256 or ""
        if record and record.sha256.startswith(expected):
            expected = record.sha256
        checks.append(HashCheck(source.url, str(path), digest, digest.startswith(expected)))
    return checks


def log_license(spec: ModelSpec) -> None:
    """Tell the user the licence of weights that were downloaded."""
    see = f", see {spec.license_url}" if spec.license_url else ""
    license = spell_license(spec.license)
    logger.warning("%s: the weights are licensed %s%s", spec.name, license, see)


def is_offline() -> bool:
    """Whether SWAG_MODELS_OFFLINE or HF_HUB_OFFLINE turns off network access."""
    return any(
        os.environ.get(name, "").lower() in TRUE_VALUES
        for name in ("SWAG_MODELS_OFFLINE", "HF_HUB_OFFLINE")
    )


def _fetch_source(source: Source, spec: ModelSpec, progress: Progress) -> Path:
    """Download and verify a source's file and its shards, or raise FetchError with the reason."""
    if not is_remote(source):
        raise FetchError(_explain_local(source))
    if is_offline():
        raise FetchError("not on this machine, and offline mode is set")
    with _lock(source):
        if path := find_source(source):  # another process downloaded it while this one waited
            return path
        path = _fetch_file(source, progress)
        for shard, shard_path in list_shards(source, path):
            actual_path = find_file(shard, shard_path) or _fetch_file(shard, progress)
            if actual_path != shard_path:
                raise FetchError(f"{shard_path.name} was not stored beside its index, {path}")
        log_license(spec)
        return path


def _fetch_file(source: Source, progress: Progress) -> Path:
    """Download, verify and record one file."""
    record = read_record(source)
    expected = expected_hash(source, record)
    # Without a published hash, the first download is trusted and its hash pinned in the record.
    try:
        path, digest = _download_verified(source, expected, progress)
    except HashMismatchError as error:
        if source.sha256:
            raise
        hint = f"pinned on first use; if the change is expected, delete {record_path(source)}"
        raise HashMismatchError(f"{error} ({hint})") from None
    write_record(source, path, digest, pin=expected is None)
    return path


def _explain_local(source: Source) -> str:
    """Why a file:// or package:// source was not found: a file is missing or its hash differs."""
    path = local_path(source)
    if not path.is_file():
        if source.url.startswith("package://") and not path.parent.is_dir():
            return "this package is inside a zip file; install it, or unpack the file"
        return "no such file"
    for part_source, part_path in [(source, path), *list_shards(source, path)]:
        label = "" if part_path == path else f"{part_path.name}: "
        if not part_path.is_file():
            return f"{label}no such file"
        if not (digest := hash_file(part_path)).startswith(part_source.sha256 or ""):
            return f"{label}SHA-256 is {digest}, not {part_source.sha256}"
    return "it changed while it was read; try again"


def _download_verified(
    source: Source, expected: str | None, progress: Progress
) -> tuple[Path, str]:
    """(final path, SHA-256) of a complete download, checked against the expected hash if known."""
    if source.url.startswith("hf://"):  # stays in the client's cache, which other libraries may use
        path = download_file(*parse_url(source.url), progress)
        digest = hash_file(path)
        if not expected or not digest.startswith(expected):
            check_content(path, digest)
        if not digest.startswith(expected or ""):
            raise HashMismatchError(f"SHA-256 is {digest}, not {expected}")
        return path, digest
    cache, key = cache_folder(), _make_key(source)
    while True:
        part, digest = download(
            _apply_mirror(source.url),
            cache / "parts",
            key=key,
            sha256=expected,
            accept=is_complete,
            progress=progress,
        )
        path = cache / "files" / digest / source.file_name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, path)
        except FileNotFoundError:  # another process finished the same download and removed parts
            if path.is_file():
                return path, digest
            continue
        except OSError as error:
            raise CacheError(
                f"cannot write {path}: {error.strerror}; set SWAG_MODELS_CACHE to another folder"
            ) from None
        remove_parts(cache / "parts", key)
        return path, digest


def _lock(source: Source) -> AbstractContextManager[None]:
    """Let one process at a time download a source, where file locks work.

    This lock is not a WorkFolder, because it only avoids duplicate downloads. Caches are often on
    network disks, where a lock may be granted twice or not at all, so nothing relies on it: part
    files have unique names, complete files are moved into place atomically, and if locking fails,
    the download continues without a lock.
    """
    path = cache_folder() / "locks" / f"{_make_key(source)}.lock"
    return lock_if_possible(path, f"downloading {source.url}", LOCK_TIMEOUT)


def _apply_mirror(url: str) -> str:
    """The URL with scheme and host replaced by SWAG_MODELS_MIRROR, if that is set."""
    mirror = os.environ.get("SWAG_MODELS_MIRROR")
    if mirror and "://" not in mirror:
        raise FetchError(
            f"invalid SWAG_MODELS_MIRROR {mirror!r}: set a URL such as https://mirror.example"
        )
    return mirror.rstrip("/") + "/" + url.split("/", 3)[3] if mirror else url


def _make_key(source: Source) -> str:
    """A short file name for a source and the version of its content."""
    return hashlib.sha256(f"{source.url} {source.sha256}".encode()).hexdigest()[:16]
