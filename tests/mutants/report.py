"""Write tests/mutants/README.md from the outcomes in build/mutants."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from equivalent import EQUIVALENT
from modules import MODULES

from swag_models.formatting import markdown_table

REPORT = Path(__file__).with_name("README.md")
ROW = re.compile(r"^\| `(.+)`" + r" \| (\d+)" * 5 + r" \|", re.MULTILINE)
INTRODUCTION = """\
# Mutation testing

<!-- Written by tests/mutants/report.py from the outcomes of `make mutants`; do not edit. -->

`make mutants` changes one operator, number, condition, loop, decorator or `except` clause of a
module at a time, and runs those tests of the module (`modules.py`) that execute the changed line: a
mutant is killed if a test fails, or if the tests take three times as long and a minute. `make
mutants MUTANTS="--all models/vit.py"` tests every mutant of a module instead of a random sample
with a fixed seed; `MUTANTS=--again` runs all tests of a module for its survivors. Annotations and
strings are not changed. A mutant that survives either shows what no test checks, or gives the same
results; the latter are listed with the reason in `equivalent.py`, and below, and do not count in
the share that is killed.
"""


def write_report(folder: Path) -> None:
    """Write the report. Modules that were not tested keep what the last report says of them.

    Args:
        folder: where `run.py` has written one JSON file per module.
    """
    last = REPORT.read_text("utf-8") if REPORT.exists() else ""
    last_rows = {row[0]: row[1:] for row in ROW.findall(last)}
    rows: list[tuple[Any, ...]] = []
    survivors: list[str] = []
    for module in MODULES:
        path = folder / f"{module.replace('/', '.')}.json"
        if path.exists():
            record = json.loads(path.read_text("utf-8"))
            results = record["results"]
            counts = Counter(result["outcome"] for result in results)
            killed = counts["killed"] + counts["timeout"]
            numbers = [record["mutants"], len(results), killed]
            numbers += [counts["equivalent"], counts["survived"]]
            survivors += [
                f"- `{module}`, line {result['line']}: `{result['before']}` -> `{result['after']}`"
                for result in results
                if result["outcome"] == "survived"
            ]
        elif module in last_rows:
            numbers = list(map(int, last_rows[module]))
            survivors += re.findall(rf"^- `{re.escape(module)}`, line .*$", last, re.MULTILINE)
        else:
            print(f"not yet tested, left out of {REPORT.name}: {module}")
            continue
        rows.append((f"`{module}`", *numbers, f"{numbers[2] / (numbers[1] - numbers[3]):.0%}"))
    total = [sum(row[column] for row in rows) for column in range(1, 6)]
    rows.append(("all", *total, f"{total[2] / (total[1] - total[3]):.1%}"))
    header = ("module", "mutants", "tested", "killed", "equivalent", "survived", "share killed")
    parts = [
        INTRODUCTION,
        f"cosmic-ray {importlib.metadata.version('cosmic-ray')}:\n",
        markdown_table(header, rows),
        "\n## Equivalent mutants\n",
        *(
            f"- `{module}`: `{before}` -> `{after}`: {reason}"
            for module, before, after, reason in EQUIVALENT
        ),
    ]
    if survivors:
        parts += ["\n## Survivors that a test should kill\n", *survivors]
    REPORT.write_text("\n".join(parts) + "\n", "utf-8")
    print(REPORT)


if __name__ == "__main__":
    write_report(Path(__file__).parents[2] / "build" / "mutants")
