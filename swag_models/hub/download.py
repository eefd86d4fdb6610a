"""Resumable, verified download of one URL into a folder.

Downloaded bytes are stored in a part file (part_file.py), which any later process can resume.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import math
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from swag_models.errors import CacheError, FetchError, HashMismatchError
from swag_models.formatting import describe_error
from swag_models.hub.part_file import CHUNK_SIZE, PartFile
from swag_models.hub.transport import RetryableError, check_url, open_session, receive
from swag_models.paths import open_regular
from swag_models.spec import Progress

if TYPE_CHECKING:
    import requests

# Seconds to connect, and between two reads. The sum also limits the time until the headers, and
# the second number is the time over which MIN_RATE is measured.
TIMEOUT = (10, 60)
MIN_RATE = 1024  # bytes per second; a slower connection counts as a failure
MAX_DURATION = 24 * 3600  # seconds for one URL, or one commit; the next download of it resumes
MAX_ATTEMPTS = 5  # consecutive failures without progress
MAX_CONNECT_ATTEMPTS = 2  # the same for a host that cannot be reached at all, or is too slow
MAX_WAIT = 60  # seconds; if the server asks for more, the download fails
MAX_HEADER_NUMBER = 10**15  # replaces any larger number in a header
RETRY_STATUS = {408, 429, 500, 502, 503, 504}
# Strong validators that RFC 9110 allows in If-Range. A weak ETag (W/) does not guarantee equal
# bytes.
STRONG_ETAG = re.compile(r'"[!#-~]*"')
DATE = re.compile(r"[A-Za-z0-9 :,+-]{1,40}")


class ClaimedSizeError(CacheError):
    """The server states a size that does not fit on the disk; another server may state less."""


def download(
    url: str,
    folder: Path,
    *,
    key: str,
    sha256: str | None,
    accept: Callable[[Path], bool] | None = None,
    progress: Progress = True,
) -> tuple[Path, str]:
    """Download `url` into `folder`, resuming an earlier download of the same `key`.

    Args:
        url: https, or http on loopback.
        folder: folder of part files; created if missing.
        key: file name prefix of this download's part files.
        sha256: expected digest or its leading digits; None accepts any content.
        accept: without a hash, whether a file is a complete weight file; None accepts any.
        progress: whether to draw a bar on a terminal, or the tqdm class to draw it with.

    Returns:
        (path of the complete part file, its SHA-256). The caller moves the file.

    Raises:
        FetchError: the URL cannot be downloaded; the message gives the reason.
        HashMismatchError: the content does not have the expected hash.
        ClaimedSizeError: the server states a size for which the disk has no room.
        CacheError: the folder cannot be written, or its disk is full.
    """
    check_url(url)
    part = PartFile(folder, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.claim()
        may_restart = True
        while True:
            _download_rest(part, url, has_hash=sha256 is not None, progress=progress)
            digest = part.digest.hexdigest()
            valid = digest.startswith(sha256 or "")
            if accept and not sha256:
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    valid = accept(part.path)
            if valid:
                return part.path, digest
            # Bytes of several responses may belong to several versions: retry from the first byte.
            restart = may_restart and part.num_responses > 1
            part.discard()
            if restart:
                may_restart = False
            elif sha256:
                raise HashMismatchError(f"SHA-256 is {digest}, not {sha256}")
            else:
                raise FetchError("the downloaded file is truncated or not a weight file")
    except FetchError:
        raise
    except OSError as error:  # of the disk: `receive` converts those of the network
        if not part.validator:  # no later process could resume this part
            with contextlib.suppress(OSError):
                part.discard()
        raise CacheError(
            f"cannot write to {folder}: {describe_error(error)}; free some space, "
            "or set SWAG_MODELS_CACHE to another folder"
        ) from None


def hash_file(path: Path) -> str:
    """SHA-256 of a regular file, in hex; raises as `open_regular`."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(CHUNK_SIZE):
            digest.update(chunk)
    return digest.hexdigest()


def _download_rest(part: PartFile, url: str, *, has_hash: bool, progress: Progress) -> None:
    """Send requests until the part is complete."""
    failures, max_size = 0, part.size
    deadline = time.monotonic() + MAX_DURATION
    with open_session() as session:
        while True:
            start_time = time.monotonic()
            try:
                return _request(session, part, url, deadline, has_hash=has_hash, progress=progress)
            except RetryableError as error:
                # Progress resets the count: a slow, unstable connection may finish. A server that
                # sends a byte and then nothing makes none. The first second is free, so that
                # connections that break at once count by their bytes.
                expected = max(1.0, MIN_RATE * (time.monotonic() - start_time - 1))
                failures = failures + 1 if part.size - max_size < expected else 1
                max_size = max(max_size, part.size)
                wait_for_retry(error, failures)


def wait_for_retry(error: RetryableError, failures: int) -> None:
    """Wait before the next attempt: longer after each failure, or as the server asks.

    Args:
        error: the last failure.
        failures: number of consecutive failures, the last included.

    Raises:
        FetchError: there were too many, or the server asks to wait too long.
    """
    wait = error.wait
    if wait is None:
        wait = 2 ** (failures - 1) * random.uniform(0.5, 1)
    if wait > MAX_WAIT:
        raise FetchError(f"{error}, and the server asks to wait {wait:.0f} s") from None
    if failures >= (error.attempts or MAX_ATTEMPTS):
        raise FetchError(f"{error}, {failures} times in a row") from None
    time.sleep(wait)


