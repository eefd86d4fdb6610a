"""One URL -> one complete, hashed file on disk, however often the connection or the process dies.

A `.part` file grows only at its end, and its name carries the validator (ETag or date) of the version it holds, so that any
later process can continue it; who does so claims it by renaming it. Should two writers ever hold the same part (a lock that
lies), both write the same bytes to the same places: no harm done.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import os
import random
import re
import shutil
import sys
import time
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urljoin, urlsplit

from swag_models.errors import CacheError, FetchError, HashMismatchError
from swag_models.spec import Progress

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 16  # bytes; fewer than that are lost when a response breaks off
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
ATTEMPTS = 5  # in a row without a byte of progress
CONNECT_ATTEMPTS = 2  # the same, for a host that cannot be reached at all
MAX_WAIT = 60  # seconds; a server that asks for more is passed over
RETRY_STATUS = {408, 429, 500, 502, 503, 504}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class _InterruptedError(Exception):
    """A failure worth another try, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, attempts: int = ATTEMPTS, wait: float | None = None) -> None:
        super().__init__(reason)
        self.attempts = attempts
        self.wait = wait


def download(
    url: str, folder: Path, *, key: str, sha256: str | None, progress: Progress = True
) -> tuple[Path, str]:
    """Download `url` into `folder`, continuing an earlier part of the same `key`; (part file, its SHA-256).

    `sha256` is the expected digest or its leading digits. The part is complete and on disk; the caller moves it.
    FetchError gives the reason, HashMismatchError the two digests, CacheError if the folder cannot take the file.
    """
    check_url(url)
    part = _Part(folder, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        continued = part.claim()
        while True:
            _complete(part, url, progress)
            digest = part.digest.hexdigest()
            if sha256 is None or digest.startswith(sha256):
                return part.path, digest
            part.discard()
            if not continued:
                raise HashMismatchError(f"SHA-256 is {digest}, not {sha256}")
            continued = False  # the earlier part may be to blame: once more, from the first byte
    except FetchError:
        raise
    except OSError as error:
        if not part.validator:  # nothing could continue it
            with contextlib.suppress(OSError):
                part.discard()
        raise CacheError(
            f"cannot write to {folder}: {error.strerror or error}; free some space, or set SWAG_MODELS_CACHE to another folder"
        ) from None


def check_url(url: str) -> None:
    """FetchError unless the URL is https, or http on this machine."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise FetchError(f"{url} is not allowed: use https (plain http only on loopback)")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remove_parts(folder: Path, key: str) -> None:
    """Delete what is left of downloads of `key`, once its file is complete."""
    for path in folder.glob(f"{key}.*.part"):
        path.unlink(missing_ok=True)


class _Part:
    """The file while it grows: its size, the hash of its bytes, and which version of the remote file they are of."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        self.reset()

    def claim(self) -> bool:
        """Take over the longest earlier part that can be continued, if there is one."""
        earlier = sorted(self.folder.glob(f"{self.key}.*.*.part"), key=_size, reverse=True)
        for path in earlier:
            validator = unquote(path.name.removesuffix(".part").split(".", 2)[2])
            if not validator or not _size(path):
                continue
            self.start(validator, create=False)
            try:
                os.rename(path, self.path)
                with self.path.open("rb") as file:
                    while chunk := file.read(CHUNK):
                        self.digest.update(chunk)
                        self.size += len(chunk)
            except OSError:  # another process was faster, or the system does not rename open files
                self.reset()
                continue
            return True
        return False

    def start(self, validator: str, create: bool = True) -> None:
        """A new part of the version that `validator` stands for ("" if there is none)."""
        name = quote(validator, safe="")
        self.validator = validator if len(name) < 150 else ""
        self.path = (
            self.folder / f"{self.key}.{uuid.uuid4().hex}.{name if self.validator else ''}.part"
        )
        if create:
            self.path.touch(exist_ok=False)

    def reset(self) -> None:
        """Back to no bytes, leaving any file alone."""
        self.path = self.folder / f"{self.key}.none"
        self.validator = ""
        self.size = 0
        self.digest = hashlib.sha256()

    def discard(self) -> None:
        """Back to no bytes, and no file."""
        self.path.unlink(missing_ok=True)
        self.reset()

    def extend(self, response: requests.Response, total: int | None, progress: Progress) -> None:
        """Append the body to the file, and make sure it is on disk."""
        from tqdm import tqdm

        label = urlsplit(response.url).path.rsplit("/", 1)[-1]
        bar_class = progress if isinstance(progress, type) else tqdm
        quiet = isinstance(progress, bool) and not (progress and sys.stderr.isatty())
        with (
            bar_class(
                total=total, initial=self.size, unit="B", unit_scale=True, desc=label, disable=quiet
            ) as bar,
            self.path.open("r+b") as file,
        ):
            file.seek(self.size)
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                file.flush()
                self.digest.update(chunk)
                self.size += len(chunk)
                bar.update(len(chunk))
            os.fsync(file.fileno())


def _complete(part: _Part, url: str, progress: Progress) -> None:
    """Request until the part holds the whole file."""
    failures, most = 0, part.size
    with _open_session() as session:
        while True:
            try:
                return _request(session, part, url, progress)
            except _InterruptedError as error:
                failures = failures + 1 if part.size <= most else 1
                most = max(most, part.size)
                wait = (
                    2 ** (failures - 1) * random.uniform(0.5, 1)
                    if error.wait is None
                    else error.wait
                )
                if wait > MAX_WAIT:
                    raise FetchError(f"{error}, and the server asks to wait {wait:.0f} s") from None
                if failures >= error.attempts:
                    raise FetchError(f"{error}, {failures} times in a row") from None
                time.sleep(wait)


def _request(session: requests.Session, part: _Part, url: str, progress: Progress) -> None:
    """One request for what is missing."""
    import requests

    headers = {"Accept-Encoding": "identity"}
    if part.size and not part.validator:
        part.discard()  # which version these bytes are of is not known
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
            f"TLS: {_cause(error)}; for a private certificate authority set REQUESTS_CA_BUNDLE"
        ) from None
    except requests.exceptions.ChunkedEncodingError as error:
        raise _InterruptedError(
            f"connection broken after {part.size} bytes ({_cause(error)})"
        ) from None
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        raise _InterruptedError(
            _cause(error), CONNECT_ATTEMPTS if not part.size else ATTEMPTS
        ) from None
    except requests.RequestException as error:
        raise FetchError(_cause(error)) from None
    except OSError as error:
        if isinstance(error, FetchError) or error.errno is not None:
            raise
        raise FetchError(
            str(error)
        ) from None  # how requests reports a REQUESTS_CA_BUNDLE that does not exist
    if total is not None and part.size != total:
        raise _InterruptedError(f"{part.size} of {total} bytes arrived")


