"""A web page for trying models: classes of an image, saliency maps, similar images.

`server` serves the page, `ui` has its layout and event handlers, `components` its HTML and theme,
`service` runs models, `saliency` computes maps, `folder_index` keeps embeddings of the user's
folder, `similar` searches them, and `csv_export` writes tables. `guard` checks every request with
`addresses` (where it is sent to), `access` (who sends it), `calls` (its content) and `uploads` (the
files that it names); `memory` bounds the memory for images.
"""

import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from swag_models.api import SPECS, Name, get_spec
from swag_models.app.access import Access, read_auth_file
from swag_models.app.addresses import Addresses, is_loopback
from swag_models.errors import CacheError, ConfigError
from swag_models.hub.cache import cache_folder
from swag_models.inference.image_sources import find_images
from swag_models.runtime import import_extra
from swag_models.spec import ModelSpec

__all__ = ["is_loopback", "serve"]

logger = logging.getLogger("swag_models")


def serve(
    model: Name = "regnety_200mf_hashtags",
    *,
    folder: str = "",
    merge_tokens: int | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    root_path: str = "",
    allow_hosts: Iterable[str] = (),
    auth_file: str | os.PathLike[str] | None = None,
    token: bool | None = None,
    ready: Callable[[str], object] = print,
) -> None:
    """Serve the page until interrupted.

    Nothing is sent to other machines. The only files that requests can name are those that the same
    session uploaded; they are deleted at the end.

    Args:
        model: the model selected initially, anything that `get_spec` accepts; every model of the
            catalog can be selected in the page.
        folder: folder to search for similar images and for those of a class. Another folder can be
            entered in the page if only this machine can reach the page. The embeddings of its
            images are kept in the folder `indexes` of the cache.
        merge_tokens: number of tokens that each block of the initial model merges, see
            `load_model`; by default the model's.
        host: address to listen on.
        port: port to listen on; 0 for any free port.
        root_path: path of the page on the host of a reverse proxy, for example "/demo". The proxy
            may remove it from requests or not.
        allow_hosts: host names of reverse proxies, under which the page may be requested. With
            these or a root path, the page is treated as one that other machines can reach.
        auth_file: file with the users of the page, a line `user:password` for each.
        token: whether the page needs a secret token, which is part of the URL passed to `ready`
            and new at each start. By default it does if other machines can reach the page and
            there is no `auth_file`.
        ready: called with the URL of the page when it is ready.

    Raises:
        ConfigError: the extra is not installed, the address, `root_path` or one of `allow_hosts`
            cannot be used, the folder contains no image, `auth_file` no users, or the model has
            no tokens to merge.
    """
    spec = get_spec(model)
    if merge_tokens is not None:
        spec = _merge_tokens(spec, merge_tokens)
    if folder:
        if not os.path.isdir(folder):
            raise ConfigError(f"{folder} is not a folder; pass a folder of images, or omit it")
        find_images(folder)  # raises if there is no image
    users = {} if auth_file is None else read_auth_file(auth_file)
    addresses = Addresses.parse(host, root_path, allow_hosts)
    if token is None:
        token = not users and not addresses.is_private
    secret = secrets.token_urlsafe(32) if token else ""
    access = Access(users, secret, f"{addresses.root_path}/")
    specs = {spec.name: spec, **{name: s for name, s in SPECS.items() if name != spec.name}}
    with (
        tempfile.TemporaryDirectory(prefix="swag_models_") as scratch,
        _listen(host, port) as listener,
    ):
        # The folder for uploaded and displayed images; Gradio reads the variable on import.
        os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(scratch)
        import_extra("gradio", "swag-models[app]", "the page")
        from swag_models.app.folder_index import FolderIndexes
        from swag_models.app.server import build_server, run_server

        indexes = FolderIndexes(_find_store())
        server = build_server(
            specs, folder=folder, indexes=indexes, addresses=addresses, access=access
        )
        address = f"{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        ready(f"http://{address}{access.path}{f'?token={access.token}' if token else ''}")
        try:
            run_server(server, listener)
        finally:
            indexes.close()


def _find_store() -> Path | None:
    """The folder that indexes of folders are kept in; None if no cache folder is known."""
    try:
        return cache_folder() / "indexes"
    except CacheError as error:
        logger.warning("indexes of folders are kept in memory only: %s", error)
        return None


def _merge_tokens(spec: ModelSpec, count: int) -> ModelSpec:
    """The spec of a model whose blocks merge this number of tokens."""
    from swag_models.models.arguments import check_merge_tokens
    from swag_models.publish.model_info import count_gmacs

    spec = replace(spec, merge_tokens=check_merge_tokens(count) or None)
    return replace(spec, gmacs=count_gmacs(spec))


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"invalid port {port}: allowed: 1 to 65535, or 0 for any free port")
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        # create_server appends the address: " (while attempting to bind on address ...)"
        reason = str(error.strerror).split(" (while")[0]
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; "
            f"choose another port, or 0 for any free port"
        ) from None
