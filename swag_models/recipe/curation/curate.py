"""Curate posts with hashtags: choose a vocabulary of classes, and label and resample the images.

`curate` runs the steps of `pipeline`, each recorded in the folder `steps/` and skipped on a rerun.
"""

import functools
import hashlib
import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swag_models.runtime import import_extra

# Imported before the modules that need it, so that a missing extra is reported in one line.
import_extra("pyarrow")

import pyarrow.parquet

from swag_models import __version__
from swag_models.atomic import disk_errors, write_json
from swag_models.errors import ConfigError, check_minimum
from swag_models.hub.progress import make_bar
from swag_models.paths import expand_path
from swag_models.recipe.curation.backends import check_backend, open_backend
from swag_models.recipe.curation.captions import check_source
from swag_models.recipe.curation.columns import DEFAULT_COLUMNS, Columns
from swag_models.recipe.curation.ingest import ReadOptions
from swag_models.recipe.curation.pipeline import PostSelection, hash_files
from swag_models.recipe.curation.post_files import find_files, read_values
from swag_models.recipe.curation.report import write_curation_report
from swag_models.recipe.curation.run_steps import run_steps
from swag_models.recipe.curation.sampling import Sampling
from swag_models.recipe.curation.steps import Facts, StepRunner
from swag_models.recipe.hashtags import SENSES, Matcher, load_stoplist, load_stopwords
from swag_models.recipe.languages import read_languages
from swag_models.recipe.overrides import Source, read_overrides
from swag_models.recipe.wordnet import WordNet
from swag_models.resumable import WorkFolder, report_done

NUM_STEPS = 11


@dataclass(frozen=True)
class Curation:
    """How the vocabulary is chosen and the images are resampled.

    Args:
        senses: which senses of an ambiguous hashtag to use: the one that people mean on images
            ("context"), the "first" one in WordNet's order, "all" of them, or none ("drop"), see
            `hashtags.Matcher`.
        min_images: minimum number of images of a class.
        max_classes: maximum number of classes; the most frequent ones are used. Singh et al. 2022
            (arXiv 2201.08371) use about 27,000.
        sampling: how images are resampled.
        own_classes: number of the most frequent hashtags without a noun that become classes of
            their own, with ids such as "tag:roadsign".

    Raises:
        ConfigError: a value is out of range.
    """

    senses: str = "context"
    min_images: int = 1
    max_classes: int = 27_000
    sampling: Sampling = field(default_factory=Sampling)
    own_classes: int = 0

    def __post_init__(self) -> None:
        if self.senses not in SENSES:
            raise ConfigError(f"invalid senses {self.senses!r}: allowed: {', '.join(SENSES)}")
        check_minimum(1, min_images=self.min_images, max_classes=self.max_classes)
        check_minimum(0, own_classes=self.own_classes)


@dataclass(frozen=True)
class Reading:
    """Which posts are read, and what decides the meaning of their hashtags.

    Args:
        columns: names of the columns of the inputs; by default the usual names are tried. Its
            field `source` says whether hashtags, captions or both are used.
        format: format of the inputs; by default recognised from each file's name.
        wordnet: folder of WordNet's database files, see `wordnet.find_wordnet`.
        languages: files of words of other languages, see `languages`.
        stoplist: text file with one hashtag to ignore per line, in place of the built-in list.
        add_stopwords: hashtags to ignore besides those of the list, or a file of them.
        overrides: synsets of hashtags, whatever the lists and WordNet say: a text file, see
            `overrides`, or hashtag -> a synset, several, or "drop".
        exclude: text file with one id or hash of a post to leave out per line.
        licenses: licenses of the posts to keep, as named in the posts; empty for all.
        progress: whether to show progress bars.
    """

    columns: Columns = DEFAULT_COLUMNS
    format: str | None = None
    wordnet: str | os.PathLike[str] | None = None
    languages: Sequence[str | os.PathLike[str]] = ()
    stoplist: str | os.PathLike[str] | None = None
    add_stopwords: str | os.PathLike[str] | Sequence[str] = ()
    overrides: Source | None = None
    exclude: str | os.PathLike[str] | None = None
    licenses: Sequence[str] = ()
    progress: bool = True


