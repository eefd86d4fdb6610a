"""Subcommands that make such weights: from posts with hashtags to training shards. They need the extra [recipe]."""

from __future__ import annotations

from swag_models.cli.terms import Add, make_add


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module."""
    recipe = add(
        "recipe", "How such weights are made: posts and hashtags to training shards.", "swag-models recipe curate --help"
    )
    add = make_add(recipe)
