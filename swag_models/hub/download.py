"""Resumable, verified download of one URL into a folder.

Downloaded bytes are stored in a part file (part_file.py), which any later process can resume.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import random
import re
import shutil
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from swag_models.errors import CacheError, FetchError, HashMismatchError
from swag_models.hub.part_file import CHUNK_SIZE, PartFile
from swag_models.spec import Progress

if TYPE_CHECKING:
    import requests

TIMEOUT = (10, 60)  # seconds to connect, and between two reads
MAX_ATTEMPTS = 5  # consecutive failures without a byte of progress
MAX_CONNECT_ATTEMPTS = 2  # the same for a host that cannot be reached at all
MAX_WAIT = 60  # seconds; if the server asks for more, the download fails
RETRY_STATUS = {408, 429, 500, 502, 503, 504}
LOOPBACK_HOSTS = {"localhost", "127.0.0.1", "::1"}


class _InterruptedError(Exception):
    """A failure that is worth a retry.

    Args:
        reason: one line.
        attempts: consecutive failures of this kind after which to give up.
        wait: seconds that the server asked to wait, None if it did not.
    """

    def __init__(
        self, reason: str, attempts: int = MAX_ATTEMPTS, wait: float | None = None
    ) -> None:
        super().__init__(reason)
        self.attempts = attempts
        self.wait = wait


def download(
    url: str, folder: Path, *, key: str, sha256: str | None, progress: Progress = True
) -> tuple[Path, str]:
    """Download `url` into `folder`, resuming an earlier download of the same `key`.

    Args:
        url: https, or http on loopback.
        folder: folder of part files; created if missing.
        key: file name prefix of this download's part files.
        sha256: expected digest or its leading digits; None accepts any content.
        progress: whether to draw a bar on a terminal, or the tqdm class to draw it with.

    Returns:
        (path of the complete part file, its SHA-256). The caller moves the file.

    Raises:
        FetchError: the URL cannot be downloaded; the message gives the reason.
        HashMismatchError: the content does not have the expected hash.
        CacheError: the folder cannot be written, or its disk is full.
    """
    check_url(url)
    part = PartFile(folder, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        resumed = part.claim()
        while True:
            _download_rest(part, url, progress)
            digest = part.digest.hexdigest()
            if sha256 is None or digest.startswith(sha256):
                return part.path, digest
            part.discard()
            if not resumed:
                raise HashMismatchError(f"SHA-256 is {digest}, not {sha256}")
            resumed = False  # the earlier part may have been corrupted: retry from the first byte
    except FetchError:
        raise
    except OSError as error:
        if not part.validator:  # no later process could resume this part
            with contextlib.suppress(OSError):
                part.discard()
        raise CacheError(
            f"cannot write to {folder}: {error.strerror or error}; free some space, "
            "or set SWAG_MODELS_CACHE to another folder"
        ) from None


def check_url(url: str) -> None:
    """Raise FetchError unless the URL is https, or http on this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (
        parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS
    ):
        raise FetchError(f"{url} is not allowed: use https (plain http only on loopback)")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            digest.update(chunk)
    return digest.hexdigest()


def _download_rest(part: PartFile, url: str, progress: Progress) -> None:
    """Send requests until the part is complete."""
    failures, max_size = 0, part.size
    with _open_session() as session:
        while True:
            try:
                return _request(session, part, url, progress)
            except _InterruptedError as error:
                # Any progress resets the count: a slow, unstable connection may finish.
                failures = failures + 1 if part.size <= max_size else 1
                max_size = max(max_size, part.size)
                wait = error.wait
                if wait is None:
                    wait = 2 ** (failures - 1) * random.uniform(0.5, 1)
                if wait > MAX_WAIT:
                    raise FetchError(f"{error}, and the server asks to wait {wait:.0f} s") from None
                if failures >= error.attempts:
                    raise FetchError(f"{error}, {failures} times in a row") from None
                time.sleep(wait)


