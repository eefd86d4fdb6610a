"""Subcommands that make such weights: from posts with hashtags to training shards; `training` has the rest.

They need the extra [recipe].
"""

from __future__ import annotations

import argparse

from swag_models.cli import associations, evaluate, train, zeroshot
from swag_models.cli.common import FAILED, OK, Add, make_add, say


def curate(options: argparse.Namespace) -> int:
    """Choose a vocabulary from posts with hashtags, and label and resample their images."""
    from swag_models.recipe.curation.curate import Curation, curate
    from swag_models.recipe.curation.posts import Columns
    from swag_models.recipe.curation.sampling import Sampling

    sampling = Sampling(
        options.sampling,
        options.epoch_ratio,
        options.threshold,
        options.tail_share,
        options.tail_below,
    )
    manifest = curate(
        options.posts,
        options.output,
        Curation(options.senses, options.min_images, options.max_classes, sampling),
        columns=Columns(
            options.id,
            options.url,
            options.hashtags,
            options.caption,
            options.hash,
            options.license,
        ),
        format=options.format,
        wordnet=options.wordnet,
        stoplist=options.stoplist,
        exclude=options.exclude,
        licenses=options.keep_license,
        engine=options.engine,
        master=options.master,
        memory=options.memory,
        threads=options.threads,
        progress=not options.quiet,
    )
    posts, labels = manifest["posts"], manifest["labels"]
    say(
        f"{posts['read']:,} posts, {sum(posts['rejected'].values()):,} rejected, {posts['kept']:,} kept"
    )
    say(
        f"{manifest['classes']['kept']:,} classes, {labels['images']:,} images, {labels['samples']:,.0f} samples in an epoch"
    )
    print(f"{options.output}/report.md")
    return OK


def pack(options: argparse.Namespace) -> int:
    """Write labelled images into WebDataset shards; run again, it goes on where it was stopped."""
    from swag_models.recipe.data.pack import pack

    manifest = pack(
        options.labels,
        options.images,
        options.output,
        shard_size=options.shard_size,
        max_bytes=options.max_bytes,
        image_short_side=options.resize,
        seed=options.seed,
        processes=options.processes,
        progress=not options.quiet,
    )
    for reason, count in manifest["rejects"].items():
        say(f"{count:,} rejected: {reason}; see rejects.jsonl")
    say(
        f"{manifest['count']:,} images in {len(manifest['shards']):,} shards; {manifest['unlabelled']:,} images without a label"
    )
    print(options.output)
    return OK


def verify(options: argparse.Namespace) -> int:
    """Read packed shards again and compare them with their manifest."""
    from swag_models.recipe.data.shards import verify_shards

    flaws = verify_shards(options.folder)
    for flaw in flaws:
        print(f"{flaw.name} {flaw.problem}")
    if not flaws:
        print("ok")
    return FAILED if flaws else OK


def add_commands(add: Add) -> None:
    """Declare the subcommands of this module."""
    recipe = add(
        "recipe",
        "How such weights are made, from posts with hashtags.",
        "swag-models recipe curate --help",
    )
    add = make_add(recipe)

    command = add(
        "curate", curate, "swag-models recipe curate posts.jsonl -o curated --min-images 100"
    )
    command.add_argument(
        "posts",
        nargs="+",
        help="files, or folders of them: .parquet .jsonl .csv, YFCC100M's .tsv, .tar shards",
    )
    command.add_argument(
        "-o",
        "--output",
        required=True,
        help="folder to write; what is finished there is not done again",
    )
    command.add_argument(
        "--format",
        choices=("json", "csv", "yfcc", "tar", "parquet"),
        help="if the files' names do not tell",
    )
    for name in ("id", "url", "hashtags", "caption", "hash", "license"):
        command.add_argument(
            f"--{name}",
            metavar="COLUMN",
            help=f"column or field of the {name}, if its name does not tell",
        )
    command.add_argument(
        "--wordnet",
        metavar="FOLDER",
        help="WordNet 3.0's database files (default: where they usually are)",
    )
    command.add_argument(
        "--stoplist",
        metavar="FILE",
        help="hashtags that say nothing of a picture, in place of our list",
    )
    command.add_argument(
        "--keep-license",
        metavar="NAME",
        action="append",
        default=[],
        help="keep posts under it only; may be given again",
    )
    command.add_argument(
        "--exclude", metavar="FILE", help="ids or hashes of posts to leave out, one in a line"
    )
    command.add_argument(
        "--senses",
        choices=("first", "all", "drop"),
        default="first",
        help="of ambiguous hashtags (default: first, the usual one)",
    )
    command.add_argument(
        "--min-images", type=int, default=1, help="that a class must have (default: 1)"
    )
    command.add_argument(
        "--max-classes",
        type=int,
        default=27_000,
        help="the most frequent are kept (default: 27000)",
    )
    command.add_argument(
        "--sampling", choices=("natural", "sqrt", "uniform"), default="sqrt", help="default: sqrt"
    )
    command.add_argument(
        "--epoch-ratio",
        type=float,
        default=5 / 3.6,
        help="samples in an epoch per image (default: 5/3.6)",
    )
    command.add_argument(
        "--threshold",
        type=float,
        help="images; with sqrt: factors max(1, sqrt(threshold / images)), unscaled",
    )
    command.add_argument(
        "--tail-share",
        type=float,
        help="share of an epoch for images whose rarest class is of the tail",
    )
    command.add_argument(
        "--tail-below",
        type=int,
        default=5000,
        help="images of a class of the tail (default: below 5000)",
    )
    command.add_argument(
        "--engine",
        choices=("duckdb", "spark"),
        default="duckdb",
        help="default: duckdb, in this process",
    )
    command.add_argument(
        "--master", help="where Spark runs, for example local[2] or spark://host:7077"
    )
    command.add_argument("--memory", help="for the engine, for example 4GB; more is kept on disk")
    command.add_argument("--threads", type=int, help="for the engine (default: one per processor)")
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    command = add(
        "pack",
        pack,
        "swag-models recipe pack --labels labels.parquet --images photos/ -o shards/ --resize 256",
    )
    command.add_argument(
        "--labels", required=True, help="labels.parquet: id, classes and repeat of each image"
    )
    command.add_argument(
        "--images",
        required=True,
        nargs="+",
        help="folders, tar shards, or tables (.parquet .csv .jsonl) with columns id and path",
    )
    command.add_argument("-o", "--output", required=True, help="folder for the shards")
    command.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="make images smaller whose shorter side is longer",
    )
    command.add_argument(
        "--shard-size", type=int, default=10_000, help="samples in a shard (default: 10000)"
    )
    command.add_argument(
        "--max-bytes",
        type=int,
        default=1 << 30,
        help="of a shard, about, before resizing (default: 1 GiB)",
    )
    command.add_argument(
        "--seed", type=int, default=0, help="of the order of the samples (default: 0)"
    )
    command.add_argument("--processes", type=int, help="default: one per processor")
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    shards = make_add(
        add("shards", "Look after packed shards.", "swag-models recipe shards verify shards/")
    )
    command = shards("verify", verify, "swag-models recipe shards verify shards/")
    command.add_argument("folder", help="folder with manifest.json")

    train.add_commands(add)
    evaluate.add_commands(add)
    zeroshot.add_commands(add)
    associations.add_commands(add)
