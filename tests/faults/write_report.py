"""Write docs/reliability.md from the counts in build/faults: python tests/faults/write_report.py"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, when run as a script

from faults.counts import FOLDER

from swag_models.atomic import atomic_write
from swag_models.formatting import markdown_table

REPORT = Path(__file__).parents[2] / "docs" / "reliability.md"
# Outcomes in the order of the columns; others follow in alphabetical order.
ORDER = ("clean", "accepted", "unclear", "other", "slow")
INTRODUCTION = """\
# Reliability

<!-- Written by tests/faults/write_report.py from the counts of `make faults`; do not edit. -->

`make faults` gives this library damaged and hostile inputs and counts the outcomes. Seeds are
fixed. `FAULTS_SCALE=0.02 make faults` runs 2% of the cases. Inputs that once caused a defect are
regression tests in the default suite (`make test`). Whether that suite notices changed code is
measured by [mutation testing](../tests/mutants/README.md) (`make mutants`).

| outcome | meaning |
|---|---|
| clean | refused by an error of this library in one printable line of less than 500 characters |
| accepted | read, or the work was done |
| unclear | an error of this library that is longer, or not printable |
| other | any other exception |
| slow | more CPU time than the limit that the test states |
| right | the expected result: bytes of a file, outputs of a command that was completed, an answer |
| killed | a process that the campaign killed |
| last fetch right | the last, undisturbed fetch after the faults gave the right file |
| refused, answered | status of a hostile request; neither contained a file of the machine |
"""


def make_section(name: str, data: dict[str, Any]) -> str:
    """Return a heading, the commands, the environment and the table of a section."""
    rows, environment = data["rows"], data["environment"]
    present = {outcome for row in rows.values() for outcome in row["counts"]}
    outcomes = [key for key in ORDER if key in present] + sorted(present - set(ORDER))
    cells = [
        (row, sum(rows[row]["counts"].values()), *(rows[row]["counts"].get(o, 0) for o in outcomes))
        for row in sorted(rows)
    ]
    commands = sorted({(row["command"], row["scale"]) for row in rows.values()})
    lines = [
        f"`{'' if float(scale) == 1 else f'FAULTS_SCALE={scale} '}{command}`  "
        for command, scale in commands
    ]
    return "\n".join(
        [
            f"## {name.replace('_', ' ').capitalize()}",
            "",
            *lines,
            f"{environment['date']}, {environment['machine']}; {environment['versions']}",
            "",
            markdown_table(("input", "cases", *outcomes), cells),
        ]
    )


def main() -> None:
    """Write the report with one section per file in build/faults."""
    sections = [
        make_section(path.stem, json.loads(path.read_text("utf-8")))
        for path in sorted(FOLDER.glob("*.json"))
    ]
    with atomic_write(REPORT) as temporary:
        temporary.write_text("\n\n".join([INTRODUCTION.rstrip(), *sections]) + "\n", "utf-8")
    print(REPORT)


if __name__ == "__main__":
    main()
