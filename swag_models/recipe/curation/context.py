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
# A row for each sense of each rule: its rank, the number of its synset (or `NO_NOUN`), its cues.
RULES = pa.schema(
    {
        "rule": pa.int32(),
        "rank": pa.int32(),
        "synset": pa.int32(),
        "cues": pa.list_(pa.int32()),
    }
)
# Numbers below are synsets; WordNet has 82,115.
FIRST_CUE, FIRST_RULE = 1 << 24, 1 << 25
NO_NOUN = -1
MAX_RANK = 1 << 20  # more than the number of senses of a rule


class ContextRules:
    """Collects the hashtags whose sense depends on the post, and their cues.

    Args:
        matcher: has the cues.
    """

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self._rules: dict[Match, list[str]] = {}  # rule -> hashtags as written
        self._cues: dict[str, list[str]] = {}  # cue -> hashtags as written

    def add(self, tag: str, match: Match) -> None:
        """Add a distinct hashtag and its match."""
        if match.alternatives:
            # hashtags with the same senses and cues share a rule
            rule = Match(match.synsets, "", alternatives=match.alternatives)
            self._rules.setdefault(rule, []).append(tag)
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
        used = {cue for rule in rules for other in rule.alternatives for cue in other.cues}
        cues = {cue: FIRST_CUE + n for n, cue in enumerate(sorted(used & self._cues.keys()))}
        depends = pa.array([tag for tags in self._rules.values() for tag in tags], pa.string())
        plain = matches.select(["tag", "number"])
        plain = plain.filter(pa.compute.invert(pa.compute.is_in(plain["tag"], depends)))
        codes = [(tag, number) for cue, number in cues.items() for tag in self._cues[cue]]
        codes += [
            (tag, FIRST_RULE + n) for n, rule in enumerate(rules) for tag in self._rules[rule]
        ]
        rows = [
            {
                "rule": FIRST_RULE + number,
                "rank": rank,
                "synset": numbers[synset] if synset else NO_NOUN,
                "cues": sorted(cues[cue] for cue in words if cue in cues),
            }
            for number, rule in enumerate(rules)
            for rank, (synset, words) in enumerate(
                [("".join(rule.synsets), ()), *list_alternatives(rule)]
            )
        ]
        tags, values = zip(*codes, strict=True) if codes else ((), ())
        table = pa.table([pa.array(tags, pa.string()), pa.array(values, pa.int32())], schema=CODES)
        return pa.concat_tables([plain.cast(CODES), table]), pa.Table.from_pylist(rows, RULES)


def resolve_rules(images: ibis.Table, rules: ibis.Table) -> ibis.Table:
    """Choose the senses of the rules, and leave out the cues.

    Args:
        images: id, numbers (codes, distinct and sorted).
        rules: the table `RULES`.

    Returns:
        id, numbers (of synsets, distinct and sorted) of each image with a synset.
    """
    depends = images.numbers.maxs() >= FIRST_RULE
    plain = images.filter(~depends)
    plain = plain.select("id", numbers=plain.numbers.filter(lambda number: number < FIRST_CUE))
    plain = plain.filter(plain.numbers.length() > 0)

    others = images.filter(depends)
    codes = others.select("id", "numbers", code=others.numbers.unnest())
    codes = codes.filter((codes.code < FIRST_CUE) | (codes.code >= FIRST_RULE))
    joined = codes.left_join(rules, codes.code == rules.rule)
    # the most cues, then the smallest rank
    score = joined.numbers.intersect(joined.cues).length() * MAX_RANK - joined["rank"]
    chosen = joined.group_by("id", "code").agg(
        number=joined.synset.coalesce(joined.code).argmax(score.coalesce(0))
    )
    gathered = (
        chosen.filter(chosen.number != NO_NOUN)
        .group_by("id")
        .agg(numbers=lambda table: table.number.collect())
    )
    return plain.union(gathered.mutate(numbers=gathered.numbers.unique().sort()))
