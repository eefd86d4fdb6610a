"""Run the numerical tests under each instruction set of this CPU, thread count and environment.

    python tests/matrix.py [pytest arguments]

Kernels differ between instruction sets, and users start Python from shells that ignore SIGINT,
without HOME, in other time zones and locales. Arguments are passed on to pytest. Exit code 1 if any
run failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
NUMERICAL = (
    "tests/models",
    "tests/test_layouts.py",
    "tests/test_state_dict.py",
    "tests/test_preprocess.py",
    "tests/inference/test_acceleration.py",
    "tests/recipe/training/test_losses.py",
    "tests/recipe/training/test_optimizer.py",
    "tests/recipe/training/test_estimate.py",
    "tests/recipe/evaluation/accuracy/test_metrics.py",
    "tests/recipe/evaluation/probes",
    "tests/recipe/evaluation/zero_shot/test_calibration.py",
    "tests/recipe/evaluation/bias/test_disparity.py",
)
SIGNALS = (  # tests that send SIGINT or SIGTERM to processes
    "tests/cli",
    "tests/hub/test_fetch_processes.py",
    "tests/inference/test_embed_processes.py",
    "tests/inference/test_embed_resume.py",
    "tests/recipe/curation/test_curate.py",
    "tests/recipe/data/test_pack_killed.py",
    "tests/recipe/training/test_trainer.py",
    "tests/studies/test_scenes.py",
)


def list_runs() -> list[tuple[str, tuple[str, ...], dict[str, str | None], bool]]:
    """(title, test paths, changes of the environment, whether SIGINT is ignored) of every run."""
    flags = set(CPU_INFO.read_text().split()) if CPU_INFO.exists() else set()
    has = {"AVX2": "avx2" in flags, "AVX512": "avx512f" in flags, "AMX": "amx_bf16" in flags}
    variables: list[dict[str, str | None]] = [{"ATEN_CPU_CAPABILITY": "default"}]
    variables += [{"ATEN_CPU_CAPABILITY": name.lower()} for name in ("AVX2", "AVX512") if has[name]]
    levels = {"AVX2": "AVX2", "AVX512_CORE": "AVX512", "AVX512_CORE_AMX": "AMX"}
    variables += [{"ONEDNN_MAX_CPU_ISA": name} for name, needs in levels.items() if has[needs]]
    runs: list[tuple[str, tuple[str, ...], dict[str, str | None], bool]] = []
    for change in variables:
        for threads in ("1", "2"):
            environment = {**change, "OMP_NUM_THREADS": threads}
            title = " ".join(f"{name}={value}" for name, value in environment.items())
            runs.append((title, NUMERICAL, environment, False))
    runs.append(("SIGINT ignored by the shell", SIGNALS, {}, True))
    runs.append(("without HOME", NUMERICAL + SIGNALS, {"HOME": None}, False))
    foreign: dict[str, str | None] = {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "LANG": None}
    runs.append(("TZ=Asia/Kathmandu LC_ALL=C", NUMERICAL + SIGNALS, foreign, False))
    return runs


def main(arguments: list[str]) -> int:
    """Run all combinations, print a line for each, and return the exit code."""
    failed = 0
    for title, paths, change, ignore_sigint in list_runs():
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for name, value in change.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", *paths, *arguments]
        start = time.monotonic()
        # A child inherits an ignored signal, as the children of a shell's background jobs do.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignore_sigint else None
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
        finally:
            if handler is not None:
                signal.signal(signal.SIGINT, handler)
        lines = done.stdout.strip().splitlines() or ["no output"]
        print(f"{title}: {lines[-1]} ({time.monotonic() - start:.0f} s)", flush=True)
        if done.returncode:
            failed += 1
            print(
                *(line for line in lines if line.startswith(("FAILED", "ERROR"))),
                sep="\n",
                flush=True,
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
