"""Measure several ways to do the same work alternately, by wall and CPU time.

Needs only the standard library, so that `gpu.py` runs without any other package.
"""

import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIN_SECONDS = 0.1  # of one measurement; shorter calls are repeated
PAUSE = 0.2
MAX_REASON = 160  # characters


@dataclass(frozen=True)
class Cost:
    """Seconds that one call took; `cpu` is None where it is not known."""

    wall: float
    cpu: float | None = None


# A way does the work once. It returns its `Cost` if it measures itself (in another process, or
# without its preparation); otherwise what it returns is ignored and the call is timed.
Way = Callable[[], object]
# Prepares a way, so that a peer that is not installed is reported while the others are measured.
Maker = Callable[[], Way]


@dataclass
class Times:
    """Seconds of each round by label, and reasons why a way was not measured."""

    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def measure(
    makers: Mapping[str, Maker],
    rounds: int,
    *,
    synchronize: Callable[[], None] = lambda: None,
    min_seconds: float = MIN_SECONDS,
    pause: float = PAUSE,
    start: Callable[[], float] = lambda: math.inf,
) -> Times:
    """Measure ways alternately.

    Each way is called twice before the first round, which is not counted: it may compile in the
    first call. Each round has another order, so that none always follows the same one, and each
    measurement a pause before it, because the threads of some libraries use a CPU for a while after
    their work has ended.

    Args:
        makers: ways by label.
        rounds: how often each way is measured.
        synchronize: waits for a device; called before and after each measurement.
        min_seconds: a shorter call is repeated within one measurement.
        pause: seconds before each measurement.
        start: called when all ways have been called once; returns the value of `time.monotonic`
            after which no round is started, except the first.
    """
    times, ways = Times(), dict[str, Way]()
    repeats: dict[str, int] = {}
    for label, make in makers.items():
        try:
            way = make()
            # a way that measures itself has no call to repeat
            repeats[label] = 1 if isinstance(way(), Cost) else 0
            synchronize()
            ways[label] = way
        except Exception as error:  # whatever a peer raises; it is reported
            times.missing[label] = explain(error)
    deadline = start()
    for label, way in ways.items():
        if not repeats[label]:
            seconds = _call(way, 1, synchronize).wall
            repeats[label] = max(1, math.ceil(min_seconds / max(seconds, 1e-9)))
    labels, order = list(ways), random.Random(0)
    costs: dict[str, list[Cost]] = {label: [] for label in labels}
    for turn in range(rounds):
        if turn and time.monotonic() > deadline:
            break
        for label in order.sample(labels, len(labels)):
            time.sleep(pause)
            costs[label].append(_call(ways[label], repeats[label], synchronize))
    for label, measured in costs.items():
        times.wall[label] = [cost.wall for cost in measured]
        known = [cost.cpu for cost in measured if cost.cpu is not None]
        if len(known) == len(measured):
            times.cpu[label] = known
    return times


def _call(way: Way, repeats: int, synchronize: Callable[[], None]) -> Cost:
    """The mean cost of a number of calls; those of a way that measures itself are made once."""
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    value = way()
    if isinstance(value, Cost):
        return value
    for _ in range(repeats - 1):
        way()
    synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(wall / repeats, cpu / repeats)


def explain(error: BaseException) -> str:
    """The reason why a way was not measured, in one short line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "))


def shorten(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."


def own_cpu_seconds() -> float:
    """CPU time of this process and of the processes that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure_cpu(process: Any) -> float:
    """CPU seconds of a `psutil.Process` and of those that it started and that still run."""
    import psutil

    total = 0.0
    for part in [process, *process.children(recursive=True)]:
        try:
            times = part.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


class OtherWork:
    """Measures how many CPUs other processes use, from /proc/stat; None where it is not known."""

    def __init__(self) -> None:
        self.start = self._read()

    def read(self) -> float | None:
        """CPUs in use by others since the object was made, of those that this process may use."""
        start, end = self.start, self._read()
        if start is None or end is None or end[0] <= start[0]:
            return None
        wall, busy, own = (after - before for before, after in zip(start, end))
        return round(max(0.0, busy - own) / wall, 2)

    def _read(self) -> tuple[float, float, float] | None:
        """Seconds of wall time, of busy time of this process's CPUs, and of its own CPU time."""
        try:
            lines = Path("/proc/stat").read_text().splitlines()
            cpus = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        except (OSError, AttributeError):  # not Linux
            return None
        rows = [line.split() for line in lines if line.split(" ", 1)[0] in cpus]
        if not rows:
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        # user, nice, system, idle, iowait, irq, softirq
        busy = sum(int(row[column]) for row in rows for column in (1, 2, 3, 6, 7)) / ticks
        total = sum(int(value) for row in rows for value in row[1:9]) / ticks
        return total / len(rows), busy, own_cpu_seconds()
