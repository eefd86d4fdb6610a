"""The page's server, which asks nothing of the network, shows itself to nobody who was not meant, and ends when told to."""

from __future__ import annotations

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

from swag_models.app.style import HEAD, STYLE_SHEET, make_theme
from swag_models.app.ui import Page
from swag_models.spec import ModelSpec

logger = logging.getLogger("swag_models")
EXAMPLES = Path(__file__).parents[2] / "examples" / "scenes"  # there in a clone of the repository
MAX_UPLOAD = "64mb"


def build_server(specs: Mapping[str, ModelSpec], *, folder: str, host: str) -> FastAPI:
    """The page as an ASGI application, to be reached under the name `host`."""
    private = is_loopback(host)
    uploads = Path(get_upload_folder())
    page = Page(
        specs,
        folder=folder,
        may_type=private,
        examples=sorted(EXAMPLES.glob("*.jpg")),
        uploads=uploads,
    )
    server = FastAPI(openapi_url=None)
    if private:  # no other page may read this one by making its own name lead here
        server.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, f"[{host}]", "localhost"])
    else:
        logger.warning("other machines can reach the page; they cannot name a folder to look in")
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
    page.blocks.has_launched = (
        True  # else Gradio does not check that the files a request names were uploaded
    )
    return server


def run_server(server: FastAPI, listener: socket.socket) -> None:
    """Answer what comes to a listening socket until SIGINT or SIGTERM, which is then raised again."""
    Server(uvicorn.Config(server, log_level="warning", timeout_graceful_shutdown=1)).run(
        sockets=[listener]
    )


class Server(uvicorn.Server):
    """Ends within a second though a page is open, and its connection with it."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(
            logging.CRITICAL
        )  # cutting off an open page is no error to be told
        await super().shutdown(sockets)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
