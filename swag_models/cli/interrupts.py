"""Ctrl-C ends a command wherever Python is when it arrives."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

RETRY_SECONDS = 0.05


@contextmanager
def deliver_interrupts() -> Iterator[None]:
    """In the `with` block, raise KeyboardInterrupt again where Python would only print it.

    Python ignores an exception in a destructor or in a callback of a weak reference, and prints it
    with a traceback. The command would go on as if nobody had pressed Ctrl-C.
    """
    before = sys.unraisablehook

    def handle(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        # Not now: the exception would be raised in this function, and ignored again.
        timer = threading.Timer(RETRY_SECONDS, _interrupt_main_thread)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = handle
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupt_main_thread() -> None:
    if hasattr(signal, "pthread_kill"):
        identifier = threading.main_thread().ident
        assert identifier is not None
        signal.pthread_kill(identifier, signal.SIGINT)  # also ends a wait in the main thread
    else:
        os.kill(os.getpid(), signal.SIGINT)


def ignore_interrupts() -> None:
    """Ignore Ctrl-C from now on: while Python exits, it would only print a traceback."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
