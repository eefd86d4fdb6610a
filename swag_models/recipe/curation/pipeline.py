"""The steps of a curation: functions from the files of earlier steps to the files of the next.

`curate.curate` calls them in order, through `steps.StepRunner`, which skips what an earlier run
finished. A step returns facts for the manifest: counts and lists, JSON values. `queries` has its
expressions.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from swag_models.atomic import write_json
from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.hub.download import hash_file
from swag_models.recipe.curation import queries
from swag_models.recipe.curation.backends import Backend, remove_table
from swag_models.recipe.curation.context import (
    SENSES_USED,
    choose_senses,
    count_senses,
    resolve_rules,
)
from swag_models.recipe.curation.ingest import ReadOptions, unite_posts
from swag_models.recipe.curation.matching import TagMatcher
from swag_models.recipe.curation.own_classes import choose_own_classes
from swag_models.recipe.curation.posts_left import check_posts_left
from swag_models.recipe.curation.steps import Facts
from swag_models.recipe.hashtags import Matcher
from swag_models.recipe.wordnet import WordNet

logger = logging.getLogger("swag_models")

CLASSES = pa.schema(
    {"number": pa.int32(), "class": pa.int32(), "synset": pa.string(), "images": pa.int64()}
)


@dataclass(frozen=True)
class PostSelection:
    """Which posts to read, how to read them, and which of them to use.

    Args:
        files: files of posts.
        options: how they are read.
        excluded: ids and hashes of posts to leave out.
        licenses: licenses of the posts to keep; empty for all.
    """

    files: Sequence[Path]
    options: ReadOptions
    excluded: Sequence[str]
    licenses: Sequence[str]


def hash_files(files: Sequence[Path], record: Path) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each file.

    Args:
        files: the files.
        record: JSON file of earlier hashes; a file with the same size and modification time is not
            read again.
    """
    recorded: Mapping[str, str] = {}
    with suppress(OSError, ValueError):  # a missing or damaged record only costs time
        recorded = dict(parse_json(record.read_bytes()))
    stats = [file.stat() for file in files]
    keys = [
        f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        for file, stat in zip(files, stats, strict=True)
    ]
    with ThreadPoolExecutor() as pool:  # hashlib releases the interpreter lock
        hashes = list(pool.map(lambda key, file: recorded.get(key) or hash_file(file), keys, files))
    write_json(record, dict(zip(keys, hashes, strict=True)), indent=None)
    return [
        {"name": file.name, "bytes": stat.st_size, "sha256": digest}
        for file, stat, digest in zip(files, stats, hashes, strict=True)
    ]


def clean_posts(
    backend: Backend,
    selection: PostSelection,
    work: Path,
    posts: Path,
    rejects: Path,
    *,
    rejects_stay: bool = True,
) -> Facts:
    """Unite the posts of all files, without unwanted and repeated ones; at least one must be left.

    Args:
        backend: computes the tables.
        selection: the files, and which of their posts to keep.
        work: folder for temporary tables.
        posts: folder to write, in parts: id, hashtags, url.
        rejects: JSON Lines file of malformed rows to write.
        rejects_stay: whether messages name this file.
    """
    united, rejected = unite_posts(backend, selection.files, selection.options, work, rejects)
    licensed = united
    if selection.licenses:
        licensed = queries.keep_licensed(united, selection.licenses)
    selected = licensed
    if selection.excluded:
        values = pa.table({"value": pa.array(selection.excluded, pa.string())})
        selected = queries.drop_excluded(licensed, backend.store(values, work / "excluded.parquet"))
    unique, repeated_ids = _choose_posts(backend, selected, work)
    unique, repeated_urls = _unite_copies(backend, unique, "url", work)
    with_hash, repeated_hashes = backend.count(queries.keep_valued(united, "hash")), 0
    if with_hash:
        unique, repeated_hashes = _unite_copies(backend, unique, "hash", work)
    # in parts, for the steps that collect lists: see `Backend.map_parts`
    backend.write_parts(unique.select("id", "hashtags", "url"), posts)

    num_read = backend.count(united)
    with_license = backend.count(licensed) if selection.licenses else num_read
    num_kept = backend.count(backend.read(posts))
    check_posts_left(num_kept, num_read, rejected, rejects, selection.files, rejects_stay)
    return {
        "read": num_read + sum(rejected.values()),
        "rejected": rejected,
        "other_licenses": num_read - with_license,
        "repeated_ids": repeated_ids,
        "repeated_urls": repeated_urls,
        "repeated_hashes": repeated_hashes,
        "with_hash": with_hash,
        "kept": num_kept,
        # computed from the other counts, which is cheaper than counting the selected posts
        "excluded": with_license - num_kept - repeated_ids - repeated_urls - repeated_hashes,
    }


