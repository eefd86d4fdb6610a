"""Where the page is found: the host names and the path of its URL, also behind a reverse proxy."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swag_models.errors import ConfigError

if TYPE_CHECKING:
    from starlette.datastructures import Headers  # of the extra, which may not be installed

HOST_NAME = re.compile(r"([\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)
ROOT_PATH = re.compile(r"(/(?!\.\.?(/|$))[\w.~-]+)+", re.ASCII)
# first parts of Gradio's addresses
OWN_PATHS = (
    *("assets", "config", "favicon.ico", "gradio_api", "manifest.json", "robots.txt", "static"),
    "theme.css",
)
MAX_ROOT_PATH = 200  # characters
MAX_SHOWN_HEADER = 100  # characters of a header in a message


class RefusedError(Exception):
    """A request that is answered with an error and logged in one line.

    Attributes:
        status: HTTP status.
        reason: what is wrong with it.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Addresses:
    """The addresses under which the page is requested.

    Attributes:
        host: name or address that the server listens on.
        root_path: the path of the page, for example "/demo"; "" for the root of its host.
        allowed_hosts: further names under which the page may be requested, in lower case.
    """

    host: str = "127.0.0.1"
    root_path: str = ""
    allowed_hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, host: str, root_path: str, allow_hosts: Iterable[str]) -> "Addresses":
        """Check the options of a user.

        Raises:
            ConfigError: the path or a name is not one that a request can contain.
        """
        allow_hosts = [allow_hosts] if isinstance(allow_hosts, str) else allow_hosts
        names = frozenset(map(_parse_host, allow_hosts))
        return cls(host, _parse_root_path(root_path), names)

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach the page; not through a proxy."""
        names = (name.strip("[]") for name in self.allowed_hosts)
        return is_loopback(self.host) and not self.root_path and all(map(is_loopback, names))

    @property
    def accepted_hosts(self) -> frozenset[str] | None:
        """The host names of requests, in lower case; None for any."""
        if not is_loopback(self.host) and not self.allowed_hosts:
            return None
        host = self.host.lower()
        return self.allowed_hosts | {host, f"[{host}]", "localhost", "127.0.0.1"}

    def strip_root_path(self, path: str) -> str:
        """The address within the page: proxies pass paths on with or without the root path."""
        is_below = self.root_path and path.startswith(f"{self.root_path}/")
        return path.removeprefix(self.root_path) if is_below else path

    def check(self, headers: "Headers") -> tuple[str, str]:
        """Refuse requests for other addresses, and requests that other websites send.

        The first prevents DNS rebinding: a website whose host name leads to this machine.

        Args:
            headers: of the request.

        Returns:
            The protocol, "" if unknown, and the host under which the browser requests the page.

        Raises:
            RefusedError: the request is refused.
        """
        hosts = [headers.get("host", "")]
        if self.accepted_hosts is not None:  # else nothing is known about a proxy
            hosts = [*_split(headers, "x-forwarded-host"), *hosts]
        for host in hosts:
            self._check_host(host)
        host = hosts[0]
        schemes = _split(headers, "x-forwarded-proto")
        for scheme in schemes:
            if scheme not in ("http", "https"):
                raise RefusedError(400, f"{_show(scheme)} is not a protocol of this page")
        for prefix in _split(headers, "x-forwarded-prefix"):
            if prefix.rstrip("/") != self.root_path:
                raise RefusedError(
                    400,
                    f"{_show(prefix)} is not the path of this page; a page behind a proxy "
                    f"needs its path as --root-path",
                )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise RefusedError(
                403,
                f"{_show(origin)} is another website than {_show(host)}; a proxy must pass on the "
                f"Host header, with the port",
            )
        return next(iter(schemes), ""), host

    def _check_host(self, host: str) -> None:
        match = HOST_NAME.fullmatch(host)
        names = self.accepted_hosts
        if not match or (names is not None and match[1].lower() not in names):
            raise RefusedError(
                400,
                f"{_show(host)} is not a host name of this page; a page under another name "
                f"needs it as --allow-host",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _parse_host(name: str) -> str:
    """The form of a host name in the requests of browsers."""
    try:
        bracketed = f"[{name}]" if ":" in name and not name.startswith("[") else name
        ascii_name = bracketed if bracketed.isascii() else bracketed.encode("idna").decode()
        match = HOST_NAME.fullmatch(ascii_name)
        if match and match[1].startswith("["):
            ipaddress.IPv6Address(match[1].strip("[]"))
    except (TypeError, AttributeError, ValueError):  # not a text; UnicodeError is a ValueError
        match = None
    if not match or match[2] or match[1].startswith(".") or ".." in match[1]:
        raise ConfigError(
            f"invalid name {name!r} for --allow-host: allowed: the full name or IP address of a "
            f"host, without protocol, port and path, for example demo.example.org"
        )
    return match[1].lower()


def _parse_root_path(root_path: str) -> str:
    path = root_path.rstrip("/") if isinstance(root_path, str) else "?"
    is_valid = len(path) <= MAX_ROOT_PATH and ROOT_PATH.fullmatch(path)
    if path and not (is_valid and path.split("/")[1] not in OWN_PATHS):
        raise ConfigError(
            f"invalid path {root_path!r} for --root-path: allowed: a path such as /demo, of at "
            f"most {MAX_ROOT_PATH} letters, digits and ._~-, that does not begin like one of the "
            f"page's own addresses ({', '.join(OWN_PATHS)}); pass a host name as --allow-host"
        )
    return path


def _split(headers: "Headers", name: str) -> list[str]:
    """The values of a header to which each proxy may add one; the first is the browser's."""
    return [part.strip() for value in headers.getlist(name) for part in value.split(",")]


def _show(value: str) -> str:
    return repr(value[:MAX_SHOWN_HEADER])
