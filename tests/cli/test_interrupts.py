"""Ctrl-C ends a command with one line, wherever Python is when it arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from swag_models import cli

SOURCE = Path(__file__).parents[2]
SCRIPT = """
import gc, os, signal, sys, time, weakref
from swag_models import cli
from swag_models.cli import models

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):  # Python raises KeyboardInterrupt in one of these steps
        pass

class Thing:
    pass

def work(options):
{work}
    for _ in range(300):
        time.sleep(0.1)
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)
models.list_ = work
sys.argv = ["swag-models", "list"]
sys.exit(cli.main())
"""
PLACES = {
    "code": "interrupt()",
    "callback of a weak reference": """
        thing = Thing()
        reference = weakref.ref(thing, interrupt)
        del thing
    """,
    "callback in a collection of garbage": """
        thing = Thing()
        thing.itself = thing
        reference = weakref.ref(thing, interrupt)
        del thing
        gc.collect()
    """,
    "destructor": """
        Thing.__del__ = interrupt
        Thing()
    """,
    "finalizer, twice": """
        for thing in (Thing(), Thing()):
            weakref.finalize(thing, interrupt)
        del thing
    """,
    "finalizer, several with time between them": """
        for _ in range(20):
            thing = Thing()
            weakref.finalize(thing, interrupt)
            del thing
            time.sleep(0.01)
    """,
    "message of an error": """
        import swag_models.cli
        print_message = swag_models.cli.print_message
        swag_models.cli.print_message = lambda text: (interrupt(), print_message(text))
        raise KeyboardInterrupt
    """,
    "exit": """
        import atexit
        atexit.register(interrupt)
        raise KeyboardInterrupt
    """,
}


def run_script(work: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose work is this code, indented."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(work=work)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_is_one_line(place: str, tmp_path: Path) -> None:
    work = textwrap.indent(textwrap.dedent(PLACES[place]), "    ")
    process = run_script(work)
    assert (process.returncode, process.stderr) == (130, "swag-models: error: interrupted\n")


def test_other_ignored_exceptions_are_still_printed() -> None:
    work = """    Thing.__del__ = lambda self: 1 / 0
    Thing()
    return 0
"""
    process = run_script(work)
    assert process.returncode == 0
    assert "ZeroDivisionError" in process.stderr


def test_another_program_keeps_its_handler() -> None:
    """A command that another program calls leaves the program's Ctrl-C as it was."""
    handler = signal.getsignal(signal.SIGINT)
    assert cli.main(["info", "no_such_model"]) == 2
    assert signal.getsignal(signal.SIGINT) is handler