def _request(
    session: requests.Session,
    part: PartFile,
    url: str,
    deadline: float,
    *,
    has_hash: bool,
    progress: Progress,
) -> None:
    """Send one request for the missing bytes, and append the response to the part."""
    headers = {"Accept-Encoding": "identity"}  # compressed bytes would not match the hash
    if part.size and not part.validator:
        part.discard()  # the remote version of these bytes is unknown
    if part.size:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    attempts = MAX_ATTEMPTS if part.size else MAX_CONNECT_ATTEMPTS
    label = urlsplit(url).path.rsplit("/", 1)[-1]
    try:
        with contextlib.closing(
            receive(session, url, headers, timeout=TIMEOUT, attempts=attempts)
        ) as received:
            total = _prepare(next(received), part, has_hash=has_hash)
            if part.size != total:
                part.extend(require_rate(received, deadline), total, label, progress)
    except FileNotFoundError:
        part.reset()
        raise RetryableError("another process took over this download") from None
    if total is not None and part.size > total:
        part.discard()
        raise RetryableError(f"more than the stated {total} bytes arrived")
    if total is not None and part.size != total:
        raise RetryableError(f"{part.size} of {total} bytes arrived")


def require_rate(pieces: Iterable[bytes], deadline: float = math.inf) -> Iterator[bytes]:
    """Yield the pieces of a body, and check how fast they arrive.

    Args:
        pieces: from `receive`.
        deadline: value of `time.monotonic` by which all must have arrived.

    Raises:
        RetryableError: they arrive too slowly. The time that the caller takes does not count.
        FetchError: the deadline has passed.
    """
    waited, size, start_time = 0.0, 0, time.monotonic()
    for piece in pieces:
        waited, size = waited + time.monotonic() - start_time, size + len(piece)
        yield piece
        start_time = time.monotonic()
        if start_time > deadline:
            raise FetchError(
                f"not complete after {MAX_DURATION / 3600:.3g} hours; try again to resume"
            )
        if waited >= TIMEOUT[1]:
            if size < MIN_RATE * waited:
                raise RetryableError(
                    f"slower than {MIN_RATE} bytes per second", MAX_CONNECT_ATTEMPTS
                )
            waited, size = 0.0, 0


def check_status(response: requests.Response, *allowed: int) -> None:
    """Raise an error unless a response has one of the allowed status codes.

    Raises:
        RetryableError: the same request may succeed later.
        FetchError: it will not.
    """
    status = response.status_code
    if status in RETRY_STATUS:
        raise RetryableError(f"HTTP {status}", wait=_retry_after(response))
    if status not in allowed:
        raise FetchError(f"HTTP {status} {response.reason}")


def read_length(response: requests.Response) -> int | None:
    """The size of a body in bytes; None if the server does not state it."""
    if "Transfer-Encoding" in response.headers:  # which takes precedence (RFC 9112)
        return None
    return _parse_number(response.headers.get("Content-Length", ""))


def _prepare(response: requests.Response, part: PartFile, *, has_hash: bool) -> int | None:
    """Prepare the part for the body of a response.

    Returns:
        Size of the complete file in bytes, None if the server does not state it.
    """
    check_status(response, 200, 206, *([416] if part.size else []))
    status = response.status_code
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("identity", "") and status in (200, 206):
        raise FetchError(f"the server sent the file with Content-Encoding {encoding[:40]!r}")
    if status != 200:
        return _prepare_rest(response, part, has_hash=has_hash)
    # 200 to a range request: the file has changed, or the server does not support ranges.
    part.discard()
    size = read_length(response)
    _check_space(part.folder, size or 0)
    etag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
    if STRONG_ETAG.fullmatch(etag):
        part.start(etag)
    else:
        part.start(date if DATE.fullmatch(date) else "")
    return size


def _prepare_rest(response: requests.Response, part: PartFile, *, has_hash: bool) -> int:
    """Like `_prepare`, for 206 Partial Content and for 416, the status if no byte is missing."""
    content_range = response.headers.get("Content-Range", "")
    span = re.fullmatch(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]+)", content_range)
    start, total = (_parse_number(span[1] or span[2]), _parse_number(span[2])) if span else (0, 0)
    if not (span and total and total >= part.size and start == part.size):
        part.discard()
        raise RetryableError("the server sent the wrong range of bytes")
    validator_header = "ETag" if part.validator.startswith('"') else "Last-Modified"
    validator = response.headers.get(validator_header)
    # RFC 9110 requires the validator that the 200 had. Without one, only a hash could tell whether
    # these bytes belong to another version.
    if validator != part.validator and not (validator is None and has_hash):
        part.discard()
        raise RetryableError("the file has changed")
    _check_space(part.folder, total - part.size)
    return total


def _check_space(folder: Path, size: int) -> None:
    """Raise ClaimedSizeError if the disk has no room for `size` more bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ClaimedSizeError(
            f"{folder} needs {size / 2**20:.0f} MiB more and has {free / 2**20:.0f} MiB free; "
            "free some space, or set SWAG_MODELS_CACHE to another folder"
        )


def _parse_number(text: str) -> int | None:
    """The value of a header, at most MAX_HEADER_NUMBER; None if it is not a decimal number."""
    if not re.fullmatch("[0-9]+", text):  # isdigit accepts other digits, which int rejects
        return None
    return int(text) if len(text) < len(str(MAX_HEADER_NUMBER)) else MAX_HEADER_NUMBER


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait (sent as a number or a date); None if it does not."""
    value = response.headers.get("Retry-After", "")
    if (seconds := _parse_number(value)) is not None:
        return float(seconds)
    try:
        moment = email.utils.parsedate_to_datetime(value).astimezone(timezone.utc)
    except (ValueError, OverflowError, TypeError, IndexError):  # not a date, or out of range
        return None
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
