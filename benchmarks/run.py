"""All benchmarks beside their peers, in one table: `make bench`.

    python -m benchmarks.run [--rounds 25] [--quick] [--only NAME ...] [--clock wall] [--list]

Each row of `rows.py` is measured in a process of its own, and written to results/MACHINE.json when it
is finished; then RESULTS.md and results.png are written from the files of all machines. An
interrupted run is resumed by the same command: rows that were finished with the same package
source, rounds, clock and threads are kept. --again measures them again. On a machine with other
work, pass --clock cpu, which compares CPU times with one thread: several would wait for each other,
which counts as CPU time. OMP_NUM_THREADS sets another number for both clocks. --quick takes 3 rounds of smaller inputs, as a test
of the benchmarks, and writes to build/benchmarks. The exit status is 1 if a row failed.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]  # scripts of this folder import each other

from measure import OtherWork, measure, shorten
from report import write_report
from results import RESULTS, ROOT, Result, ResultFile, describe_machine, find_source, stamp
from row import Context, Row
from rows import ROWS

from swag_models.errors import SwagModelsError
from swag_models.formatting import count_noun
from swag_models.runtime import count_cpus, read_environment

QUICK_ROUNDS = 3
QUICK_RESULTS = ROOT / "build" / "benchmarks"


def measure_row(row: Row, context: Context, rounds: int) -> Result:
    """Measure a row in this process."""
    size = row.size(context)
    result = Result(row.describe(context), row.group, row.ours, size if row.unit else 0, row.unit)
    other_work = OtherWork()
    times = measure(row.prepare(context, size), rounds)
    result.wall, result.cpu, result.missing = times.wall, times.cpu, times.missing
    if row.ours not in result.wall:
        result.failed = result.missing.get(row.ours, "not measured")
    result.other_work = other_work.read()
    return result


def run_row(row: Row, rounds: int, options: argparse.Namespace) -> Result:
    """Measure a row in a new process, so that no row changes the threads or memory of another."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "result.json")
        command = [sys.executable, "-m", "benchmarks.run", "--child", row.name]
        command += [str(output), "--rounds", str(rounds)]
        command += ["--quick"] if options.quick else []
        command += ["--timm-script", options.timm_script] if options.timm_script else []
        command += ["--wordnet", options.wordnet] if options.wordnet else []
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ORT_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": str(count_threads(options.clock)),
        }
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        if output.exists():
            return Result(**json.loads(output.read_text()))
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        return Result(row.name, row.group, row.ours, failed=shorten(reason))


def count_threads(clock: str) -> int:
    """Threads of every way that has any, except those that are described with one."""
    default = 1 if clock == "cpu" else count_cpus()
    return read_environment("OMP_NUM_THREADS", default)


def run_child(options: argparse.Namespace) -> None:
    name, output = options.child
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Path(folder), options.quick, options.timm_script, options.wordnet)
        result = measure_row(ROWS[name], context, options.rounds)
    Path(output).write_text(json.dumps(asdict(result)))


def select_rows(patterns: list[str]) -> list[Row]:
    """Rows by name, or with names that contain one of the texts or match one of the patterns."""
    return [
        row
        for row in ROWS.values()
        if not patterns or any(_matches(row.name, pattern) for pattern in patterns)
    ]


def _matches(name: str, pattern: str) -> bool:
    if pattern in ROWS:  # which may be a part of other names
        return name == pattern
    return pattern in name or fnmatch.fnmatchcase(name, pattern)


def run_rows(rows: list[Row], file: ResultFile, options: argparse.Namespace) -> list[str]:
    """Measure rows and write each; return the names of those that failed."""
    failed = []
    for number, row in enumerate(rows, 1):
        rounds = min(options.rounds, row.rounds)
        settings = {
            "source": find_source(),
            "rounds": rounds,
            "clock": options.clock,
            "threads": count_threads(options.clock),
        }
        title = f"[{number}/{len(rows)}] {row.name}"
        if not options.again and file.is_done(row.name, settings):
            print(f"{title}: kept, measured before", file=sys.stderr, flush=True)
            continue
        print(f"{title} ...", file=sys.stderr, flush=True)
        start = time.monotonic()
        result = stamp(run_row(row, rounds, options), settings)
        file.add(row.name, result)
        outcome = f"failed: {result.failed}" if result.failed else "measured"
        without = "".join(f"; without {name} ({why})" for name, why in result.missing.items())
        seconds = time.monotonic() - start
        print(f"{title}: {outcome}{without}, {seconds:.0f} s", file=sys.stderr, flush=True)
        if result.failed:
            failed.append(row.name)
    return failed


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25, help="at most; slow rows have fewer")
    parser.add_argument("--quick", action="store_true", help="3 rounds of smaller inputs")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="parts of row names")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--machine", metavar="NAME", help="name of the file; default: the CPU")
    parser.add_argument("--again", action="store_true", help="measure finished rows again")
    parser.add_argument("--list", action="store_true", help="print the rows and exit")
    parser.add_argument("--report", action="store_true", help="write the report only")
    parser.add_argument("--output", type=Path, help="folder of the JSON files and the report")
    parser.add_argument("--timm-script", help="timm's train.py, for the row of the training loop")
    parser.add_argument("--wordnet", help="folder of WordNet 3.0, if it is not found")
    parser.add_argument("--child", nargs=2, metavar=("ROW", "OUTPUT"), help=argparse.SUPPRESS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.quick and not options.child:
        options.rounds = min(options.rounds, QUICK_ROUNDS)
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; allowed: at least 1")
    if options.child:
        run_child(options)
        return 0
    rows = select_rows(options.only)
    if not rows:
        parser.error(f"no row matches --only {' '.join(options.only)}; see --list")
    if options.list:
        for row in rows:
            print(f"{row.name}: {row.text}")
        return 0
    results = options.output or (QUICK_RESULTS if options.quick else RESULTS)
    report_folder = results.parent if results == RESULTS else results
    failed: list[str] = []
    try:
        if not options.report:
            machine = describe_machine()
            file = ResultFile(results / f"{options.machine or machine.name}.json", machine)
            failed = run_rows(rows, file, options)
        unexplained = write_report(results, report_folder)
    except SwagModelsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report_folder / "RESULTS.md")
    for line in unexplained:
        print(f"no cause in causes.json: {line}", file=sys.stderr)
    if failed:
        print(f"{count_noun(len(failed), 'row')} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; run the same command to resume", file=sys.stderr)
        sys.exit(130)
