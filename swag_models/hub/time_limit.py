"""Time limits for network calls. Imports no torch."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")
QUEUE_SIZE = 16  # items that the thread may produce in advance
POLL_INTERVAL = 0.5  # seconds between two checks, and after which an abandoned thread ends


def iterate_within(
    items: Generator[T, None, None], seconds: float, check: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """Yield the items of a generator that runs in a thread, and wait a limited time for each.

    The timeout of a socket only limits a single read. A server can send a header or the length of
    a chunk one byte at a time, or endless intermediate responses, and looking up a host name has
    no timeout at all.

    Args:
        items: the generator. After the time limit it is abandoned, and closed in its thread once
            it yields or raises; it must not write to anything that others use.
        seconds: time limit for each item, and for the end.
        check: called at short intervals while waiting; what it raises is raised here.

    Raises:
        TimeoutError: an item took longer.
        BaseException: whatever `items` raises.
    """
    results: queue.Queue[tuple[str, Any]] = queue.Queue(QUEUE_SIZE)
    stopped = threading.Event()

    def put(kind: str, value: object = None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                results.put((kind, value), timeout=POLL_INTERVAL)
                break

    def run() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    break
            items.close()
            put("end")
        except BaseException as error:  # raised again in the thread that waits
            put("error", error)

    # A daemon thread: an abandoned one must not keep the process alive.
    threading.Thread(target=run, name="swag_models network", daemon=True).start()
    try:
        while True:
            kind, value = _wait(results, seconds, check)
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()


def _wait(
    results: "queue.Queue[tuple[str, Any]]", seconds: float, check: Callable[[], None]
) -> tuple[str, Any]:
    """Return the next result, or raise TimeoutError, or what `check` raises."""
    deadline = time.monotonic() + seconds
    while (remaining := deadline - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            return results.get(timeout=min(POLL_INTERVAL, remaining))
        check()
    raise TimeoutError(f"nothing arrived within {seconds:.3g} s")


def call_within(
    function: Callable[[], T], seconds: float, check: Callable[[], None] = lambda: None
) -> T:
    """Return the result of a function that runs in a thread.

    Args:
        function: what to call. After the time limit it is abandoned, and its result is dropped.
        seconds: time limit.
        check: as for `iterate_within`.

    Raises:
        TimeoutError: it took longer.
        BaseException: whatever `function` raises.
    """
    (result,) = iterate_within((function() for _ in range(1)), seconds, check)
    return result
