"""Runs tests in a fork, those first that have noticed most changes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from modules import SELECTION

if TYPE_CHECKING:
    import pytest


class Order:
    """A pytest plugin that runs those tests first that have killed most mutants.

    The others follow file by file, the fastest of each file first.

    Attributes:
        kills: number of mutants that each test has killed.
        durations: seconds that each test takes.
    """

    def __init__(self) -> None:
        self.kills: Counter[str] = Counter()
        self.durations: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort the tests."""
        files = {path: number for number, path in enumerate(dict.fromkeys(i.path for i in items))}
        items.sort(
            key=lambda item: (
                -self.kills[item.nodeid],
                files[item.path],
                self.durations.get(item.nodeid, 0),
            )
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the time that a test took, and whether it has failed."""
        self.durations[report.nodeid] = self.durations.get(report.nodeid, 0) + report.duration
        self.kills[report.nodeid] += report.failed

    def save(self, path: Path) -> None:
        """Write what this process has noted."""
        path.write_text(json.dumps([self.kills, self.durations]), "utf-8")

    def load(self, path: Path, with_durations: bool) -> None:
        """Read what a fork has noted, if it has ended by itself."""
        if path.exists():
            kills, durations = json.loads(path.read_text("utf-8"))
            self.kills = Counter(kills)
            self.durations = durations if with_durations else self.durations


def run_tests(tests: list[str], limit_s: float, order: Order, folder: Path) -> str:
    """Run tests in a fork, and stop at the first failure. What pytest prints is in log.txt.

    Args:
        tests: files, below tests/.
        limit_s: seconds after which the tests are killed.
        order: of the tests; knows afterwards which has failed.
        folder: for files that this function writes.

    Returns:
        "killed", "survived" or "timeout".
    """
    log, outcomes = folder / "log.txt", folder / "tests.json"
    outcomes.unlink(missing_ok=True)
    is_first = not order.durations
    child = os.fork()
    if child == 0:
        os.setsid()
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        import pytest

        arguments = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-k", SELECTION]
        arguments += ["--basetemp", str(folder / "temporary")]
        arguments += [f"tests/{test}" for test in tests]
        code = int(pytest.main(arguments, plugins=[order]))
        order.save(outcomes)
        sys.stdout.flush()
        os._exit(code)
    deadline = time.monotonic() + limit_s
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also servers that a test has left
    if not ended:
        os.waitpid(child, 0)
        return "timeout"
    code = os.waitstatus_to_exitcode(status)
    if code in (4, 5):  # pytest was called wrongly, or no test was selected
        raise SystemExit(log.read_text("utf-8", "replace"))
    order.load(outcomes, with_durations=is_first)
    return "survived" if code == 0 else "killed"
