"""What became of each image: labelled, or why it has no class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from swag_models.recipe.curation.backends import Backend, remove_table

if TYPE_CHECKING:
    import ibis

# Why an image with hashtags has no synset: the kind of all of them, or several kinds.
LOST_KINDS = ("unknown", "stopped", "dropped", "mixed")


def account_for_images(
    backend: Backend, posts: Path, tags: Path, images: Path, labels: Path, num_kept: int
) -> dict[str, int]:
    """Count the images by what became of them; the sum is the number of posts kept.

    Args:
        backend: computes the tables.
        posts: folder written by `pipeline.clean_posts`.
        tags: Parquet file with the columns of `tag_table.TAGS`.
        images: folder written by `pipeline.gather_synsets`.
        labels: folder written by `pipeline.choose_classes`.
        num_kept: number of posts; those without a hashtag may be missing in the folder.

    Returns:
        Numbers of images: `no_hashtags`; `only_unknown`, `only_stopped`, `only_dropped` and
        `mixed`, by the hashtags of an image without a synset; `classes_left_out`, whose classes
        have too few images or are above the maximum number; `labelled`.
    """
    gathered = backend.read(images)
    path = images.with_name("lost.parquet")
    backend.write(backend.read(posts).select("id", "hashtags").anti_join(gathered, "id"), path)
    table = backend.read(path)
    tagged = table.filter(table.hashtags.length() > 0)
    num_tagged, num_labelled = backend.count(tagged), backend.count(backend.read(labels))
    lost = dict.fromkeys(LOST_KINDS, 0)
    if num_tagged:
        kinds = backend.fetch(_count_lost(tagged, backend.read(tags)))
        lost |= {row["kind"]: row["images"] for row in kinds.to_pylist()}
    num_gathered = backend.count(gathered)
    remove_table(path)
    return {
        "no_hashtags": num_kept - num_gathered - num_tagged,
        **{name if name == "mixed" else f"only_{name}": lost[name] for name in LOST_KINDS},
        "classes_left_out": num_gathered - num_labelled,
        "labelled": num_labelled,
    }


def _count_lost(images: ibis.Table, tags: ibis.Table) -> ibis.Table:
    """Number of images without a synset by the kind of their hashtags: kind, images."""
    import ibis

    # Few hashtags are known, and fewer have no synset: a small table to join. One with a synset
    # means no noun beside the other hashtags of these images.
    known = tags.filter(tags.how != "unknown")
    known = known.select("tag", kind=ibis.ifelse(known.how == "stopped", "stopped", "dropped"))
    # a view, because Ibis would otherwise merge the join with the one that found the images
    used = images.select("id", tag=images.hashtags.unnest()).view().left_join(known, "tag")
    used = used.select("id", kind=used.kind.coalesce("unknown"))
    ends = used.group_by("id").agg(first=used.kind.min(), last=used.kind.max())
    ends = ends.select(kind=ibis.ifelse(ends["first"] == ends["last"], ends["first"], "mixed"))
    return ends.group_by("kind").agg(images=ends.count())
