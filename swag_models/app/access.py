"""Who may use the page: users with passwords, or a token that is printed at the start; cookies."""

import base64
import hmac
import logging
import os
import secrets
from collections.abc import Mapping
from hashlib import sha256

from swag_models.errors import ConfigError
from swag_models.formatting import describe_error
from swag_models.paths import expand_path, open_regular

logger = logging.getLogger("swag_models")
MAX_AUTH_FILE = 1 << 20  # bytes


class Access:
    """Checks credentials, and issues signed cookies that stand for them afterwards.

    A cookie also identifies the browser, so that only the browser that uploaded a file can use it.
    Cookies are signed, not stored, so that requests without cookies take no memory.

    Args:
        users: user -> password; empty if no password is accepted.
        token: a secret that is accepted in the query (`?token=`) and as a bearer token; "" for
            none. Without users and token, everybody has access.
        path: path of the page; browsers send the cookies only there.
    """

    def __init__(
        self,
        users: Mapping[str, str] | None = None,
        token: str = "",  # nosec B107
        path: str = "/",
    ) -> None:
        self.path = path
        self.users = users or {}
        self.token = token
        self.key = secrets.token_bytes(32)
        # Browsers send the cookies of one port to all ports of a host, hence a name of its own.
        self.cookie_name = f"swag_models_{secrets.token_hex(4)}"

    @property
    def is_required(self) -> bool:
        """Whether a request needs credentials."""
        return bool(self.users or self.token)

    def make_cookie(self, is_secure: bool = False) -> str:
        """Return the value of a `Set-Cookie` header for a browser that has access.

        Args:
            is_secure: whether the browser uses HTTPS; it then never sends the cookie without.
        """
        browser = secrets.token_hex(16)
        value = f"{browser}.{self._sign(browser)}"
        cookie = f"{self.cookie_name}={value}; HttpOnly; SameSite=Lax; Path={self.path}"
        return f"{cookie}; Secure" if is_secure else cookie

    def read_cookie(self, cookies: Mapping[str, str]) -> str:
        """Return the browser that a cookie identifies, or "" without a valid cookie."""
        browser, _, signature = cookies.get(self.cookie_name, "").partition(".")
        return browser if browser and _is_equal(signature, self._sign(browser)) else ""

    def check_token(self, token: str) -> bool:
        """Whether this is the token."""
        return bool(self.token) and _is_equal(token, self.token)

    def check_header(self, authorization: str) -> str:
        """Return who an `Authorization` header identifies, or "" if its credentials are wrong."""
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() == "bearer":
            return "token" if self.check_token(credentials.strip()) else ""
        try:
            user, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except ValueError:  # not base64, or not UTF-8
            return ""
        # an unknown user is compared with a random password, so that both cases take equally long
        expected = self.users.get(user, secrets.token_hex())
        is_right = _is_equal(password, expected)
        return f"user {user}" if scheme.lower() == "basic" and is_right else ""

    def _sign(self, browser: str) -> str:
        return hmac.new(self.key, browser.encode("utf-8", "replace"), sha256).hexdigest()


def read_auth_file(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the users of the page.

    Args:
        path: text file with a line `user:password` for each user. Empty lines and lines that begin
            with `#` are ignored.

    Returns:
        user -> password.

    Raises:
        ConfigError: the file cannot be read, contains another kind of line, or no user. The
            message does not quote the file.
    """
    path = expand_path(path, "auth_file")
    try:
        with open_regular(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_AUTH_FILE + 1)
        if len(content) > MAX_AUTH_FILE:
            raise ConfigError(f"{path} is larger than 1 MiB; write lines of user:password")
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the users from {path}: {describe_error(error)}") from None
    if mode & 0o077:
        logger.warning("other users of this machine can read %s; run: chmod 600 %s", path, path)
    users: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, password = line.partition(":")
        if not user or not password or user in users:
            problem = "names a user again" if user in users else "is not user:password"
            raise ConfigError(f"line {number} of {path} {problem}; write one line for each user")
        users[user] = password
    if not users:
        raise ConfigError(f"{path} contains no user; write a line user:password for each user")
    return users


def _is_equal(text: str, secret: str) -> bool:
    """Compare in a time that does not depend on how much of the secret is right."""
    return hmac.compare_digest(text.encode("utf-8", "replace"), secret.encode("utf-8", "replace"))
