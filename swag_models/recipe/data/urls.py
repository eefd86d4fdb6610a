"""Byte streams of paths, URLs and shell commands.

HTTP goes through hub/transport.py, as downloads of weights do: the same redirects, certificate
authorities and time limits. The total time is not limited, because a shard is read only as
fast as training consumes it. All other protocols (s3, gs, hf, file, ...) go through fsspec.
"""

import io
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing
from typing import Any, Protocol

from urllib3.exceptions import HTTPError

from swag_models.errors import ConfigError
from swag_models.formatting import describe_error
from swag_models.hub.download import (
    MAX_CONNECT_ATTEMPTS,
    TIMEOUT,
    check_status,
    read_length,
    require_rate,
    wait_for_retry,
)
from swag_models.hub.transport import RetryableError, open_session, receive
from swag_models.paths import open_regular

COMMAND_PREFIX = "pipe:"
PROTOCOL_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
HTTP_HEADERS = {"Accept-Encoding": "identity"}
BUFFER_SIZE = 1 << 16  # bytes
MAX_WHOLE_SIZE = 1 << 30  # bytes that `read_all` returns: the manifest of 6 million shards


class ByteStream(Protocol):
    """A readable stream of bytes, as `open_stream` returns."""

    def read(self, size: int = -1, /) -> bytes: ...

    def close(self) -> None: ...


def is_url(source: str) -> bool:
    """Return whether `source` is a URL, or `pipe:` and a command, instead of a path."""
    return "://" in source or source.startswith(COMMAND_PREFIX)


def open_stream(source: str) -> ByteStream:
    """Open a path, a URL, or `pipe:` and a shell command, for reading from start to end.

    Commands run in a shell, unchecked: `source` must come from the user, never from a file.

    Args:
        source: the path, URL or command.

    Raises:
        ConfigError: the protocol needs a package that is not installed.
        OSError: the source cannot be opened. Reading raises OSError too, for example if a download
            is truncated or too slow, or at the end if a command fails. URLs of http and https are
            opened by the first read.
        ValueError: the protocol is unknown.
    """
    if source.startswith(COMMAND_PREFIX):
        return _Command(source.removeprefix(COMMAND_PREFIX))
    if "://" not in source:
        return open_regular(source)
    if source.lower().startswith(("http://", "https://")):
        return io.BufferedReader(_Body(source), BUFFER_SIZE)
    return _FsspecFile(_open_fsspec(source))


def read_all(source: str) -> bytes:
    """Return the content of a path, a URL, or `pipe:` and a command.

    Raises:
        OSError: see `open_stream`; or there are more than MAX_WHOLE_SIZE bytes.
    """
    pieces, size = list[bytes](), 0
    with closing(open_stream(source)) as stream:
        while piece := stream.read(BUFFER_SIZE):
            pieces.append(piece)
            if (size := size + len(piece)) > MAX_WHOLE_SIZE:
                raise OSError(f"it has more than {MAX_WHOLE_SIZE:,} bytes")
    return b"".join(pieces)


class _Command:
    """The output of a shell command."""

    def __init__(self, command: str) -> None:
        # The command is the caller's own; `is_url` and manifests cannot contain one.
        self._process = subprocess.Popen(  # nosec B602
            command, shell=True, stdout=subprocess.PIPE
        )

    def read(self, size: int = -1, /) -> bytes:
        assert self._process.stdout
        content = self._process.stdout.read(size)
        # The exit code is known only at the end.
        if (size < 0 or (size and not content)) and (code := self._process.wait()):
            raise OSError(f"the command that fetches it ended with exit code {code}")
        return content

    def close(self) -> None:
        assert self._process.stdout
        self._process.stdout.close()  # children of the command end at their next write
        self._process.kill()  # does nothing if it has ended
        self._process.wait()


class _Body(io.RawIOBase):
    """The body of the response to an HTTP request, which is sent at the first read."""

    def __init__(self, url: str) -> None:
        self._pieces, self._rest = _iterate_body(url), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read some bytes, at least one until the end; raises as `_iterate_body`."""
        self._rest = self._rest or next(self._pieces, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        self._pieces.close()
        super().close()


def _iterate_body(url: str) -> Generator[bytes, None, None]:
    """Yield the pieces of the body of the response to an HTTP request.

    Raises:
        OSError: no complete response arrives. Once a part of the body was yielded, the request is
            not repeated.
    """
    failures = 0
    with open_session() as session:
        while True:
            with closing(
                receive(session, url, HTTP_HEADERS, timeout=TIMEOUT, attempts=MAX_CONNECT_ATTEMPTS)
            ) as received:
                try:
                    response = next(received)
                    check_status(response, 200)
                except RetryableError as error:
                    failures += 1
                    wait_for_retry(error, failures)
                    continue
                size, length = 0, read_length(response)
                try:
                    for piece in require_rate(received):
                        yield piece
                        size += len(piece)
                except RetryableError as error:
                    raise OSError(f"the download failed: {error}") from None
            if length is not None and size != length:
                raise OSError(f"the download failed: {size} of {length} bytes arrived")
            return


class _FsspecFile:
    """A stream that turns the errors of all network libraries into OSErrors."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._stream.read(None if size < 0 else size)
        except OSError:
            raise
        except _list_network_errors() as error:
            raise OSError(f"the download failed: {describe_error(error)}") from None

    def close(self) -> None:
        self._stream.close()


def _open_fsspec(url: str) -> Any:
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.open(url, "rb").open()
    except ImportError as error:
        package = PROTOCOL_PACKAGES.get(protocol)
        fix = f"install {package} with: pip install {package}" if package else str(error)
        raise ConfigError(
            f"{protocol}:// URLs need a package that is not installed; {fix}"
        ) from None
    except OSError:
        raise
    except _list_network_errors() as error:
        raise OSError(f"cannot be opened: {describe_error(error)}") from None


def _list_network_errors() -> tuple[type[Exception], ...]:
    """List the errors of imported network libraries that are not OSErrors."""
    names = (
        ("httpx", "HTTPError"),  # hf
        ("aiohttp", "ClientError"),  # gs
        ("google.auth.exceptions", "GoogleAuthError"),
        ("botocore.exceptions", "BotoCoreError"),  # s3
        ("botocore.exceptions", "ClientError"),
        ("asyncio", "TimeoutError"),  # not an OSError before Python 3.11
    )
    modules = [(sys.modules[module], name) for module, name in names if module in sys.modules]
    return (HTTPError, *(getattr(module, name) for module, name in modules))
