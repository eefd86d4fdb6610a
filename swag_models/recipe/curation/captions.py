"""Nouns of captions: from text to the words and phrases that are nouns, as if they were hashtags.

The lemmas and their plurals form a tree of words, whose edges are a table: from a node, a word
leads to the next node, and has a tag if a phrase ends there. One join for each depth of the tree
finds the longest phrase that begins at each word. This is an Ibis expression for DuckDB and Spark;
Python only makes the table, once for each lemma.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from swag_models.errors import ConfigError
from swag_models.recipe.curation.backends import Backend, remove_table
from swag_models.recipe.curation.columns import SOURCES, Columns
from swag_models.recipe.curation.posts import CAPTION_MARK
from swag_models.recipe.curation.steps import Facts
from swag_models.recipe.inflections import PREPOSITIONS, pluralise
from swag_models.recipe.phrases import (
    ACCENTS,
    JUNK,
    MAX_WORDS,
    WEAK_STARTS,
    is_noun,
    split_lemma,
)
from swag_models.recipe.spelling import canonicalise
from swag_models.recipe.wordnet import WordNet

if TYPE_CHECKING:
    import ibis

EDGES = pa.schema({"node": pa.int32(), "word": pa.string(), "next": pa.int32(), "tag": pa.string()})
# Overlaps among phrases are resolved in this many rounds; chains of more overlaps do not occur.
ROUNDS = 2


def check_source(columns: Columns) -> None:
    """Check what is to become the hashtags of posts.

    Raises:
        ConfigError: the source is unknown, or does not read a column that is named.
    """
    if columns.source not in SOURCES:
        raise ConfigError(f"invalid source {columns.source!r}: allowed: {', '.join(SOURCES)}")
    if columns.source == "captions" and columns.hashtags:
        raise ConfigError(
            f"source='captions' reads no hashtags, but hashtags={columns.hashtags!r} names a "
            "column of them; omit it, name captions with caption=, or use source='both'"
        )


def tag_captions(
    backend: Backend, wordnet: WordNet, posts: Path, source: str, tagged: Path
) -> Facts:
    """Replace the captions of posts by their nouns.

    Args:
        backend: computes the tables.
        wordnet: the nouns.
        posts: folder with the columns id, hashtags.
        source: "captions", or "both" to keep the hashtags beside the nouns.
        tagged: folder to write, in parts: id, hashtags. Without hashtags, posts are left out.
    """
    paths = [tagged.with_name(f"{name}.parquet") for name in ("roots", "branches")]
    tables = zip(make_lexicon(wordnet), paths, strict=True)
    edges = [backend.store(table, path) for table, path in tables]

    def tag_part(part: ibis.Table) -> ibis.Table:
        nouns = find_nouns(part, *edges)
        return add_nouns(part, nouns) if source == "both" else nouns

    backend.map_parts(posts, tagged, tag_part)
    for path in paths:
        remove_table(path)
    return {"tagged": backend.count(backend.read(tagged))}


def make_lexicon(wordnet: WordNet) -> tuple[pa.Table, pa.Table]:
    """The tree of all nouns and phrases with their plurals, in the table `EDGES`.

    Returns:
        The edges from the root, node 0, and all others.
    """
    edges: dict[tuple[int, str], list[Any]] = {}  # (node, word): next, tag
    num_nodes = 1
    for tag, words in _list_forms(wordnet):
        node = 0
        for position, word in enumerate(words, 1):
            edge = edges.setdefault((node, word), [None, None])
            if position == len(words):
                edge[1] = edge[1] or tag  # singulars come first
            elif edge[0] is None:
                edge[0], num_nodes = num_nodes, num_nodes + 1
            node = edge[0]
    rows = [(node, word, *edge) for (node, word), edge in edges.items()]
    tables = []
    for is_root in (True, False):
        columns = zip(*[row for row in rows if (row[0] == 0) == is_root], strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, EDGES)]
        tables.append(pa.table(arrays, EDGES) if arrays else EDGES.empty_table())
    return tables[0], tables[1]


def find_nouns(posts: ibis.Table, roots: ibis.Table, branches: ibis.Table) -> ibis.Table:
    """The nouns and phrases of the captions of each post, if it has any: id, hashtags.

    From the left, the longest phrase wins and uses up its words: "golden retriever puppy" is a
    golden retriever and a puppy, but no retriever.

    Args:
        posts: id, hashtags; the captions are those of the hashtags that begin with `CAPTION_MARK`.
        roots: the edges from the root, see `make_lexicon`.
        branches: all other edges.
    """
    import ibis

    found = _list_starts(split_words(posts))
    for step in range(MAX_WORDS):
        edges = (branches if step else roots).select(
            **{f"key{step}": "word", f"next{step}": "next", f"tag{step}": "tag"},
            **({f"node{step}": "node"} if step else {}),
        )
        if step > 1:  # few phrases are that long
            next_word = _take(
                found.words, found.position + step, found[f"next{step - 1}"].notnull()
            )
            found = found.mutate(**{f"word{step}": next_word})
        keys = [(f"word{step}", f"key{step}")]
        keys += [(f"next{step - 1}", f"node{step}")] if step else []
        found = found.join(edges, keys, how="left" if step else "inner")
    tags = [found[f"tag{step}"] for step in range(MAX_WORDS)]
    lengths = [(tag.notnull(), step + 1) for step, tag in enumerate(tags)]
    phrases = found.select(
        "id",
        first="position",
        last=found.position + ibis.cases(*reversed(lengths)) - 1,
        tag=ibis.coalesce(*reversed(tags)),
    )
    phrases = phrases.filter(phrases.tag.notnull())
    spans = ibis.struct({name: phrases[name] for name in ("first", "last", "tag")})
    gathered = phrases.group_by("id").agg(
        spans=spans.collect(), longest=(phrases["last"] - phrases["first"]).max()
    )
    return _drop_overlapped(gathered)


def split_words(posts: ibis.Table) -> ibis.Table:
    """The words of captions, in lower case without accents: id, words; empty ones are boundaries.

    Args:
        posts: as for `find_nouns`.
    """
    import ibis

    @ibis.udf.scalar.builtin(signature=(("string",), "int64"))
    def bit_length(text):  # type: ignore[no-untyped-def]
        ...

    captions = posts.hashtags.filter(lambda text: text.startswith(CAPTION_MARK))
    # A column for each step, since DuckDB computes an expression within `cases` several times.
    lower = posts.select("id", text=captions.join(". ").lower())
    # only where necessary, because `translate` takes longer than all the rest
    is_ascii = bit_length(lower.text) == 8 * lower.text.length()
    plain = ibis.cases((is_ascii, lower.text), else_=lower.text.translate(*ACCENTS))
    bare = lower.select("id", text=plain)
    return bare.select("id", words=bare.text.re_replace(JUNK, " ").split(" "))


def add_nouns(posts: ibis.Table, nouns: ibis.Table) -> ibis.Table:
    """Posts with their hashtags and with the nouns of their captions: id, hashtags."""
    import ibis

    joined = posts.select("id", written="hashtags").left_join(nouns, "id")
    written = joined.written.filter(lambda tag: ~tag.startswith(CAPTION_MARK))
    found = joined.hashtags.coalesce(ibis.literal([], type="array<string>"))
    return joined.select("id", hashtags=written.concat(found))


def _list_starts(split: ibis.Table) -> ibis.Table:
    """Each word with the next one (null after the last): id, words, position, word0, word1."""
    import ibis

    if split.get_backend().name == "duckdb":  # takes 15% less time; Spark unnests one list only
        return split.select(
            "id",
            "words",
            position=ibis.range(split.words.length()).unnest(),
            word0=split.words.unnest(),
            word1=split.words[1:].unnest(),
        )

    def make_start(word: ibis.Value, index: ibis.Value) -> ibis.Value:
        return ibis.struct(
            {"position": index, "word0": word, "word1": _take(split.words, index + 1)}
        )

    starts = split.select("id", "words", start=split.words.map(make_start).unnest())
    fields = {name: starts.start[name] for name in starts.start.names}
    return starts.select("id", "words", **fields)


def _take(words: ibis.Value, index: ibis.Value, condition: Any = True) -> ibis.Value:
    """A word, if there is one; an index beyond the end is an error in Spark."""
    import ibis

    return ibis.cases(((index < words.length()) & condition, words[index]))


def _drop_overlapped(found: ibis.Table) -> ibis.Table:
    """The tags of spans, without those that begin within a kept span of several words.

    Args:
        found: id, spans, longest: the words of the longest span beyond the first.

    Returns:
        id, hashtags.
    """
    import ibis

    def is_free(span: ibis.Value, others: ibis.Value) -> ibis.Value:
        covering = others.filter(
            lambda other: (other["first"] < span["first"]) & (span["first"] <= other["last"])
        )
        return covering.length() == 0

    # Most captions have no span of several words: `cases` saves the work for them.
    long = found.spans.filter(lambda span: span["last"] > span["first"])
    found = found.mutate(long=ibis.cases((found.longest > 0, long)))
    # A column for each step, since an expression within a lambda is computed for each element.
    found = found.mutate(kept=found.long)
    for _ in range(ROUNDS):  # what overlaps only with spans that are dropped is kept
        several = found.long.length() > 1
        certain = found.kept.filter(lambda span: is_free(span, found.kept))  # noqa: B023
        found = found.mutate(certain=ibis.cases((several, certain), else_=found.long))
        kept = found.long.filter(lambda span: is_free(span, found.certain))  # noqa: B023
        found = found.mutate(kept=ibis.cases((several, kept), else_=found.long))
    kept = found.spans.filter(lambda span: is_free(span, found.kept))
    found = found.mutate(spans=ibis.cases((found.longest > 0, kept), else_=found.spans))
    return found.select("id", hashtags=found.spans.map(lambda span: span["tag"]))


def _list_forms(wordnet: WordNet) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the lemmas, then their plurals, as tags with their words in captions."""
    irregular: dict[str, list[str]] = {}
    for plural, bases in wordnet.exceptions.items():
        for base in bases:
            irregular.setdefault(base, []).append(plural)
    for is_plural in (False, True):
        for lemma in wordnet.senses:
            start, _, head = lemma.rpartition("_")
            start, rest = start and f"{start}_", ""
            first, _, others = lemma.partition("_")
            if others.partition("_")[0] in PREPOSITIONS:  # birds of prey
                start, head, rest = "", first, f"_{others}"
            heads = irregular.get(head, [pluralise(head)]) if is_plural else [head]
            for word in heads:
                yield from _list_words(f"{start}{word}{rest}".replace("_", " "), is_plural)


def _list_words(tag: str, is_plural: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield a tag with each way to write it in captions."""
    spellings = split_lemma(tag)
    if len(spellings[0]) > 1:  # written as one word
        spellings.append((canonicalise(tag),))
    for words in spellings:
        if len(words) == 1:
            # plurals of symbols look like other words: his, was
            if is_noun(words[0]) and len(words[0]) > 3 * is_plural:
                yield tag, words
        elif 1 < len(words) <= MAX_WORDS and words[0] not in WEAK_STARTS:
            yield tag, words
