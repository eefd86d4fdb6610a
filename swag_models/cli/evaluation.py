"""Subcommands that measure a model: its classes, its features, its hashtags, and what they go with."""

from __future__ import annotations

from swag_models.cli.terms import Add


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module, under `swag-models recipe`."""
