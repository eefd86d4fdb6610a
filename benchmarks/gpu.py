"""All that only a GPU shows, in at most 8 minutes: `make gpu`.

    python -m benchmarks.gpu [--minutes 8] [--only NAME ...] [--no-tests] [--machine NAME]

Needs torch 2.11 or newer, CUDA and this checkout. torchvision is the peer; without it, Pillow or
pytest, the results state what was not measured. The rows are: inference in bfloat16 of all six
architectures at the image sizes of their published classifiers; training steps; a folder of JPEGs
to features, also decoded by the GPU (nvJPEG in torchvision); and tests/gpu. Each row is a process.
All compile at the same time, and then measure one after the other, alone on the GPU. Results are
written as those of `make bench`, to results/GPU.json. MFU is the share of the peak of a dense
matrix product of bfloat16 in NVIDIA's data sheets, where the GPU is listed. --device cpu tests
this script with small models on the CPU.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]  # scripts of this folder import each other

import torch
from gpu_ways import GpuRow, list_rows
from measure import OtherWork, explain, measure, shorten
from results import RESULTS, ROOT, Result, ResultFile, describe_machine, find_source, stamp

from swag_models.errors import SwagModelsError
from swag_models.formatting import count_noun
from swag_models.recipe.training.logging import find_peak
from swag_models.runtime import count_cpus

ROUNDS, MIN_SECONDS = 11, 0.2
MIN_TORCH = (2, 11)
READY = "ready"  # what a child prints when all its ways are compiled
OURS = "swag_models"
TEST_ROW, TEST_GROUP, TESTS = "GPU tests", "GPU: tests", "tests/gpu"
TEST_SHARE = 0.3  # of the time, kept for the tests
COMPILE_SHARE = 0.7  # of the time of all rows, at most
EXTRA_SECONDS = 20  # of the last round of a row
LATE = "not measured within the time"
BUILD = ROOT / "build" / "benchmarks"  # results of the CPU


class Child:
    """A process that compiles the ways of a row, then waits until it may measure them."""

    def __init__(self, row: GpuRow, folder: Path, device: str, threads: int) -> None:
        folder.mkdir()
        self.row, self.output = row, folder / "result.json"
        self.log = (folder / "log").open("w+b")
        command = [sys.executable, "-m", "benchmarks.gpu", "--device", device, "--child", row.name]
        self.process = subprocess.Popen(
            [*command, str(self.output)],
            cwd=ROOT,
            env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,  # its compilers are killed with it
        )

    def wait_until_ready(self) -> bool:
        """Wait until all ways are compiled; False if the process ends before."""
        assert self.process.stdout
        return any(line.strip() == READY.encode() for line in self.process.stdout)

    def measure(self, seconds: float) -> Result:
        """Let the process measure, starting no round after a number of seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self.process.communicate(f"{seconds}\n".encode(), timeout=seconds + EXTRA_SECONDS)
        if self.output.exists():
            return Result(**json.loads(self.output.read_text()))
        return self.fail()

    def fail(self) -> Result:
        """A result without times: the reason is the last line that the process wrote to stderr."""
        status = self.process.poll()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        if status is None or status < 0:
            reason = LATE
        else:
            reason = lines[-1] if lines else f"exit status {status}"
        return Result(self.row.text, self.row.group, self.row.ours, failed=shorten(reason))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self.process.communicate()
        self.log.close()


def run_child(name: str, output: Path, device: str) -> None:
    """Compile the ways of a row, wait for a line on stdin, and measure."""

    def wait() -> float:
        if device != "cpu":
            torch.cuda.empty_cache()  # the others compile on the same GPU
        print(READY, flush=True)
        return time.monotonic() + float(sys.stdin.readline())

    row = next(row for row in list_rows(device) if row.name == name)
    result = measure_row(row, device, start=wait)
    partial = output.with_suffix(".part")
    partial.write_text(json.dumps(asdict(result)))
    partial.rename(output)


def measure_row(
    row: GpuRow,
    device: str,
    *,
    start: Callable[[], float],
    rounds: int = ROUNDS,
    min_seconds: float = MIN_SECONDS,
) -> Result:
    """Measure a row in this process; the notes are rates in FLOP/s and the MFU."""
    result = Result(row.text, row.group, row.ours, row.items, row.unit)
    other_work = OtherWork()
    synchronize = torch.cuda.synchronize if device != "cpu" else lambda: None
    times = measure(
        row.prepare(), rounds, synchronize=synchronize, min_seconds=min_seconds, start=start
    )
    result.wall, result.cpu, result.missing = times.wall, times.cpu, times.missing
    peak = find_peak(torch.cuda.get_device_name(), "bf16") if device != "cpu" else None
    for label, seconds in result.wall.items():
        if row.flops and "merge_tokens" not in label:  # which computes less for each image
            rate = row.flops * row.items / statistics.median(seconds)
            mfu = f", MFU {rate / peak:.1%}" if peak else ""
            result.notes[label] = f"{rate / 1e12:.3g} TFLOP/s{mfu}"
    if row.ours not in result.wall:
        result.failed = result.missing.get(row.ours, "not measured")
    result.other_work = other_work.read()
    return result