def _request(session: requests.Session, part: PartFile, url: str, progress: Progress) -> None:
    """Send one request for the missing bytes."""
    import requests

    headers = {"Accept-Encoding": "identity"}  # compressed bytes would not match the hash
    if part.size and not part.validator:
        part.discard()  # the remote version of these bytes is unknown
    if part.size:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    try:
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            total = _prepare(response, part)
            if part.size != total:
                part.extend(response, total, progress)
    except FileNotFoundError:
        part.reset()
        raise _InterruptedError("another process took over this download") from None
    except requests.exceptions.SSLError as error:
        raise FetchError(
            f"TLS: {_find_cause(error)}; for a private certificate authority set REQUESTS_CA_BUNDLE"
        ) from None
    except requests.exceptions.ChunkedEncodingError as error:
        raise _InterruptedError(
            f"connection broken after {part.size} bytes ({_find_cause(error)})"
        ) from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        attempts = MAX_ATTEMPTS if part.size else MAX_CONNECT_ATTEMPTS
        raise _InterruptedError(_find_cause(error), attempts) from None
    except requests.RequestException as error:
        raise FetchError(_find_cause(error)) from None
    except OSError as error:
        if isinstance(error, FetchError) or error.errno is not None:
            raise
        # requests reports a missing REQUESTS_CA_BUNDLE file as an OSError without errno.
        raise FetchError(str(error)) from None
    if total is not None and part.size != total:
        raise _InterruptedError(f"{part.size} of {total} bytes arrived")


def _prepare(response: requests.Response, part: PartFile) -> int | None:
    """Prepare the part for the body of a response.

    Returns:
        Size of the complete file in bytes, None if the server does not state it.
    """
    status = response.status_code
    if status in RETRY_STATUS:
        raise _InterruptedError(f"HTTP {status}", wait=_retry_after(response))
    if status == 206 or (status == 416 and part.size):
        return _prepare_rest(response, part)
    if status != 200:
        raise FetchError(f"HTTP {status} {response.reason}")
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdigit() and "Content-Encoding" not in response.headers else None
    # 200 to a range request: the file has changed, or the server does not support ranges.
    part.discard()
    _check_space(part.folder, size or 0)
    # A weak ETag (W/) does not guarantee equal bytes and is invalid in If-Range (RFC 9110).
    etag = response.headers.get("ETag", "")
    strong_etag = "" if etag.startswith("W/") else etag
    part.start(strong_etag or response.headers.get("Last-Modified", ""))
    return size


def _prepare_rest(response: requests.Response, part: PartFile) -> int:
    """Like `_prepare`, for 206 Partial Content and for 416, the status if no byte is missing."""
    content_range = response.headers.get("Content-Range", "")
    span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", content_range)
    if not (span and int(span[2]) >= part.size and int(span[1] or span[2]) == part.size):
        part.discard()
        raise _InterruptedError("the server sent the wrong range of bytes")
    validator_header = "ETag" if part.validator.startswith('"') else "Last-Modified"
    validator = response.headers.get(validator_header)
    if response.status_code == 206 and validator not in (None, part.validator):
        part.discard()  # the server ignored If-Range: these bytes belong to another version
        raise _InterruptedError("the file has changed")
    total = int(span[2])
    _check_space(part.folder, total - part.size)
    return total


def _check_space(folder: Path, size: int) -> None:
    """Raise CacheError if the disk has no room for `size` more bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise CacheError(
            f"{folder} needs {size / 2**20:.0f} MiB more and has {free / 2**20:.0f} MiB free; "
            "free some space, or set SWAG_MODELS_CACHE to another folder"
        )


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait (sent as a number or a date); None if it does not."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value).astimezone(timezone.utc)
    except (ValueError, OverflowError):  # not a date, or one out of range
        return None
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())


def _find_cause(error: BaseException) -> str:
    """The innermost cause of a requests error, which wraps several exceptions."""
    inner = error
    while inner.args and isinstance(inner.args[-1], BaseException):
        inner = inner.args[-1]
    reason = getattr(inner, "reason", None) or inner
    return str(reason).split("): ")[-1].split(">: ")[-1]


def _open_session() -> requests.Session:
    """A session that follows redirects only to URLs that `check_url` allows.

    Proxies and certificate authorities are taken from the environment.
    """
    import requests

    class Session(requests.Session):
        def get_redirect_target(self, response: requests.Response) -> str | None:
            target = super().get_redirect_target(response)
            if target:
                check_url(urljoin(response.url, target))
            return target

    session = Session()
    session.headers["User-Agent"] = "swag_models"
    return session
