"""The steps of a curation, from files of posts to labels; `queries.py` has what the engine computes in each."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.dataset
import pyarrow.parquet

from swag_models.atomic import atomic_write
from swag_models.errors import ConfigError
from swag_models.recipe.curation import queries
from swag_models.recipe.curation.backends import Engine, remove
from swag_models.recipe.curation.intake import Reading, unite_posts
from swag_models.recipe.curation.ledger import Facts, Ledger
from swag_models.recipe.curation.report import SHOWN
from swag_models.recipe.curation.sampling import Sampling, repeat_factors
from swag_models.recipe.hashtags import Match, Matcher, cover, load_imagenet, name_class
from swag_models.recipe.wordnet import WordNet

MATCHES = pyarrow.schema(
    {"tag": "string", "number": "int32", "synset": "string", "how": "string", "uses": "int64"}
)
CLASSES = pyarrow.schema(
    {"number": "int32", "class": "int32", "synset": "string", "images": "int64"}
)
FACTORS = pyarrow.schema({"class": "int32", "repeat": "float64"})
VOCABULARY = pyarrow.schema(
    {
        "class": "int32",
        "synset": "string",
        "hashtag": "string",
        "hashtags": pyarrow.list_(pyarrow.string()),
        "images": "int64",
        "samples": "float64",
        "repeat": "float64",
    }
)


class Steps:
    """The steps; each leaves its tables in the folder of steps, where the next finds them."""

    def __init__(self, ledger: Ledger, net: WordNet, open: Callable[[], Engine]) -> None:
        self.ledger, self.net, self._open = ledger, net, open
        folder = ledger.folder
        self.kept, self.images, self.unfinished = (
            folder / "kept",
            folder / "images",
            folder / "labels",
        )
        self.matches, self.classes = folder / "matches.parquet", folder / "classes.parquet"

    @cached_property
    def engine(self) -> Engine:
        return self._open()

    def find_posts(
        self,
        files: Sequence[Path],
        reading: Reading,
        excluded: Sequence[str],
        licenses: Sequence[str],
        key: Any,
    ) -> Facts:
        """Posts in one form, each once: the folder `kept`, and rejects.jsonl beside the steps."""
        folder = self.ledger.folder
        rejects = folder.parent / "rejects.jsonl"

        def make() -> Facts:
            engine = self.engine
            posts, rejected = unite_posts(engine, files, reading, folder, rejects)
            licensed = live = queries.keep_licensed(posts, licenses) if licenses else posts
            if excluded:
                values = _table(
                    [{"value": value} for value in excluded], pyarrow.schema({"value": "string"})
                )
                live = queries.drop_excluded(
                    licensed, engine.read_rows(values, folder / "excluded.parquet")
                )
            read = engine.count(posts)
            free = engine.count(licensed) if licenses else read
            repeated, chosen, urls, copies = (
                folder / f"{name}.parquet" for name in ("repeated", "chosen", "urls", "copies")
            )
            engine.write(queries.find_repeated_ids(live), repeated)
            engine.write(queries.choose_posts(live, engine.read(repeated)), chosen)
            unique = live.anti_join(engine.read(repeated), "id").union(engine.read(chosen))
            engine.write(queries.find_repeated_urls(unique), urls)
            engine.write(queries.find_copies(unique, engine.read(urls)), copies)
            engine.write_parts(
                unique.anti_join(engine.read(copies), "id").select("id", "hashtags"), self.kept
            )
            again = sum(_read(repeated)["posts"].to_pylist()) - len(_read(chosen))
            facts = {
                "read": read + sum(rejected.values()),
                "rejected": rejected,
                "other_licenses": read - free,
                "repeated_ids": again,
                "repeated_urls": len(_read(copies)),
                "kept": engine.count(engine.read(self.kept)),
            }
            return {
                **facts,
                "excluded": free - facts["kept"] - facts["repeated_ids"] - facts["repeated_urls"],
            }

        return self.ledger.run(
            "posts",
            [key, reading.columns, reading.format, excluded, licenses],
            [self.kept, rejects],
            make,
        )

    def match_hashtags(self, senses: str, stop: frozenset[str]) -> Facts:
        """Which synsets each distinct hashtag stands for: `matches`, one row for each pair."""

        def make() -> Facts:
            path = self.ledger.folder / "tags.parquet"
            self.engine.write(queries.count_hashtags(self.engine.read(self.kept)), path)
            facts, rows = _match_all(path, Matcher(self.net, senses, stop), self.net)
            self.engine.read_rows(rows, self.matches)
            remove(path)
            return facts

        return self.ledger.run(
            "hashtags", [self.net.digest, senses, sorted(stop)], [self.matches], make
        )

    def choose_classes(self, least: int, most: int) -> Facts:
        """The classes by falling number of images: `classes`; and the labels of images, not yet resampled."""

        def gather() -> Facts:
            matches = self.engine.read(self.matches).select("tag", "number").distinct()
            self.engine.map_parts(
                self.kept, self.images, lambda posts: queries.gather_images(posts, matches)
            )
            return {}

        def choose() -> Facts:
            counts = self.engine.fetch(queries.count_images(self.engine.read(self.images)))
            matches = _read(self.matches)
            synsets = dict(
                zip(matches["number"].to_pylist(), matches["synset"].to_pylist(), strict=True)
            )
            rows = sorted(
                counts.to_pylist(), key=lambda row: (-row["images"], synsets[row["number"]])
            )
            enough = [row for row in rows if row["images"] >= least]
            if not enough:
                best = rows[0]["images"] if rows else 0
                raise ConfigError(
                    f"no class has {least} images or more, of {len(rows)} found; the most frequent has {best}"
                )
            chosen = [
                {
                    "number": row["number"],
                    "class": index,
                    "synset": synsets[row["number"]],
                    "images": row["images"],
                }
                for index, row in enumerate(enough[:most])
            ]
            classes = self.engine.read_rows(_table(chosen, CLASSES), self.classes).select(
                "number", "class"
            )
            self.engine.map_parts(
                self.images, self.unfinished, lambda images: queries.gather_labels(images, classes)
            )
            return {
                "found": len(rows),
                "too_few": len(rows) - len(enough),
                "too_many": len(enough) - len(chosen),
                "kept": len(chosen),
            }

        self.ledger.run("images", [], [self.images], gather)
        return self.ledger.run("classes", [least, most], [self.classes, self.unfinished], choose)

    def write_labels(self, sampling: Sampling, folder: Path) -> Facts:
        """labels.parquet and vocabulary.parquet: repeat factors, and what they make of the frequencies."""
        labels, vocabulary = folder / "labels.parquet", folder / "vocabulary.parquet"

        def make() -> Facts:
            engine = self.engine
            rows = _read(self.classes).to_pylist()
            sizes, rarest = Counter[int](), Counter[int]()
            for row in engine.fetch(queries.count_rarest(engine.read(self.unfinished))).to_pylist():
                sizes[row["size"]] += row["images"]
                rarest[row["rarest"]] += row["images"]
            factors = repeat_factors(
                [row["images"] for row in rows], [rarest[row["class"]] for row in rows], sampling
            )
            repeats = _table(
                [{"class": index, "repeat": factor} for index, factor in enumerate(factors)],
                FACTORS,
            )
            repeats = engine.read_rows(repeats, self.ledger.folder / "factors.parquet")
            engine.write(queries.finish_labels(engine.read(self.unfinished), repeats), labels)
            samples = engine.fetch(queries.sum_samples(engine.read(labels)))
            seen = dict(
                zip(samples["class"].to_pylist(), samples["samples"].to_pylist(), strict=True)
            )
            written = self._gather_hashtags({row["number"] for row in rows})
            table = _table(
                [
                    {
                        "class": row["class"],
                        "synset": row["synset"],
                        "hashtag": name_class(self.net, row["synset"]),
                        "hashtags": written[row["number"]],
                        "images": row["images"],
                        "samples": seen[row["class"]],
                        "repeat": factor,
                    }
                    for row, factor in zip(rows, factors, strict=True)
                ],
                VOCABULARY,
            )
            with atomic_write(vocabulary) as temporary:
                pyarrow.parquet.write_table(table, temporary, compression="zstd")
            return {
                "images": sum(rarest.values()),
                "labels": sum(row["images"] for row in rows),
                "samples": math.fsum(
                    factor * rarest[index] for index, factor in enumerate(factors)
                ),
                "per_image": {str(size): sizes[size] for size in sorted(sizes)},
            }

        return self.ledger.run("labels", asdict(sampling), [labels, vocabulary], make)

    def cover_imagenet(self) -> Facts:
        """How the classes of ImageNet-1k are covered."""
        covers = cover(self.net, _read(self.classes)["synset"].to_pylist(), load_imagenet())
        counts = Counter(each.how or "none" for each in covers)
        missing = [each.target for each in covers if not each.how]
        missing = [
            f"{each} {name_class(self.net, each)}" if each in self.net.synsets else each
            for each in missing
        ]
        return {
            "counts": {how: counts[how] for how in ("same", "hyponym", "hypernym", "none")},
            "missing": missing,
        }

    def _gather_hashtags(self, numbers: Collection[int]) -> dict[int, list[str]]:
        """The hashtags, as written, of each synset, the most used first."""
        found = defaultdict(list)
        for row in _read(self.matches).to_pylist():
            if row["number"] in numbers:
                found[row["number"]].append((-row["uses"], row["tag"]))
        return {number: [tag for _, tag in sorted(tags)] for number, tags in found.items()}


def _match_all(path: Path, matcher: Matcher, net: WordNet) -> tuple[Facts, pyarrow.Table]:
    """What became of each hashtag of a table (tag, uses): the facts, and the rows of `matches`."""
    distinct, uses, ambiguous = Counter[str](), Counter[str](), Counter[str]()
    listed: dict[str, list[tuple[int, str]]] = {"stopped": [], "unknown": []}
    found: list[tuple[str, str, str, int]] = []
    for batch in pyarrow.dataset.dataset(path).to_batches(columns=["tag", "uses"]):
        for tag, count in zip(batch["tag"].to_pylist(), batch["uses"].to_pylist(), strict=True):
            match = matcher.match(tag)
            distinct[match.how] += 1
            uses[match.how] += count
            found += [(synset, tag, match.how, count) for synset in match.synsets]
            if match.how in listed:
                listed[match.how].append((-count, tag))
            elif match.how == "ambiguous":
                ambiguous[match.lemma] += count
        listed = {how: heapq.nsmallest(SHOWN, tags) for how, tags in listed.items()}
    found.sort()
    numbers = {
        synset: number for number, synset in enumerate(sorted({synset for synset, *_ in found}))
    }
    rows = [
        {"tag": tag, "number": numbers[synset], "synset": synset, "how": how, "uses": count}
        for synset, tag, how, count in found
    ]
    facts: Facts = {how: [[tag, -count] for count, tag in tags] for how, tags in listed.items()}
    facts["ambiguous"] = [
        [lemma, count, *_describe(net, matcher.match(lemma))]
        for lemma, count in sorted(ambiguous.items(), key=lambda each: (-each[1], each[0]))[:SHOWN]
    ]
    kinds = ("lemma", "inflection", "ambiguous", "stopped", "unknown")
    facts["distinct"] = {"all": distinct.total(), **{how: distinct[how] for how in kinds}}
    facts["uses"] = {"all": uses.total(), **{how: uses[how] for how in kinds}}
    return facts, _table(rows, MATCHES)


def _describe(net: WordNet, match: Match) -> tuple[str, str]:
    """What an ambiguous hashtag was taken as, and what else it could be."""
    taken = [
        f"{each} {name_class(net, each)}: {net.synsets[each].gloss.split(';')[0]}"
        for each in match.synsets
    ]
    others = [
        f"{each} {name_class(net, each)}" for each in match.senses if each not in match.synsets
    ]
    return "; ".join(taken) or "nothing", ", ".join(others)


def _read(path: Path) -> pyarrow.Table:
    return pyarrow.parquet.read_table(path)


def _table(rows: Sequence[Mapping[str, Any]], schema: pyarrow.Schema) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(list(rows), schema=schema)
