"""Environment variables that change downloads, and errors that name the variable to correct.

Imports no torch.
"""

import os
import stat
from urllib.parse import urlsplit

from swag_models.errors import FetchError
from swag_models.formatting import describe
from swag_models.paths import check_regular

CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
CA_HINT = f"for a private certificate authority set {CA_VARIABLES[0]}"
# Both clients prefer the lower-case name, and that of the URL's scheme to ALL_PROXY.
PROXY_VARIABLES = tuple(
    name for kind in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY") for name in (kind.lower(), kind)
)
PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
# Other variables that the clients read; an error may quote a value of one without its name.
PREFIXES = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "SWAG_MODELS_", "NO_PROXY", "SSL", "NETRC")
SOCKS_HINT = (
    "the environment sets a SOCKS proxy, which needs packages that are not installed: "
    "pip install pysocks socksio"
)


def find_ca_bundle() -> str | None:
    """The file or folder of certificate authorities that the environment names, if any.

    Raises:
        FetchError: it does not exist, or is neither a file nor a folder.
    """
    name = _find_ca_variable()
    if name is None:
        return None
    path = os.path.expanduser(os.environ[name])
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            check_regular(status, path)  # a named pipe would block
            with open(path, "rb"):
                pass
    except FileNotFoundError:
        raise FetchError(f"{name} names {path}, which does not exist") from None
    except OSError as error:
        raise FetchError(f"{name} names {path}: {error.strerror or error}") from None
    return path


def explain_tls(error: BaseException) -> str | None:
    """The message with the fix if an error is about certificates, otherwise None."""
    # By OpenSSL's names, because httpx keeps only the text.
    text, name = str(error), _find_ca_variable()
    if any(mark in text for mark in ("X509", "NO_CERTIFICATE", "PEM")) and name:
        return f"TLS: {name} names {os.environ[name]}, which contains no certificates in PEM form"
    if "CERTIFICATE_VERIFY_FAILED" not in text and "X509" not in text:
        return None
    reason = text.split("): ")[-1].split(">: ")[-1]
    hint = CA_HINT
    if name:
        folder = "; run `openssl rehash` on the folder" if os.path.isdir(os.environ[name]) else ""
        hint = f"{name} must name the authority of this server{folder}"
    return f"TLS: {reason}; {hint}"


def name_variables(reason: str, url: str) -> str:
    """Return the message of an error, with the environment variable that it is about, if any.

    Args:
        reason: what a client says, which may quote the value of a variable, but not its name.
        url: URL of the request, or "" if it is not known.
    """
    for name in PROXY_VARIABLES:
        if (value := os.environ.get(name)) and not _is_proxy(value):
            return (
                f"invalid {name} {hide_password(value)!r}: allowed: the URL of a proxy, such as "
                f"http://host:3128, with one of {', '.join(PROXY_SCHEMES)}"
            )
    for name, value in sorted(os.environ.items()):
        # Short values, such as 1, are part of any text.
        quoted = repr(value) in reason or (len(value) > 2 and value in reason)
        if name.upper().startswith(PREFIXES) and quoted:
            return f"{reason}; {name} is {describe(value)}"
    return reason + _name_proxy(url)


def _name_proxy(url: str) -> str:
    """The variable with the proxy for a URL, to add to a message; "" without a proxy."""
    from urllib.request import getproxies_environment, proxy_bypass

    try:
        parts = urlsplit(url)
        bypassed = proxy_bypass(parts.hostname or "")
    except (ValueError, OSError):
        return ""
    proxies = getproxies_environment()
    proxy = None if bypassed else proxies.get(parts.scheme) or proxies.get("all")
    name = next((name for name in PROXY_VARIABLES if proxy and os.environ.get(name) == proxy), None)
    return f"; {name} names the proxy {hide_password(str(proxy))}" if name else ""


def hide_password(url: str) -> str:
    """Return a URL without user name and password."""
    scheme, separator, rest = url.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]


def _find_ca_variable() -> str | None:
    return next((name for name in CA_VARIABLES if os.environ.get(name)), None)


def _is_proxy(value: str) -> bool:
    """Whether both clients could use the value of a proxy variable."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        return parts.scheme in PROXY_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
