"""Runs tests in a fork: those that execute the changed line, the most successful first."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from modules import SELECTION

if TYPE_CHECKING:
    import pytest


class Order:
    """A pytest plugin that selects and sorts the tests for a changed line.

    Where tests execute the line in pytest's own process, the others are left out. Those that have
    killed most mutants come first, then file by file the fastest.

    Args:
        tree: copy of the repository.
        path: file for what the tests execute, which is noted in runs without a change.

    Attributes:
        changed: module and number of the line that is changed; None for no change.
        complete: leave out no test.
        kills: number of mutants that each test has killed.
        durations: seconds that each test takes.
        lines: test -> module -> the lines that the test executes.
    """

    def __init__(self, tree: Path, path: Path) -> None:
        self.changed: tuple[str, int] | None = None
        self.complete = False
        self.kills: Counter[str] = Counter()
        self.durations: dict[str, float] = {}
        self.lines: dict[str, dict[str, list[int]]] = {}
        self._hashes: dict[str, str] = {}
        self._tree, self._path = tree, path
        self._sources = f"{tree / 'swag_models'}/"
        self._package = _hash_files(sorted((tree / "swag_models").rglob("*.py")))
        self._executed: dict[str, set[int]] = {}
        if path.exists():
            package, *known = json.loads(path.read_text("utf-8"))
            if package == self._package:
                self._hashes, self.durations, self.lines = known

    def find_unknown(self, tests: list[str]) -> list[str]:
        """Return the files of tests that have not been run without a change."""
        return [test for test in tests if self._hashes.get(test) != self._hash(test)]

    def keep(self, tests: list[str]) -> None:
        """Write what has been noted about the tests in files."""
        self._hashes |= {test: self._hash(test) for test in tests}
        known = [self._package, self._hashes, self.durations, self.lines]
        self._path.write_text(json.dumps(known), "utf-8")

    def _hash(self, test: str) -> str:
        return _hash_files([self._tree / "tests" / test])

    def select(self, tests: list[str]) -> list[str]:
        """Return those of some tests that execute the changed line, or all if none is known to."""
        module, line = self.changed or ("", 0)
        chosen = [test for test in tests if line in self.lines.get(test, {}).get(module, ())]
        return tests if self.complete or not chosen else chosen

    def estimate(self, files: list[str]) -> float:
        """Return how many seconds the selected tests of files take."""
        prefixes = tuple(f"tests/{file}::" for file in files)
        tests = [test for test in self.durations if test.startswith(prefixes)]
        return sum(self.durations[test] for test in self.select(tests))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Select and sort the tests."""
        files = {path: number for number, path in enumerate(dict.fromkeys(i.path for i in items))}
        chosen = set(self.select([item.nodeid for item in items]))
        items[:] = sorted(
            (item for item in items if item.nodeid in chosen),
            key=lambda item: (
                -self.kills[item.nodeid],
                files[item.path],
                self.durations.get(item.nodeid, 0),
            ),
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note which lines a test executes, if nothing is changed."""
        if self.changed is None:
            self._executed = {}
            threading.settrace(self._trace)
            sys.settrace(self._trace)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Keep the lines of a test."""
        if self.changed is None:
            self.lines[nodeid] = {name: sorted(self._executed[name]) for name in self._executed}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the time that a test took, and whether it has failed."""
        if self.changed is None:
            before = 0 if report.when == "setup" else self.durations[report.nodeid]
            self.durations[report.nodeid] = before + report.duration
        self.kills[report.nodeid] += report.failed

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(self._sources):
            return None
        self._executed.setdefault(path[len(self._sources) :], set()).add(frame.f_lineno)
        return self._trace

    def save(self, path: Path) -> None:
        """Write what this process has noted."""
        noted = [self.kills] if self.changed else [self.kills, self.durations, self.lines]
        path.write_text(json.dumps(noted), "utf-8")

    def load(self, path: Path) -> None:
        """Read what a fork has noted, if it has ended by itself."""
        if path.exists():
            kills, *noted = json.loads(path.read_text("utf-8"))
            self.kills = Counter(kills)
            if noted:
                self.durations, self.lines = noted


def _hash_files(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def run_tests(tests: list[str], limit_s: float, order: Order, folder: Path, *options: str) -> str:
    """Run tests in a fork, and stop at the first failure. What pytest prints is in log.txt.

    Args:
        tests: files, below tests/.
        limit_s: seconds of the CPU after which the tests are killed; ten times as many by the
            clock, so that a busy machine is not taken for a change.
        order: of the tests; knows afterwards which has failed.
        folder: for files that this function writes.
        options: for pytest.

    Returns:
        "killed", "survived" or "timeout".
    """
    log, outcomes = folder / "log.txt", folder / "tests.json"
    outcomes.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit_s), resource.RLIM_INFINITY))
        os.setpgid(0, 0)  # not a session of its own, which Linux would give its own priority
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        import pytest

        arguments = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-k", SELECTION, *options]
        arguments += ["--basetemp", str(folder / "temporary")]
        arguments += [f"tests/{test}" for test in tests]
        code = int(pytest.main(arguments, plugins=[order]))
        order.save(outcomes)
        sys.stdout.flush()
        os._exit(code)
    deadline = time.monotonic() + 10 * limit_s
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
    if code == -signal.SIGXCPU:
        return "timeout"
    if code in (4, 5):  # pytest was called wrongly, or no test was selected
        raise SystemExit(log.read_text("utf-8", "replace"))
    order.load(outcomes)
    return "survived" if code == 0 else "killed"
