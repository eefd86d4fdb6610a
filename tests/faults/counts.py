"""Count the outcomes of a fault campaign, and collect the counts for docs/reliability.md.

for case in range(scaled(100_000)):
    counts[judge(lambda: read(case))] += 1
record("weights", counts, row="safetensors: changed bytes")
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from swag_models.atomic import write_json
from swag_models.errors import MAX_MESSAGE, SwagModelsError

FOLDER = Path(__file__).parents[2] / "build" / "faults"
PACKAGES = ("torch", "pillow", "safetensors", "huggingface_hub", "requests", "gradio", "numpy")
# Outcomes of `judge` that are defects. Other outcomes that a campaign records are not judged here.
DEFECTS = ("unclear", "other", "slow")
# Child processes inherit it: counts of one run are added, and those of an earlier run replaced.
RUN = os.environ.setdefault("FAULTS_RUN", f"{time.time_ns()}")


def scaled(count: int) -> int:
    """Return a number of cases, multiplied by FAULTS_SCALE (1.0 by default) and at least 1."""
    return max(1, round(count * float(os.environ.get("FAULTS_SCALE", "1"))))


def judge(call: Callable[[], object], limit_s: float = 5) -> str:
    """Run a call and name its outcome.

    Args:
        call: the call with a hostile input.
        limit_s: CPU seconds (all threads) above which a call is slow. Waiting is not counted.

    Returns:
        "accepted" if the call returned, "clean" for an error of this library in one printable line
        of less than 500 characters, "unclear" for another error of this library, "other" for any
        other exception, "slow" for any of these after the limit.
    """
    start = time.process_time()
    outcome = "accepted"
    try:
        call()
    except SwagModelsError as error:
        message = str(error)
        fits = message.isprintable() and 0 < len(message) <= MAX_MESSAGE
        outcome = "clean" if fits else "unclear"
    except Exception:
        outcome = "other"
    return "slow" if time.process_time() - start > limit_s else outcome


def record(section: str, counts: Mapping[str, int], row: str = "all") -> None:
    """Merge counts into build/faults/SECTION.json.

    Args:
        section: part of the campaign, for example "weights"; a table of docs/reliability.md.
        counts: number of cases by outcome.
        row: kind of input; a row of the table. Several calls of one run add up.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{section}.json"
    test_file = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[0] or "tests/faults"
    with FileLock(f"{path}.lock"):
        rows: dict[str, Any] = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else {}
        earlier = rows.get(row, {})
        before = earlier["counts"] if earlier.get("run") == RUN else {}
        outcomes = {key: before.get(key, 0) + counts.get(key, 0) for key in {**before, **counts}}
        rows[row] = {
            "run": RUN,
            "counts": outcomes,
            "command": f"python -m pytest -m faults {test_file}",
            "scale": os.environ.get("FAULTS_SCALE", "1"),
        }
        write_json(path, {"rows": rows, "environment": describe_environment()})
    print(f"{section}, {row}: {outcomes}")


def describe_environment() -> dict[str, str]:
    """Return the date, the machine and the versions of the packages that read hostile inputs."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
    }
