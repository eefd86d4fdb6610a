"""Training shards: tar files of the WebDataset convention, what a manifest says of them, and their samples one after the other.

A packed folder holds shard-000000.tar and so on, rejects.jsonl, the vocabulary.parquet of the labels, and manifest.json:
  format            1
  versions          of this library, and of Pillow, which resized
  parameters        of the packing
  labels_sha256     of labels.parquet
  num_classes       the greatest class of any label, and one
  count, bytes      of all shards
  samples           expected in an epoch: the sum of all repeat factors
  unlabelled        images that no label was given for
  rejects           reason -> how many lines of rejects.jsonl have it
  shards            name, count, bytes and SHA-256 of each
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shlex
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.errors import ConfigError, ShardError
from swag_models.hub.download import hash_file
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.inference.image_sources import TAR_BLOCK
from swag_models.runtime import count_cpus, import_extra

FORMAT = 1
MANIFEST = "manifest.json"
CHUNK = 1 << 20  # bytes read at a time
NAME = re.compile(
    r"[A-Za-z0-9_][\w.+-]*", re.ASCII
)  # of a shard in a manifest: a plain file name, no path, URL or command

Shards = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Flaw(NamedTuple):
    """A file of a packed folder that is not what was packed."""

    name: str
    problem: str


def find_shards(shards: Shards) -> tuple[list[str], dict[str, Any] | None]:
    """The paths or URLs of all shards, in order, and their manifest if they have one.

    A packed folder; the path or URL of its manifest.json; a path, a URL (https, s3, gs, hf, `pipe:` and a command, whatever
    `webdataset` opens), a shell pattern or one with {000..999}; or a sequence of the last four. ConfigError if there are none.
    """
    if not isinstance(shards, (str, os.PathLike)):
        found = [url for each in shards for url in _expand(os.fspath(each))]
        return _refuse_none(found, shards), None
    source = os.fspath(shards)
    if os.path.isdir(source):
        if not os.path.exists(os.path.join(source, MANIFEST)):
            raise ConfigError(
                f"{source} has no {MANIFEST}: it was not packed to the end; for other shards give {source}/*.tar"
            )
        source = os.path.join(source, MANIFEST)
    if not source.endswith(MANIFEST):
        return _refuse_none(_expand(source), shards), None
    manifest = read_manifest(source)
    prefix = (
        source.removesuffix(MANIFEST) or f".{os.sep}"
    )  # so that a name alone is never taken for a URL
    return _refuse_none([prefix + shard["name"] for shard in manifest["shards"]], shards), manifest


def read_manifest(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What a manifest.json, at a path or URL, says; ConfigError if it is none that this version reads."""
    source = os.fspath(source)
    try:
        manifest: dict[str, Any] = json.loads(_read_whole(source))
        if manifest["format"] != FORMAT:
            raise ConfigError(
                f"{source} has format {manifest['format']}; this version reads {FORMAT}: update swag-models"
            )
        for shard in manifest["shards"]:
            if not (isinstance(shard["name"], str) and NAME.fullmatch(shard["name"])):
                raise ConfigError(
                    f"{source} names the shard {shard['name']!r}; allowed is a plain file name: pack again"
                )
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{source} is not the manifest of packed shards: {getattr(error, 'strerror', None) or error}"
        ) from None


def hash_shards(shards: Shards) -> str:
    """SHA-256 of the manifest, or of the names of the shards and, but for URLs, their sizes."""
    urls, manifest = find_shards(shards)
    if manifest:
        source = os.fspath(shards)  # type: ignore[arg-type]  # a sequence has no manifest
        return hashlib.sha256(
            _read_whole(os.path.join(source, MANIFEST) if os.path.isdir(source) else source)
        ).hexdigest()
    sizes = [
        (os.path.basename(url), os.path.getsize(url) if os.path.exists(url) else None)
        for url in urls
    ]
    return hashlib.sha256(json.dumps(sorted(sizes, key=str)).encode()).hexdigest()


def find_vocabulary(shards: Shards) -> Path | None:
    """The vocabulary.parquet beside packed shards, if there is one."""
    if not isinstance(shards, (str, os.PathLike)):
        return None
    path = os.path.join(os.fspath(shards).removesuffix(MANIFEST), VOCABULARY_FILE)
    return Path(path) if os.path.isfile(path) else None


def read_vocabulary(path: Path) -> list[dict[str, Any]]:
    """The class, synset and hashtag of each class, in order."""
    rows = (
        import_extra("pyarrow.parquet")
        .read_table(path, columns=["class", "synset", "hashtag"])
        .to_pylist()
    )
    return sorted(rows, key=lambda row: int(row["class"]))


