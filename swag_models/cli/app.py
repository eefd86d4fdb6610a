"""The subcommand that serves the page."""

from __future__ import annotations

import argparse
import signal
import webbrowser

from swag_models.cli.common import OK, Add, say


def app(options: argparse.Namespace) -> int:
    """A page in the browser to try models on pictures."""
    from swag_models.app import serve

    def announce(address: str) -> None:
        print(address, flush=True)
        say("the page is ready; stop it with Ctrl-C")
        if options.open:
            webbrowser.open(address)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the uploads would stay behind
    serve(
        options.model, folder=options.folder, host=options.host, port=options.port, ready=announce
    )
    return OK


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module."""
    command = add("app", app, "swag-models app --folder ~/Pictures --open")
    command.add_argument(
        "--model",
        default="vit_nano_hashtags",
        help="name, folder or hf-hub:org/repo to begin with (default: vit_nano_hashtags)",
    )
    command.add_argument(
        "--folder", default="", help="pictures of yours among which similar ones are found"
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    command.add_argument(
        "--port",
        type=int,
        default=7860,
        help="port to listen on, 0 for any free one (default: 7860)",
    )
    command.add_argument("--open", action="store_true", help="open it in the browser")
