"""Byte streams of paths, URLs and shell commands.

HTTP goes through requests, which is installed anyway. fsspec would need aiohttp, whose requests
time out after five minutes by default, while a shard is read only as fast as training consumes it.
All other protocols (s3, gs, hf, file, ...) go through fsspec.
"""

import subprocess
import sys
from contextlib import closing
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from swag_models.errors import ConfigError
from swag_models.formatting import describe_error
from swag_models.paths import open_regular

COMMAND_PREFIX = "pipe:"
PROTOCOL_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
HTTP_TIMEOUT = (30, 60)  # seconds to connect, and between two packets
HTTP_RETRIES = Retry(
    total=5,
    connect=0,  # fail immediately if the host is wrong
    backoff_factor=1,  # waits 0, 2, 4, 8, 16 seconds
    status_forcelist=(408, 429, 500, 502, 503, 504),
    raise_on_status=False,
)


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
            is truncated, or at the end if a command fails.
        ValueError: the protocol is unknown.
    """
    if source.startswith(COMMAND_PREFIX):
        return _Command(source.removeprefix(COMMAND_PREFIX))
    if "://" not in source:
        return open_regular(source)
    if source.startswith(("http://", "https://")):
        return _Download(_open_http(source))
    return _Download(_open_fsspec(source))


def read_all(source: str) -> bytes:
    """Return the content of a path, a URL, or `pipe:` and a command; see `open_stream`."""
    with closing(open_stream(source)) as stream:
        return stream.read()


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


class _Download:
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


def _open_http(url: str) -> Any:
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=HTTP_RETRIES))
    session.mount("https://", HTTPAdapter(max_retries=HTTP_RETRIES))
    try:
        response = session.get(
            url, stream=True, timeout=HTTP_TIMEOUT, headers={"Accept-Encoding": "identity"}
        )
    except requests.exceptions.SSLError as error:  # a ConnectionError too
        raise OSError(f"no secure connection to {_find_host(url)}: {error}") from None
    except requests.ConnectionError:
        raise OSError(f"cannot connect to {_find_host(url)}") from None
    if not response.ok:
        response.close()
        raise OSError(f"the server answered with HTTP status {response.status_code}")
    return response.raw  # raises an error if fewer bytes arrive than Content-Length says


def _find_host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]  # without a password


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
