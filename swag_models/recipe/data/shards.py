"""Training shards: tar files in the format of webdataset, and their samples."""

import glob
import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from swag_models.archives import TAR_ERRORS, open_tar, walk_members
from swag_models.errors import ConfigError, ShardError
from swag_models.formatting import describe_error
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.paths import expand_location
from swag_models.recipe.data.manifest import MANIFEST_FILE, read_manifest
from swag_models.recipe.data.shard_list import ShardList
from swag_models.recipe.data.urls import ByteStream, is_url, open_stream, read_all
from swag_models.runtime import import_extra

PADDING_CHUNK_SIZE = 1 << 20  # bytes read at a time
MAX_PADDING = 1 << 26  # bytes after the end of an archive, which pads it to a multiple of a block
MAX_FILE_SIZE = 1 << 29  # bytes of a file in a shard, which is read into memory

Shards = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Sample = dict[str, Any]


def find_shards(shards: Shards) -> tuple[ShardList, dict[str, Any] | None]:
    """List the paths or URLs of all shards, in order, and read their manifest.

    Args:
        shards: a packed folder; the path or URL of its manifest.json; a path, a URL (see
            `open_stream`), a shell pattern, or a pattern with {000..999}; or a sequence of the
            last four. A ShardList is returned as it is.

    Returns:
        The paths or URLs, and the manifest, or None without one.

    Raises:
        ConfigError: the shards do not exist, or the manifest cannot be read.
    """
    if isinstance(shards, ShardList):
        return shards, None
    if not isinstance(shards, (str, os.PathLike)):
        urls = [url for pattern in shards for url in _expand_pattern(expand_location(pattern))]
        return _list_shards(urls, shards), None
    source = _find_manifest(shards)
    if not source.endswith(MANIFEST_FILE):
        return _list_shards(_expand_pattern(source), shards), None
    manifest = read_manifest(source)
    # "./", so that a bare name is never mistaken for a URL or a command.
    prefix = source.removesuffix(MANIFEST_FILE) or f".{os.sep}"
    urls = [prefix + shard["name"] for shard in manifest["shards"]]
    return _list_shards(urls, shards), manifest


def check_shards_exist(urls: Iterable[str]) -> None:
    """Raise ConfigError if a shard is neither a file nor a URL."""
    for url in urls:
        if not is_url(url) and not os.path.exists(url):
            raise ConfigError(
                f"shard {url} does not exist; give a packed folder, paths, URLs or patterns"
            )


def _find_manifest(shards: str | os.PathLike[str]) -> str:
    """Return the path of the manifest in a packed folder; any other path or URL as it is."""
    source = expand_location(shards)
    if os.path.isdir(source):
        if not os.path.exists(os.path.join(source, MANIFEST_FILE)):
            raise ConfigError(
                f"{source} has no {MANIFEST_FILE}: packing was not finished; for other shards give "
                f"{source}/*.tar"
            )
        source = os.path.join(source, MANIFEST_FILE)
    return source


def hash_shards(shards: Shards) -> str:
    """Return the SHA-256 of the manifest, or without one of the names of shards and file sizes."""
    if isinstance(shards, (str, os.PathLike)):
        source = _find_manifest(shards)
        if source.endswith(MANIFEST_FILE):
            return hashlib.sha256(read_all(source)).hexdigest()
    urls, _ = find_shards(shards)
    sizes = [
        (os.path.basename(url), os.path.getsize(url) if os.path.exists(url) else None)
        for url in urls
    ]
    return hashlib.sha256(json.dumps(sorted(sizes, key=str)).encode()).hexdigest()


def find_vocabulary(shards: Shards) -> Path | None:
    """Return the path of the vocabulary.parquet beside packed shards, or None without one."""
    if not isinstance(shards, (str, os.PathLike)):
        return None
    path = os.path.join(expand_location(shards).removesuffix(MANIFEST_FILE), VOCABULARY_FILE)
    return Path(path) if os.path.isfile(path) else None


def read_vocabulary(path: Path, spellings: bool = False) -> list[dict[str, Any]]:
    """Return the number, synset and hashtag of each class, sorted by number.

    Args:
        path: vocabulary.parquet.
        spellings: also return `hashtags`, all spellings of the class.
    """
    parquet = import_extra("pyarrow.parquet")
    types = {"class": int, "synset": str, "hashtag": str}
    if spellings:
        types["hashtags"] = list
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path, columns=list(types)).to_pylist()
    except (OSError, ValueError, LookupError, NotImplementedError) as error:  # pyarrow's errors
        raise ConfigError(f"{path} cannot be read: {describe_error(error)}; pack again") from None
    for row in rows:
        values = [*row.values(), *(row.get("hashtags") or ())]
        kinds = [types.get(name) for name in row] + [str] * (len(values) - len(row))
        if row.keys() != types.keys() or list(map(type, values)) != kinds:
            raise ConfigError(
                f"{path} has the row {row}; allowed: class (a whole number), synset and hashtag "
                "(text), hashtags (a list of text); pack again"
            )
    return sorted(rows, key=lambda row: int(row["class"]))


