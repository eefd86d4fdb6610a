"""Training shards: tar files in the format of webdataset, their manifest, and their samples.

A packed folder contains shard-000000.tar and so on, rejects.jsonl, the vocabulary.parquet of the
labels, and manifest.json with these entries:

    format            1
    versions          versions of this library, and of Pillow, which resizes images
    parameters        parameters of the packing
    labels_sha256     SHA-256 of labels.parquet
    num_classes       the greatest class number of any label, plus 1
    count, bytes      number of samples and size in bytes of all shards
    samples           expected number of samples in an epoch: the sum of all repeat factors
    unlabelled        number of images without a label
    rejects           reason -> number of lines in rejects.jsonl
    shards            name, count, bytes and SHA-256 of each shard
"""

import glob
import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.errors import ConfigError, ShardError
from swag_models.hub.download import hash_file
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.inference.image_sources import TAR_BLOCK
from swag_models.recipe.data.urls import ByteStream, is_url, open_stream
from swag_models.runtime import count_cpus, import_extra

MANIFEST_FORMAT = 1
MANIFEST_FILE = "manifest.json"
CHUNK_SIZE = 1 << 20  # bytes read at a time
# A manifest may come from someone else, so it may only name plain files: no path, URL or command.
SHARD_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*", re.ASCII)

Shards = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Sample = dict[str, Any]


class Flaw(NamedTuple):
    """A file of a packed folder that differs from what was packed."""

    name: str
    problem: str


def find_shards(shards: Shards) -> tuple[list[str], dict[str, Any] | None]:
    """List the paths or URLs of all shards, in order, and read their manifest.

    Args:
        shards: a packed folder; the path or URL of its manifest.json; a path, a URL (see
            `open_stream`), a shell pattern, or a pattern with {000..999}; or a sequence of the
            last four.

    Returns:
        The paths or URLs, and the manifest, or None without one.

    Raises:
        ConfigError: the shards do not exist, or the manifest cannot be read.
    """
    if not isinstance(shards, (str, os.PathLike)):
        urls = [url for pattern in shards for url in _expand_pattern(os.fspath(pattern))]
        return _check_not_empty(urls, shards), None
    source = os.fspath(shards)
    if os.path.isdir(source):
        if not os.path.exists(os.path.join(source, MANIFEST_FILE)):
            raise ConfigError(
                f"{source} has no {MANIFEST_FILE}: packing was not finished; for other shards give "
                f"{source}/*.tar"
            )
        source = os.path.join(source, MANIFEST_FILE)
    if not source.endswith(MANIFEST_FILE):
        return _check_not_empty(_expand_pattern(source), shards), None
    manifest = read_manifest(source)
    # "./", so that a bare name is never mistaken for a URL or a command.
    prefix = source.removesuffix(MANIFEST_FILE) or f".{os.sep}"
    urls = [prefix + shard["name"] for shard in manifest["shards"]]
    return _check_not_empty(urls, shards), manifest


