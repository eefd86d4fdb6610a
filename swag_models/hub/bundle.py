"""Write bundles: folders of weights for machines without a network. Imports no torch.

A bundle is a cache folder for SWAG_MODELS_CACHE and the files of a server for
SWAG_MODELS_MIRROR at once. It contains:
  <path of the URL>     weights, where their host has them; hf/... for those of the Hub
  records/              as in the cache, with relative paths, so that the folder can be moved; each
                        file is hashed before it is used for the first time
  specs/<model>.json    source, licence and other facts of each model
  licenses/             the texts of the licences
  SHA256SUMS            hashes of all these files but the records, for sha256sum --check
"""

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from swag_models.atomic import atomic_write, disk_errors, write_json, write_text
from swag_models.errors import ConfigError, HashMismatchError
from swag_models.hub.cache import (
    UNVERIFIED,
    CacheRecord,
    cache_folder,
    find_source,
    is_shipped,
    list_shards,
    read_record,
    record_path,
)
from swag_models.hub.download import hash_file
from swag_models.hub.fetch import fetch_weights
from swag_models.paths import read_regular
from swag_models.resumable import WorkFolder, report_done
from swag_models.spec import ModelSpec, Progress, Source

logger = logging.getLogger("swag_models")
SUMS_FILE, README_FILE = "SHA256SUMS", "README.txt"
LICENSES = Path(__file__).with_name("licenses")
README = """\
Weights for swag_models, for machines without a network.

Check the files:   sha256sum --check SHA256SUMS
Use the folder:    export SWAG_MODELS_CACHE=/path/to/this/folder SWAG_MODELS_OFFLINE=1
Or serve it over HTTPS, and on each machine:   export SWAG_MODELS_MIRROR=https://host
List the files:    swag-models verify

specs/ describes each model, licenses/ has the terms of the weights. They apply to every copy.
"""


def write_bundle(
    specs: Sequence[ModelSpec], folder: Path, *, progress: Progress = True
) -> dict[str, Path]:
    """Write the weights of models of the catalog into a bundle, or add them to an earlier one.

    Weights that are not on this machine are downloaded. A rerun keeps the files that are
    complete, by their hash.

    Args:
        specs: models of the catalog; those whose weights are part of this package are left out,
            which is logged.
        folder: the bundle; created if missing.
        progress: as for `fetch_weights`.

    Returns:
        Path of the weight file of each model in the bundle, by name.

    Raises:
        ConfigError: no model is left, or another process writes the folder.
        FetchError: weights cannot be downloaded, or have changed since they were verified.
        OutputError: the folder cannot be written; the message says how to resume.
    """
    wanted = [spec for spec in specs if not all(map(is_shipped, spec.sources))]
    for spec in specs:
        if spec not in wanted:
            logger.warning("%s is left out: its weights are part of this package", spec.name)
    if not wanted:
        raise ConfigError("a bundle has no files for these models; name one that is downloaded")
    with WorkFolder(folder), disk_errors(folder, resumable=True):
        bundle = _Bundle(folder)
        bundle.write_text(README_FILE, README)
        paths = {spec.name: bundle.add(spec, progress) for spec in wanted}
        if not bundle.changed:
            report_done(folder)
    return paths


class _Bundle:
    """The folder of a bundle, and the hash of each file in it by its relative path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hashes = dict(_read_sums(folder))
        self.changed = False

    def add(self, spec: ModelSpec, progress: Progress) -> Path:
        """Store a model's weights with all that belongs to them; return the path of the file."""
        path = fetch_weights(spec, progress=progress)
        source = next(source for source in spec.sources if find_source(source) == path)
        for part, part_path in [(source, path), *list_shards(source, path)]:
            self._copy_weights(part, part_path)
        self.write_text(f"specs/{spec.name}.json", spec.to_json() + "\n")
        license = f"{spec.license}.txt"
        self.write_text(f"licenses/{license}", (LICENSES / license).read_text("utf-8"))
        lines = [f"{digest}  {name}\n" for name, digest in sorted(self.hashes.items())]
        write_text(self.folder / SUMS_FILE, "".join(lines))
        return self.folder / _locate(source)

    def _copy_weights(self, source: Source, path: Path) -> None:
        """Copy one verified file, unless the bundle has it; compare hashes; write its record."""
        record = read_record(source)
        digest = record.sha256 if record else hash_file(path)
        name = _locate(source)
        target = self.folder / name
        if not target.is_file() or hash_file(target) != digest:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as temporary:
                shutil.copyfile(path, temporary)
                # What was written is hashed: the file may have changed since it was verified.
                if (actual := hash_file(temporary)) != digest:
                    raise HashMismatchError(
                        f"SHA-256 of {path} is {actual}, not {digest}; delete it, and run again"
                    )
            self.changed = True
        self.hashes[name] = digest
        entry = CacheRecord(source.url, name, digest, target.stat().st_size, UNVERIFIED)
        relative = record_path(source).relative_to(cache_folder())
        (self.folder / relative).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / relative, asdict(entry))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, unless it has this content."""
        path = self.folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            self.changed = True
        self.hashes[name] = hash_file(path)


def _locate(source: Source) -> str:
    """The path of a source's file in a bundle: that of its URL, which a mirror has as well."""
    host, *names = record_path(source).relative_to(cache_folder() / "records").parts
    path = "/".join(["hf", host, *names] if source.url.startswith("hf://") else names)
    return path.removesuffix(".json")


def _read_sums(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, hash) of the files that an earlier run stored and that still exist."""
    path = folder / SUMS_FILE
    if not path.exists():
        return
    for line in read_regular(path).decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        if not re.fullmatch("[0-9a-f]{64}", digest) or not name:
            raise ConfigError(f"{path} is not a list of hashes; choose another output folder")
        if (folder / name).is_file():
            yield name, digest
