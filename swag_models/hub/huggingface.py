"""The Hugging Face Hub through its own client: names, URLs, downloads and readable errors.

Imports no torch. The client is imported inside functions, because importing it takes longer than
the rest of `swag_models.hub` together.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from swag_models.errors import ConfigError, FetchError, SwagModelsError
from swag_models.spec import Progress

PREFIX = "hf-hub:"  # timm's prefix for a model on the Hub
NAME = re.compile(r"([^@]+)(?:@(\w[\w./+-]*))?")
# The rules of huggingface_hub's `validate_repo_id`, for messages.
REPO_RULES = (
    "letters, digits and . _ -, at most 96 characters; no . or - at an end, no .. or --, no .git"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
LOGIN_HINT = "set HF_TOKEN, or run: hf auth login"


class UnreachableError(FetchError):
    """The Hub does not answer, or asks to try later."""


def is_repo(text: str) -> bool:
    """Whether `text` is org/repo in characters that the Hub allows."""
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
    from huggingface_hub import try_to_load_from_cache

    with readable_errors(repo):
        path = try_to_load_from_cache(repo, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def find_commit(repo: str, revision: str, file: str) -> str:
    """The commit that a branch or tag points to now; sends one request.

    Raises:
        FetchError: the repository, its revision or `file` does not exist.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with readable_errors(repo):
        commit = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision)).commit_hash
    return _check_commit(repo, commit)


def list_repo(repo: str, revision: str) -> tuple[str, set[str]]:
    """The commit that a branch or tag points to now, and the names of its files.

    Sends one request.

    Raises:
        FetchError: the repository or its revision does not exist, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with readable_errors(repo):
        info = HfApi().model_info(repo, revision=revision)
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
    """Download a file into the client's cache; its folder is named after the commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    bar: dict[str, Any] = {"tqdm_class": progress} if isinstance(progress, type) else {}
    # The client has no argument for this, only a switch for the whole process.
    silence = not progress and not are_progress_bars_disabled()
    try:
        if silence:
            disable_progress_bars()
        with readable_errors(repo):
            return Path(hf_hub_download(repo, file, revision=revision, **bar))
    finally:
        if silence:
            enable_progress_bars()


@contextlib.contextmanager
def readable_errors(repo: str) -> Iterator[None]:
    """Turn any error of the client in the `with` block into a FetchError with one line.

    Raises:
        UnreachableError: the Hub does not answer, or asks to try later.
        FetchError: any other error of the client.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # HTTPError of httpx or httpx2, whichever the installed client uses.
    transport_error: type[BaseException] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except SwagModelsError:  # must come first: some of ours are OSErrors
        raise
    except (OSError, ValueError, RuntimeError, transport_error) as error:
        # The client wraps the error that explains the failure, for example in LocalEntryNotFound.
        causes = [error]
        while cause := causes[-1].__cause__:
            causes.append(cause)
        response = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
        if response is not None:
            raise _explain(response, repo) from None
        reason = str(causes[-1]).strip().split("\n")[0] or type(causes[-1]).__name__
        unreachable = (ConnectionError, TimeoutError, transport_error)
        if any(isinstance(cause, unreachable) for cause in causes):
            raise UnreachableError(f"the Hub cannot be reached ({reason})") from None
        raise FetchError(reason) from None


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
