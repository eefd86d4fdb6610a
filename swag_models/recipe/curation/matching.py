"""Match hashtags with WordNet, and count how they and the classes of ImageNet are matched."""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from swag_models.atomic import atomic_write
from swag_models.errors import ConfigError
from swag_models.formatting import describe
from swag_models.recipe.curation.context import ContextRules
from swag_models.recipe.curation.own_classes import OWN, OWN_PREFIX
from swag_models.recipe.curation.tag_table import TAGS, read_senses
from swag_models.recipe.curation.text_repair import REPAIRS, is_machine_tag, repair_hashtag
from swag_models.recipe.false_friends import is_false_friend
from swag_models.recipe.hashtags import Match, Matcher, canonicalise, name_class
from swag_models.recipe.wordnet import WordNet

MAX_LISTED_HASHTAGS = 50  # hashtags of each kind in the manifest
NO_NOUN_CHOSEN = "dropped by context"
MATCH_KINDS = (
    *("lemma", "inflection", "ambiguous", "foreign", "override", "phrase", OWN),
    *("dropped", NO_NOUN_CHOSEN, "stopped", "machine tag", "unknown"),
)
# Synsets are numbered, since joining and grouping by integers takes less time and memory.
MATCHES = pa.schema(
    {
        "tag": pa.string(),
        "number": pa.int32(),
        "synset": pa.string(),
        "how": pa.string(),
        "uses": pa.int64(),
    }
)


