"""The studies from the command line, in a clone of the repository: python -m studies --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from studies.run import Study, run_study
from studies.scenes import write_scenes
from swag_models.cli import run_command
from swag_models.cli.common import OK, make_add, say


def scenes(options: argparse.Namespace) -> int:
    """Generate small pictures with hashtags as people write them, to try the recipe on; run again after a kill, it goes on."""
    report = write_scenes(
        options.folder,
        options.posts,
        options.held_out,
        options.image_size,
        options.seed,
        processes=options.processes,
        progress=not options.quiet,
    )
    say(
        f"{report.posts} posts and {report.held_out} held-out pictures"
        + (" are there already" if report.old else "")
    )
    print(report.path)
    return OK


def study(options: argparse.Namespace) -> int:
    """The whole recipe in miniature: scenes, curation, pre-training, transfer, and what was found."""
    sizes = Study(posts=options.posts, seeds=options.seeds, length=options.length)
    print(
        run_study(options.folder, sizes, processes=options.processes, progress=not options.quiet)
        / "study.md"
    )
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; exit codes are those of `swag-models`."""
    parser = argparse.ArgumentParser(
        prog="python -m studies", description="Research that is not installed."
    )
    add = make_add(parser)
    command = add("scenes", scenes, "python -m studies scenes scenes/ --posts 20000 --seed 0")
    command.add_argument("folder", help="folder to make")
    command.add_argument(
        "--posts",
        type=int,
        default=20_000,
        help="pictures with captions to train on (default: 20000)",
    )
    command.add_argument(
        "--held-out",
        type=int,
        default=2_000,
        help="pictures with true labels to test on (default: 2000)",
    )
    command.add_argument(
        "--image-size", type=int, default=64, help="pixels, each way (default: 64)"
    )
    command.add_argument(
        "--seed", type=int, default=0, help="another seed, other pictures (default: 0)"
    )
    command.add_argument(
        "--processes", type=int, help="processes that paint (default: one for each core)"
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    command = add("run", study, "python -m studies run study/")
    command.add_argument("folder", help="folder to work in; one that was stopped goes on")
    command.add_argument(
        "--posts", type=int, default=20_000, help="pictures with hashtags (default: 20000)"
    )
    command.add_argument("--seeds", type=int, default=3, help="repetitions (default: 3)")
    command.add_argument(
        "--length", type=float, default=1.0, help="factor of the lengths of all runs (default: 1)"
    )
    command.add_argument(
        "--processes", type=int, help="tasks at a time (default: one for each core)"
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    return run_command(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
