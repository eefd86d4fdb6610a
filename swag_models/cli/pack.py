"""Subcommands that pack images into training shards, and verify shards: pack, shards verify."""

import argparse

from swag_models.cli.common import (
    FAILED,
    OK,
    AddCommand,
    add_device_option,
    add_quiet_option,
    make_adder,
    read_device,
)
from swag_models.cli.output import print_line, print_message
from swag_models.formatting import count_noun


def pack(options: argparse.Namespace) -> int:
    """Write labelled images into WebDataset shards; resumable."""
    from swag_models.recipe.data.pack import pack

    manifest = pack(
        options.labels,
        options.images,
        options.output,
        shard_size=options.shard_size,
        max_bytes=options.max_bytes,
        image_short_side=options.resize,
        seed=options.seed,
        key_column=options.key_column,
        path_column=options.path_column,
        exclude_like=options.exclude_like,
        like_threshold=options.like_threshold,
        processes=options.processes,
        progress=not options.quiet,
    )
    for reason, count in manifest["rejects"].items():
        print_message(f"{count:,} rejected: {reason}; see rejects.jsonl")
    joined = manifest.get("joined", {})  # shards of an earlier version do not say
    if joined.keys() - {"id", "file name"}:
        counts = ", ".join(f"{count:,} by {kind}" for kind, count in joined.items())
        print_message(f"labels found: {counts}")
    copies, excluded = manifest["copies"], manifest.get("exclude_like")
    if copies["images"]:
        print_message(f"{copies['images']:,} have the pixels of another one; see copies.jsonl")
    if excluded and excluded["equal"] + excluded["near"]:
        print_message(f"excluded images: see {options.output}/excluded.png and excluded.txt")
    print_message(
        f"{count_noun(manifest['count'], 'image')} in "
        f"{count_noun(len(manifest['shards']), 'shard')}; "
        f"{count_noun(manifest['unlabelled'], 'image')} without a label"
    )
    print_line(options.output)
    return OK


def duplicates(options: argparse.Namespace) -> int:
    """Find copies among images, or images that are copies of others; by thumbnails or a model."""
    from swag_models.recipe.data.duplicates import find_duplicates

    embedder = None
    if options.model:
        from swag_models.inference.predict import Embedder

        embedder = Embedder(options.model, device=read_device(options))
    manifest = find_duplicates(
        options.images,
        options.output,
        like=options.like,
        threshold=options.threshold,
        embedder=embedder,
        key_column=options.key_column,
        path_column=options.path_column,
        progress=not options.quiet,
    )
    unreadable, compared = manifest["unreadable"], manifest["images"] - manifest["unreadable"]
    left_out = f"; {unreadable:,} of {manifest['images']:,} could not be read" if unreadable else ""
    if reason := manifest.get("first_unreadable"):
        left_out += f", the first: {reason}"
    print_message(
        f"{manifest['copies']:,} of {count_noun(compared, 'image')} are copies, "
        f"{manifest['equal']:,} of them with equal pixels{left_out}"
    )
    print_line(options.output)
    return OK


def verify(options: argparse.Namespace) -> int:
    """Check packed shards against the hashes in their manifest."""
    from swag_models.recipe.data.manifest import verify_shards

    flaws = verify_shards(options.folder)  # reports all flaws, not only the first
    for flaw in flaws:
        print_line(f"{flaw.name} {flaw.problem}")
    if not flaws:
        print_line("ok")
    return FAILED if flaws else OK


def add_commands(add: AddCommand) -> None:
    """Declare the subcommands, and their options."""
    _add_pack_options(
        add(
            "pack",
            pack,
            "swag-models recipe pack --labels labels.parquet --images photos/ -o shards/ "
            "--resize 256",
        )
    )
    _add_duplicates_options(
        add(
            "duplicates",
            duplicates,
            "swag-models recipe duplicates photos/ --like evaluation/ -o copies/",
        )
    )
    shards = add(
        "shards", "Commands for packed shards.", "swag-models recipe shards verify shards/"
    )
    command = make_adder(shards)("verify", verify, "swag-models recipe shards verify shards/")
    command.add_argument("folder", help="folder with manifest.json")


def _add_pack_options(command: argparse.ArgumentParser) -> None:
    command.set_defaults(python_names={"image_short_side": "--resize"})
    command.add_argument(
        "--labels",
        required=True,
        help="labels.parquet, written by curate: id, classes and repeat of each image; or a list "
        "of images and labels (.csv .jsonl .json, COCO annotations)",
    )
    command.add_argument(
        "--images",
        required=True,
        nargs="+",
        help="folders, tar shards, or tables (.parquet .csv .tsv .jsonl) of ids and paths",
    )
    command.add_argument(
        "--path-column",
        metavar="COLUMN",
        help="column of tables with the paths, also of --exclude-like (default: path)",
    )
    command.add_argument(
        "--key-column",
        metavar="FIELD",
        help="field in the .json or .parquet file beside an image that is the id of its label; url "
        "finds the id in urls.parquet beside the labels, __key__ is the file name (default: the "
        "first of id, url, key, __key__ that matches any label; in a table: id)",
    )
    command.add_argument("-o", "--output", required=True, help="output folder for the shards")
    command.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="shrink images to a shorter side of at most this",
    )
    command.add_argument(
        "--shard-size", type=int, default=10_000, help="samples per shard (default: 10000)"
    )
    command.add_argument(
        "--max-bytes",
        type=int,
        default=1 << 30,  # shards of resized images are smaller
        help="approximate maximum size of a shard, before resizing (default: 1 GiB)",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="seed for shuffling the samples (default: 0)"
    )
    command.add_argument(
        "--exclude-like",
        nargs="+",
        default=[],
        metavar="IMAGES",
        help="images to keep out with their near copies, such as those of evaluations: folders, "
        "tar shards or tables",
    )
    command.add_argument(
        "--like-threshold",
        type=float,
        metavar="DISTANCE",
        help="largest distance of a near copy, from 0 (equal pixels only) to 1 (default: 0.3)",
    )
    command.add_argument("--processes", type=int, help="number of processes (default: one per CPU)")
    add_quiet_option(command)


def _add_duplicates_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "images", nargs="+", help="folders, tar shards, or tables of ids and paths"
    )
    command.add_argument("-o", "--output", required=True, help="output folder")
    command.add_argument(
        "--like",
        nargs="+",
        default=[],
        metavar="IMAGES",
        help="find copies of these images instead of copies among the images",
    )
    command.add_argument(
        "--path-column",
        metavar="COLUMN",
        help="column of tables with the paths, also of --like (default: path)",
    )
    command.add_argument(
        "--key-column",
        metavar="FIELD",
        help="field of an image, or column of a table, that is its id, also of --like; __key__ is "
        "the file name (default: as for recipe pack)",
    )
    command.add_argument(
        "--threshold",
        type=float,
        metavar="DISTANCE",
        help="largest distance of a near copy, from 0 to 1 (default: 0.3; none with --model)",
    )
    command.add_argument(
        "--model", help="compare the features of a model: 1 - cosine (default: thumbnails)"
    )
    add_device_option(command)
    add_quiet_option(command)