class TagMatcher:
    """Matches every hashtag of a table with WordNet.

    This runs in Python, once for each distinct hashtag. Work for each post is done in SQL.

    Args:
        matcher: finds the synsets of a hashtag.
        max_own: number of hashtags that may become classes of their own.
    """

    def __init__(self, matcher: Matcher, max_own: int = 0) -> None:
        self.matcher = matcher
        self._distinct, self._uses, self._ambiguous = Counter[str](), Counter[str](), Counter[str]()
        self._listed: dict[str, list[tuple[int, str]]] = {"stopped": [], "unknown": []}
        # several of the most used unknown hashtags can be spellings of one class of their own
        self._max_listed = MAX_LISTED_HASHTAGS + 10 * max_own
        self._friends: list[tuple[int, str]] = []  # words of several languages
        self._pairs: list[tuple[str, str, str, int]] = []
        self._repaired = {kind: [0, 0] for kind in REPAIRS}  # distinct hashtags, uses
        self._unused, self._stopped = set(matcher.overrides), set[str]()
        self._context = ContextRules(matcher)

    def match_table(self, counts: Path, output: Path) -> None:
        """Match hashtags, and write what became of each.

        Args:
            counts: Parquet file or folder with the columns tag, uses.
            output: Parquet file to write, with the columns of `TAGS`.
        """
        with (
            atomic_write(output) as temporary,
            pyarrow.parquet.ParquetWriter(temporary, TAGS, compression="zstd") as writer,
        ):
            for batch in pyarrow.dataset.dataset(counts).to_batches(columns=["tag", "uses"]):
                tags, uses = batch["tag"].to_pylist(), batch["uses"].to_pylist()
                rows = [self._match(tag, count) for tag, count in zip(tags, uses, strict=True)]
                columns = zip(*rows, strict=True) if rows else [()] * len(TAGS)
                writer.write_batch(pa.record_batch(list(map(list, columns)), schema=TAGS))
                # shortened, since there can be hundreds of millions of unknown hashtags
                for how, listed in self._listed.items():
                    self._listed[how] = heapq.nsmallest(self._max_listed, listed)

    def _match(self, tag: str, count: int) -> tuple[Any, ...]:
        """Match a hashtag; returns its row of `TAGS`."""
        text, repair = repair_hashtag(tag)
        match = self.matcher.match(text)
        if not match.synsets and is_machine_tag(text):
            match = match._replace(how="machine tag")
        if repair:
            self._repaired[repair][0] += 1
            self._repaired[repair][1] += count
        self._distinct[match.how] += 1
        self._uses[match.how] += count
        others = {other.synset for other in match.alternatives} - {"", *match.synsets}
        self._pairs += [(synset, tag, match.how, count) for synset in match.synsets]
        self._pairs += [(synset, tag, match.how, 0) for synset in others]
        if match.reason == "override":
            self._unused.discard(match.lemma)
        self._stopped.update(match.stopped)
        self._context.add(tag, match, count)
        if is_false_friend(match):
            self._friends.append((-count, tag))
        if match.how in self._listed:
            self._listed[match.how].append((-count, tag))
        elif match.how == "ambiguous":
            self._ambiguous[match.lemma] += count
        synsets = [*match.synsets, *sorted(others)]
        return tag, count, canonicalise(text), match.how, match.reason or match.how, synsets

    def make_tables(
        self, wordnet: WordNet, own: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any], pa.Table, pa.Table, pa.Table]:
        """Number the synsets, and count how hashtags were matched.

        Args:
            wordnet: describes ambiguous hashtags.
            own: rows of `own_classes.choose_own_classes`.

        Returns:
            (facts for the manifest, table `MATCHES`, tables `context.CODES` and `context.RULES`).
            The facts are the numbers of distinct hashtags and uses of each kind, the same of those
            whose text was repaired, and the most used hashtags that were stopped, unknown or
            ambiguous. `MATCHES` has a row for each pair of hashtag and synset, with 0 uses for
            senses that other hashtags of the post can point to.

        Raises:
            ConfigError: no hashtag has a synset.
        """
        pairs = self._pairs + [
            (OWN_PREFIX + row["word"], row["tag"], OWN, row["uses"]) for row in own
        ]
        pairs.sort()  # so that numbers do not depend on the order in which hashtags were read
        synsets = sorted({synset for synset, *_ in pairs})
        numbers = {synset: number for number, synset in enumerate(synsets)}
        rows = [
            {"tag": tag, "number": numbers[synset], "synset": synset, "how": how, "uses": count}
            for synset, tag, how, count in pairs
        ]
        facts = self._count(wordnet, own)
        if not rows:
            kinds = ("unknown", "stopped", "ambiguous")
            examples = [describe(tag) for kind in kinds for tag, *_ in facts[kind]][:5]
            raise ConfigError(
                "no hashtag of the posts is a noun of WordNet; the most used: "
                f"{', '.join(examples) or 'none'}; check hashtags=, caption= and senses="
            )
        matches = pa.Table.from_pylist(rows, schema=MATCHES)
        return facts, matches, *self._context.make_tables(matches, numbers)

    def _count(self, wordnet: WordNet, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The facts for the manifest."""
        owned = {row["tag"] for row in own}
        facts: dict[str, Any] = {}
        for how, listed in self._listed.items():
            others = [[tag, -count] for count, tag in listed if tag not in owned]
            facts[how] = others[:MAX_LISTED_HASHTAGS]
        most_used = sorted(self._ambiguous.items(), key=lambda item: (-item[1], item[0]))
        facts["ambiguous"] = [
            [lemma, count, *_describe_senses(wordnet, self.matcher.match(lemma))]
            for lemma, count in most_used[:MAX_LISTED_HASHTAGS]
        ]
        facts["repaired"] = self._repaired
        facts["false_friends"] = [
            [tag, -count, *_describe_senses(wordnet, _list_meanings(self.matcher.match(tag)))]
            for count, tag in heapq.nsmallest(MAX_LISTED_HASHTAGS, self._friends)
        ]
        facts["own"] = _list_own(own)
        facts["unused_overrides"] = sorted(self._unused)
        facts["used_stopwords"] = sorted(self._stopped)
        own_counts = {"distinct": len(owned), "uses": sum(row["uses"] for row in own)}
        for name, counts in (("distinct", self._distinct), ("uses", self._uses)):
            counts = counts + Counter({OWN: own_counts[name]})
            counts.subtract({"unknown": own_counts[name]})
            facts[name] = {"all": counts.total(), **{how: counts[how] for how in MATCH_KINDS}}
        return facts


def _list_own(own: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The hashtags that are classes of their own, with their uses, the most used first."""
    uses = Counter[str]()
    for row in own:
        uses[row["word"]] += row["uses"]
    return [[word, count] for word, count in sorted(uses.items(), key=lambda x: (-x[1], x[0]))]


def _list_meanings(match: Match) -> Match:
    """A match whose senses are those in other languages too."""
    others = (other.synset for other in match.alternatives if other.synset)
    return match._replace(senses=tuple(dict.fromkeys(others)))


def describe_used_senses(
    facts: Mapping[str, Any],
    rules: Path,
    senses: Path,
    matches: Path,
    matcher: Matcher,
    wordnet: WordNet,
) -> dict[str, Any]:
    """The facts that depend on the senses that posts chose.

    These are the ambiguous hashtags, with the images of each sense; and the numbers of hashtags of
    each kind, where those are counted as dropped by context for which the posts chose no noun.

    Args:
        facts: those of `TagMatcher.make_tables`.
        rules: Parquet file with the columns of `context.RULES`.
        senses: Parquet file with the columns of `context.SENSES_USED`.
        matches: Parquet file with the columns of `MATCHES`.
        matcher: finds the lemma of a hashtag.
        wordnet: describes the senses.
    """
    used = read_senses(senses, matches)
    totals: dict[str, Counter[str]] = {}
    for tag, images in used.items():
        match = matcher.match(repair_hashtag(tag)[0])
        totals.setdefault(match.lemma, Counter()).update(images)
    distinct, uses = dict(facts["distinct"]), dict(facts["uses"])
    rows = pyarrow.parquet.read_table(rules, columns=["tag", "uses"]).to_pylist()
    for tag, count in ((row["tag"], row["uses"]) for row in rows):
        if without_noun := used.get(tag, {}).get("", 0):
            how = matcher.match(repair_hashtag(tag)[0]).how
            is_always = len(used[tag]) == 1
            moved_uses = count if is_always else without_noun
            for counts, moved in ((distinct, is_always), (uses, moved_uses)):
                counts[how] -= moved
                counts[NO_NOUN_CHOSEN] += moved

    def describe_row(row: list[Any], counts: Mapping[str, int] | None) -> list[Any]:
        if not counts:
            return row
        match = matcher.match(row[0])
        senses = (*match.senses, *(other.synset for other in match.alternatives if other.synset))
        match = match._replace(senses=tuple(dict.fromkeys(senses)))
        chosen = [
            f"{_describe_senses(wordnet, match._replace(synsets=(synset,) if synset else ()))[0]} "
            f"({count:,})"
            for synset, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        ]
        others = _describe_senses(wordnet, match._replace(synsets=tuple(filter(None, counts))))
        return [*row[:2], "; ".join(chosen), others[1]]

    return {
        "distinct": distinct,
        "uses": uses,
        "ambiguous": [describe_row(row, totals.get(row[0])) for row in facts["ambiguous"]],
        "false_friends": [describe_row(row, used.get(row[0])) for row in facts["false_friends"]],
    }


def _describe_senses(wordnet: WordNet, match: Match) -> tuple[str, str]:
    """The senses of an ambiguous hashtag that are used, and its other senses, as text."""
    chosen = [
        f"{synset} {name_class(wordnet, synset)}: {wordnet.synsets[synset].gloss.split(';')[0]}"
        for synset in match.synsets
    ]
    rejected = [
        f"{synset} {name_class(wordnet, synset)}"
        for synset in match.senses
        if synset not in match.synsets
    ]
    return "; ".join(chosen) or "nothing", ", ".join(rejected)