def read_manifest(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a manifest.json.

    Args:
        source: its path or URL.

    Raises:
        ConfigError: it cannot be read, has another format, or names something other than plain
            files.
    """
    source = os.fspath(source)
    try:
        manifest: dict[str, Any] = json.loads(_read_all(source))
        if manifest["format"] != MANIFEST_FORMAT:
            raise ConfigError(
                f"{source} has format {manifest['format']}; this version reads {MANIFEST_FORMAT}: "
                "update swag-models"
            )
        for shard in manifest["shards"]:
            if not (isinstance(shard["name"], str) and SHARD_NAME.fullmatch(shard["name"])):
                raise ConfigError(
                    f"{source} names the shard {shard['name']!r}; allowed: a plain file name; "
                    "pack again"
                )
        return manifest
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{source} is not the manifest of packed shards: {reason}") from None


def hash_shards(shards: Shards) -> str:
    """Return the SHA-256 of the manifest, or without one of the names of shards and file sizes."""
    urls, manifest = find_shards(shards)
    if manifest:
        source = os.fspath(shards)  # type: ignore[arg-type]  # a sequence has no manifest
        path = os.path.join(source, MANIFEST_FILE) if os.path.isdir(source) else source
        return hashlib.sha256(_read_all(path)).hexdigest()
    sizes = [
        (os.path.basename(url), os.path.getsize(url) if os.path.exists(url) else None)
        for url in urls
    ]
    return hashlib.sha256(json.dumps(sorted(sizes, key=str)).encode()).hexdigest()


def find_vocabulary(shards: Shards) -> Path | None:
    """Return the path of the vocabulary.parquet beside packed shards, or None without one."""
    if not isinstance(shards, (str, os.PathLike)):
        return None
    path = os.path.join(os.fspath(shards).removesuffix(MANIFEST_FILE), VOCABULARY_FILE)
    return Path(path) if os.path.isfile(path) else None


def read_vocabulary(path: Path) -> list[dict[str, Any]]:
    """Return the number, synset and hashtag of each class, sorted by number."""
    parquet = import_extra("pyarrow.parquet")
    rows = parquet.read_table(path, columns=["class", "synset", "hashtag"]).to_pylist()
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
    text = os.fspath(shards)
    if text.startswith("pipe:"):
        return "pipe"
    return Path(text.partition("?")[0].removesuffix(MANIFEST_FILE)).resolve().name


def verify_shards(folder: str | os.PathLike[str]) -> list[Flaw]:
    """Compare every shard of a packed folder with the manifest, by reading all of them.

    Args:
        folder: the packed folder.

    Returns:
        Every shard that is missing, is not in the manifest, or has another size or SHA-256.

    Raises:
        ConfigError: the manifest cannot be read.
    """
    folder = Path(folder)
    # By name, to find shards that are not listed too.
    listed = {shard["name"]: shard for shard in read_manifest(folder / MANIFEST_FILE)["shards"]}

    def find_flaw(name: str) -> Flaw | None:
        path = folder / name
        if name not in listed:
            return Flaw(name, f"is not in {MANIFEST_FILE}")
        if not path.is_file():
            return Flaw(name, "is missing")
        if (size := path.stat().st_size) != listed[name]["bytes"]:
            return Flaw(name, f"has {size} bytes instead of {listed[name]['bytes']}")
        try:
            digest = hash_file(path)
        except OSError as error:
            return Flaw(name, f"cannot be read: {error.strerror}")
        if digest != (expected := listed[name]["sha256"]):
            return Flaw(name, f"was changed: its SHA-256 is {digest} instead of {expected}")
        return None

    names = sorted({*listed, *(path.name for path in folder.glob("*.tar"))})
    # Threads suffice, because hashing releases the global interpreter lock.
    with ThreadPoolExecutor(count_cpus()) as pool:
        return [flaw for flaw in pool.map(find_flaw, names) if flaw]


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
            while stream.read(CHUNK_SIZE):
                pass
    except ConfigError:
        raise
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ShardError(f"shard {url} cannot be read: {reason}") from None


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
    with tarfile.open(fileobj=stream, mode="r|*") as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.isreg() and (file := archive.extractfile(member)):
                yield member.name, file.read()
            archive.members = []  # otherwise the list grows with every member of a long shard
        # tarfile accepts a file that is truncated between members and lacks the final zero block.
        if archive.fileobj.tell() < archive.offset + TAR_BLOCK:
            raise tarfile.ReadError("unexpected end of data")


def _read_all(source: str) -> bytes:
    with closing(open_stream(source)) as stream:
        return stream.read()


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
    for path in paths:
        if not os.path.isfile(path):
            raise ConfigError(
                f"shard {path} does not exist; give a packed folder, paths, URLs or patterns"
            )
    return paths


def _check_not_empty(urls: list[str], shards: Shards) -> list[str]:
    if not urls:
        raise ConfigError(
            f"no shard in {shards}; give a packed folder, paths, URLs or patterns such as "
            "'shard-{000000..000009}.tar'"
        )
    return urls
