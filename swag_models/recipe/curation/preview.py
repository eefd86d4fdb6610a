"""A dry run of a curation: what the most used hashtags mean, and why."""

import tempfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.atomic import disk_errors
from swag_models.errors import check_minimum
from swag_models.recipe.curation import pipeline, queries
from swag_models.recipe.curation.backends import Backend, check_backend, open_backend
from swag_models.recipe.curation.captions import tag_captions
from swag_models.recipe.curation.curate import Reading, read_rules
from swag_models.recipe.curation.steps import Facts
from swag_models.recipe.curation.tag_table import read_senses
from swag_models.recipe.hashtags import Match, Matcher
from swag_models.recipe.wordnet import WordNet

MAX_LEMMAS = 3  # of a synset, in its name
MAX_GLOSS = 70  # characters


class MeaningOfTag(NamedTuple):
    """What a hashtag means.

    Attributes:
        tag: the hashtag as written.
        uses: number of its uses.
        synset: ids of its synsets; empty if it has none. If they depend on the post, with the
            images of each.
        name: the first lemmas of these synsets.
        gloss: their definitions, shortened.
        reason: why it has these synsets, or none.
    """

    tag: str
    uses: int
    synset: str
    name: str
    gloss: str
    reason: str


def preview(
    inputs: Sequence[str | PathLike[str]],
    senses: str = "context",
    count: int = 50,
    *,
    engine: str = "duckdb",
    master: str | None = None,
    memory: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> tuple[list[MeaningOfTag], Facts]:
    """Match the most used hashtags of posts, without a curation.

    Only temporary files are written, which need as much space as the posts.

    Args:
        inputs: files of posts, or folders of them.
        senses: as for `Curation`.
        count: number of hashtags.
        engine, master, memory, threads: as for `curate`.
        **options: the fields of `Reading`.

    Returns:
        (the meanings, the facts of `pipeline.clean_posts`: how many posts were read and kept).

    Raises:
        ConfigError: an input or option is invalid.
        OutputError: the temporary files cannot be written.
    """
    check_minimum(1, dry_run=count)
    check_backend(engine, master)
    net, matcher, selection = read_rules(inputs, senses, Reading(**options))
    with tempfile.TemporaryDirectory(prefix="swag-models-") as name, disk_errors(Path(name)):
        work = Path(name)
        opening = open_backend(
            engine, scratch=work / "scratch", memory=memory, threads=threads, master=master
        )
        with opening as backend:
            posts = work / "kept"
            facts = pipeline.clean_posts(
                backend, selection, work, posts, work / "rejects.jsonl", rejects_stay=False
            )
            if (source := selection.options.columns.source) != "hashtags":
                posts = work / "tagged"
                tag_captions(backend, net, work / "kept", source, posts)
            most_used = queries.count_hashtags(backend.read(posts)).limit(count)
            rows = backend.fetch(most_used).to_pylist()
            used: dict[str, dict[str, int]] = {}
            if any(matcher.match(row["tag"]).alternatives for row in rows):
                used = _count_senses(backend, posts, matcher, net, work)
    meanings = [
        _explain(row["tag"], row["uses"], matcher, net, used.get(row["tag"], {})) for row in rows
    ]
    return meanings, facts


def _count_senses(
    backend: Backend, posts: Path, matcher: Matcher, net: WordNet, work: Path
) -> dict[str, dict[str, int]]:
    """The images of each sense of the hashtags that depend on their posts."""
    names = ("tags", "matches", "codes", "rules", "senses")
    tables = {name: work / f"{name}.parquet" for name in names}
    pipeline.match_posts(backend, posts, matcher, net, (0, 1), tables)
    codes, rules, senses = tables["codes"], tables["rules"], tables["senses"]
    pipeline.gather_synsets(backend, posts, codes, rules, work / "images", senses)
    return read_senses(senses, tables["matches"])


def _explain(
    tag: str, uses: int, matcher: Matcher, net: WordNet, used: Mapping[str, int]
) -> MeaningOfTag:
    match = matcher.match(tag)
    synsets = [synset for synset in used if synset] if used else match.synsets
    known = [net.synsets[synset] for synset in synsets if synset in net.synsets]
    counted = [f"{synset or 'no noun'} ({count:,})" for synset, count in used.items()]
    names = [", ".join(synset.lemmas[:MAX_LEMMAS]).replace("_", " ") for synset in known]
    glosses = [synset.gloss.split(";")[0][:MAX_GLOSS] for synset in known]
    return MeaningOfTag(
        tag,
        uses,
        "; ".join(counted or match.synsets),
        "; ".join(names),
        "; ".join(glosses),
        _describe_reason(match),
    )


def _describe_reason(match: Match) -> str:
    reason = match.reason or match.how
    if match.alternatives:
        others = {other.synset or "no noun" for other in match.alternatives}
        return f"{reason}; beside other hashtags: {', '.join(sorted(others))}"
    return reason
