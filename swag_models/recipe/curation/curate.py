"""Posts -> a vocabulary of classes, and the labels of images.

The steps, each recorded in `steps/` and skipped when run again: text becomes Parquet, and what is repeated or unwanted is left
out; each distinct hashtag is matched with WordNet; the classes are chosen and ordered; images get labels and repeat factors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swag_models.runtime import import_extra

import_extra("pyarrow")  # before the modules that need it, so that one line says if it is missing

import pyarrow.parquet

from swag_models import __version__
from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import ConfigError
from swag_models.recipe.curation.backends import find_versions, open_engine
from swag_models.recipe.curation.columns import UNNAMED, Columns
from swag_models.recipe.curation.intake import Reading, find_files
from swag_models.recipe.curation.ledger import Facts, Ledger
from swag_models.recipe.curation.pipeline import Steps
from swag_models.recipe.curation.report import write_report
from swag_models.recipe.curation.sampling import Sampling
from swag_models.recipe.hashtags import SENSES, load_stoplist
from swag_models.recipe.wordnet import WordNet

STEPS = 6
VERSION = 1  # of what the steps write; another number makes them all run again


@dataclass(frozen=True)
class Curation:
    """The choices of a curation.

    senses: what an ambiguous hashtag stands for: "first" (its most frequent sense), "all" of them, or "drop" it.
    min_images: images that a class must have. max_classes: so many of the most frequent are kept.
    """

    senses: str = "first"
    min_images: int = 1
    max_classes: int = 27_000
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if self.senses not in SENSES:
            raise ConfigError(
                f"senses {self.senses!r} is not known; it is one of: {', '.join(SENSES)}"
            )
        for name in ("min_images", "max_classes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more")


def curate(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    curation: Curation = Curation(),
    *,
    columns: Columns = UNNAMED,
    format: str | None = None,
    wordnet: str | os.PathLike[str] | None = None,
    stoplist: str | os.PathLike[str] | None = None,
    exclude: str | os.PathLike[str] | None = None,
    licenses: Sequence[str] = (),
    engine: str = "duckdb",
    master: str | None = None,
    memory: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Facts:
    """Write vocabulary.parquet, labels.parquet, rejects.jsonl, manifest.json and report.md into a folder; the manifest.

    inputs: files of posts, or folders of them. columns, format: how they are read, if their names do not tell.
    wordnet: see `wordnet.find_wordnet`. stoplist: a file with hashtags to leave out, one in a line, in place of our own.
    exclude: a file with ids or hashes of posts to leave out, one in a line. licenses: keep posts under these only, named as
    the posts name them. engine, master, memory, threads: see
    `engine.open_engine`.

    What a run before has finished with the same inputs and choices is not done again. ConfigError names what cannot be,
    OutputError what cannot be written.
    """
    versions = find_versions(engine, master)
    folder, net, files = Path(output), WordNet.load(wordnet), find_files(inputs, format)
    stop, excluded = load_stoplist(stoplist), _read_values(exclude)
    with disk_errors(folder, resumable=True), ExitStack() as stack:
        ledger = Ledger(stack, folder / "steps", STEPS, progress)
        hashes = ledger.hash_files(files)
        opened = open_engine(
            engine, scratch=ledger.folder / "scratch", memory=memory, threads=threads, master=master
        )
        steps = Steps(ledger, net, lambda: stack.enter_context(opened))
        manifest = {
            "inputs": hashes,
            "parameters": {
                **asdict(curation),
                "columns": columns._asdict(),
                "format": format,
                "stoplist": _hash_lines(stop),
                "exclude": _hash_lines(excluded),
                "licenses": sorted(licenses),
            },
            "versions": {"swag_models": __version__, **versions},
            "wordnet_sha256": net.digest,
            "posts": steps.find_posts(
                files,
                Reading(columns, format, progress),
                excluded,
                sorted(licenses),
                [VERSION, engine, hashes],
            ),
            "hashtags": steps.match_hashtags(curation.senses, stop),
            "classes": steps.choose_classes(curation.min_images, curation.max_classes),
            "labels": steps.write_labels(curation.sampling, folder),
            "imagenet": steps.cover_imagenet(),
        }
        files_made = [folder / name for name in ("manifest.json", "report.md")]
        ledger.run("report", manifest, files_made, lambda: _write_report(folder, manifest))
    return manifest


def _write_report(folder: Path, manifest: Facts) -> Facts:
    """manifest.json, and the report for people."""
    write_report(
        folder, manifest, pyarrow.parquet.read_table(folder / "vocabulary.parquet").to_pylist()
    )
    with atomic_write(folder / "manifest.json") as temporary:
        temporary.write_text(
            json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return {}


def _read_values(path: str | os.PathLike[str] | None) -> list[str]:
    """Lines of a text file, sorted, each once."""
    if path is None:
        return []
    try:
        return sorted(
            {line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()} - {""}
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); give a text file with one id or hash in a line"
        ) from None


def _hash_lines(lines: Collection[str]) -> dict[str, Any]:
    """How a list of any length stands in the manifest."""
    return {
        "lines": len(lines),
        "sha256": hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest(),
    }
