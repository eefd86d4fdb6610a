"""The web server of the page: local by default, needs no internet, ends on SIGINT and SIGTERM."""

import logging
import socket
from collections.abc import Mapping
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio.utils import get_upload_folder
from starlette.types import ASGIApp

from swag_models.app.access import Access
from swag_models.app.addresses import Addresses
from swag_models.app.components import HEAD, STYLE_SHEET, make_theme
from swag_models.app.folder_index import FolderIndexes
from swag_models.app.guard import Guard
from swag_models.app.protocol import Protocol
from swag_models.app.ui import Page
from swag_models.app.uploads import Uploads
from swag_models.spec import ModelSpec

logger = logging.getLogger("swag_models")
# Emoji of the held-out artist of studies/drawings, which the default model classifies correctly
EXAMPLES = Path(__file__).with_name("examples")
MAX_SESSIONS = 1000  # that Gradio keeps; each takes up to a megabyte, without images
MAX_CONNECTIONS = 4000
RESERVED_FILES = 256  # that are open for other purposes: images, weights, uploads


def build_server(
    specs: Mapping[str, ModelSpec],
    *,
    folder: str,
    indexes: FolderIndexes,
    addresses: Addresses,
    access: Access,
) -> Guard:
    """Build the page as an ASGI application.

    Args:
        specs: the models to choose from, by name; the first is selected.
        folder: folder to search; "" for none.
        indexes: the indexes of folders.
        addresses: where the page is found.
        access: who may use the page.
    """
    is_private = addresses.is_private
    uploads = Uploads(Path(get_upload_folder()))
    page = Page(
        specs,
        folder=folder,
        indexes=indexes,
        may_type=is_private,
        examples=sorted(EXAMPLES.glob("*.jpg")),
        uploads=uploads,
    )
    page.blocks.state_session_capacity = MAX_SESSIONS
    if not is_private:
        logger.warning(
            "other machines can reach the page%s; they cannot choose a folder to search",
            "" if access.is_required else " without a password",
        )
    server = FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        server,
        page.blocks,
        path="/",
        root_path=addresses.root_path,
        theme=make_theme(),
        css_paths=STYLE_SHEET,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    uploads.share(path for path in uploads.folder.rglob("*") if path.is_file())
    handlers = {number: handler.inputs for number, handler in page.blocks.fns.items()}
    return Guard(server, handlers, uploads, access, addresses, HEAD)


def run_server(server: ASGIApp, listener: socket.socket) -> None:
    """Serve requests until SIGINT or SIGTERM, which is then raised again.

    Args:
        server: the result of `build_server`.
        listener: a listening socket.
    """
    # it warns of malformed forms, each of which is refused with a line in the log
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    config = uvicorn.Config(
        server,
        http=Protocol,
        ws="none",
        log_level="warning",
        limit_concurrency=_raise_file_limit() - RESERVED_FILES,
        timeout_graceful_shutdown=1,
    )
    _Server(config).run(sockets=[listener])


def _raise_file_limit() -> int:
    """Allow as many open files as the page can use; return how many are allowed."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MAX_CONNECTIONS + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


class _Server(uvicorn.Server):
    """A server that stops within a second, even if a browser keeps a connection open."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # closing the connection of an open page is intended, not an error to report
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)
