"""Files that were published beside the weights of a model. Imports no torch."""

from pathlib import Path

from swag_models.hub.cache import is_remote, local_path
from swag_models.hub.fetch import fetch_config, is_offline
from swag_models.hub.hub_names import parse_url
from swag_models.hub.huggingface import find_cached, list_repo
from swag_models.spec import ModelSpec


def find_beside(spec: ModelSpec, file: str) -> Path | None:
    """A small file beside the weights of a model; None if there is none.

    Args:
        spec: of a model in a published folder or a repository of the Hub.
        file: name of the file.

    Raises:
        FetchError: the repository has the file, but it cannot be downloaded.
    """
    for source in spec.sources[:1]:
        if not is_remote(source):
            path = local_path(source).with_name(file)
            return path if path.is_file() else None
        if source.url.startswith("hf://"):
            repo, revision, _ = parse_url(source.url)
            if cached := find_cached(repo, revision, file):
                return cached
            if not is_offline() and file in list_repo(repo, revision)[1]:
                return fetch_config(repo, revision, file)
    return None
