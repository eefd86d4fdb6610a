"""The Hugging Face Hub through its own client: names and URLs, one file brought here, errors made readable. Imports no torch.

The client is imported inside functions, as it takes longer than everything else here together.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from swag_models.errors import ConfigError, FetchError, SwagModelsError
from swag_models.spec import Progress

PREFIX = "hf-hub:"
NAME = re.compile(r"([^@]+)(?:@(\w[\w./+-]*))?")
IN_REPO = "letters, digits and . _ -, at most 96, none of . and - at an end, no .. -- or .git"
COMMIT = re.compile(r"[0-9a-f]{40}")
LOG_IN = "set HF_TOKEN, or run: hf auth login"


class UnreachableError(FetchError):
    """The Hub gives no answer, or none for now."""


def is_repo(text: str) -> bool:
    """Whether it reads org/repo, in characters that the Hub allows."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


def parse_name(name: str) -> tuple[str, str]:
    """hf-hub:org/repo[@revision] -> (org/repo, revision), `main` by default; ConfigError if it is not of this form."""
    match = NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None or not is_repo(match[1]) or ".." in name:
        raise ConfigError(
            f"{name!r} names no repository; write {PREFIX}org/repo or {PREFIX}org/repo@revision, in {IN_REPO}"
        )
    return match[1], match[2] or "main"


def make_url(repo: str, revision: str, file: str) -> str:
    """The `Source.url` of a file: hf://org/repo@revision/file."""
    return f"hf://{repo}@{quote(revision, safe='')}/{file}"


def parse_url(url: str) -> tuple[str, str, str]:
    """hf://org/repo[@revision]/file -> (org/repo, revision, file)."""
    org, repo, file = url.removeprefix("hf://").split("/", 2)
    repo, _, revision = repo.partition("@")
    return f"{org}/{repo}", unquote(revision) or "main", file


def find_cached(repo: str, revision: str, file: str) -> Path | None:
    """A file in the client's cache, in the version that `revision` last stood for; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    with readable_errors(repo):
        path = try_to_load_from_cache(repo, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def find_commit(repo: str, revision: str, file: str) -> str:
    """The commit that a branch or tag stands for now; one request. FetchError if it or `file` in it does not exist."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with readable_errors(repo):
        commit = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision)).commit_hash
    if not COMMIT.fullmatch(commit or ""):
        raise FetchError(
            f"what answers for {repo} is no Hugging Face Hub: it names no commit; check HF_ENDPOINT"
        )
    return str(commit)


def download_file(repo: str, revision: str, file: str, progress: Progress) -> Path:
    """A file brought into the client's cache; its folder is named after the commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    bar: dict[str, Any] = {"tqdm_class": progress} if isinstance(progress, type) else {}
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
    """FetchError in one line for whatever the client raises."""
    from huggingface_hub.errors import HfHubHTTPError

    transport_error: type[BaseException] = HfHubHTTPError.__bases__[
        0
    ]  # of httpx or httpx2, as the client's version has it
    try:
        yield
    except SwagModelsError:  # our own, and some are OSErrors
        raise
    except (OSError, ValueError, RuntimeError, transport_error) as error:
        chain = [error]
        while cause := chain[-1].__cause__:
            chain.append(cause)
        answer = next((each for each in chain if isinstance(each, HfHubHTTPError)), None)
        if answer is not None:
            raise _explain(answer, repo) from None
        reason = str(chain[-1]).strip().split("\n")[0] or type(chain[-1]).__name__
        if any(
            isinstance(each, (ConnectionError, TimeoutError, transport_error)) for each in chain
        ):
            raise UnreachableError(f"the Hub cannot be reached ({reason})") from None
        raise FetchError(reason) from None


def _explain(error: BaseException, repo: str) -> FetchError:
    """What an answer of the Hub means, and what to do."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    response = error.response  # type: ignore[attr-defined]
    status = f"HTTP {response.status_code}"
    said = str(getattr(error, "server_message", None) or response.reason_phrase).split("\n")[0]
    match error:
        case GatedRepoError():
            return FetchError(
                f"{repo} is gated ({status}): accept its terms on its page, then {LOG_IN}"
            )
        case RepositoryNotFoundError():
            return FetchError(
                f"{repo} does not exist on the Hub, or is private ({status}): check the name, and {LOG_IN}"
            )
        case RevisionNotFoundError():
            return FetchError(f"{repo} has no such branch, tag or commit ({status})")
        case EntryNotFoundError():
            return FetchError(f"{repo} has no such file ({status})")
    if response.status_code == 429 or response.status_code >= 500:
        return UnreachableError(f"the Hub refuses for now ({status}: {said})")
    if response.status_code in (401, 403):
        return FetchError(
            f"no permission for {repo} ({status}: {said}); {LOG_IN}, with a token that may"
        )
    return FetchError(f"the Hub refuses ({status}: {said})")
