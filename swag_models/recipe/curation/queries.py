"""The queries of a curation: Ibis expressions, the same for every backend.

Tables:
  posts    id, url, hashtags, hash, license   one row per post
  matches  tag, number                        the numbers of the synsets of a hashtag as written
  images   id, numbers                        the synsets of an image, sorted and distinct
  labels   id, classes, repeat                the classes of an image, sorted, and its repeat factor
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from swag_models.recipe.curation.hashtag_text import (
    is_malformed_ibis,
    is_missing_ibis,
    split_text_ibis,
    strip_hashtags_ibis,
)
from swag_models.recipe.curation.posts import (
    BAD_HASHTAGS,
    BAD_ID,
    CAPTION_MARK,
    FAILED_STATUS,
    HEX_HASH,
    MAX_EXACT,
    NO_ID,
    NOT_DOWNLOADED,
)
from swag_models.recipe.curation.sampling import FACTOR_STEPS, LOG_STEPS
from swag_models.recipe.hashtags import extract_hashtags_ibis

if TYPE_CHECKING:
    import ibis

# A URL or hash of more posts than this is that of a placeholder or of an advertisement, for example
# "this photo is no longer available": the hashtags of its posts have nothing to do with each other.
MAX_UNITED = 100


def select_posts(table: ibis.Table, names: Mapping[str, str | None]) -> ibis.Table:
    """Select the columns of posts from a Parquet table, with the reason for each rejected row.

    The rules are those of `posts.make_post`.

    Args:
        table: any table. If it has a column `status`, rows whose images img2dataset could not
            download are rejected.
        names: the fields of `Columns`: name of the column or None, and the source of hashtags.

    Returns:
        id, reason (null if the row is a post), url, hashtags, hash, license.
    """
    import ibis

    def select_text(role: str) -> ibis.Value:
        if not (name := names.get(role)):
            return ibis.null("string")
        text = table[name].cast("string")
        return ibis.cases((~is_missing_ibis(text), text))

    identifier, failed = select_text("id"), ibis.literal(False)
    if "status" in table.columns:
        failed = table.status.cast("string").startswith(FAILED_STATUS)
    reasons = [(failed, NOT_DOWNLOADED)]
    if (name := names["id"]) and (number := table[name]).type().is_floating():
        finite = ibis.cases((number.abs() < MAX_EXACT, number))
        whole = finite.cast("int64")
        identifier = ibis.cases((whole == finite, whole.cast("string")))
        # pandas has NaN for a missing number
        is_bad = number.notnull() & ~number.isnan() & identifier.isnull()
        reasons += [(is_bad, BAD_ID)]
    reasons += [(identifier.isnull(), NO_ID)]
    hashtags = extract_hashtags_ibis(select_text("caption"))
    if name := names["hashtags"]:
        cell = table[name]
        if cell.type().is_array():
            items = cell.cast("array<string>")
        else:
            text = cell.cast("string")
            items = split_text_ibis(text)
            is_malformed = is_malformed_ibis(text)
            reasons += [(is_malformed, BAD_HASHTAGS)]
            items = ibis.cases((is_malformed, ibis.array([text])), else_=items)  # to show it
        hashtags = ibis.coalesce(strip_hashtags_ibis(items), hashtags)
    if names.get("source") in ("captions", "both"):
        nothing = ibis.literal([], type="array<string>")
        text = select_text("caption")
        marked = ibis.cases((text.notnull(), ibis.array([CAPTION_MARK + text])), else_=nothing)
        hashtags = (
            hashtags.coalesce(nothing).concat(marked) if names["source"] == "both" else marked
        )
    reason = ibis.cases(*reasons)
    return table.select(
        id=identifier,
        reason=reason,
        url=select_text("url"),
        hashtags=hashtags,
        hash=_fold_hash(select_text("hash")),
        license=select_text("license"),
    )


def _fold_hash(digest: ibis.Value) -> ibis.Value:
    """A hash in the spelling that posts are compared by: hexadecimal digits in lower case."""
    import ibis

    return ibis.cases((digest.re_search(rf"^{HEX_HASH}\z"), digest.lower()), else_=digest)


def drop_excluded(posts: ibis.Table, excluded: ibis.Table) -> ibis.Table:
    """Posts whose id and hash are not among the values of `excluded`, one per row: value."""
    return posts.anti_join(excluded.select(id="value"), "id").anti_join(
        excluded.select(hash=_fold_hash(excluded.value)), "hash"
    )


def keep_licensed(posts: ibis.Table, licenses: Sequence[str]) -> ibis.Table:
    """Posts with one of these licenses, compared as text."""
    return posts.filter(posts.license.isin(licenses))


def find_repeated_ids(posts: ibis.Table) -> ibis.Table:
    """Ids that several posts share, with the number of these posts: id, posts."""
    counts = posts.group_by("id").agg(posts=posts.count())
    return counts.filter(counts.posts > 1)


def choose_posts(posts: ibis.Table, repeated: ibis.Table) -> ibis.Table:
    """One post for each repeated id: the first by url and hashtags, in any input order."""
    import ibis

    rows = posts.semi_join(repeated, "id")
    # nulls become "", because backends order nulls differently
    order = [rows.url.coalesce(""), rows.hashtags.join(" ").coalesce("")]
    ranked = rows.mutate(rank=ibis.row_number().over(group_by=rows.id, order_by=order))
    return ranked.filter(ranked.rank == 0).drop("rank")


def keep_valued(posts: ibis.Table, key: str) -> ibis.Table:
    """Posts whose url or hash is neither null nor empty."""
    return posts.filter(posts[key].notnull() & (posts[key] != ""))


def find_copies(posts: ibis.Table, key: str) -> ibis.Table:
    """Posts that share their image with others: id, first (the smallest of their ids), posts.

    Args:
        posts: posts with distinct ids.
        key: the column that posts of one image share, "url" or "hash".
    """
    valued = keep_valued(posts, key)
    counts = valued.group_by(key).agg(first=valued.id.min(), posts=valued.count())
    return valued.join(counts.filter(counts.posts > 1), key).select("id", "first", "posts")


def unite_copies(posts: ibis.Table, copies: ibis.Table) -> ibis.Table:
    """The first post of each image in `copies`, with the distinct hashtags of all its posts.

    An image with more than `MAX_UNITED` posts keeps the hashtags of the first.
    """
    import ibis

    firsts = posts.semi_join(copies.filter(copies.id == copies["first"]), "id")
    few = copies.filter(copies.posts <= MAX_UNITED).select("id", "first")
    joined = posts.join(few, "id")
    # distinct before they are collected, because lists do not spill to disk
    tags = joined.select(id=joined["first"], tag=joined.hashtags.unnest()).distinct()
    lists = tags.group_by("id").agg(united=tags.tag.collect())
    rows = firsts.left_join(lists, "id")
    hashtags = ibis.coalesce(rows.united.sort(), rows.hashtags)
    return rows.mutate(hashtags=hashtags).select(*posts.columns)


def count_hashtags(posts: ibis.Table) -> ibis.Table:
    """Number of uses of each hashtag as written, the most used first: tag, uses."""
    import ibis

    tags = posts.select(tag=posts.hashtags.unnest())
    return tags.group_by("tag").agg(uses=tags.count()).order_by([ibis.desc("uses"), "tag"])


def gather_images(posts: ibis.Table, matches: ibis.Table) -> ibis.Table:
    """The synsets of each image, if it has any: id, numbers."""
    matched = posts.select("id", tag=posts.hashtags.unnest()).join(matches, "tag")
    gathered = matched.group_by("id").agg(numbers=matched.number.collect())
    return gathered.mutate(numbers=gathered.numbers.unique().sort())


def count_images(images: ibis.Table) -> ibis.Table:
    """Number of images with each synset: number, images."""
    numbers = images.select(number=images.numbers.unnest())
    return numbers.group_by("number").agg(images=numbers.count())


def gather_labels(images: ibis.Table, classes: ibis.Table) -> ibis.Table:
    """The classes of each image, if it has any, and the rarest of them: id, classes, rarest."""
    labelled = images.select("id", number=images.numbers.unnest()).join(classes, "number")
    # classes are numbered in descending order of frequency, so the rarest is the last
    gathered = labelled.group_by("id").agg(
        classes=labelled["class"].collect(), rarest=labelled["class"].max()
    )
    return gathered.mutate(classes=gathered.classes.sort())


def gather_kept(labels: ibis.Table, weights: ibis.Table) -> ibis.Table:
    """The probability that each image is kept, in steps: id, classes, steps.

    Args:
        labels: id, classes.
        weights: of each class, see `sampling.weigh_classes_metaclip`: class, weight.
    """
    import ibis

    pairs = labels.select("id", **{"class": labels.classes.unnest()}).join(weights, "class")
    kept = pairs.group_by("id").agg(classes=pairs["class"].collect(), total=pairs.weight.sum())
    # as `sampling.count_steps_metaclip`
    steps = (FACTOR_STEPS * (1 - (kept.total.cast("float64") / -LOG_STEPS).exp())).round()
    return kept.select(
        "id", classes=kept.classes.sort(), steps=ibis.greatest(steps.cast("int64"), 1)
    )


def count_groups(labels: ibis.Table, key: str) -> ibis.Table:
    """Number of images by the column `key` and number of classes: key, size, images."""
    sized = labels.select(key, size=labels.classes.length())
    return sized.group_by([key, "size"]).agg(images=sized.count())


def finish_labels(labels: ibis.Table, factors: ibis.Table) -> ibis.Table:
    """Labels with their repeat factor, sorted by id: id, classes, repeat.

    Args:
        labels: id, classes, and the first column of `factors`: the rarest class, or the steps.
        factors: this column and repeat.
    """
    joined = labels.join(factors, factors.columns[0])
    return joined.select("id", "classes", "repeat").order_by("id")


def list_urls(labels: ibis.Table, posts: ibis.Table) -> ibis.Table:
    """The URLs of labelled images, sorted by id: id, url. Images without a URL are left out."""
    with_url = posts.filter(posts.url.notnull()).select("id", "url")
    return with_url.semi_join(labels, "id").order_by("id")


def sum_samples(labels: ibis.Table) -> ibis.Table:
    """Samples of each class in an epoch: class, samples."""
    samples = labels.select("repeat", **{"class": labels.classes.unnest()})
    return samples.group_by("class").agg(samples=samples.repeat.sum())