def check_vocabulary(shards: Shards, synsets: Sequence[str] | None) -> None:
    """ConfigError if a vocabulary beside the shards has other classes than these, or has them in another order."""
    path = find_vocabulary(shards)
    if (
        path
        and synsets is not None
        and [row["synset"] for row in read_vocabulary(path)] != list(synsets)
    ):
        raise ConfigError(
            f"{path} is not the vocabulary of the model; give shards of the curation it learns from"
        )


def name_shards(shards: Shards) -> str:
    """What to call them where others read it, so without folders, commands and the keys that URLs may have."""
    if not isinstance(shards, (str, os.PathLike)):
        return (
            f"{name_shards(shards[0])} and {len(shards) - 1} more"
            if len(shards) > 1
            else name_shards(shards[0])
        )
    text = os.fspath(shards)
    if text.startswith("pipe:"):
        return "pipe"
    return Path(text.partition("?")[0].removesuffix(MANIFEST)).resolve().name


def verify_shards(folder: str | os.PathLike[str]) -> list[Flaw]:
    """Every shard in a packed folder that is missing, foreign, of the wrong size, or has a changed byte. All are read."""
    folder = Path(folder)
    listed = {shard["name"]: shard for shard in read_manifest(folder / MANIFEST)["shards"]}

    def find_flaw(name: str) -> Flaw | None:
        path = folder / name
        if name not in listed:
            return Flaw(name, f"is not in {MANIFEST}")
        if not path.is_file():
            return Flaw(name, "is missing")
        if (size := path.stat().st_size) != listed[name]["bytes"]:
            return Flaw(name, f"has {size} bytes instead of {listed[name]['bytes']}")
        try:
            found = hash_file(path)
        except OSError as error:
            return Flaw(name, f"cannot be read: {error.strerror}")
        if found != listed[name]["sha256"]:
            return Flaw(
                name, f"was changed: its SHA-256 is {found} instead of {listed[name]['sha256']}"
            )
        return None

    names = sorted({*listed, *(path.name for path in folder.glob("*.tar"))})
    with ThreadPoolExecutor(count_cpus()) as pool:
        return [flaw for flaw in pool.map(find_flaw, names) if flaw]


def read_shard(url: str) -> Iterator[dict[str, Any]]:
    """The samples of a shard, in order: suffix -> content, with `__key__` and `__url__`.

    ShardError, which names the shard, if it does not arrive to its very end.
    """
    gopen = import_extra("webdataset.gopen").gopen
    group_by_keys = import_extra("webdataset.tariterators").group_by_keys
    reason, stream = "", None
    try:
        stream = gopen(f"pipe:aws s3 cp {shlex.quote(url)} -" if url.startswith("s3://") else url)
        yield from group_by_keys(_read_members(stream, url))
        while stream.read(
            CHUNK
        ):  # a command whose output is not read to the end would seem to have failed
            pass
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
    finally:
        with suppress(OSError):  # of a command that failed; its exit code says so below
            if stream:
                stream.close()
    code = getattr(stream, "status", None)
    if code and code > 0 and code not in stream.ignore_status:  # type: ignore[union-attr]  # mypy takes it for None
        reason = f"the command that fetches it ended with exit code {code}"
    if reason:
        raise ShardError(f"shard {url} cannot be read: {reason}")


def _read_members(stream: Any, url: str) -> Iterator[dict[str, Any]]:
    """The files of a tar stream as `group_by_keys` takes them.

    `webdataset`'s own reader, like tarfile itself, takes a cut before a member for the end.
    """
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            if member.isreg() and (file := archive.extractfile(member)):
                yield {"fname": member.name, "data": file.read(), "__url__": url}
            archive.members = []  # type: ignore[attr-defined]  # else a long shard's would fill the memory
        if archive.fileobj.tell() < archive.offset + TAR_BLOCK:
            raise tarfile.ReadError("unexpected end of data")


def _read_whole(source: str) -> bytes:
    """The content of a path or URL."""
    with (
        import_extra("webdataset.gopen").gopen(source)
        if "://" in source
        else open(source, "rb") as stream
    ):
        return stream.read()


def _expand(url: str) -> list[str]:
    """The shards that a path, URL or pattern stands for."""
    if os.path.exists(url):
        return [url]
    try:
        urls = list(import_extra("braceexpand").braceexpand(url))
    except ValueError as error:
        raise ConfigError(f"shards {url!r}: {error}") from None
    if url.startswith("pipe:") or "://" in url:
        return urls
    found = [
        path
        for each in urls
        for path in (sorted(glob.glob(each)) if glob.has_magic(each) else [each])
    ]
    for path in found:
        if not os.path.isfile(path):
            raise ConfigError(
                f"there is no shard {path}; give a packed folder, paths, URLs or patterns"
            )
    return found


def _refuse_none(found: list[str], shards: Shards) -> list[str]:
    if not found:
        raise ConfigError(
            f"no shard in {shards}; give a packed folder, paths, URLs or patterns such as 'shard-{{000000..000009}}.tar'"
        )
    return found