def _prepare(response: requests.Response, part: _Part) -> int | None:
    """The part made ready for this response's body; the size of the whole file, if the server says."""
    status = response.status_code
    if status in RETRY_STATUS:
        raise _InterruptedError(f"HTTP {status}", wait=_retry_after(response))
    if status == 206 or (status == 416 and part.size):
        span = re.fullmatch(
            r"bytes (?:(\d+)-\d+|\*)/(\d+)", response.headers.get("Content-Range", "")
        )
        if span and int(span[2]) >= part.size and int(span[1] or span[2]) == part.size:
            current = response.headers.get(
                "ETag" if part.validator.startswith('"') else "Last-Modified"
            )
            if status == 206 and current not in (
                None,
                part.validator,
            ):  # a server that ignores If-Range
                part.discard()
                raise _InterruptedError("the file has changed")
            total = int(span[2])
            _check_space(part.folder, total - part.size)
            return total
        part.discard()
        raise _InterruptedError("the server continued at the wrong place")
    if status != 200:
        raise FetchError(f"HTTP {status} {response.reason}")
    length = response.headers.get("Content-Length", "")
    size = int(length) if length.isdigit() and "Content-Encoding" not in response.headers else None
    etag = response.headers.get("ETag", "")
    part.discard()  # if there was one, the file has changed since, or the server cannot continue
    _check_space(part.folder, size or 0)
    part.start(
        etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    )
    return size


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CacheError(
            f"{folder} needs {needed / 2**20:.0f} MiB more and has {free / 2**20:.0f} MiB free; "
            "free some space, or set SWAG_MODELS_CACHE to another folder"
        )


def _retry_after(response: requests.Response) -> float | None:
    """Seconds the server asks to wait: it may say a number or a date."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value).astimezone(timezone.utc)
    except (ValueError, OverflowError):  # a senseless date, or none
        return None
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())


def _cause(error: BaseException) -> str:
    """The innermost reason of a requests error, which its outer layers bury."""
    inner = error
    while inner.args and isinstance(inner.args[-1], BaseException):
        inner = inner.args[-1]
    reason = getattr(inner, "reason", None) or inner
    return str(reason).split("): ")[-1].split(">: ")[-1]


def _open_session() -> requests.Session:
    """A session that follows redirects only to URLs that `check_url` allows; proxies and CA come from the environment."""
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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
