"""Write the tables of docs/scale.md: python -m studies.scale --write."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from studies.scale.data_plan import DataPlan, read_memory, simulate
from studies.scale.document import write_document
from swag_models.atomic import write_json, write_text
from swag_models.cli import run_command
from swag_models.cli.common import OK
from swag_models.cli.output import print_message
from swag_models.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "scale.md", DOCS / "scale.json"


def write_page(page: Path = PAGE, results: Path = RESULTS) -> bool:
    """Write the tables of the document; return whether it changed."""
    text = page.read_text("utf-8")
    written = write_document(text, json.loads(results.read_text("utf-8")))
    if written == text:
        return False
    write_text(page, written)
    return True


def run_simulation(shards: int, results: Path = RESULTS) -> None:
    """Simulate the data plan, and store the results beside those of other numbers of shards."""
    wall, start = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(DataPlan(shards=shards), Path(folder))
    result["seconds"] = time.process_time() - start
    result["wall_seconds"] = time.perf_counter() - wall
    result["peak_mib"] = read_memory("VmHWM")
    stored = json.loads(results.read_text("utf-8")) if results.exists() else []
    stored = [each for each in stored if each["plan"]["shards"] != shards]
    write_json(
        results, sorted([*stored, result], key=lambda each: each["plan"]["shards"]), indent=1
    )


def run(options: argparse.Namespace) -> int:
    """Simulate the data plan and write the tables, as the options say."""
    if options.simulate is None and not options.write:
        raise ConfigError("nothing to do; give --write, --simulate or both")
    if options.simulate is not None:
        for shards in options.simulate or [DataPlan.shards]:
            run_simulation(shards)
    if options.write:
        print_message(f"{PAGE} {'written' if write_page() else 'is current'}")
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit codes are those of `swag-models`."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.scale",
        description="Plan a run on 3.6 billion images, and simulate its data plan.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--write", action="store_true", help="write the tables of docs/scale.md")
    parser.add_argument(
        "--simulate",
        type=int,
        nargs="*",
        metavar="SHARDS",
        help="simulate these numbers of shards first (default: 360000)",
    )
    return run_command(lambda: parser.parse_args(arguments), ends=arguments is None)


if __name__ == "__main__":
    sys.exit(main())
