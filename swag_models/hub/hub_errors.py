"""Errors of the client of the Hugging Face Hub, each as one line with the fix. Imports no torch."""

import errno
import importlib
import os
import sys

from swag_models.errors import FetchError
from swag_models.formatting import describe
from swag_models.hub.environment import SOCKS_HINT, explain_tls, name_variables
from swag_models.hub.transport import CLIENT_ERRORS

DISK_ERRORS = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip
LOGIN_HINT = "set HF_TOKEN, or run: hf auth login"


class UnreachableError(FetchError):
    """The Hub does not answer, or asks to try later."""


def client_errors() -> tuple[type[Exception], ...]:
    """What the client raises for what the Hub, the network or the environment causes."""
    found: list[type[Exception]] = [ImportError, AssertionError, *CLIENT_ERRORS]
    if errors := sys.modules.get("huggingface_hub.errors"):
        # HTTPError and InvalidURL of httpx or httpx2, whichever the installed client uses.
        http_error = errors.HfHubHTTPError.__bases__[0]
        package = importlib.import_module(http_error.__module__.partition(".")[0])
        found += [http_error, package.InvalidURL]
    return tuple(found)


def list_causes(error: BaseException) -> list[BaseException]:
    """An error and the errors that it was raised from; the client wraps the one that explains."""
    causes = [error]
    while cause := causes[-1].__cause__:
        causes.append(cause)
    return causes


def convert_error(error: BaseException, repo: str) -> FetchError:
    """The error with one line for an error of the client."""
    causes = list_causes(error)
    for cause in causes:
        if getattr(cause, "response", None) is not None:
            return _explain(cause, repo)
    cause = causes[-1]
    reason = str(cause).strip().split("\n")[0] or type(cause).__name__
    if isinstance(cause, ImportError) and "SOCKS" in reason:
        return FetchError(SOCKS_HINT)
    if not type(error).__module__.startswith("huggingface_hub"):  # it checks names before URLs
        reason = _name_variables(reason)
    if message := explain_tls(cause):
        return UnreachableError(f"the Hub cannot be reached: {message}")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return FetchError(
            f"the Hub's cache cannot be written ({error.strerror}); free some space, or set "
            "HF_HOME to another folder"
        )
    from huggingface_hub.errors import HfHubHTTPError

    unreachable = (ConnectionError, TimeoutError, HfHubHTTPError.__bases__[0])
    if any(isinstance(cause, unreachable) for cause in causes):
        hint = "; to wait longer set HF_HUB_ETAG_TIMEOUT" if isinstance(cause, TimeoutError) else ""
        return UnreachableError(f"the Hub cannot be reached ({reason}){hint}")
    return FetchError(reason)


def _name_variables(reason: str) -> str:
    """The reason, with the environment variable that it is about, or that names the server."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    named = name_variables(reason, endpoint)
    if "HF_ENDPOINT" in os.environ and named == reason:
        named += f"; HF_ENDPOINT is {describe(endpoint)}"
    return named


def _explain(error: BaseException, repo: str) -> FetchError:
    """The error for an HTTP status of the Hub, with the fix."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    response = error.response  # type: ignore[attr-defined]
    status = f"HTTP {response.status_code}"
    message = getattr(error, "server_message", None) or response.reason_phrase
    reason = str(message).split("\n")[0]
    match error:
        case GatedRepoError():
            return FetchError(
                f"{repo} is gated ({status}): accept its terms on its page, then {LOGIN_HINT}"
            )
        case RepositoryNotFoundError():  # the Hub answers the same for a private one
            return FetchError(
                f"{repo} does not exist on the Hub, or is private ({status}): "
                f"check the name, and {LOGIN_HINT}"
            )
        case RevisionNotFoundError():
            return FetchError(f"{repo} has no such branch, tag or commit ({status})")
        case EntryNotFoundError():
            return FetchError(f"{repo} has no such file ({status})")
    if response.status_code == 429 or response.status_code >= 500:
        return UnreachableError(f"the Hub is unavailable at the moment ({status}: {reason})")
    if response.status_code in (401, 403):
        return FetchError(
            f"no permission for {repo} ({status}: {reason}); "
            f"{LOGIN_HINT}, with a token that has access"
        )
    return FetchError(f"the Hub rejected the request ({status}: {reason})")
