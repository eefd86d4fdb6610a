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
def deliver_interrupts(restore: bool) -> Iterator[None]:
    """In the `with` block, raise KeyboardInterrupt again where Python would only print it.

    Python ignores an exception in a destructor or in a callback of a weak reference, and prints it
    with a traceback. The command would go on as if nobody had pressed Ctrl-C.

    Args:
        restore: whether the program continues after the block, and handles Ctrl-C as before it.
    """
    hook, handler = sys.unraisablehook, signal.getsignal(signal.SIGINT)
    timers: list[threading.Timer] = []

    def handle(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)
        elif not any(timer.is_alive() for timer in timers):  # two would interrupt twice
            # Not now: the exception would be raised in this function, and ignored again.
            timer = threading.Timer(RETRY_SECONDS, _interrupt_main_thread)
            timer.daemon = True
            timer.start()
            timers.append(timer)

    sys.unraisablehook = handle
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()
        if restore:
            _set_handler(handler)
        else:
            ignore_interrupts()


def ignore_interrupts() -> None:
    """Ignore Ctrl-C from now on: a command that is ending would only print a traceback."""
    _set_handler(signal.SIG_IGN)


def _set_handler(handler: Any) -> None:
    # None: the handler was not set by Python. Only the main thread may set one.
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def _interrupt_main_thread() -> None:
    if hasattr(signal, "pthread_kill"):
        identifier = threading.main_thread().ident
        assert identifier is not None
        signal.pthread_kill(identifier, signal.SIGINT)  # also ends a wait in the main thread
    else:
        os.kill(os.getpid(), signal.SIGINT)
