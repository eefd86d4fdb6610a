"""A page in the browser to try a model: classes of an image, saliency maps, similar images.

`server` serves the page, `ui` has its layout and event handlers, `components` its HTML and theme,
`service` runs models, `saliency` computes maps, `similar` searches a folder of the user.
"""

import os
import socket
import tempfile
from collections.abc import Callable

from swag_models.api import SPECS, Name, get_spec
from swag_models.errors import ConfigError
from swag_models.inference.image_sources import find_images
from swag_models.runtime import import_extra


def serve(
    model: Name = "vit_nano_hashtags",
    *,
    folder: str = "",
    host: str = "127.0.0.1",
    port: int = 7860,
    ready: Callable[[str], object] = print,
) -> None:
    """Serve the page until interrupted.

    Nothing is sent to other machines, and no file of this machine is served. Uploads are deleted
    at the end.

    Args:
        model: the model selected at first, anything that `get_spec` takes; in the page, every
            model of the catalog can be selected.
        folder: where similar images are searched. Another folder can be entered in the page if
            only this machine can reach it.
        host: address to listen on.
        port: port to listen on; 0 takes any free one.
        ready: called with the URL of the page when it is ready.

    Raises:
        ConfigError: the extra is not installed, the address cannot be used, or the folder contains
            no image.
    """
    spec = get_spec(model)
    if folder:
        if not os.path.isdir(folder):
            raise ConfigError(f"{folder} is not a folder; give one with images, or leave it out")
        find_images(folder)  # raises if there is no image
    specs = {spec.name: spec, **{name: s for name, s in SPECS.items() if name != spec.name}}
    with (
        tempfile.TemporaryDirectory(prefix="swag_models_") as scratch,
        _listen(host, port) as listener,
    ):
        # The folder for uploads and shown images. Gradio reads the variable when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = scratch
        import_extra("gradio", "swag-models[app]", "the page")
        from swag_models.app.server import build_server, run_server

        server = build_server(specs, folder=folder, host=host)
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
        # create_server appends the address: " (while attempting to bind on address ...)"
        reason = str(error.strerror).split(" (while")[0]
        raise ConfigError(
            f"cannot listen on {host} port {port}: {reason}; "
            f"give another port, or 0 for any free one"
        ) from None
