"""Write tests/mutants/README.md from the outcomes in build/mutants."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from pathlib import Path

from equivalent import EQUIVALENT
from modules import MODULES

from swag_models.formatting import markdown_table

REPORT = Path(__file__).with_name("README.md")
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
    """Write the report of the modules that have been tested.

    Args:
        folder: where `run.py` has written one JSON file per module.
    """
    paths = {module: folder / f"{module.replace('/', '.')}.json" for module in MODULES}
    if missing := [module for module, path in paths.items() if not path.exists()]:
        print(f"not yet tested, left out of {REPORT.name}: {', '.join(missing)}")
    rows, survivors = [], []
    for module, path in paths.items():
        if module in missing:
            continue
        record = json.loads(path.read_text("utf-8"))
        results = record["results"]
        counts = Counter(result["outcome"] for result in results)
        killed = counts["killed"] + counts["timeout"]
        rows.append(
            (
                f"`{module}`",
                record["mutants"],
                len(results),
                killed,
                counts["equivalent"],
                counts["survived"],
                f"{killed / (len(results) - counts['equivalent']):.0%}",
            )
        )
        survivors += [(module, result) for result in results if result["outcome"] == "survived"]
    total = [sum(row[column] for row in rows) for column in range(1, 6)]  # type: ignore[misc]
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
        parts.append("\n## Survivors that a test should kill\n")
        parts += [
            f"- `{module}`, line {result['line']}: `{result['before']}` -> `{result['after']}`"
            for module, result in survivors
        ]
    REPORT.write_text("\n".join(parts) + "\n", "utf-8")
    print(REPORT)


if __name__ == "__main__":
    write_report(Path(__file__).parents[2] / "build" / "mutants")