# Tables that are used several times are stored, to be computed only once. Most data have no copies
# at all, and are not joined with the empty tables of them.


def _choose_posts(backend: Backend, posts: Any, work: Path) -> tuple[Any, int]:
    """Keep one of the posts with the same id; return how many fewer that are."""
    repeated = _store(backend, queries.find_repeated_ids(posts), work / "repeated.parquet")
    counts = _read_table(work / "repeated.parquet")["posts"].to_pylist()
    if not counts:
        return posts, 0
    chosen = _store(backend, queries.choose_posts(posts, repeated), work / "chosen.parquet")
    return posts.anti_join(repeated, "id").union(chosen), sum(counts) - len(counts)


def _unite_copies(backend: Backend, posts: Any, key: str, work: Path) -> tuple[Any, int]:
    """Make one post of all that have the same URL or hash; return how many fewer that are."""
    copies = _store(backend, queries.find_copies(posts, key), work / f"{key}_copies.parquet")
    if not (num_copies := backend.count(copies)):
        return posts, 0
    united = _store(backend, queries.unite_copies(posts, copies), work / f"{key}_images.parquet")
    crowds = copies.filter(copies.posts > queries.MAX_UNITED)
    if num_crowds := backend.count(crowds.filter(crowds.id == crowds["first"])):
        logger.warning(
            "%s is the same in more than %d posts, for %d of its values: each is one image with "
            "the hashtags of its first post only; check that the column is not a placeholder",
            *(key, queries.MAX_UNITED, num_crowds),
        )
    others = posts.anti_join(copies, "id")
    return others.union(united), num_copies - backend.count(united)


def match_posts(
    backend: Backend,
    posts: Path,
    matcher: Matcher,
    wordnet: WordNet,
    own_limits: tuple[int, int],
    outputs: Mapping[str, Path],
) -> Facts:
    """Match each distinct hashtag of the posts with synsets.

    Args:
        backend: computes the tables.
        posts: folder written by `clean_posts`.
        matcher: finds the synsets of a hashtag.
        wordnet: describes ambiguous hashtags.
        own_limits: number of unknown hashtags that become classes, and their minimum uses.
        outputs: Parquet files to write: tags (see `tag_table.TAGS`), matches (`matching.MATCHES`),
            codes and rules (`context`).
    """
    counts = outputs["tags"].with_name("counts.parquet")
    backend.write(queries.count_hashtags(backend.read(posts)), counts)
    matching = TagMatcher(matcher, own_limits[0])
    matching.match_table(counts, outputs["tags"])
    remove_table(counts)
    own: list[Any] = []
    if own_limits[0]:
        own = backend.fetch(
            choose_own_classes(backend.read(outputs["tags"]), *own_limits)
        ).to_pylist()
    facts, *tables = matching.make_tables(wordnet, own)
    for name, rows in zip(("matches", "codes", "rules"), tables, strict=True):
        backend.store(rows, outputs[name])
    return facts


