"""The studies from the command line, in a clone of the repository: python -m studies --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from studies.drawings.study import DrawingsStudy, run_drawings_study
from studies.models import train_models
from studies.run import Study, run_study
from studies.scenes import write_scenes
from studies.several_labels import SeveralStudy, run_several
from swag_models.cli import run_command
from swag_models.cli.common import OK, make_adder
from swag_models.cli.output import print_message
from swag_models.cli.plan import add_set_option
from swag_models.formatting import count_noun


def scenes(options: argparse.Namespace) -> int:
    """Generate small images with realistic hashtags, to try the recipe on; resumable."""
    summary = write_scenes(
        options.folder,
        options.posts,
        options.held_out,
        options.image_size,
        options.seed,
        processes=options.processes,
        progress=not options.quiet,
    )
    state = " (already complete)" if summary.existed else ""
    held_out = count_noun(summary.held_out, "held-out image")
    print_message(f"{count_noun(summary.posts, 'post')} and {held_out}{state}")
    print(summary.path)
    return OK


def study(options: argparse.Namespace) -> int:
    """Run the complete recipe on a small scale and write a report; resumable."""
    sizes = Study(posts=options.posts, seeds=options.seeds, length=options.length)
    folder = run_study(
        options.folder, sizes, processes=options.processes, progress=not options.quiet
    )
    print(folder / "study.md")
    return OK


def several(options: argparse.Namespace) -> int:
    """Compare a sigmoid for each class with a softmax on one label per image; resumable."""
    sizes = SeveralStudy(options.train, options.test, options.steps, options.seeds)
    print(run_several(Path(options.folder), sizes, options.arch, progress=not options.quiet))
    return OK


def drawings(options: argparse.Namespace) -> int:
    """Compare ways to pre-train on real drawings with people's keywords; resumable."""
    sizes = DrawingsStudy(
        archs=tuple(options.archs),
        seeds=options.seeds,
        length=options.length,
        min_images=options.min_images,
    )
    path = run_drawings_study(
        options.folder,
        options.drawings,
        sizes,
        cache=options.cache,
        wordnet=options.wordnet,
        processes=options.processes,
        progress=not options.quiet,
    )
    print(path)
    return OK


def models(options: argparse.Namespace) -> int:
    """Train the model of drawings that ships with the library, and measure it; resumable."""
    path = train_models(
        options.folder,
        options.drawings,
        settings=options.set,
        wordnet=options.wordnet,
        processes=options.processes,
        progress=not options.quiet,
    )
    print(path)
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; exit codes are those of `swag-models`."""
    parser = argparse.ArgumentParser(
        prog="python -m studies", description="Studies that are not part of the installed package."
    )
    add = make_adder(parser)
    command = add("scenes", scenes, "python -m studies scenes scenes/ --posts 20000 --seed 0")
    command.add_argument("folder", help="folder to create")
    command.add_argument(
        "--posts",
        type=int,
        default=20_000,
        help="images with captions to train on (default: 20000)",
    )
    command.add_argument(
        "--held-out",
        type=int,
        default=2_000,
        help="images with true labels to test on (default: 2000)",
    )
    command.add_argument(
        "--image-size", type=int, default=64, help="side of the images in pixels (default: 64)"
    )
    command.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    command.add_argument("--processes", type=int, help="number of processes (default: one per CPU)")
    command.add_argument("--quiet", action="store_true", help="hide the progress bar")

    command = add("run", study, "python -m studies run study/")
    command.add_argument("folder", help="working folder; a rerun resumes")
    command.add_argument(
        "--posts", type=int, default=20_000, help="images with hashtags (default: 20000)"
    )
    command.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    command.add_argument(
        "--length",
        type=float,
        default=1.0,
        help="factor for the length of every training run (default: 1)",
    )
    command.add_argument(
        "--processes", type=int, help="number of parallel tasks (default: one per CPU)"
    )
    command.add_argument("--quiet", action="store_true", help="hide the progress bar")

    command = add("drawings", drawings, "python -m studies drawings study/ drawings/")
    command.add_argument("folder", help="working folder; a rerun resumes")
    command.add_argument("drawings", help="folder that python -m studies.drawings wrote")
    command.add_argument(
        "--archs",
        nargs="+",
        default=DrawingsStudy.archs,
        help=f"networks (default: {' '.join(DrawingsStudy.archs)})",
    )
    for name, kind in (("seeds", int), ("length", float), ("min-images", int)):
        default = getattr(DrawingsStudy, name.replace("-", "_"))
        command.add_argument(f"--{name}", type=kind, default=default, help=f"(default: {default})")
    command.add_argument("--cache", help="folder of packages (default: DRAWINGS/cache)")
    command.add_argument("--wordnet", help="folder of WordNet's database files")
    command.add_argument("--processes", type=int, help="parallel tasks (default: one per CPU)")
    command.add_argument("--quiet", action="store_true", help="hide the progress bar")

    command = add("models", models, "python -m studies models models/ drawings/")
    command.add_argument("folder", help="working folder; a rerun resumes")
    command.add_argument("drawings", help="folder that python -m studies.drawings wrote")
    add_set_option(command)
    command.add_argument("--wordnet", help="folder of WordNet's database files")
    command.add_argument("--processes", type=int, help="number of processes (default: one per CPU)")
    command.add_argument("--quiet", action="store_true", help="hide the progress bars")

    command = add("several", several, "python -m studies several several/ --seeds 3")
    command.add_argument("folder", help="working folder; a rerun resumes")
    command.add_argument("--arch", default="vit_nano", help="network (default: vit_nano)")
    for name, default in asdict(SeveralStudy()).items():
        command.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    command.add_argument("--quiet", action="store_true", help="hide the progress bar")
    return run_command(lambda: parser.parse_args(arguments), ends=arguments is None)


if __name__ == "__main__":
    sys.exit(main())