def run_tests(seconds: float) -> Result:
    """Run tests/gpu; the note counts passed and failed tests."""
    result = Result(f"pytest {TESTS}", TEST_GROUP, OURS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        result.failed = "tests took longer than the time left"
        return result
    lines = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
    last = lines[-1].strip("= ") if lines else f"exit status {done.returncode}"
    if done.returncode:
        result.failed = last
        print("\n".join(lines[-30:]), file=sys.stderr)
    else:
        result.notes[OURS] = last
    return result


def run_rows(
    rows: list[GpuRow], device: str, deadline: float, add: Callable[[str, Result], None]
) -> None:
    """Compile all rows at the same time, then measure one after the other.

    Args:
        rows: the rows.
        device: "cuda" or "cpu".
        deadline: value of `time.monotonic` at which the last measurement ends.
        add: stores a row by its name.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        children = []
        threads = max(1, count_cpus() // max(1, len(rows)))
        for number, row in enumerate(rows):
            children.append(Child(row, Path(folder, str(number)), device, threads))
            stack.callback(children[-1].close)
        compiling = set(children)

        def stop_compiling() -> None:
            for child in compiling.copy():
                child.kill()

        left = deadline - time.monotonic()
        timer = threading.Timer(COMPILE_SHARE * left, stop_compiling)
        timer.start()
        stack.callback(timer.cancel)
        ready = []
        for child in children:
            if child.wait_until_ready():
                ready.append(child)
            else:
                child.process.wait()
                add(child.row.name, child.fail())
            compiling.discard(child)
        timer.cancel()
        print(f"compiled {count_noun(len(ready), 'row')}", file=sys.stderr, flush=True)
        for number, child in enumerate(ready):
            left = (deadline - time.monotonic()) / (len(ready) - number)
            add(child.row.name, child.measure(max(1.0, left)))
            child.close()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="at most")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts of row names")
    parser.add_argument("--no-tests", action="store_true", help=f"leave out {TESTS}")
    parser.add_argument("--machine", metavar="NAME", help="name of the file; default: the GPU")
    parser.add_argument("--output", type=Path, help="folder of the JSON files and the report")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--child", nargs=2, metavar=("ROW", "OUTPUT"), help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    start, options = time.monotonic(), make_parser().parse_args(arguments)
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        print("error: benchmarks/gpu.py needs CUDA, and torch finds no GPU", file=sys.stderr)
        return 1
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < MIN_TORCH:
        needed = ".".join(map(str, MIN_TORCH))
        print(f"error: torch is {torch.__version__}; needed: {needed} or newer", file=sys.stderr)
        return 1
    if options.child:
        run_child(options.child[0], Path(options.child[1]), device)
        return 0
    rows = [
        row
        for row in list_rows(device)
        if not options.only or any(text in row.name for text in options.only)
    ]
    try:
        return measure_all(rows, device, start + 60 * options.minutes, options)
    except SwagModelsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def measure_all(
    rows: list[GpuRow], device: str, deadline: float, options: argparse.Namespace
) -> int:
    """Measure rows, run the tests, and write the results and the report."""
    machine = describe_machine(torch.cuda.get_device_name() if device == "cuda" else "")
    folder = options.output or (RESULTS if device == "cuda" else BUILD)
    file = ResultFile(folder / f"{options.machine or machine.name}.json", machine)
    settings = {"source": find_source(), "rounds": ROUNDS, "clock": "wall"}
    failed = []

    def add(name: str, result: Result) -> None:
        file.add(name, stamp(result, settings))
        failed.extend([name] if result.failed else [])
        outcome = f"failed: {result.failed}" if result.failed else "measured"
        without = "".join(f"; without {label} ({why})" for label, why in result.missing.items())
        print(f"{name}: {outcome}{without}", file=sys.stderr, flush=True)

    runs_tests = not options.no_tests
    left = deadline - time.monotonic()
    run_rows(rows, device, deadline - runs_tests * TEST_SHARE * left, add)
    if runs_tests:
        if importlib.util.find_spec("pytest"):
            add(TEST_ROW, run_tests(deadline - time.monotonic()))
        else:
            reason = "pytest is not installed"
            add(TEST_ROW, Result(f"pytest {TESTS}", TEST_GROUP, OURS, failed=reason))
    print(file.path)
    try:
        from report import write_report

        write_report(folder, folder.parent if folder == RESULTS else folder)
    except (ImportError, SwagModelsError) as error:  # matplotlib
        print(f"the report is not written: {explain(error)}", file=sys.stderr)
    if failed:
        print(f"{count_noun(len(failed), 'row')} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