def gather_synsets(
    backend: Backend, posts: Path, codes: Path, rules: Path, images: Path, senses: Path
) -> Facts:
    """Gather the synsets of each image; writes the folder `images` in parts: id, numbers.

    The file `senses` has the images of each sense of the hashtags that depend on their posts, see
    `context.SENSES_USED`.
    """
    pairs = backend.read(codes)
    if not len(_read_table(rules)):
        backend.map_parts(posts, images, lambda part: queries.gather_images(part, pairs))
        backend.store(SENSES_USED.empty_table(), senses)
        return {}
    gathered, chosen = images.with_name("gathered"), images.with_name("chosen")
    backend.map_parts(posts, gathered, lambda part: queries.gather_images(part, pairs))
    table = backend.read(rules)
    backend.map_parts(gathered, chosen, lambda part: choose_senses(part, table))
    backend.map_parts([gathered, chosen], images, resolve_rules)
    rows = sorted(
        backend.fetch(count_senses(backend.read(chosen))).to_pylist(),
        key=lambda row: (row["tag"], -row["images"], row["number"]),
    )
    backend.store(pa.Table.from_pylist(rows, SENSES_USED), senses)
    remove_table(gathered)
    remove_table(chosen)
    return {}


def choose_classes(
    backend: Backend,
    images: Path,
    matches: Path,
    limits: tuple[int, int],
    classes: Path,
    labels: Path,
) -> Facts:
    """Choose the most frequent synsets as classes, and label the images with them.

    Args:
        backend: computes the tables.
        images: folder written by `gather_synsets`.
        matches: file written by `match_posts`.
        limits: the minimum number of images of a class, and the maximum number of classes.
        classes: Parquet file to write, see `CLASSES`; in descending order of images.
        labels: folder to write, in parts: id, classes, rarest.

    Raises:
        ConfigError: no class has enough images.
    """
    min_images, max_classes = limits
    table = _read_table(matches)
    synsets = dict(zip(table["number"].to_pylist(), table["synset"].to_pylist(), strict=True))
    counts = backend.fetch(queries.count_images(backend.read(images))).to_pylist()
    # Classes of equal frequency are ordered by synset, so that all backends number them equally.
    counts.sort(key=lambda row: (-row["images"], synsets[row["number"]]))
    frequent = [row for row in counts if row["images"] >= min_images]
    if not frequent:
        most = max((row["images"] for row in counts), default=0)
        raise ConfigError(
            f"no class has {min_images} images or more: of the {len(counts)} found, the most "
            f"frequent has {most}; lower min_images="
        )
    rows = [
        {"number": row["number"], "class": index}
        | {"synset": synsets[row["number"]], "images": row["images"]}
        for index, row in enumerate(frequent[:max_classes])
    ]
    numbers = backend.store(pa.Table.from_pylist(rows, CLASSES), classes).select("number", "class")
    backend.map_parts(images, labels, lambda part: queries.gather_labels(part, numbers))
    return {
        "found": len(counts),
        "too_few": len(counts) - len(frequent),
        "too_many": len(frequent) - len(rows),
        "kept": len(rows),
    }


def write_urls(backend: Backend, labels: Path, posts: Path, output: Path) -> Facts:
    """Write the URLs of the labelled images, from which img2dataset can download them.

    Args:
        backend: computes the tables.
        labels: labels written by `resample_labels`.
        posts: folder written by `clean_posts`.
        output: the table to write, sorted by id: id, url. Removed if no post has a URL.
    """
    urls = queries.list_urls(backend.read(labels), backend.read(posts))
    backend.write(urls, output)
    count = backend.count(backend.read(output))
    if not count:
        remove_table(output)
    return {"urls": count}


def _store(backend: Backend, table: Any, path: Path) -> Any:
    """Compute a table once, and return it as read from the file."""
    backend.write(table, path)
    return backend.read(path)


def _read_table(path: Path) -> pa.Table:
    return pyarrow.parquet.read_table(path)
