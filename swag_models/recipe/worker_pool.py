"""Processes that work for this one, and end with it; and the signals that a scheduler sends to them all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from swag_models.errors import OutputError

PREEMPTION = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@contextmanager
def open_pool(
    count: int, begin: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """`count` processes, in each of which `begin` is called first.

    They are spawned, because the threads of engines must not be forked; leave Ctrl-C to this process; and end when it does,
    however that comes, or at once if what is done with them here fails. OutputError if one of them is killed.
    """
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, context, _start, (begin, arguments)) as pool:
        try:
            yield pool
        except BaseException as error:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            if isinstance(error, BrokenExecutor):
                raise OutputError(
                    "a process was killed, perhaps for its memory, or could not start because a script does without "
                    "`if __name__ == '__main__':`; run it again, it goes on where it was"
                ) from None
            raise


@contextmanager
def watch_signals() -> Iterator[threading.Event]:
    """An event that is set when SIGTERM or SIGUSR1 arrives, as schedulers send them before they end a job."""
    told = threading.Event()
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # where torch's own launchers or a notebook may call
        yield told
        return
    before = {number: signal.signal(number, lambda *_: told.set()) for number in PREEMPTION}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def outlast_signals(worker: int) -> None:
    """For a DataLoader's `worker_init_fn`: what is sent to all processes of a job is for the one that trains to act on."""
    for number in (signal.SIGINT, *PREEMPTION):
        signal.signal(number, signal.SIG_IGN)


def _start(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if begin:
        begin(*arguments)
