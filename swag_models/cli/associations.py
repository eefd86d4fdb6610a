"""The subcommand that asks which labels go with whose pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from swag_models.cli.common import (
    FAILED,
    OK,
    Add,
    add_measuring_options,
    open_measured,
    refuse_ranks,
    say,
)


def associations(options: argparse.Namespace) -> int:
    """Whether a model gives some labels more often to the pictures of one group, and whose pictures it takes to be alike."""
    from swag_models.recipe.evaluation.bias.associations import (
        AssociationConfig,
        measure_associations,
    )
    from swag_models.recipe.evaluation.bias.dataset import open_grouped_images
    from swag_models.recipe.evaluation.bias.report import (
        create_output_folder,
        format_disparities,
        write_associations,
    )

    refuse_ranks()
    config = AssociationConfig(
        top_k=options.top_k,
        threshold=options.threshold,
        min_group=options.min_group,
        permutations=options.permutations,
        neighbours=options.neighbours,
        seed=options.seed,
    )
    images = open_grouped_images(options.groups, options.group_column, options.path_column)
    candidate, reading = open_measured(options)
    create_output_folder(Path(options.output))
    result = measure_associations(candidate, images, config, **reading)
    write_associations(result, Path(options.output))
    if result.unreadable:
        say(f"{result.unreadable:,} pictures could not be read")
    print(
        json.dumps(result.to_dict(), indent=2) if options.json else format_disparities(result),
        end="",
    )
    return FAILED if result.unreadable else OK


def add_commands(add: Add) -> None:
    """Declare the subcommand of this module, under `swag-models recipe`."""
    command = add(
        "associations",
        associations,
        "swag-models recipe associations vit_b16_in1k --groups posts.jsonl --group-column country -o associations/",
    )
    command.add_argument(
        "model", help="name, folder, hf-hub:org/repo, timm:NAME or torchvision:NAME[@WEIGHTS]"
    )
    command.add_argument(
        "--groups",
        required=True,
        metavar="TABLE",
        help=".csv, .jsonl or .parquet: a picture in each row",
    )
    command.add_argument(
        "--group-column", required=True, metavar="COLUMN", help="with the group of each picture"
    )
    command.add_argument(
        "--path-column",
        default="path",
        metavar="COLUMN",
        help="relative to the table (default: path)",
    )
    command.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="folder for .md, .json and plots"
    )
    command.add_argument(
        "--top-k", type=int, default=5, help="labels of a picture, at most (default: 5)"
    )
    command.add_argument(
        "--threshold",
        type=float,
        default=0.1,
        help="their probability must exceed it (default: 0.1)",
    )
    command.add_argument(
        "--min-group", type=int, default=30, help="pictures a group must have (default: 30)"
    )
    command.add_argument(
        "--permutations", type=int, default=2000, help="of the groups, for p-values (default: 2000)"
    )
    command.add_argument(
        "--neighbours", type=int, default=10, help="of each picture; 0 for none (default: 10)"
    )
    command.add_argument(
        "--seed", type=int, default=0, help="of permutations and resampling (default: 0)"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_measuring_options(command)
