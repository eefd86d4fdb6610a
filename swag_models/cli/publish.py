"""Subcommands that publish a model."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from swag_models.api import SPECS, get_spec
from swag_models.cli.common import OK, Add, say
from swag_models.errors import ConfigError

if TYPE_CHECKING:
    from swag_models.models import RegNet, ViT


def save(options: argparse.Namespace) -> int:
    """Write a model as a folder: weights, config.json and a model card."""
    from swag_models import publish

    model, facts = _load(options)
    print(publish.save(model, options.folder, **facts))
    return OK


def push(options: argparse.Namespace) -> int:
    """Send a model, or a folder that `save` wrote, to the Hugging Face Hub."""
    from swag_models import publish

    folder = options.model not in SPECS and os.path.isdir(options.model)
    if folder and (options.image_size, options.dtype) != (None, None):
        raise ConfigError(
            "--image-size and --dtype do not go with a folder, which is sent as it is; change it with save first"
        )
    model, facts = (options.model, {}) if folder else _load(options)
    upload = publish.push(
        model,
        options.repository,
        revision=options.revision,
        private=options.private,
        message=options.message,
        dry_run=options.dry_run,
        **facts,
    )
    if not options.dry_run:
        print(upload.url)
        say(f"load it with: swag_models.load_model({upload.address!r})")
        return OK
    say(f"dry run, nothing is sent; these files and this card would go to {upload.address}")
    for file, size in upload.files:
        print(f"{file}\t{size}")
    print(f"\n{upload.card}", end="")
    return OK


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module."""
    command = add("save", save, "swag-models save vit_b16_in1k my_model --dtype bfloat16")
    command.add_argument("model", help="name in the catalog, folder, or hf-hub:org/repo[@revision]")
    command.add_argument("folder", help="folder to write")
    _add_changes(command)

    command = add("push", push, "swag-models push my_model org/repo --dry-run")
    command.add_argument(
        "model", help="folder that save wrote, sent as it is, or another model's name"
    )
    command.add_argument("repository", help="org/repo, made if there is none")
    command.add_argument(
        "--dry-run", action="store_true", help="print what would be sent, and send nothing"
    )
    command.add_argument("--private", action="store_true", help="make a new repository private")
    command.add_argument(
        "--revision", help="branch to send to, made if there is none (default: main)"
    )
    command.add_argument("--message", help="of the commit")
    _add_changes(command)


def _add_changes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--image-size", type=int, help="pixels (default: the model's)")
    command.add_argument(
        "--dtype", help="for example bfloat16, for half the size (default: float32)"
    )


def _load(options: argparse.Namespace) -> tuple[ViT | RegNet, dict[str, Any]]:
    """The model, and what is still true of it: its accuracy only if nothing about it changes."""
    from swag_models.api import load_model

    spec = get_spec(options.model)
    model = load_model(spec, image_size=options.image_size, dtype=options.dtype)
    same = options.image_size in (None, spec.image_size) and options.dtype in (None, "float32")
    return model, {"description": spec.description, "metrics": spec.metrics} if same else {}
