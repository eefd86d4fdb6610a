"""The web server of the page: local by default, needs no internet, ends on SIGINT and SIGTERM."""

import ipaddress
import logging
import socket
from collections.abc import Mapping
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from starlette.middleware.trustedhost import TrustedHostMiddleware

from swag_models.app.components import HEAD, STYLE_SHEET, make_theme
from swag_models.app.ui import Page
from swag_models.spec import ModelSpec

logger = logging.getLogger("swag_models")
EXAMPLES = Path(__file__).parents[2] / "examples" / "scenes"  # exists in a clone of the repository
MAX_UPLOAD = "64mb"


def build_server(specs: Mapping[str, ModelSpec], *, folder: str, host: str) -> FastAPI:
    """Build the page as an ASGI application.

    Args:
        specs: the models to choose from, by name; the first is selected.
        folder: folder to search for similar images; "" for none.
        host: name or address that the server listens on.
    """
    is_private = is_loopback(host)
    page = Page(
        specs,
        folder=folder,
        may_type=is_private,
        examples=sorted(EXAMPLES.glob("*.jpg")),
        uploads=Path(get_upload_folder()),
    )
    server = FastAPI(openapi_url=None)
    if is_private:
        # prevents DNS rebinding: no other site may reach this page under its own host name
        server.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, f"[{host}]", "localhost"])
    else:
        logger.warning("other machines can reach the page; they cannot choose a folder to search")
    gr.mount_gradio_app(
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
    # Without this, Gradio does not check that the files named in a request were uploaded.
    page.blocks.has_launched = True
    return server


def run_server(server: FastAPI, listener: socket.socket) -> None:
    """Serve requests until SIGINT or SIGTERM, which is then raised again.

    Args:
        server: the result of `build_server`.
        listener: a listening socket.
    """
    config = uvicorn.Config(server, log_level="warning", timeout_graceful_shutdown=1)
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server that stops within a second, even if a browser keeps a connection open."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # closing the connection of an open page is intended, not an error to report
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
