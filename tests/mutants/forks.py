"""Tests mutants in forks of a process that has imported the package and collected the tests.

A change inside of a function is made by replacing its code, so that nothing is imported or
collected again. Other changes, and those that survive, are tested in a new process.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from modules import SELECTION

if TYPE_CHECKING:
    import pytest
    from run import Mutant

OPTIONS = ("-q", "--capture=sys", "--tb=line", "-p", "no:cacheprovider", "-k", SELECTION)


class Observations:
    """What unchanged tests take and execute, kept in a file.

    Args:
        tree: copy of the repository.
        path: the file.

    Attributes:
        durations: seconds that each test takes.
        lines: test -> module -> the lines that the test executes in pytest's own process.
    """

    def __init__(self, tree: Path, path: Path) -> None:
        self.durations: dict[str, float] = {}
        self.lines: dict[str, dict[str, list[int]]] = {}
        self._hashes: dict[str, str] = {}
        self._tree, self._path = tree, path
        self._package = _hash_files(sorted((tree / "swag_models").rglob("*.py")))
        if path.exists():
            package, *known = json.loads(path.read_text("utf-8"))
            if package == self._package:
                self._hashes, self.durations, self.lines = known

    def find_unknown(self, tests: list[str]) -> list[str]:
        """Return the files of tests that have not been observed."""
        return [test for test in tests if self._hashes.get(test) != self._hash(test)]

    def keep(self, tests: list[str], observed: Path) -> None:
        """Add what a fork has written about the tests in files."""
        durations, lines = json.loads(observed.read_text("utf-8"))
        self.durations |= durations
        self.lines |= lines
        self._hashes |= {test: self._hash(test) for test in tests}
        known = [self._package, self._hashes, self.durations, self.lines]
        self._path.write_text(json.dumps(known), "utf-8")

    def _hash(self, test: str) -> str:
        return _hash_files([self._tree / "tests" / test])


class Session:
    """A pytest plugin that tests mutants of a module instead of running tests.

    Args:
        tree: copy of the repository.
        module: the module, below swag_models/.
        tests: files of tests, below tests/.
        mutants: changed versions of the module.
        report: is called with each mutant and its outcome: "killed", "survived" or "timeout".
        folder: for files that this class writes; what the tests print is in log.txt.
    """

    def __init__(
        self,
        tree: Path,
        module: str,
        tests: list[str],
        mutants: list[Mutant],
        report: Callable[[Mutant, str], None],
        folder: Path,
    ) -> None:
        self._tree, self._module, self._tests = tree, module, tests
        self._mutants, self._report, self._folder = mutants, report, folder
        self._path = tree / "swag_models" / module
        self._source = self._path.read_text("utf-8")
        self._kills: Counter[str] = Counter()
        self._observations = Observations(tree, folder / "observations.json")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Test each mutant."""
        sources = f"{self._tree / 'swag_models'}/"
        known = self._observations
        if unknown := known.find_unknown(self._tests):
            items = [item for item in session.items if self._file(item) in unknown]
            observed = self._folder / "observed.json"
            if self._fork(lambda: _observe(session, items, sources, observed), 6000) != "survived":
                raise SystemExit(f"A test fails without a mutant; see {self._folder / 'log.txt'}")
            known.keep(unknown, observed)
        for mutant in self._mutants:
            self._path.write_text(mutant.code, "utf-8")  # for TorchScript, and for other processes
            try:
                self._report(mutant, self._test(session, mutant))
            finally:
                self._path.write_text(self._source, "utf-8")
        return True

    def _test(self, session: pytest.Session, mutant: Mutant) -> str:
        """Return the outcome of a mutant."""
        items = self._select(session.items, mutant.line)
        durations = self._observations.durations
        limit_s = 60 + 3 * sum(durations[item.nodeid] for item in session.items)
        killer = self._folder / "killer.txt"
        killer.unlink(missing_ok=True)
        outcome = self._fork(lambda: self._run_changed(session, items, mutant, killer), limit_s)
        if killer.exists():
            self._kills[killer.read_text("utf-8")] += 1
        if outcome != "survived":
            return outcome
        arguments = [sys.executable, "-m", "pytest", "-x", *OPTIONS]
        arguments += ["--basetemp", str(self._folder / "temporary")]
        arguments += [f"tests/{test}" for test in self._tests]
        return self._fork(lambda: subprocess.run(arguments).returncode == 0, 60 + limit_s)

    def _select(self, items: list[pytest.Item], line: int) -> list[pytest.Item]:
        """Return the tests that execute a line, the most successful and the fastest first."""
        known = self._observations
        chosen = [i for i in items if line in known.lines[i.nodeid].get(self._module, ())]
        return sorted(
            chosen,
            key=lambda item: (
                -self._kills[item.nodeid],
                self._tests.index(self._file(item)),
                known.durations[item.nodeid],
            ),
        )

    def _file(self, item: pytest.Item) -> str:
        return item.path.relative_to(self._tree / "tests").as_posix()

    def _run_changed(
        self, session: pytest.Session, items: list[pytest.Item], mutant: Mutant, killer: Path
    ) -> bool:
        """Change the module of this process, and run tests; return whether all pass."""
        module = sys.modules[f"swag_models.{self._module.removesuffix('.py').replace('/', '.')}"]
        if replace_code(module, self._source, mutant.code):
            for item in run_items(session, items):
                if session.testsfailed:
                    killer.write_text(item.nodeid, "utf-8")
                    return False
        return True

    def _fork(self, work: Callable[[], bool], limit_s: float) -> str:
        """Run a function in a fork.

        Args:
            work: the function, which returns whether all tests have passed.
            limit_s: seconds of the CPU after which the fork is killed; ten times as many by the
                clock, so that a busy machine is not taken for a change.

        Returns:
            "survived", "killed" or "timeout".
        """
        child = os.fork()
        if child == 0:
            code = 70
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit_s), -1))
                os.setpgid(0, 0)  # not a session, which Linux would give its own priority
                with (self._folder / "log.txt").open("w") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                code = 0 if work() else 1
            except KeyboardInterrupt:  # of the changed code
                code = 1
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        deadline = time.monotonic() + 10 * limit_s
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # also servers that a test has left
        if not ended:
            os.waitpid(child, 0)
            return "timeout"
        code = os.waitstatus_to_exitcode(status)
        if code == 70:
            raise RuntimeError((self._folder / "log.txt").read_text("utf-8", "replace"))
        return {0: "survived", -signal.SIGXCPU: "timeout"}.get(code, "killed")


