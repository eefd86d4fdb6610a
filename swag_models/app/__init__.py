"""A page in the browser: what a model makes of a picture, where it looks, and which of the user's pictures are like it.

server.py serves, page.py lays out and answers, panel.py words it, desk.py works with models, heat.py and overlay.py show where
they look, shelf.py knows the user's folder, style.py and style.css are how it looks.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable

from swag_models.api import SPECS, Name, get_spec
from swag_models.errors import ConfigError
from swag_models.inference.image_sources import find_images


def serve(
    model: Name = "vit_nano_hashtags",
    *,
    folder: str = "",
    host: str = "127.0.0.1",
    port: int = 7860,
    ready: Callable[[str], object] = print,
) -> None:
    """Serve the page until interrupted.

    model: what is chosen at first, anything `get_spec` takes; any model of the catalog can be chosen in the page.
    folder: where similar pictures are looked for. Another one can be named in the page if only this machine can reach it.
    host, port: where to listen; port 0 takes a free one. `ready` is called with the page's address.

    Nothing is sent anywhere, and no file of this machine is served. What the page was given is deleted at the end.
    ConfigError if the extra is not installed, it cannot listen there, or the folder has no pictures.
    """
    spec = get_spec(model)
    if folder:
        if not os.path.isdir(folder):
            raise ConfigError(f"{folder} is no folder; give one with pictures, or leave it out")
        find_images(folder)  # says so if there is none
    others = {name: other for name, other in SPECS.items() if name != spec.name}
    with (
        tempfile.TemporaryDirectory(prefix="swag_models_") as scratch,
        _listen(host, port) as listener,
    ):
        os.environ["GRADIO_TEMP_DIR"] = (
            scratch  # for what is uploaded and shown; Gradio reads it when it is imported
        )
        try:
            from swag_models.app.server import build_server, run_server
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ConfigError(
                "the page needs gradio; install it with: pip install 'swag-models[app]'"
            ) from None
        server = build_server({spec.name: spec, **others}, folder=folder, host=host)
        ready(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/")
        run_server(server, listener)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port is {port}; give one from 1 to 65535, or 0 for any free one")
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        reason = str(error.strerror).split(" (while")[0]
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; give another port, or 0 for any free one"
        ) from None
