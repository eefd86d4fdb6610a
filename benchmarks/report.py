"""Write RESULTS.md and results.png from the results of all machines, side by side."""

import fnmatch
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from results import Machine, Ratio, Result, compare, is_own, read_results

from swag_models.atomic import write_text
from swag_models.formatting import count_noun, markdown_table
from swag_models.recipe.plotting import make_figure, save_png

CAUSES = Path(__file__).with_name("causes.json")
NO_CAUSE = "**no cause stated**"
INTRODUCTION = """\
# Benchmark results

Written by `make bench` (and, for GPUs, `make gpu`) from `results/*.json`, one file per machine: do not edit. `README.md` describes the
benchmarks. Each cell has the rate or time of one call, then the peer's time divided by ours: the ratio of medians (above 1 where we
are faster) with its 95% interval by bootstrap over rounds, and the ratio of the fastest rounds. All ways of a benchmark were measured
alternately in the same process. A cause is stated where the interval ends below 1; "level" means that the ratio is below 1 and its
interval contains 1.
"""


@dataclass(frozen=True)
class Cause:
    """Why we lose; `row`, `peer` and `machine` are shell patterns of names."""

    row: str
    cause: str
    peer: str = "*"
    machine: str = "*"

    def matches(self, row: str, peer: str, machine: str) -> bool:
        pairs = ((row, self.row), (peer, self.peer), (machine, self.machine))
        return all(fnmatch.fnmatchcase(name, pattern) for name, pattern in pairs)


Machines = dict[str, tuple[Machine, dict[str, Result]]]  # by name of the file


def read_causes(path: Path = CAUSES) -> list[Cause]:
    return [Cause(**entry) for entry in json.loads(path.read_text("utf-8"))]


def read_machines(folder: Path) -> Machines:
    """Read the results of every machine in a folder."""
    return {path.stem: read_results(path) for path in sorted(folder.glob("*.json"))}


def write_report(folder: Path, output: Path, causes: Sequence[Cause] | None = None) -> list[str]:
    """Write RESULTS.md and results.png.

    Args:
        folder: of the JSON files.
        output: folder to write to.
        causes: why we lose; by default those of causes.json.

    Returns:
        Rows that we lose without a stated cause, as "row / peer on machine".
    """
    machines = read_machines(folder)
    text, unexplained = format_report(machines, read_causes() if causes is None else causes)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "RESULTS.md", text)
    plot(machines, output / "results.png")
    return unexplained


def format_report(machines: Machines, causes: Sequence[Cause]) -> tuple[str, list[str]]:
    """Return the text of RESULTS.md, and the losses without a cause."""
    letters = {name: _letter(index) for index, name in enumerate(machines)}
    parts = [INTRODUCTION, "![ratios](results.png)\n", _format_machines(machines, letters)]
    unexplained: list[str] = []
    for group in _in_order(row.group for _, rows in machines.values() for row in rows.values()):
        table: list[list[str]] = []
        members = _in_order(
            name
            for _, rows in machines.values()
            for name, row in rows.items()
            if row.group == group
        )
        for name in members:
            table += _format_row(name, machines, causes, unexplained)
        header = ["benchmark", "way", *letters.values(), "where we lose"]
        parts.append(f"## {group}\n\n{markdown_table(header, table)}\n")
    return "\n".join(parts), unexplained


def _format_machines(machines: Machines, letters: dict[str, str]) -> str:
    table = []
    for name, (machine, rows) in machines.items():
        measured = [row for row in rows.values() if not row.failed]
        dates = sorted({row.date for row in measured})
        others = [row.other_work for row in measured if row.other_work is not None]
        clocks = sorted({_describe_clock(row) for row in measured})
        busy = f"{statistics.median(others):.1f} (up to {max(others):.1f})" if others else "unknown"
        cpu = f"{machine.cpu} ({machine.instructions or 'no AVX2'}), {machine.cores} cores, {machine.memory_gib} GiB"
        table.append(
            [
                letters[name],
                f"{machine.gpu}; {cpu}" if machine.gpu else cpu,
                " and ".join(clocks),
                busy,
                " to ".join(_in_order([dates[0], dates[-1]])) if dates else "",
                ", ".join(_in_order(row.commit for row in measured)),
                _list_versions(measured),
            ]
        )
    header = ["", "machine", "clock", "CPUs in use by other work", "date", "commit", "versions"]
    return f"{markdown_table(header, table)}\n"


