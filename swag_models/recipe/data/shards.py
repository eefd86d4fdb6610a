"""Training shards: tar files in the format of webdataset, their manifest, and their samples.

A packed folder holds shard-000000.tar and so on, rejects.jsonl, the vocabulary.parquet of the
labels, and manifest.json:

    format            1
    versions          of this library, and of Pillow, which resized
    parameters        of the packing
    labels_sha256     of labels.parquet
    num_classes       the greatest class number of any label, plus 1
    count, bytes      samples and bytes of all shards
    samples           expected number in an epoch: the sum of all repeat factors
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
# Names in a manifest come from a file, so they are plain file names: no path, URL or command.
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
            `open_stream`), a shell pattern, or one with {000..999}; or a sequence of the last four.

    Returns:
        The paths or URLs; the manifest, None if there is none.

    Raises:
        ConfigError: there are no such shards, or the manifest cannot be read.
    """
    if not isinstance(shards, (str, os.PathLike)):
        urls = [url for pattern in shards for url in _expand(os.fspath(pattern))]
        return _check_any(urls, shards), None
    source = os.fspath(shards)
    if os.path.isdir(source):
        if not os.path.exists(os.path.join(source, MANIFEST_FILE)):
            raise ConfigError(
                f"{source} has no {MANIFEST_FILE}: packing was not finished; for other shards give "
                f"{source}/*.tar"
            )
        source = os.path.join(source, MANIFEST_FILE)
    if not source.endswith(MANIFEST_FILE):
        return _check_any(_expand(source), shards), None
    manifest = read_manifest(source)
    # "./" so that a name alone is never taken for a URL or a command.
    prefix = source.removesuffix(MANIFEST_FILE) or f".{os.sep}"
    urls = [prefix + shard["name"] for shard in manifest["shards"]]
    return _check_any(urls, shards), manifest


def read_manifest(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a manifest.json.

    Args:
        source: its path or URL.

    Raises:
        ConfigError: it cannot be read, has another format, or names anything but plain files.
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
                    f"{source} names the shard {shard['name']!r}; allowed is a plain file name: "
                    "pack again"
                )
        return manifest
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{source} is not the manifest of packed shards: {reason}") from None


def hash_shards(shards: Shards) -> str:
    """SHA-256 of the manifest; without one, of the names and, except for URLs, sizes of shards."""
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
    """Path of the vocabulary.parquet beside packed shards; None if there is none."""
    if not isinstance(shards, (str, os.PathLike)):
        return None
    path = os.path.join(os.fspath(shards).removesuffix(MANIFEST_FILE), VOCABULARY_FILE)
    return Path(path) if os.path.isfile(path) else None


def read_vocabulary(path: Path) -> list[dict[str, Any]]:
    """The class, synset and hashtag of each class, in order."""
    parquet = import_extra("pyarrow.parquet")
    rows = parquet.read_table(path, columns=["class", "synset", "hashtag"]).to_pylist()
    return sorted(rows, key=lambda row: int(row["class"]))


def check_vocabulary(shards: Shards, synsets: Sequence[str] | None) -> None:
    """Compare the vocabulary beside packed shards, if there is one, with the classes of a model.

    Args:
        shards: as for `find_shards`.
        synsets: the synset of each class; None: not known.

    Raises:
        ConfigError: they are not the same synsets in the same order.
    """
    path = find_vocabulary(shards)
    if path is None or synsets is None:
        return
    if [row["synset"] for row in read_vocabulary(path)] != list(synsets):
        raise ConfigError(
            f"{path} is not the vocabulary of the model; give shards of the curation it learns from"
        )


def name_shards(shards: Shards) -> str:
    """Name of the data for reports, without folders, commands and URL queries."""
    # These may contain private paths and keys, and a report or model card is published.
    if not isinstance(shards, (str, os.PathLike)):
        first = name_shards(shards[0])
        return f"{first} and {len(shards) - 1} more" if len(shards) > 1 else first
    text = os.fspath(shards)
    if text.startswith("pipe:"):
        return "pipe"
    return Path(text.partition("?")[0].removesuffix(MANIFEST_FILE)).resolve().name


def verify_shards(folder: str | os.PathLike[str]) -> list[Flaw]:
    """Compare every shard of a packed folder with the manifest; reads all of them.

    Args:
        folder: the packed folder.

    Returns:
        Every shard that is missing, not in the manifest, of another size, or of another SHA-256.

    Raises:
        ConfigError: the manifest cannot be read.
    """
    folder = Path(folder)
    # By name, so that shards that are not listed are found too.
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
    # Threads suffice: hashing releases the interpreter lock.
    with ThreadPoolExecutor(count_cpus()) as pool:
        return [flaw for flaw in pool.map(find_flaw, names) if flaw]


def read_shard(url: str) -> Iterator[Sample]:
    """Read the samples of a shard, in order.

    Args:
        url: a path, a URL, or `pipe:` and a command, as the user gave it.

    Yields:
        Suffix -> content of each file of a sample, with its key and the shard as `__key__` and
        `__url__`.

    Raises:
        ShardError: the shard cannot be opened or is cut off; the message names it.
        ConfigError: the URL's protocol needs a package that is not installed.
    """
    try:
        with closing(open_stream(url)) as stream:
            yield from group_members(_read_members(stream), url)
            # A command whose output is not read to the end would seem to have failed.
            while stream.read(CHUNK_SIZE):
                pass
    except ConfigError:
        raise
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ShardError(f"shard {url} cannot be read: {reason}") from None


def group_members(members: Iterable[tuple[str, bytes]], url: str) -> Iterator[Sample]:
    """Group consecutive files with equal names up to the first dot into samples.

    This is the format of webdataset (https://github.com/webdataset/webdataset). Files without a
    suffix and hidden files belong to no sample.

    Args:
        members: name and content of each file.
        url: what `__url__` of the samples is.

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
            raise ValueError(f"{name} is there twice")
        sample[suffix] = content
    if sample:
        yield sample


def _read_members(stream: ByteStream) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of a tar stream, which may be compressed."""
    with tarfile.open(fileobj=stream, mode="r|*") as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.isreg() and (file := archive.extractfile(member)):
                yield member.name, file.read()
            archive.members = []  # otherwise the list grows with every member of a long shard
        # tarfile takes a cut between two members for the end, which is a block of zeros.
        if archive.fileobj.tell() < archive.offset + TAR_BLOCK:
            raise tarfile.ReadError("unexpected end of data")


def _read_all(source: str) -> bytes:
    with closing(open_stream(source)) as stream:
        return stream.read()


def _expand(pattern: str) -> list[str]:
    """The shards that a path, URL or pattern stands for."""
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
                f"there is no shard {path}; give a packed folder, paths, URLs or patterns"
            )
    return paths


def _check_any(urls: list[str], shards: Shards) -> list[str]:
    if not urls:
        raise ConfigError(
            f"no shard in {shards}; give a packed folder, paths, URLs or patterns such as "
            "'shard-{000000..000009}.tar'"
        )
    return urls
