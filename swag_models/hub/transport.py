"""HTTP requests with time limits, which fail with one of two error classes.

Imports no torch.
"""

from __future__ import annotations

import http.client
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from swag_models.errors import FetchError
from swag_models.hub.environment import (
    SOCKS_HINT,
    explain_tls,
    find_ca_bundle,
    name_variables,
)
from swag_models.hub.part_file import CHUNK_SIZE
from swag_models.hub.time_limit import iterate_within

if TYPE_CHECKING:
    import requests

MAX_REDIRECTS = 10
LOOPBACK_HOSTS = {"localhost", "127.0.0.1", "::1"}
# Errors that the parsers and sockets of an HTTP client raise for hostile responses.
CLIENT_ERRORS = (
    OSError,  # includes TimeoutError and the errors of requests
    ValueError,  # includes UnicodeError
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    http.client.HTTPException,
)


class RetryableError(Exception):
    """A failure that is worth a retry.

    Args:
        reason: one line.
        attempts: consecutive failures of this kind after which to give up; None for the usual
            number.
        wait: seconds that the server asked to wait, None if it did not.
    """

    def __init__(self, reason: str, attempts: int | None = None, wait: float | None = None) -> None:
        super().__init__(reason)
        self.attempts = attempts
        self.wait = wait


def check_url(url: str, origin: str | None = None) -> None:
    """Raise FetchError unless the URL is https, or http on this machine.

    Args:
        url: to check.
        origin: URL of the server that redirects to it. Only a server of plain http may redirect to
            plain http, and only one that is not on this machine to any host.
    """
    try:
        parts, source = urlsplit(url), urlsplit(origin or "http://localhost")
        host = parts.hostname or ""
        if allowed := parts.scheme in ("http", "https") and bool(host):
            is_local = host in LOOPBACK_HOSTS or source.hostname not in LOOPBACK_HOSTS
            allowed = parts.scheme == "https" or (source.scheme == "http" and is_local)
    except ValueError:
        allowed = False
    if not allowed:
        if origin:
            raise FetchError(f"a redirect to {url} is not allowed: it must stay on https")
        raise FetchError(f"{url} is not allowed: use https (plain http only on loopback)")


def receive(
    session: requests.Session,
    url: str,
    headers: dict[str, str],
    *,
    timeout: tuple[float, float],
    attempts: int,
) -> Generator[Any, None, None]:
    """Yield a response, then the pieces of its body; raise only the two errors below.

    A server can make the HTTP client raise errors of many classes, because the client passes on
    what its parsers and sockets raise.

    Args:
        session: from `open_session`.
        url: where to send the request.
        headers: headers of the request.
        timeout: seconds to connect, and between two reads; the sum limits the time until the
            headers have arrived, and between two pieces.
        attempts: the number for a host that cannot be reached.

    Raises:
        RetryableError: a failure that is worth a retry.
        FetchError: any other failure.
    """
    import requests
    import urllib3

    count = 0
    try:
        for item in iterate_within(_send(session, url, headers, timeout), sum(timeout)):
            yield item
            count += 1
    except (FetchError, RetryableError):
        raise
    except (*CLIENT_ERRORS, urllib3.exceptions.HTTPError) as error:
        cause = _find_cause(error)
        if message := explain_tls(cause):
            raise FetchError(message) from None
        if count:
            raise RetryableError(f"the connection broke ({_reason(cause)})") from None
        if "dependencies for SOCKS" in str(error):
            raise FetchError(SOCKS_HINT) from None
        reason = name_variables(_reason(cause), url)
        transient = (requests.ConnectionError, requests.Timeout, TimeoutError)
        if isinstance(error, transient) and not isinstance(error, requests.exceptions.ProxyError):
            raise RetryableError(reason, attempts) from None
        # An invalid URL, proxy, header or REQUESTS_CA_BUNDLE; otherwise the response is invalid.
        about_request = isinstance(error, OSError) or reason != _reason(cause)
        raise FetchError(reason if about_request else f"invalid response: {reason}") from None


def _send(
    session: requests.Session, url: str, headers: dict[str, str], timeout: tuple[float, float]
) -> Generator[Any, None, None]:
    """Send one request; yield the response, then the pieces of its body as they arrive.

    Redirects are followed here, because requests would read their bodies to the end, and follow
    them to URLs that `check_url` does not allow.
    """
    for _ in range(MAX_REDIRECTS + 1):
        with session.get(
            url, headers=headers, stream=True, timeout=timeout, allow_redirects=False
        ) as response:
            target = session.get_redirect_target(response)
            if target is None:
                yield response
                yield from _iterate_body(response.raw)
                return
        target = urljoin(url, target)
        check_url(target, url)
        url = target
    raise FetchError(f"more than {MAX_REDIRECTS} redirects")


def _iterate_body(raw: Any) -> Iterator[bytes]:
    """Yield the bytes of a body as they arrive, so that none are lost if the connection breaks.

    Args:
        raw: response of urllib3.
    """
    if getattr(raw, "chunked", False):
        # http.client would accept a negative length of a chunk.
        yield from raw.stream(CHUNK_SIZE // 16, decode_content=False)
        return
    read = getattr(raw, "read1", raw.read)  # urllib3 1 has no read1
    while piece := read(CHUNK_SIZE):
        yield piece


def _find_cause(error: BaseException) -> BaseException:
    """The innermost cause of an error of requests, which wraps several others."""
    while True:
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException) and error.args:
            inner = error.args[-1]
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _reason(cause: BaseException) -> str:
    """What an error says, without the objects that urllib3 puts in front."""
    return str(cause).split("): ")[-1].split(">: ")[-1] or type(cause).__name__


def open_session() -> requests.Session:
    """A session with the proxies and certificate authorities of the environment."""
    import requests

    session = requests.Session()
    session.headers["User-Agent"] = "swag_models"
    # It reads the body of a redirect to the end, which may never come, even to follow none.
    session.resolve_redirects = lambda *_, **__: iter(())  # type: ignore[method-assign]
    if bundle := find_ca_bundle():
        session.verify = bundle
    return session
