"""1,000 downloads from a server that misbehaves, by processes that are killed and restarted."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faults.chaos import KINDS, NEEDS_HASH, ChaosServer
from faults.counts import record, scaled
from fetch_support import CLEARED_VARIABLES, list_files, make_safetensors, make_spec
from server import sha256

from swag_models.spec import Source

pytestmark = pytest.mark.faults
LIMIT_S = 90  # seconds after which a process counts as hanging; its own limits are about 2 s
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DEFECTS = ("wrong file, with hash", "other", "unclear", "hang", "left files", "last fetch failed")


@dataclass(frozen=True)
class Case:
    """One download.

    Attributes:
        seed: of the file and of the server.
        kinds: how the server misbehaves, in the order of requests.
        digits: leading digits of the hash that the source states; 0 for none.
        processes: number of processes at once.
        kills: for each restart, seconds until the signal, and the signal.
    """

    seed: int
    kinds: tuple[str, ...]
    digits: int
    processes: int
    kills: tuple[tuple[float, int], ...] = field(default=())


def fetch(spec: str, folder: Path, result: Path) -> None:
    """Fetch a model in a new process, and write how it ended. Waits and time limits are short."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in CLEARED_VARIABLES:
        os.environ.pop(name, None)
    os.environ["SWAG_MODELS_CACHE"] = str(folder / "cache")
    os.environ["TORCH_HOME"] = os.environ["HF_HOME"] = os.environ["HOME"] = str(folder / "home")
    log = os.open(folder / f"{result.stem}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    os.dup2(log, 1)
    from swag_models.errors import MAX_MESSAGE, SwagModelsError
    from swag_models.hub import download
    from swag_models.hub.fetch import fetch_weights
    from swag_models.spec import ModelSpec

    download.TIMEOUT = (0.5, 0.5)
    download.random.uniform = lambda low, high: 0.02  # type: ignore[assignment]
    try:
        outcome = {"path": str(fetch_weights(ModelSpec.from_json(spec)))}
    except SwagModelsError as error:
        message = str(error)
        clear = message.isprintable() and 0 < len(message) <= MAX_MESSAGE
        outcome = {"error": "clean" if clear else "unclear", "message": message}
    except Exception as error:
        outcome = {"error": "other", "message": repr(error)}
    result.write_text(json.dumps(outcome))


def run_case(case: Case, folder: Path) -> Counter[str]:
    """Run a case; return the number of processes by outcome."""
    rng = random.Random(case.seed)
    size = rng.randrange(200_000, 2_000_000)
    content, other = make_safetensors(size, case.seed), make_safetensors(size, case.seed + 1)
    digest = sha256(content)[: case.digits] or None
    counts: Counter[str] = Counter()
    with ChaosServer(content, other, list(case.kinds), case.seed) as server:
        spec = make_spec(Source(server.url + "/x.pth", "timm", digest)).to_json()
        # Without a hash, any complete version that was served is right.
        right = {sha256(content)} if digest else {sha256(content), sha256(other)}
        for number, kill in enumerate([*case.kills, None]):
            counts += run_processes(case, spec, folder, f"{number}", kill, right)
        server.kinds.clear()
        last = run_processes(case, spec, folder, "last", None, right, processes=1)
        counts["last fetch right" if last["right"] else "last fetch failed"] += 1
    cache = folder / "cache"
    left = [path for path in list_files(cache) if path.suffix in (".part", ".tmp")]
    counts["left files"] += len(left)
    for log in folder.glob("*.log"):
        counts["other"] += (
            "Traceback" in log.read_text() and "KeyboardInterrupt" not in log.read_text()
        )
    if any(counts[name] for name in DEFECTS):
        results = {path.name: path.read_text() for path in sorted(folder.glob("*.json"))}
        print(f"\n{case}\n{dict(counts)}\n{results}\n{left}")
    return counts


def run_processes(
    case: Case,
    spec: str,
    folder: Path,
    name: str,
    kill: tuple[float, int] | None,
    right: set[str],
    processes: int = 0,
) -> Counter[str]:
    """Start the processes of a case, kill one if asked; return their outcomes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["swag_models.hub.fetch", "requests", "tqdm", "filelock"])
    results = [folder / f"{name}-{n}.json" for n in range(processes or case.processes)]
    started = [context.Process(target=fetch, args=(spec, folder, result)) for result in results]
    for process in started:
        process.start()
    if kill:
        time.sleep(kill[0])
        with contextlib.suppress(ProcessLookupError):
            os.kill(started[0].pid or 0, kill[1])
    counts: Counter[str] = Counter()
    deadline = time.monotonic() + LIMIT_S
    for process, result in zip(started, results):
        process.join(max(0.1, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
            counts["hang"] += 1
        elif not result.exists():
            counts["killed" if kill and process is started[0] else "other"] += 1
        else:
            counts[judge_result(json.loads(result.read_text()), right, case)] += 1
        process.close()
    return counts


def judge_result(result: dict[str, str], right: set[str], case: Case) -> str:
    """Return the outcome of a process that ended."""
    if "path" not in result:
        return result["error"]
    if sha256(Path(result["path"])) in right:
        return "right"
    return "wrong file, with hash" if case.digits else "wrong file, without hash"


def run_cases(cases: list[Case], row: str, tmp_path: Path) -> Counter[str]:
    """Run cases, four at a time; record and return the sums."""
    folders = [tmp_path / str(number) for number in range(len(cases))]
    for folder in folders:
        (folder / "home").mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        counts = sum(pool.map(run_case, cases, folders), Counter())
    record("downloads", counts, row=row)
    return counts


def list_kinds(digits: int) -> list[str]:
    """Return the kinds of faults for a source that states this number of digits of the hash."""
    return [kind for kind in KINDS if digits or kind not in NEEDS_HASH]


def test_downloads_with_one_kind_of_fault(tmp_path: Path) -> None:
    cases = []
    for number in range(scaled(500)):
        rng = random.Random(number)
        digits = (64, 8, 0)[number % 3]
        kinds = list_kinds(digits)
        kind = kinds[number // 3 % len(kinds)] if scaled(500) == 500 else rng.choice(kinds)
        cases.append(Case(number, (kind,) * rng.randint(1, 3), digits, rng.choice([1, 1, 2])))
    counts = run_cases(cases, "one kind of fault", tmp_path)
    assert {name: counts[name] for name in DEFECTS if counts[name]} == {}
    assert not counts["wrong file, without hash"]


def test_downloads_with_mixed_faults_kills_and_restarts(tmp_path: Path) -> None:
    cases = []
    for number in range(scaled(500)):
        rng = random.Random(10_000 + number)
        digits = (64, 8, 0)[number % 3]
        kinds = tuple(rng.choices(list_kinds(digits), k=rng.randint(1, 14)))
        kills = [
            (rng.uniform(0, 1), rng.choice(SIGNALS))
            for _ in range(rng.choice([1, 3]) if number % 2 else 0)
        ]
        cases.append(Case(number, kinds, digits, rng.choice([1, 2, 4]), tuple(kills)))
    counts = run_cases(cases, "mixed faults, kills, 1 to 4 processes", tmp_path)
    assert {name: counts[name] for name in DEFECTS if counts[name]} == {}
