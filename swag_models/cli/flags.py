"""Names of options in messages: the library writes them as in Python, the command as flags."""

import argparse
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# An option in a message, for example: lower min_images=, or license="...", or pass fast=True.
# Text from outside is in quotes or part of a longer word.
OPTION = re.compile(
    r"""(?<![\w?&./'"=-])([a-z][a-z0-9_]*)=(?:"([^"]*)"|([0-9]+)|True)?(?=[\s,;:.)]|$)"""
)

Flags = Mapping[str, str]  # name in Python -> flag


def list_flags(options: argparse.Namespace) -> Flags:
    """The flags of the subcommand that was parsed, by the names that they have in Python."""
    command = getattr(options, "command", None)
    if command is None:
        return {}
    flags = {
        # the last spelling is the long one, but that of --[no-]option is the negation
        action.dest: action.option_strings[
            0 if isinstance(action, argparse.BooleanOptionalAction) else -1
        ]
        for action in command._actions
        if action.option_strings
    }
    return {**flags, **getattr(options, "python_names", {})}


def spell_flags(text: str, flags: Flags) -> str:
    """Replace the options of the subcommand in a message by their flags."""

    def replace(option: re.Match[str]) -> str:
        name, value = option[1], option[2] or option[3]
        if name not in flags:
            return option[0]
        return flags[name] if value in (None, "...") else f"{flags[name]} {value}"

    text = OPTION.sub(replace, text)
    start, _, rest = text.partition(" ")
    name, _, rest = rest.partition(" ")
    if start == "invalid" and flags.get(name) not in (None, f"--{name.replace('_', '-')}"):
        return f"invalid {flags[name]} {rest}"  # a name that the user did not write
    return text


@contextmanager
def spelled_logs(flags: Flags) -> Iterator[None]:
    """Replace options by flags in what the library logs in the `with` block."""

    def spell(record: logging.LogRecord) -> bool:
        record.msg, record.args = spell_flags(record.getMessage(), flags), ()
        return True

    logger = logging.getLogger("swag_models")
    logger.addFilter(spell)
    try:
        yield
    finally:
        logger.removeFilter(spell)