def check_vocabulary(shards: Shards, synsets: Sequence[str] | None) -> None:
    """Compare the vocabulary beside packed shards, if there is one, with the classes of a model.

    Args:
        shards: as for `find_shards`.
        synsets: the synset of each class; None if not known.

    Raises:
        ConfigError: the vocabulary and the model have other synsets, or another order of them.
    """
    path = find_vocabulary(shards)
    if path is None or synsets is None:
        return
    if [row["synset"] for row in read_vocabulary(path)] != list(synsets):
        raise ConfigError(
            f"{path} is not the vocabulary of the model; give shards of the same curation"
        )


def name_shards(shards: Shards) -> str:
    """Return the name of the data for reports, without folders, commands and URL queries."""
    # These may contain private paths and keys, and reports and model cards are published.
    if not isinstance(shards, (str, os.PathLike)):
        first = name_shards(shards[0])
        return f"{first} and {len(shards) - 1} more" if len(shards) > 1 else first
    text = expand_location(shards)
    if text.startswith("pipe:"):
        return "pipe"
    return Path(text.partition("?")[0].removesuffix(MANIFEST_FILE)).resolve().name


def read_shard(url: str) -> Iterator[Sample]:
    """Read the samples of a shard, in order.

    Args:
        url: a path, a URL, or `pipe:` and a command, as the user gave it.

    Yields:
        Samples: suffix -> content of each file, the key of the sample as `__key__`, and `url` as
        `__url__`.

    Raises:
        ShardError: the shard cannot be opened or is truncated; the message names it.
        ConfigError: the URL's protocol needs a package that is not installed.
    """
    try:
        with closing(open_stream(url)) as stream:
            yield from group_members(_read_members(stream), url)
            # If its output were not read to the end, a command would fail with a broken pipe.
            for _ in range(MAX_PADDING // PADDING_CHUNK_SIZE):
                if not stream.read(PADDING_CHUNK_SIZE):
                    return
            raise ShardError(f"shard {url} does not end after its archive; pack it again")
    except ConfigError:
        raise
    except TAR_ERRORS as error:
        raise ShardError(f"shard {url} cannot be read: {describe_error(error)}") from None


def group_members(members: Iterable[tuple[str, bytes]], url: str) -> Iterator[Sample]:
    """Group consecutive files into samples, by the part of the name before the first dot.

    This is the format of webdataset (https://github.com/webdataset/webdataset). Files without a
    suffix and hidden files are skipped.

    Args:
        members: name and content of each file.
        url: the value of `__url__` in the samples.

    Raises:
        ValueError: a sample has two files with one suffix.
    """
    sample: Sample = {}
    for name, content in members:
        folder, slash, base = name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not stem or not dot:
            continue
        key, suffix = folder + slash + stem, suffix.lower()
        if key != sample.get("__key__"):
            if sample:
                yield sample
            sample = {"__key__": key, "__url__": url}
        if suffix in sample:
            raise ValueError(f"it has {name} twice")
        sample[suffix] = content
    if sample:
        yield sample


def _read_members(stream: ByteStream) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file of a tar stream, which may be compressed."""
    with open_tar(stream, "r|*") as archive:
        for member in walk_members(archive):
            if member.size > MAX_FILE_SIZE:
                raise tarfile.ReadError(
                    f"{member.name!r} has {member.size} bytes; allowed: up to {MAX_FILE_SIZE:,}"
                )
            if not member.isdir():
                # A link or a pipe counts as an empty file: a broken image, which is counted.
                is_file = member.isfile()
                yield member.name, archive.extractfile(member).read() if is_file else b""


def _expand_pattern(pattern: str) -> list[str]:
    """List the shards that match a path, URL or pattern."""
    if os.path.exists(pattern):
        return [pattern]
    try:
        urls = list(import_extra("braceexpand").braceexpand(pattern))
    except ValueError as error:
        raise ConfigError(f"invalid shards {pattern!r}: {error}") from None
    if is_url(pattern):
        return urls
    paths = [
        path for url in urls for path in (sorted(glob.glob(url)) if glob.has_magic(url) else [url])
    ]
    check_shards_exist(paths)
    return paths


def _list_shards(urls: list[str], shards: Shards) -> ShardList:
    if not urls:
        raise ConfigError(
            f"no shard in {shards}; give a packed folder, paths, URLs or patterns such as "
            "'shard-{000000..000009}.tar'"
        )
    return ShardList(urls)
