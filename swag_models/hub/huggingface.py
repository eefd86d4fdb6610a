"""The Hugging Face Hub through its own client: downloads and readable errors.

Imports no torch. The client is imported inside functions, because importing it takes longer than
the rest of `swag_models.hub` together.
"""

import hashlib
from functools import partial
from pathlib import Path

from swag_models.errors import CacheError, FetchError
from swag_models.hub.hub_client import (
    call_with_rate,
    client_session,
    remove_empty_parts,
    try_twice,
)
from swag_models.hub.hub_errors import UnreachableError
from swag_models.hub.hub_rules import COMMIT
from swag_models.spec import SHA256, Progress


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
        commit = try_twice(partial(get_hf_file_metadata, url)).commit_hash
    return _check_commit(repo, commit)


def list_repo(repo: str, revision: str) -> tuple[str, set[str]]:
    """The commit that a branch or tag points to now, and the names of its files.

    Sends one request.

    Raises:
        FetchError: the repository or its revision does not exist, or the Hub cannot be reached.
    """
    with client_session(repo):
        from huggingface_hub import HfApi

        info = try_twice(partial(HfApi().model_info, repo, revision=revision))
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

        if constants.HF_HUB_CACHE.startswith("~"):
            raise CacheError("the home folder of this user is not known; set HF_HOME to a folder")
        download = partial(hf_hub_download, repo, file, revision=revision)
        try:
            return Path(call_with_rate(download, progress))
        except UnreachableError:
            remove_empty_parts(repo)
            raise


def check_content(path: Path, digest: str) -> None:
    """Raise FetchError if a downloaded file is not the one whose ETag the Hub stated.

    The client does not compare them, and would use the wrong file from then on: it is deleted. The
    Hub's ETag is the SHA-256 of a weight file and git's hash of any other; a mirror may send the
    SHA-1. A file with another ETag is not checked.

    Args:
        path: as `download_file` returns it.
        digest: SHA-256 of the file.
    """
    blob = path.resolve()  # the client names it after the ETag
    if blob.parent.name != "blobs":  # it copies files where there are no symbolic links
        return
    if SHA256.fullmatch(blob.name):
        digests = [digest]
    elif COMMIT.fullmatch(blob.name):
        content = blob.read_bytes()
        prefixes = (b"blob %d\0" % len(content), b"")
        digests = [
            hashlib.sha1(prefix + content, usedforsecurity=False).hexdigest() for prefix in prefixes
        ]
    else:
        return
    if blob.name not in digests:
        for wrong in (path, blob):
            wrong.unlink(missing_ok=True)
        raise FetchError(f"the content of {path.name} differs from its ETag; try again")
