"""Worker processes that end with the main process, and the signals that a scheduler sends."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from swag_models.errors import OutputError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Schedulers send one of these some time before they kill a job. SIGUSR1 is missing on Windows.
PREEMPTION_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


@contextmanager
def open_pool(
    count: int, begin: Callable[..., None] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of worker processes that ignore Ctrl-C and end when this process ends.

    They also end if this process is killed, and are terminated if the `with` block raises.

    Args:
        count: number of processes.
        begin: called first in each process.
        arguments: arguments of `begin`.

    Raises:
        OutputError: a worker was killed or could not start.
    """
    # spawned, not forked: a fork would copy locks that threads of DuckDB and Arrow have locked
    context = multiprocessing.get_context("spawn")
    earlier_children = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, context, _start_worker, (begin, arguments)) as pool:
        try:
            yield pool
        except BaseException as error:
            for child in set(multiprocessing.active_children()) - earlier_children:
                child.terminate()
            if isinstance(error, BrokenExecutor):
                raise OutputError(
                    "a process was killed, perhaps for lack of memory, or could not start "
                    "because a script lacks `if __name__ == '__main__':`; rerun to resume"
                ) from None
            raise


def map_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], chunk: int, processes: int
) -> Generator[Result, None, None]:
    """Yield the result of each item, in order; for few items, without other processes.

    Closing the generator ends its processes.

    Args:
        function: can be pickled, as can items and results.
        items: what it is called with.
        chunk: number of items that are sent to a process at once.
        processes: number of processes, at most.
    """
    count = min(processes, -(-len(items) // chunk))
    if count <= 1:
        yield from map(function, items)
        return
    with open_pool(count) as pool:
        # Executor.map is not used, because closing it would fail after processes are terminated.
        futures = deque(
            pool.submit(_call_all, function, items[start : start + chunk])
            for start in range(0, len(items), chunk)
        )
        while futures:
            yield from futures.popleft().result()


def _call_all(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


@contextmanager
def watch_signals() -> Iterator[threading.Event]:
    """Yield an event that is set when a scheduler announces the end of the job."""
    preempted = threading.Event()
    # Python handles signals only in the main thread; notebooks may call from another one
    if threading.current_thread() is not threading.main_thread():
        yield preempted
        return
    before = {
        number: signal.signal(number, lambda *_: preempted.set()) for number in PREEMPTION_SIGNALS
    }
    try:
        yield preempted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare_loader_worker(worker: int) -> None:
    """Ignore Ctrl-C and preemption signals; the `worker_init_fn` of a DataLoader.

    Schedulers send signals to all processes of a job; only the training process acts on them.
    """
    for number in (signal.SIGINT, *PREEMPTION_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    # A thread of multiprocessing that serves batches reports by this function when the training
    # process ends before it has taken one. Errors of the worker itself go another way.
    sys.excepthook = _hide_lost_connection


def _hide_lost_connection(kind: Any, error: BaseException, trace: Any) -> None:
    if not isinstance(error, (EOFError, OSError)):
        sys.__excepthook__(kind, error, trace)


def _start_worker(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """Prepare a worker process: leave Ctrl-C to the main process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)  # not sys.exit, which would end this thread only

    threading.Thread(target=exit_with_parent, daemon=True).start()
    if begin:
        begin(*arguments)
