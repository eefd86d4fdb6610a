"""Build the folder of drawings from the command line: python -m studies.drawings --help."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from studies.drawings.build import build_drawings
from swag_models.cli import run_command
from swag_models.cli.common import OK


def build(options: argparse.Namespace) -> int:
    """Fetch and render the drawings, curate and pack them; resumable."""
    summary = build_drawings(
        options.output,
        cache=options.cache,
        size=options.size,
        min_images=options.min_images,
        wordnet=options.wordnet,
        processes=options.processes,
        progress=not options.quiet,
    )
    print(json.dumps(summary, indent=2))
    return OK


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.drawings",
        description="Clip art and emoji as posts with keywords and captions, curated and packed.",
        epilog="Downloads by `npm pack` and `apt-get download`. A rerun resumes.",
    )
    parser.set_defaults(run=build)
    parser.add_argument("output", help="folder to create")
    parser.add_argument("--cache", help="folder of downloaded packages (default: OUTPUT/cache)")
    parser.add_argument("--size", type=int, default=192, help="pixels of a side (default: 192)")
    parser.add_argument(
        "--min-images", type=int, default=12, help="images of a class, at least (default: 12)"
    )
    parser.add_argument("--wordnet", help="folder of WordNet's database files")
    parser.add_argument("--processes", type=int, help="number of processes (default: one per CPU)")
    parser.add_argument("--quiet", action="store_true", help="hide the progress bars")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit codes are those of `swag-models`."""
    return run_command(lambda: parse(arguments), ends=arguments is None)


if __name__ == "__main__":
    sys.exit(main())
