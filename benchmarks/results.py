"""Results of benchmarks: times of each round in one JSON file per machine, and their statistics.

Needs only the standard library and torch-free modules of swag_models, so that `gpu.py` runs without
any other package.
"""

import datetime
import json
import os
import platform
import random
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from swag_models.atomic import write_json
from swag_models.errors import ConfigError
from swag_models.runtime import count_cpus

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
RESAMPLES = 2000  # of the bootstrap
# Instruction sets that decide which dtype is fast, as /proc/cpuinfo names them; the first is named.
INSTRUCTIONS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 bf16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
# Packages whose versions a result depends on, where they are installed.
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "openvino",
    "onnxruntime",
    "webdataset",
    "duckdb",
    "faiss-cpu",
    "scikit-learn",
    "numpy",
    "pillow",
    "safetensors",
)


@dataclass(frozen=True)
class Machine:
    """What a result depends on apart from versions."""

    cpu: str
    instructions: str
    cores: int
    memory_gib: float
    gpu: str = ""

    @property
    def name(self) -> str:
        """A file name: the GPU, or the CPU with its instructions and number of cores."""
        text = self.gpu or f"{self.cpu} {self.instructions} {self.cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@dataclass
class Result:
    """What was measured for one row.

    Attributes:
        what: the work of one call.
        group: heading of the table.
        ours: label of this library's way; the other ways are its peers.
        items: images, posts or queries of one call; 0 to print seconds instead of a rate.
        unit: what `items` counts.
        wall: seconds of wall time of each round, by label.
        cpu: seconds of CPU time of each round, by label, where it is known.
        missing: reasons why a way was not measured, by label.
        notes: other figures, by label, for example {"swag_models": "MFU 51%"}.
        failed: why nothing was measured; empty if something was.
        settings: what must be equal for a finished row to be kept: source, rounds, clock, threads.
        other_work: CPUs that other processes used during the measurement; None if not known.
    """

    what: str
    group: str
    ours: str
    items: int = 0
    unit: str = ""
    wall: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    failed: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    date: str = ""
    commit: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    other_work: float | None = None

    def times(self, label: str) -> list[float]:
        """Seconds of each round by the clock of this row: wall time where CPU time is unknown."""
        if self.clock == "cpu":
            return self.cpu[label]
        return self.wall[label]

    @property
    def clock(self) -> str:
        """ "cpu" if it was asked for and is known for every way, otherwise "wall"."""
        known = self.wall.keys() == self.cpu.keys()
        return "cpu" if self.settings.get("clock") == "cpu" and known else "wall"

    @property
    def peers(self) -> list[str]:
        """The ways that were measured and are not of this library."""
        return [label for label in self.wall if label != self.ours and not is_own(label)]


def is_own(label: str) -> bool:
    """Whether a way is of this library: its name starts with the library's."""
    return label.startswith("swag_models")


@dataclass(frozen=True)
class Ratio:
    """Time of a peer divided by ours: above 1 where we are faster.

    Attributes:
        median: ratio of the medians.
        fastest: ratio of the fastest rounds.
        low: lower end of the 95% interval of the ratio of the medians.
        high: its upper end.
    """

    median: float
    fastest: float
    low: float
    high: float

    @property
    def is_loss(self) -> bool:
        """Whether the interval ends below 1."""
        return self.high < 1


def compare(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Ratio:
    """Compare the times of rounds that were measured alternately.

    The interval is that of a percentile bootstrap over rounds: both times of a round are drawn
    together, so that a change of the machine's load affects both.

    Args:
        ours: seconds of each round.
        theirs: those of the peer, in the same order.
        seed: of the resampling.
    """
    pairs = list(zip(ours, theirs, strict=True))
    generator = random.Random(seed)
    ratios = []
    for _ in range(RESAMPLES):
        mine, other = zip(*generator.choices(pairs, k=len(pairs)))
        ratios.append(statistics.median(other) / statistics.median(mine))
    ratios.sort()
    return Ratio(
        statistics.median(theirs) / statistics.median(ours),
        min(theirs) / min(ours),
        ratios[round(0.025 * (RESAMPLES - 1))],
        ratios[round(0.975 * (RESAMPLES - 1))],
    )


class ResultFile:
    """The results of one machine: a JSON file that is written after each row.

    Args:
        path: the file; its rows are read if it exists.
        machine: this machine.

    Raises:
        ConfigError: the file is that of another machine.
    """

    def __init__(self, path: Path, machine: Machine) -> None:
        self.path, self.machine = path, machine
        self.rows: dict[str, Result] = {}
        if path.exists():
            stored, self.rows = read_results(path)
            if stored != machine:
                raise ConfigError(
                    f"{path} has results of another machine ({stored.cpu or stored.gpu}, {stored.cores} "
                    "cores); choose another name with --machine"
                )

    def is_done(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether a row was measured with these settings, without a failure."""
        row = self.rows.get(name)
        return row is not None and not row.failed and row.settings == settings

    def add(self, name: str, result: Result) -> None:
        """Store a row, in place of an earlier one of the same name, and write the file."""
        self.rows[name] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = {name: asdict(row) for name, row in self.rows.items()}
        write_json(self.path, {"machine": asdict(self.machine), "rows": rows}, indent=1)


def read_results(path: Path) -> tuple[Machine, dict[str, Result]]:
    """Read the file of a machine."""
    content = json.loads(path.read_text("utf-8"))
    rows = {name: Result(**row) for name, row in content["rows"].items()}
    return Machine(**content["machine"]), rows


def stamp(result: Result, settings: dict[str, Any]) -> Result:
    """Add the settings, date, commit and versions of this process to a result."""
    result.settings = settings
    result.date = datetime.date.today().isoformat()
    result.commit = run_git("rev-parse", "--short", "HEAD")
    result.versions = {"python": platform.python_version(), **find_installed()}
    return result


def find_source() -> str:
    """The Git hash of the package, which does not change when results are committed."""
    return run_git("rev-parse", "--short", "HEAD:swag_models")


def run_git(*arguments: str) -> str:
    """The output of a git command on this checkout; empty without git or a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def find_installed() -> dict[str, str]:
    """Versions of the packages that are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine(gpu: str = "") -> Machine:
    """Describe this machine.

    Args:
        gpu: name of the GPU that is measured; empty for the CPU.
    """
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.+)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    instructions = next((name for flag, name in INSTRUCTIONS.items() if flag in known), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = model[1].strip() if model else platform.processor() or platform.machine()
    return Machine(cpu, instructions, count_cpus(), round(memory), gpu)
