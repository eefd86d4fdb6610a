"""The tables of a curation, each an Ibis expression of those before it, the same on every engine.

posts       id, url, hashtags, hash, license    one row per post
matches     tag, number                 which synsets, by number, a hashtag as written stands for
images      id, numbers                 the synsets of an image, sorted, each once
labels      id, classes, repeat         the classes of an image, sorted, and how often it is seen in an epoch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from swag_models.recipe.curation.readers import EDGES, NO_ID, NOT_DOWNLOADED
from swag_models.recipe.hashtags import HASH, extract_hashtags

if TYPE_CHECKING:
    import ibis

SPACES = r"[\s\x0b\x1c-\x1f\x85\p{Z}]+"  # where Python's str.split splits


def select_posts(table: ibis.Table, names: Mapping[str, str | None]) -> ibis.Table:
    """posts from a table with columns of other names, by what each is for, and the `reason` why a row is none, or null.

    Hashtags may be a list, text, or where there are none in a caption, as in `posts`. A `status` other than "success" is
    img2dataset's for what it could not get.
    """
    import ibis

    def pick(role: str) -> ibis.Value:
        name = names.get(role)
        return table[name].cast("string") if name else ibis.null("string")

    hashtags = extract_hashtags(pick("caption"))
    if name := names.get("hashtags"):
        hashtags = ibis.coalesce(_list_hashtags(table[name]), hashtags)
    identifier = pick("id")
    failed = table.status != "success" if "status" in table.columns else ibis.literal(False)
    reason = ibis.cases((identifier.isnull() | (identifier == ""), NO_ID), (failed, NOT_DOWNLOADED))
    return table.select(
        id=identifier,
        reason=reason,
        url=pick("url"),
        hashtags=hashtags,
        hash=pick("hash"),
        license=pick("license"),
    )


def _list_hashtags(cell: ibis.Value) -> ibis.Value:
    """As `posts` does of a list, a JSON list, or text where # or else commas or else spaces tell them apart; null stays null.

    Escapes in a JSON list stay as they are.
    """
    import ibis

    if not cell.type().is_array():
        cell = ibis.cases(
            (
                cell.startswith("["),
                cell.re_replace(r'^\[\s*"?|"?\s*\]\s*$', "").re_split(r'"\s*,\s*"'),
            ),
            (cell.re_search(f"[{HASH}]"), extract_hashtags(cell)),
            (cell.contains(","), cell.split(",")),
            else_=cell.re_split(SPACES),
        )
    return cell.map(lambda tag: tag.re_replace(f"^[{EDGES}]+|[{EDGES}]+$", "")).filter(
        lambda tag: tag != ""
    )


def drop_excluded(posts: ibis.Table, excluded: ibis.Table) -> ibis.Table:
    """Posts whose id and hash are not among the `values` of a table."""
    return posts.anti_join(excluded.select(id="value"), "id").anti_join(
        excluded.select(hash="value"), "hash"
    )


def keep_licensed(posts: ibis.Table, licenses: Sequence[str]) -> ibis.Table:
    """Posts under one of these licences, written so."""
    return posts.filter(posts.license.isin(licenses))


def find_repeated_ids(posts: ibis.Table) -> ibis.Table:
    """Ids that more than one post has, and how many have it: id, posts."""
    counts = posts.group_by("id").agg(posts=posts.count())
    return counts.filter(counts.posts > 1)


def choose_posts(posts: ibis.Table, repeated: ibis.Table) -> ibis.Table:
    """One post for each repeated id, the first by url and hashtags, whatever the order in which posts are read."""
    import ibis

    rows = posts.semi_join(repeated, "id")
    order = [rows.url.coalesce(""), rows.hashtags.join(" ").coalesce("")]
    ranked = rows.mutate(rank=ibis.row_number().over(group_by=rows.id, order_by=order))
    return ranked.filter(ranked.rank == 0).drop("rank")


def find_repeated_urls(posts: ibis.Table) -> ibis.Table:
    """Urls that more than one post has, and the smallest id of these: url, first."""
    known = posts.filter(posts.url.notnull())
    counts = known.group_by("url").agg(first=known.id.min(), posts=known.count())
    return counts.filter(counts.posts > 1).drop("posts")


def find_copies(posts: ibis.Table, repeated: ibis.Table) -> ibis.Table:
    """Posts whose url a post with a smaller id has too: id."""
    joined = posts.join(repeated, "url")
    return joined.filter(joined.id != joined.first).select("id")


def count_hashtags(posts: ibis.Table) -> ibis.Table:
    """How many times each hashtag is written: tag, uses."""
    tags = posts.select(tag=posts.hashtags.unnest())
    return tags.group_by("tag").agg(uses=tags.count())


def gather_images(posts: ibis.Table, matches: ibis.Table) -> ibis.Table:
    """The synsets of each image that has any: id, numbers."""
    found = posts.select("id", tag=posts.hashtags.unnest()).join(matches, "tag")
    gathered = found.group_by("id").agg(numbers=found.number.collect())
    return gathered.mutate(numbers=gathered.numbers.unique().sort())


def count_images(images: ibis.Table) -> ibis.Table:
    """How many images have each synset: number, images."""
    numbers = images.select(number=images.numbers.unnest())
    return numbers.group_by("number").agg(images=numbers.count())


def gather_labels(images: ibis.Table, classes: ibis.Table) -> ibis.Table:
    """The classes of each image that has any, and the rarest of them, which is the last: id, classes, rarest."""
    found = images.select("id", number=images.numbers.unnest()).join(classes, "number")
    gathered = found.group_by("id").agg(
        classes=found["class"].collect(), rarest=found["class"].max()
    )
    return gathered.mutate(classes=gathered.classes.sort())


def count_rarest(labels: ibis.Table) -> ibis.Table:
    """How many images have each class as their rarest, by how many classes they have: rarest, size, images."""
    sized = labels.select("rarest", size=labels.classes.length())
    return sized.group_by(["rarest", "size"]).agg(images=sized.count())


def finish_labels(labels: ibis.Table, factors: ibis.Table) -> ibis.Table:
    """Labels with the repeat factor of their rarest class, by id: id, classes, repeat."""
    joined = labels.join(factors, labels.rarest == factors["class"])
    return joined.select("id", "classes", "repeat").order_by("id")


def sum_samples(labels: ibis.Table) -> ibis.Table:
    """How often each class is seen in an epoch: class, samples."""
    spread = labels.select("repeat", **{"class": labels.classes.unnest()})
    return spread.group_by("class").agg(samples=spread.repeat.sum())
