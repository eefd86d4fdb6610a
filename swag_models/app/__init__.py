"""A page in the browser: what a model makes of a picture, where it looks, and which of the user's pictures are like it.

page.py lays out and answers, panel.py words it, desk.py works with models, heat.py and overlay.py show where they look,
shelf.py knows the user's folder.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from swag_models.api import SPECS, get_spec
from swag_models.errors import ConfigError
from swag_models.spec import ModelSpec

DEFAULT_MODEL = "vit_nano_digits"
EXAMPLES = Path(__file__).parents[2] / "examples" / "digits"  # where this is a source tree
MAX_UPLOAD = "64mb"


def serve(
    model: str | ModelSpec = DEFAULT_MODEL,
    *,
    folder: str = "",
    host: str = "127.0.0.1",
    port: int = 7860,
    ready: Callable[[str], object] = print,
) -> None:
    """Serve the page until interrupted.

    model: what is chosen first; any other model of the catalog can be chosen in the page.
    folder: where similar pictures are looked for. Another one can be typed in the page if only this machine can reach it.
    host, port: where to listen; port 0 takes a free one. `ready` is called with the page's address.

    Nothing is sent anywhere, and no file of this machine is served. What the page is given is deleted at the end.
    ConfigError if it cannot listen there, or the extra is not installed.
    """
    try:
        import uvicorn
        from fastapi import FastAPI
        from gradio import mount_gradio_app
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ModuleNotFoundError as error:
        raise ConfigError(f"the page needs {error.name}; install it with: pip install 'swag-models[app]'") from None

    spec = model if isinstance(model, ModelSpec) else get_spec(model)
    with tempfile.TemporaryDirectory(prefix="swag_models_") as scratch, _listen(host, port) as listener:
        os.environ["GRADIO_TEMP_DIR"] = scratch
        from swag_models.app.page import Page
        from swag_models.app.style import HEAD, STYLE_SHEET, make_theme

        private = _is_loopback(host)
        page = Page(
            {spec.name: spec, **SPECS},
            folder=folder,
            may_type=private,
            examples=sorted(EXAMPLES.glob("*.png")),
        )
        server = FastAPI(openapi_url=None)
        # a foreign page whose name is made to lead here must not be able to read this one
        server.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost"] if private else ["*"])
        mount_gradio_app(
            server,
            page.blocks,
            path="/",
            theme=make_theme(),
            css_paths=STYLE_SHEET,
            head=HEAD,
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
        )
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{listener.getsockname()[1]}/")
        uvicorn.Server(uvicorn.Config(server, log_level="warning")).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; give another port, or 0 for any free one") from None


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
