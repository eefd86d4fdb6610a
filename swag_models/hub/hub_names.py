"""Names and URLs of the Hugging Face Hub. Looking up a model imports this, and no client."""

import re
from urllib.parse import quote, unquote

from swag_models.errors import ConfigError

PREFIX = "hf-hub:"  # timm's prefix for a model on the Hub
REPO_NAME = re.compile(r"([^@]+)(?:@(\w[\w./+-]*))?")
# The rules of huggingface_hub's `validate_repo_id`, for messages.
REPO_RULES = (
    "letters, digits and . _ -, at most 96 characters; no . or - at an end, no .. or --, no .git"
)


def is_repo(text: str) -> bool:
    """Whether `text` is org/repo in characters that the Hub allows."""
    from swag_models.hub.hub_client import client_session

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
    match = REPO_NAME.fullmatch(name.removeprefix(PREFIX))
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
