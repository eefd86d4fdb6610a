"""Choose the sense of a hashtag by the other hashtags of its post.

Hashtags become integers, so that a post becomes a short list of integers: numbers of synsets, then
numbers of cues (words that point to a sense), then numbers of rules (hashtags whose sense depends
on the post). Only posts with a rule need more than this list. `hashtags.Matcher.match_post` defines
the choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute

from swag_models.recipe.hashtags import Match, Matcher, list_alternatives

if TYPE_CHECKING:
    import ibis

# A row for each pair of hashtag as written and number.
CODES = pa.schema({"tag": pa.string(), "number": pa.int32()})
# The senses of each rule, the default first: numbers of their synsets (or `NO_SYNSET`) and cues.
RULES = pa.schema(
    {
        "rule": pa.int32(),
        "tag": pa.string(),
        "uses": pa.int64(),
        "synsets": pa.list_(pa.int32()),
        "cues": pa.list_(pa.list_(pa.int32())),
    }
)
# The images of each sense (the number of a synset or `NO_SYNSET`) of a rule's hashtag.
SENSES_USED = pa.schema({"tag": pa.string(), "number": pa.int32(), "images": pa.int64()})
# Numbers below are synsets; WordNet has 82,115.
FIRST_CUE, FIRST_RULE = 1 << 24, 1 << 25
NO_SYNSET = -1


class ContextRules:
    """Collects the hashtags whose sense depends on the post, and their cues.

    Args:
        matcher: has the cues.
    """

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self._rules: dict[str, tuple[Match, int]] = {}  # hashtag as written -> rule, uses
        self._cues: dict[str, list[str]] = {}  # cue -> hashtags as written

    def add(self, tag: str, match: Match, uses: int) -> None:
        """Add a distinct hashtag, its match, and the number of its uses."""
        if match.alternatives:
            # a rule for each spelling, so that the uses of its senses can be counted
            self._rules[tag] = match, uses
        for cue in self.matcher.find_cues(tag, match):
            self._cues.setdefault(cue, []).append(tag)

    def make_tables(
        self, matches: pa.Table, numbers: Mapping[str, int]
    ) -> tuple[pa.Table, pa.Table]:
        """Number the cues and rules.

        Args:
            matches: rows of tag and number for all pairs of hashtag and synset.
            numbers: number of each synset, from 0.

        Returns:
            (table `CODES`, table `RULES`).
        """
        rules = sorted(self._rules)
        used = {
            cue
            for rule, _ in self._rules.values()
            for other in rule.alternatives
            for cue in other.cues
        }
        cues = {cue: FIRST_CUE + n for n, cue in enumerate(sorted(used & self._cues.keys()))}
        depends = pa.array(rules, pa.string())
        plain = matches.select(["tag", "number"])
        plain = plain.filter(pa.compute.invert(pa.compute.is_in(plain["tag"], depends)))
        codes = [(tag, number) for cue, number in cues.items() for tag in self._cues[cue]]
        codes += [(tag, FIRST_RULE + n) for n, tag in enumerate(rules)]
        rows = []
        for number, tag in enumerate(rules, FIRST_RULE):
            rule, uses = self._rules[tag]
            senses = [("".join(rule.synsets), ()), *list_alternatives(rule)]
            rows.append(
                {
                    "rule": number,
                    "tag": tag,
                    "uses": uses,
                    "synsets": [numbers[id] if id else NO_SYNSET for id, _ in senses],
                    "cues": [[cues[word] for word in words if word in cues] for _, words in senses],
                }
            )
        tags, values = zip(*codes, strict=True) if codes else ((), ())
        table = pa.table([pa.array(tags, pa.string()), pa.array(values, pa.int32())], schema=CODES)
        return pa.concat_tables([plain.cast(CODES), table]), pa.Table.from_pylist(rows, RULES)


def choose_senses(images: ibis.Table, rules: ibis.Table) -> ibis.Table:
    """Choose the sense of each rule of an image.

    Args:
        images: id, numbers (codes, distinct and sorted).
        rules: the table `RULES`.

    Returns:
        A row for each image and rule: id, numbers (of its synsets without a rule), tag, synset (the
        number of the sense, or `NO_SYNSET`).
    """
    depends = images.filter(images.numbers.maxs() >= FIRST_RULE)
    rows = depends.select(
        "id",
        "numbers",
        rule=depends.numbers.filter(lambda number: number >= FIRST_RULE).unnest(),
    ).join(rules, "rule")
    overlaps = rows.cues.map(lambda cues: rows.numbers.intersect(cues).length())
    # the first of the senses with the most cues; the default sense if no sense has a cue
    synset = rows.synsets[overlaps.index(overlaps.maxs()).cast("int32")]
    numbers = rows.numbers.filter(lambda number: number < FIRST_CUE)
    return rows.select("id", "tag", numbers=numbers, synset=synset)


def resolve_rules(images: ibis.Table, chosen: ibis.Table) -> ibis.Table:
    """Put the chosen senses in place of the rules, and leave out the cues.

    Args:
        images: as for `choose_senses`.
        chosen: the table that it returns.

    Returns:
        id, numbers (of synsets, distinct and sorted) of each image with a synset.
    """
    plain = images.filter(images.numbers.maxs() < FIRST_RULE)
    plain = plain.select("id", numbers=plain.numbers.filter(lambda number: number < FIRST_CUE))
    gathered = chosen.group_by("id").agg(
        numbers=chosen.numbers.arbitrary(), synsets=chosen.synset.collect()
    )
    synsets = gathered.numbers.concat(gathered.synsets.filter(lambda number: number != NO_SYNSET))
    resolved = gathered.select("id", numbers=synsets.unique().sort())
    return plain.union(resolved).filter(lambda table: table.numbers.length() > 0)


def count_senses(chosen: ibis.Table) -> ibis.Table:
    """Number of images for which each sense of a rule's hashtag is chosen: `SENSES_USED`.

    Args:
        chosen: the table of `choose_senses`.
    """
    counts = chosen.group_by("tag", number=chosen.synset).agg(images=chosen.count())
    return counts.mutate(images=counts.images.cast("int64"))
