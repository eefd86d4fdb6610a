"""The Hugging Face Hub through its own client: names, URLs, downloads and readable errors.

Imports no torch. The client is imported inside functions, because importing it takes longer than
the rest of `swag_models.hub` together.
"""

import contextlib
import errno
import importlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from swag_models.errors import CacheError, ConfigError, FetchError, SwagModelsError
from swag_models.hub.progress import choose_bar
from swag_models.hub.time_limit import call_within
from swag_models.hub.transport import CLIENT_ERRORS, SOCKS_HINT, explain_tls, find_ca_bundle
from swag_models.spec import Progress

T = TypeVar("T")

PREFIX = "hf-hub:"  # timm's prefix for a model on the Hub
NAME = re.compile(r"([^@]+)(?:@(\w[\w./+-]*))?")
# The rules of huggingface_hub's `validate_repo_id`, for messages.
REPO_RULES = (
    "letters, digits and . _ -, at most 96 characters; no . or - at an end, no .. or --, no .git"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
# Seconds in which the Hub must answer, in the first and the second try. HF_HUB_ETAG_TIMEOUT, a
# variable of the client, sets both.
TRY_SECONDS = (0.8, 1.6)
MAX_DURATION = 24 * 3600  # seconds for one file or one commit
DISK_ERRORS = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip
LOGIN_HINT = "set HF_TOKEN, or run: hf auth login"


class UnreachableError(FetchError):
    """The Hub does not answer, or asks to try later."""


def is_repo(text: str) -> bool:
    """Whether `text` is org/repo in characters that the Hub allows."""
    with client_session(text):
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(text)
        except HFValidationError:
            return False
        return "/" in text


def parse_name(name: str) -> tuple[str, str]:
    """Split hf-hub:org/repo[@revision].

    Returns:
        (org/repo, revision); the revision is `main` by default.

    Raises:
        ConfigError: the name has another form.
    """
    match = NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None or not is_repo(match[1]) or ".." in name:
        raise ConfigError(
            f"invalid repository name {name!r}: write {PREFIX}org/repo or "
            f"{PREFIX}org/repo@revision; allowed in org/repo: {REPO_RULES}"
        )
    return match[1], match[2] or "main"


def make_url(repo: str, revision: str, file: str) -> str:
    """The `Source.url` of a file: hf://org/repo@revision/file."""
    return f"hf://{repo}@{quote(revision, safe='')}/{file}"


def parse_url(url: str) -> tuple[str, str, str]:
    """Split hf://org/repo[@revision]/file into (org/repo, revision, file)."""
    org, repo, file = url.removeprefix("hf://").split("/", 2)
    repo, _, revision = repo.partition("@")
    return f"{org}/{repo}", unquote(revision) or "main", file


def find_cached(repo: str, revision: str, file: str) -> Path | None:
    """A file in the client's cache, at the commit that `revision` last pointed to.

    Sends no request.
    """
    with client_session(repo):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(repo, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def find_commit(repo: str, revision: str, file: str) -> str:
    """The commit that a branch or tag points to now; sends one request.

    Raises:
        FetchError: the repository, its revision or `file` does not exist.
    """
    with client_session(repo):
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(repo, file, revision=revision)
        commit = _try_twice(partial(get_hf_file_metadata, url)).commit_hash
    return _check_commit(repo, commit)


def list_repo(repo: str, revision: str) -> tuple[str, set[str]]:
    """The commit that a branch or tag points to now, and the names of its files.

    Sends one request.

    Raises:
        FetchError: the repository or its revision does not exist, or the Hub cannot be reached.
    """
    with client_session(repo):
        from huggingface_hub import HfApi

        info = _try_twice(partial(HfApi().model_info, repo, revision=revision))
    return _check_commit(repo, info.sha), {file.rfilename for file in info.siblings or ()}


def _check_commit(repo: str, commit: str | None) -> str:
    """Return a commit that a server named, if it has the form of one."""
    if not COMMIT.fullmatch(commit or ""):
        raise FetchError(
            f"the server of {repo} is not a Hugging Face Hub: its response has no commit; "
            "check HF_ENDPOINT"
        )
    return str(commit)


def download_file(repo: str, revision: str, file: str, progress: Progress) -> Path:
    """Download a file into the client's cache; its folder is named after the commit.

    Raises:
        UnreachableError: the Hub does not answer, or asks to try later.
        FetchError: any other error of the client.
        CacheError: the client has no cache folder.
    """
    find_commit(repo, revision, file)  # the client would try for half a minute
    with client_session(repo):
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.utils.tqdm import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        if constants.HF_HUB_CACHE.startswith("~"):
            raise CacheError("the home folder of this user is not known; set HF_HOME to a folder")
        disabled = are_progress_bars_disabled()  # by a variable or a switch of the client
        bar_class = None if disabled and progress is True else choose_bar(progress)
        bar: dict[str, Any] = {} if bar_class is None else {"tqdm_class": bar_class}
        # The client has no argument for this, only a switch for the whole process.
        silence = bar_class is None and not disabled
        try:
            if silence:
                disable_progress_bars()
            load = partial(hf_hub_download, repo, file, revision=revision, **bar)
            return Path(call_client(load, MAX_DURATION))
        finally:
            if silence:
                enable_progress_bars()


def call_client(function: Callable[[], T], seconds: float) -> T:
    """Return the result of a function of the client, which has no time limits of its own.

    Args:
        function: what to call, in a thread. If it is abandoned its connections are closed.
        seconds: time limit.

    Raises:
        TimeoutError: it took longer.
        BaseException: whatever `function` raises.
    """
    from huggingface_hub import close_session

    try:
        return call_within(function, seconds)
    except (TimeoutError, KeyboardInterrupt):
        close_session()
        raise


def _try_twice(request: Callable[..., T]) -> T:
    """Return the result of a short request to the Hub, given its `timeout` in seconds.

    The client's own retries take half a minute and log each failure.
    """
    from huggingface_hub import constants

    own_limit = os.environ.get("HF_HUB_ETAG_TIMEOUT")
    first, second = (constants.HF_HUB_ETAG_TIMEOUT,) * 2 if own_limit else TRY_SECONDS
    try:
        return call_client(partial(request, timeout=first), first)
    except _client_errors() as error:
        status = getattr(getattr(error, "response", None), "status_code", 500)
        final = isinstance(error, ValueError) or (status < 500 and status != 429)
        if final or explain_tls(_list_causes(error)[-1]):
            raise
    time.sleep(0.1)
    return call_client(partial(request, timeout=second), second)


@contextlib.contextmanager
def client_session(repo: str) -> Iterator[None]:
    """Run calls of the client with this library's rules for certificates, logs and errors.

    Inside the `with` block the client uses the certificate authorities that `find_ca_bundle`
    finds, and its log lines, which would be printed beside the error, are hidden.

    Args:
        repo: what messages name.

    Raises:
        UnreachableError: the Hub does not answer, or asks to try later.
        FetchError: any other error of the client.
    """
    log = logging.getLogger("huggingface_hub")
    level, names = log.level, ("SSL_CERT_FILE", "SSL_CERT_DIR")
    saved = {name: os.environ.get(name) for name in names}
    try:
        if bundle := find_ca_bundle():
            _set_environment(
                dict(zip(names, (None, bundle) if os.path.isdir(bundle) else (bundle, None)))
            )
        # The client reads its settings when it is imported, and rejects invalid ones.
        from huggingface_hub import close_session
        from huggingface_hub.utils import logging as client_logging  # sets its level

        level = client_logging.get_verbosity()
        if level == logging.WARNING:  # the default
            log.setLevel(logging.CRITICAL)
        if bundle:
            close_session()  # an earlier connection may have other certificate authorities
        yield
    except SwagModelsError:  # must come first: some of ours are OSErrors
        raise
    except _client_errors() as error:
        raise _convert(error, repo) from None
    finally:
        _set_environment(saved)
        log.setLevel(level)


def _set_environment(values: dict[str, str | None]) -> None:
    """Set environment variables; None removes one."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _client_errors() -> tuple[type[Exception], ...]:
    """What the client raises for what the Hub, the network or the environment causes."""
    found: list[type[Exception]] = [ImportError, AssertionError, *CLIENT_ERRORS]
    if errors := sys.modules.get("huggingface_hub.errors"):
        # HTTPError and InvalidURL of httpx or httpx2, whichever the installed client uses.
        http_error = errors.HfHubHTTPError.__bases__[0]
        package = importlib.import_module(http_error.__module__.partition(".")[0])
        found += [http_error, package.InvalidURL]
    return tuple(found)


def _list_causes(error: BaseException) -> list[BaseException]:
    """An error and the errors that it was raised from; the client wraps the one that explains."""
    causes = [error]
    while cause := causes[-1].__cause__:
        causes.append(cause)
    return causes


def _convert(error: BaseException, repo: str) -> FetchError:
    """The error with one line for an error of the client."""
    causes = _list_causes(error)
    for cause in causes:
        if getattr(cause, "response", None) is not None:
            return _explain(cause, repo)
    cause = causes[-1]
    reason = str(cause).strip().split("\n")[0] or type(cause).__name__
    if isinstance(cause, ImportError) and "SOCKS" in reason:
        return FetchError(SOCKS_HINT)
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
