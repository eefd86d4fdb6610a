"""Frequent hashtags without a noun in WordNet become classes of their own, such as `roadsign`.

In place of a synset, such a class has the id `tag:roadsign`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swag_models.recipe.inflections import DETACHMENTS

if TYPE_CHECKING:
    import ibis

OWN = "own"
OWN_PREFIX = "tag:"  # of ids
ONLY_DIGITS = r"^\p{N}+$"  # years and dates, which do not describe an image
MIN_PLURAL = 4  # letters of a word that may be a plural


def is_own(synset: str) -> bool:
    """Whether an id is that of a hashtag that is a class of its own, without a synset."""
    return synset.startswith(OWN_PREFIX)


def choose_own_classes(tags: ibis.Table, count: int, min_uses: int) -> ibis.Table:
    """Choose the most used unknown hashtags, by their canonical spelling.

    A plural is counted to its singular if both are unknown.

    Args:
        tags: the table `tag_table.TAGS`.
        count: number of classes.
        min_uses: minimum number of uses of a class.

    Returns:
        The hashtags as written of these classes, with their singular: tag, uses, word.
    """
    import ibis

    unknown = tags.filter((tags.how == "unknown") & (tags.key != ""))
    unknown = unknown.filter(~unknown.key.re_search(ONLY_DIGITS))
    keys = unknown.group_by("key").agg(uses=unknown.uses.sum())
    singulars = _find_singulars(keys).view()
    joined = keys.left_join(singulars, keys.key == singulars.plural)
    words = joined.select("key", "uses", word=joined.singular.coalesce(joined.key)).view()
    totals = words.group_by("word").agg(total=words.uses.sum())
    frequent = totals.filter(totals.total >= min_uses)
    chosen = frequent.order_by([ibis.desc("total"), "word"]).limit(count)
    chosen_keys = words.semi_join(chosen, "word").select("key", "word")
    return unknown.join(chosen_keys.view(), "key").select("tag", "uses", "word")


def _find_singulars(keys: ibis.Table) -> ibis.Table:
    """Plurals whose singular is among the keys as well: plural, singular."""
    import ibis

    is_plural = keys.key.endswith("s") & ~keys.key.endswith("ss") | keys.key.endswith("men")
    plurals = keys.filter(is_plural & (keys.key.length() >= MIN_PLURAL))
    # the rank of a rule is a digit before the singular, so that the smallest text is the first rule
    candidates = [
        ibis.ifelse(
            plurals.key.endswith(suffix),
            str(rank) + plurals.key.substr(0, plurals.key.length() - len(suffix)) + ending,
            ibis.null("string"),
        )
        for rank, (suffix, ending) in enumerate(DETACHMENTS.items())
    ]
    pairs = plurals.select(plural=plurals.key, ranked=ibis.array(candidates).unnest())
    pairs = pairs.filter(pairs.ranked.notnull()).mutate(singular=lambda row: row.ranked.substr(1))
    known = pairs.join(keys.select(singular="key").view(), "singular")
    best = known.group_by("plural").agg(ranked=known.ranked.min())
    return best.select("plural", singular=best.ranked.substr(1))