def _describe_clock(row: Result) -> str:
    threads = row.settings.get("threads")
    return f"{row.clock}, {count_noun(threads, 'thread')}" if threads else row.clock


def _list_versions(rows: Sequence[Result]) -> str:
    packages = _in_order(package for row in rows for package in row.versions)
    return ", ".join(
        f"{package} {'/'.join(_in_order(row.versions[package] for row in rows if package in row.versions))}"
        for package in packages
    )


def _format_row(
    name: str, machines: Machines, causes: Sequence[Cause], unexplained: list[str]
) -> list[list[str]]:
    """Lines of the table for one benchmark: ours first, then each peer."""
    measured = {machine: rows[name] for machine, (_, rows) in machines.items() if name in rows}
    first = next(iter(measured.values()))
    labels = _in_order(
        label
        for row in measured.values()
        for label in (row.ours, *row.wall, *row.missing, *row.notes)
    )
    lines = []
    for number, label in enumerate(labels):
        cells, reasons = [], []
        for machine in machines:
            row = measured.get(machine)
            cells.append(_format_cell(row, label) if row else "not run")
            ratio = _find_ratio(row, label) if row else None
            if ratio and ratio.median < 1 and not is_own(label):
                reason = _find_reason(ratio, name, label, machine, causes)
                if reason == NO_CAUSE:
                    unexplained.append(f"{name} / {label} on {machine}")
                reasons.append(reason)
        title = f"{name}: {first.what}" if number == 0 else ""
        lines.append([title, label, *cells, "; ".join(_in_order(reasons))])
    return lines


def _find_reason(ratio: Ratio, name: str, peer: str, machine: str, causes: Sequence[Cause]) -> str:
    matches = (cause.cause for cause in causes if cause.matches(name, peer, machine))
    return next(matches, NO_CAUSE if ratio.is_loss else "level")


def _find_ratio(row: Result, label: str) -> Ratio | None:
    if label == row.ours or label not in row.wall or row.ours not in row.wall:
        return None
    return compare(row.times(row.ours), row.times(label))


def _format_cell(row: Result, label: str) -> str:
    if row.failed:
        return f"failed: {row.failed}"
    if label in row.missing:
        return f"not measured: {row.missing[label]}"
    if label not in row.wall:
        return row.notes.get(label, "not run")
    ratio = _find_ratio(row, label)
    parts = [format_time(row, label)]
    if ratio:
        parts.append(
            f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}), fastest {ratio.fastest:.2f}"
        )
    else:
        parts.append(f"{len(row.wall[label])} rounds")
    return "; ".join([*parts, *([row.notes[label]] if label in row.notes else [])])


def format_time(row: Result, label: str) -> str:
    """The median rate of a way, or the time of one call."""
    seconds = statistics.median(row.times(label))
    if row.items:
        return f"{row.items / seconds:.3g} {row.unit}/s"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def plot(machines: Machines, path: Path) -> None:
    """Draw the ratio to each peer with its interval, one colour per machine."""
    points: dict[str, dict[str, Ratio]] = {}  # "row / peer" -> machine -> ratio
    for machine, (_, rows) in machines.items():
        for name, row in rows.items():
            for peer in row.peers:
                if ratio := _find_ratio(row, peer):
                    points.setdefault(f"{name} / {peer}", {})[machine] = ratio
    figure = make_figure(11, 1.5 + 0.22 * max(1, len(points)))
    axes = figure.add_subplot()
    labels = list(points)
    for index, machine in enumerate(machines):
        rows = [
            (y, points[label][machine])
            for y, label in enumerate(labels)
            if machine in points[label]
        ]
        offset = 0.5 * ((index + 0.5) / len(machines) - 0.5)
        middle = [ratio.median for _, ratio in rows]
        # the interval of few rounds may leave out the ratio of all of them
        low = [max(0.0, ratio.median - ratio.low) for _, ratio in rows]
        high = [max(0.0, ratio.high - ratio.median) for _, ratio in rows]
        heights = [y + offset for y, _ in rows]
        axes.errorbar(middle, heights, xerr=[low, high], fmt="o", markersize=3, label=machine)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time of the peer / ours (right: we are faster)")
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylim(max(1, len(labels)) - 0.5, -0.5)
    axes.grid(axis="x", which="both", alpha=0.3)
    if points:
        axes.legend(fontsize=7)
    save_png(figure, path)


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"M{index + 1}"


def _in_order(values: object) -> list[str]:
    """Distinct values in the order of their first occurrence."""
    return list(dict.fromkeys(values))  # type: ignore[call-overload]
