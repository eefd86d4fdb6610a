"""Subcommands that turn posts with hashtags into a vocabulary and labels.

They and the other subcommands under `swag-models recipe` need the extra [recipe].
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from swag_models.cli import evaluate, pack, train, transfer
from swag_models.cli.common import (
    OK,
    AddCommand,
    add_quiet_option,
    make_adder,
)
from swag_models.cli.output import print_data, print_line, print_message, print_text
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, list_names, markdown_table
from swag_models.recipe.languages import LEXICON_SUFFIXES, is_lexicon


def curate(options: argparse.Namespace) -> int:
    """Choose a vocabulary from posts with hashtags, and label and resample their images."""
    from swag_models.recipe.curation.columns import Columns
    from swag_models.recipe.curation.curate import Curation, curate
    from swag_models.recipe.curation.preview import MeaningOfTag, preview
    from swag_models.recipe.curation.sampling import Sampling

    sampling = Sampling(
        options.sampling,
        options.epoch_ratio,
        options.threshold,
        options.tail_share,
        options.tail_below,
    )
    reading: dict[str, Any] = {
        "columns": Columns(**{name: getattr(options, name) for name in Columns._fields}),
        "format": options.format,
        "wordnet": _choose_database(options.wordnet),
        "languages": [path for path in options.wordnet if is_lexicon(path)],
        "stoplist": options.stoplist,
        "add_stopwords": options.add_stopwords,
        "overrides": options.overrides,
        "exclude": options.exclude,
        "licenses": options.keep_license,
        "engine": options.engine,
        "master": options.master,
        "memory": options.memory,
        "threads": options.threads,
        "progress": not options.quiet,
    }
    limits = options.min_images, options.max_classes
    curation = Curation(options.senses, *limits, sampling, options.own_classes)
    if options.dry_run is not None:
        rows, posts = preview(options.posts, options.senses, options.dry_run, **reading)
        print_text(markdown_table(MeaningOfTag._fields, rows))
        _print_posts(posts)
        print_message(f"nothing was written to {options.output}")
        return OK
    manifest = curate(options.posts, options.output, curation, **reading)
    posts, labels = manifest["posts"], manifest["labels"]
    if unused := manifest["hashtags"]["unused_stopwords"]:
        count = count_noun(len(unused), "added stop word", "added stop words")
        print_message(f"{count} that match no hashtag: {list_names(unused)}")
    if unused := manifest["hashtags"]["unused_overrides"]:
        print_message(f"overrides of hashtags that no post has: {list_names(unused)}")
    _print_posts(posts)
    print_message(
        f"{count_noun(manifest['classes']['kept'], 'class')}, "
        f"{count_noun(labels['images'], 'image')}, "
        f"{count_noun(round(labels['samples']), 'sample')} in an epoch"
    )
    print_line(f"{options.output}/report.md")
    return OK


def _print_posts(posts: Mapping[str, Any]) -> None:
    num_rejected = sum(posts["rejected"].values())
    print_message(
        f"{count_noun(posts['read'], 'post')}, {num_rejected:,} rejected, {posts['kept']:,} kept"
    )


def _choose_database(paths: Sequence[str]) -> str | None:
    """The folder of WordNet's database among the paths of --wordnet; None if there is none."""
    databases = [path for path in paths if not is_lexicon(path)]
    if len(databases) > 1:
        raise ConfigError(
            f"--wordnet is given {len(databases)} times: {list_names(databases)}; give one folder "
            f"of a database, and files of other languages ({' '.join(LEXICON_SUFFIXES)})"
        )
    return databases[0] if databases else None


def stoplist(options: argparse.Namespace) -> int:
    """Print the built-in list of hashtags that curate ignores, to edit for --stoplist."""
    from swag_models.recipe.hashtags import STOPLIST_FILE

    print_data(STOPLIST_FILE.read_text("utf-8").removesuffix("\n"))
    return OK


def add_commands(add: AddCommand) -> None:
    """Declare the subcommands under `swag-models recipe`, and the options of this module's."""
    recipe = add(
        "recipe",
        "Train models on posts with hashtags, and evaluate them.",
        "swag-models recipe curate --help",
    )
    add = make_adder(recipe)
    command = add(
        "curate", curate, "swag-models recipe curate posts.jsonl -o curated --min-images 100"
    )
    _add_input_options(command)
    _add_vocabulary_options(command)
    _add_sampling_options(command)
    _add_engine_options(command)
    add("stoplist", stoplist, "swag-models recipe stoplist > stoplist.txt")
    for module in (pack, train, evaluate, transfer):
        module.add_commands(add)