def curate(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    curation: Curation = Curation(),
    *,
    engine: str = "duckdb",
    master: str | None = None,
    memory: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> Facts:
    """Choose a vocabulary from posts, and label and resample their images.

    Writes vocabulary.parquet, hashtags.parquet, labels.parquet, urls.parquet (if posts have URLs),
    rejects.jsonl, manifest.json and report.md. A rerun with the same inputs and options skips the
    steps that are finished.

    Args:
        inputs: files of posts, or folders of them.
        output: output folder.
        curation: how the vocabulary is chosen and the images are resampled.
        engine: "duckdb" or "spark".
        master: URL of the Spark master, see `backends.open_backend`.
        memory: memory limit of the engine, for example "4GB".
        threads: number of threads of the engine.
        **options: which posts are read, and what their hashtags mean: the fields of `Reading`.

    Returns:
        The manifest: inputs, parameters, versions, and the facts of each step.

    Raises:
        ConfigError: an input or option is invalid.
        OutputError: the folder cannot be written.
    """
    # check all arguments first, before hours of work
    versions, folder = check_backend(engine, master), expand_path(output, "output")
    reading = Reading(**options)
    net, matcher, selection = read_rules(inputs, curation.senses, reading)
    with disk_errors(folder, resumable=True), ExitStack() as stack:
        work = stack.enter_context(WorkFolder(folder / "steps", output=folder)).path
        # Removed at the end, so that an error message stays on one line.
        bar = make_bar(reading.progress, total=NUM_STEPS, unit="step", leave=False)
        steps = StepRunner(work, stack.enter_context(bar))
        opening = open_backend(
            engine, scratch=work / "scratch", memory=memory, threads=threads, master=master
        )
        # Opened by the first step that runs: a rerun of finished work needs no backend.
        open_once = functools.cache(lambda: stack.enter_context(opening))
        hashes = hash_files(selection.files, work / "hashes.json")
        manifest = {
            "inputs": hashes,
            "parameters": {
                **asdict(curation),
                "columns": reading.columns._asdict(),
                "format": reading.format,
                "stoplist": _hash_lines(matcher.stop),
                "overrides": dict(sorted(matcher.overrides.items())),
                "languages": matcher.languages.facts,
                "exclude": _hash_lines(selection.excluded),
                "licenses": selection.licenses,
            },
            "versions": {"swag_models": __version__, **versions},
            "wordnet_sha256": net.digest,
            "wordnet_counts": bool(net.adjective_uses),  # whether it has cntlist.rev
            **run_steps(
                steps, open_once, selection, [engine, hashes], net, matcher, curation, folder
            ),
        }
        hashtags, added = manifest["hashtags"], load_stopwords(reading.add_stopwords)
        hashtags["unused_stopwords"] = sorted(added.difference(hashtags.pop("used_stopwords")))
        # The manifest is the key, so that any change in it rewrites both files.
        reports = [folder / "manifest.json", folder / "report.md"]
        steps.run("report", manifest, reports, lambda: _write_reports(folder, manifest))
    if not steps.done:
        report_done(folder)
    return manifest


def read_rules(
    inputs: Sequence[str | os.PathLike[str]], senses: str, reading: Reading
) -> tuple[WordNet, Matcher, PostSelection]:
    """Read what decides the meaning of hashtags and the posts to use; arguments of `curate`."""
    net = WordNet.load(reading.wordnet)
    check_source(reading.columns)
    stop = load_stoplist(reading.stoplist) | load_stopwords(reading.add_stopwords)
    words = read_languages(reading.languages, net)
    matcher = Matcher(net, senses, stop, read_overrides(reading.overrides, net), words)
    options = ReadOptions(reading.columns, reading.format, reading.progress)
    # the order of licenses does not matter
    files, excluded = find_files(inputs, reading.format), read_values(reading.exclude)
    selection = PostSelection(files, options, excluded, sorted(reading.licenses))
    return net, matcher, selection


def _write_reports(folder: Path, manifest: Facts) -> Facts:
    vocabulary = pyarrow.parquet.read_table(folder / "vocabulary.parquet").to_pylist()
    write_curation_report(folder, manifest, vocabulary)
    # last, so that a folder with a manifest is complete
    write_json(folder / "manifest.json", manifest)
    return {}


def _hash_lines(lines: Collection[str]) -> dict[str, Any]:
    """Length and hash of a list, which itself may be too long for the manifest."""
    text = "\n".join(sorted(lines))
    return {"lines": len(lines), "sha256": hashlib.sha256(text.encode()).hexdigest()}
