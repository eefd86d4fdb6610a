"""The `swag-models` command. Data goes to stdout, messages to stderr.

Each module contains the subcommands of one topic: a function for each of them, and functions that
declare their options. Only the module of the subcommand that runs is imported.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

from swag_models import __version__
from swag_models.cli.common import FAILED, INTERRUPTED, OK, USAGE, Parser, make_adder
from swag_models.cli.flags import Flags, list_flags, spell_flags, spelled_logs
from swag_models.cli.interrupts import deliver_interrupts, ignore_interrupts
from swag_models.cli.output import discard_data, flush_data, prepare_streams, print_message
from swag_models.errors import ConfigError, SwagModelsError, UnknownModelError

RANK_WAIT = 15  # seconds; on a busy machine rank 0 takes several to end
COMMANDS = {  # of each module, in the order of the help
    "models": ("list", "info", "fetch", "bundle", "verify", "convert"),
    "predict": ("classify", "embed", "merge", "nearest", "app"),
    "finetune": ("finetune",),
    "publish": ("save", "sign", "push", "export"),
    "curate": ("recipe",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: command line arguments; by default those of this process.

    Returns:
        The exit code: 0 for success, 1 for a failure, 2 for wrong usage, 130 if interrupted.
    """
    prepare_streams()
    # Pillow warns of damaged metadata with two lines that do not name the file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    given = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: make_parser(*given[:1]).parse_args(given), ends=arguments is None)


def run_command(parse: Callable[[], argparse.Namespace], ends: bool) -> int:
    """Parse and run a subcommand; an error becomes a message and an exit code.

    Args:
        parse: returns the parsed options, with the function of the subcommand as `run`.
        ends: whether the process ends with this command.

    Returns:
        The exit code, as for `main`.
    """
    with deliver_interrupts(restore=not ends):
        return _run(parse)


def _run(parse: Callable[[], argparse.Namespace]) -> int:
    flags: Flags = {}
    try:
        try:
            options = parse()
        except SystemExit:  # after --help, --version or wrong usage
            flush_data()
            raise
        flags = list_flags(options)
        run: Callable[[argparse.Namespace], int] = options.run
        with spelled_logs(flags):
            code = run(options)
        flush_data()
        return code
    except (UnknownModelError, ConfigError) as error:
        return _fail(spell_flags(str(error), flags), USAGE)
    except SwagModelsError as error:
        return _fail(spell_flags(str(error), flags), FAILED)
    except BrokenPipeError:  # the program that reads stdout, for example `head`, has ended
        discard_data()
        return OK
    # The environment: no more files or memory, a damaged installation.
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{place}", FAILED)
    except MemoryError:
        return _fail("out of memory", FAILED)
    except ImportError as error:
        return _fail(f"{error}; check the installation and the limits of this process", FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)


def make_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser with the subcommands of one module, or of all.

    Args:
        command: a subcommand; of its module only, unless it is none.
    """
    parser = Parser(prog="swag-models", description="Vision backbones pre-trained on hashtags.")
    parser.add_argument("--version", action="version", version=f"swag-models {__version__}")
    add = make_adder(parser)
    for module, commands in COMMANDS.items():
        if command in commands or not any(command in names for names in COMMANDS.values()):
            import_module(f"swag_models.cli.{module}").add_commands(add)
    return parser


def _fail(error: object, code: int) -> int:
    ignore_interrupts()
    # Ranks mostly fail alike. torchrun ends all others soon after the first has ended, so only rank
    # 0 prints the error; another rank that fails alone prints its own.
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":
        time.sleep(RANK_WAIT)
    print_message(f"error: {error}")
    discard_data()
    return code