def _add_input_options(command: argparse.ArgumentParser) -> None:
    command.set_defaults(python_names={"licenses": "--keep-license"})
    command.add_argument(
        "posts",
        nargs="+",
        help="files, or folders of them: .parquet .jsonl .json .csv .tsv, .tar shards",
    )
    command.add_argument(
        "-o",
        "--output",
        required=True,
        help="output folder; a rerun skips finished steps",
    )
    command.add_argument(
        "--dry-run",
        type=int,
        nargs="?",
        const=50,
        metavar="COUNT",
        help="print what the most used hashtags mean and why (default: 50 of them), and write "
        "nothing to the output folder",
    )
    command.add_argument(
        "--format",
        choices=("json", "csv", "tsv", "yfcc", "tar", "parquet"),
        help="format of the posts (default: recognised from the file names)",
    )
    command.add_argument(
        "--from",
        dest="source",
        choices=("hashtags", "captions", "both"),
        default="hashtags",
        help="what becomes classes: hashtags, nouns and phrases of captions, or both "
        "(default: hashtags)",
    )
    # `curation.posts` lists the usual names of each column
    for name in ("id", "url", "hashtags", "caption", "hash", "license"):
        command.add_argument(
            f"--{name}",
            metavar="COLUMN",
            help=f"column or field with the {name} (default: tries the usual names)",
        )
    command.add_argument(
        "--keep-license",
        metavar="NAME",
        action="append",
        default=[],
        help="keep only posts with this license (repeatable)",
    )
    command.add_argument(
        "--exclude",
        metavar="FILE",
        help="text file of ids or hashes of posts to leave out, one per line",
    )


def _add_vocabulary_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--wordnet",
        metavar="PATH",
        action="append",
        default=[],
        help="folder of the WordNet 3.0 database (default: searches the usual folders); or a file "
        "of words of other languages: WN-LMF (.xml), Open Multilingual Wordnet (.tab) (repeatable)",
    )
    command.add_argument(
        "--stoplist",
        metavar="FILE",
        help="text file of hashtags to ignore, one per line (default: the built-in list, which "
        "recipe stoplist prints)",
    )
    command.add_argument(
        "--add-stopwords",
        metavar="FILE|WORDS",
        default=(),
        help="hashtags to ignore besides those of the list: words,with,commas, or a file of them",
    )
    command.add_argument(
        "--overrides",
        metavar="FILE",
        help="text file of what hashtags mean, one per line: hashtag, then synset ids (n02084071), "
        "numbered senses (dog#1) or drop; stronger than all lists and --senses",
    )
    command.add_argument(
        "--senses",
        choices=("context", "first", "all", "drop"),
        default="context",
        help="which senses of ambiguous hashtags to use: the one that people mean on images, "
        "given the other hashtags of the post (context, the default), the first in WordNet's "
        "order, all, or none (drop)",
    )
    command.add_argument(
        "--min-images", type=int, default=1, help="minimum images per class (default: 1)"
    )
    command.add_argument(
        "--max-classes",
        type=int,
        default=27_000,  # the number used by Singh et al. (arXiv 2201.08371)
        help="maximum number of classes; the most frequent ones are used (default: 27000)",
    )
    command.add_argument(
        "--own-classes",
        type=int,
        default=0,
        metavar="COUNT",
        help="make classes of this many of the most frequent hashtags that are no noun of WordNet "
        "(default: 0)",
    )


def _add_sampling_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sampling",
        choices=("natural", "sqrt", "uniform", "metaclip"),
        default="sqrt",
        help="how images are resampled by class frequency (default: sqrt)",
    )
    command.add_argument(
        "--epoch-ratio",
        type=float,
        help="number of samples in an epoch, per image (default: 5/3.6; with metaclip as many as "
        "it keeps)",
    )
    command.add_argument(
        "--threshold",
        type=float,
        metavar="IMAGES",
        help="with sqrt: repeat factors are max(1, sqrt(threshold / images)), unscaled; with "
        "metaclip: each class keeps min(1, threshold / images) of its images (default: the number "
        "below which classes have 6%% of all labels)",
    )
    command.add_argument(
        "--tail-share",
        type=float,
        help="share of an epoch for images whose rarest class belongs to the tail",
    )
    command.add_argument(
        "--tail-below",
        type=int,
        default=5000,
        metavar="IMAGES",
        help="classes with fewer images belong to the tail (default: 5000)",
    )


def _add_engine_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--engine",
        choices=("duckdb", "spark"),
        default="duckdb",
        help="engine that runs the queries (default: duckdb, which runs in this process)",
    )
    command.add_argument(
        "--master", help="URL of the Spark master, for example local[2] or spark://host:7077"
    )
    command.add_argument(
        "--memory",
        help="memory limit of the engine, for example 4GB; larger data is spilled to disk",
    )
    command.add_argument(
        "--threads", type=int, help="number of threads of the engine (default: one per CPU)"
    )
    add_quiet_option(command)