def run_items(session: pytest.Session, items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Run tests; each is yielded when it has ended."""
    for item, following in zip(items, [*items[1:], None]):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        yield item


def _observe(session: pytest.Session, items: list[pytest.Item], sources: str, path: Path) -> bool:
    """Run tests, and write how long they take and which lines of the package they execute."""
    executed: dict[str, set[int]] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(sources):
            return None
        executed.setdefault(name[len(sources) :], set()).add(frame.f_lineno)
        return trace

    durations, lines = {}, {}
    threading.settrace(trace)
    start = time.monotonic()
    sys.settrace(trace)
    for item in run_items(session, items):
        if session.testsfailed:
            print(f"{item.nodeid} fails")
            return False
        durations[item.nodeid] = time.monotonic() - start
        lines[item.nodeid] = {name: sorted(numbers) for name, numbers in executed.items()}
        executed.clear()
        start = time.monotonic()
        sys.settrace(trace)  # a test may have ended it
    sys.settrace(None)
    path.write_text(json.dumps([durations, lines]), "utf-8")
    return True


def replace_code(module: ModuleType, source: str, changed: str) -> bool:
    """Replace the code of a module's functions; return False if other code is changed too."""
    path = str(module.__file__)
    functions = list(_find_functions(module))

    def replace(old: CodeType, new: CodeType) -> bool:
        if old.co_flags & inspect.CO_NEWLOCALS:  # a function
            found = [f for f in functions if f.__code__.co_qualname == old.co_qualname]
            with contextlib.suppress(ValueError):  # another number of variables of outer functions
                for function in found:
                    function.__code__ = new
                return bool(found)
            return False
        return _without_inner(old) == _without_inner(new) and all(
            inner == other or replace(inner, other)
            for inner, other in zip(_list_inner(old), _list_inner(new))
        )

    return replace(compile(source, path, "exec"), compile(changed, path, "exec"))


def _list_inner(code: CodeType) -> list[CodeType]:
    """Return the code objects of the functions and classes in a code object."""
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _without_inner(code: CodeType) -> tuple[Any, ...]:
    """Return what a code object does, apart from the functions and classes in it."""
    constants = [None if isinstance(c, CodeType) else (type(c), c) for c in code.co_consts]
    return code.co_code, constants, code.co_names


def _find_functions(module: ModuleType) -> Iterator[FunctionType]:
    """Find the functions and methods of a module, also in decorators; empty their caches."""
    values, seen = list(vars(module).values()), set()
    while values:
        value = values.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType) and value.__code__.co_filename == module.__file__:
            yield value
        elif isinstance(value, type) and value.__module__ == module.__name__:
            values += vars(value).values()
        elif isinstance(value, property):
            values += (value.fget, value.fset)
        if hasattr(value, "cache_clear"):
            value.cache_clear()
        values.append(vars(value).get("__wrapped__") if hasattr(value, "__dict__") else None)
        values.append(getattr(value, "__func__", None))  # of a static or class method


def _hash_files(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
