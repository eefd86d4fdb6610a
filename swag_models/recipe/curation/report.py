"""The readable report of a curation: report.md and its plots."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swag_models.atomic import write_text
from swag_models.formatting import count_noun, list_names, markdown_table
from swag_models.recipe.plotting import make_figure, save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_ROWS = 50  # rows of a table
IMAGE_KINDS = {  # names in the manifest, see `accounting.account_for_images`
    "no_hashtags": "without a hashtag",
    "only_unknown": "with unknown hashtags only",
    "only_stopped": "with stopped hashtags only",
    "only_dropped": "with dropped hashtags only",
    "mixed": "with unknown, stopped or dropped hashtags only",
    "classes_left_out": "only with classes of too few images, or above the maximum number",
    "labelled": "with a class",
}


def write_curation_report(
    folder: Path, facts: Mapping[str, Any], vocabulary: Sequence[Mapping[str, Any]]
) -> None:
    """Write report.md and its plots, report/*.png.

    Args:
        folder: folder to write to.
        facts: the manifest.
        vocabulary: rows of vocabulary.parquet, in descending order of images.
    """
    plots = folder / "report"
    plots.mkdir(exist_ok=True)
    images = [row["images"] for row in vocabulary]  # in descending order
    save_png(
        _plot_frequency(images, [row["samples"] for row in vocabulary]),
        plots / "frequency.png",
        dpi=120,
    )
    save_png(_plot_labels(facts["labels"]["per_image"]), plots / "labels.png", dpi=120)
    save_png(_plot_coverage(images), plots / "coverage.png", dpi=120)
    write_text(folder / "report.md", "\n".join(_list_blocks(facts, vocabulary)))


def _list_blocks(
    facts: Mapping[str, Any], vocabulary: Sequence[Mapping[str, Any]]
) -> Iterable[str]:
    """Yield the paragraphs, headings and tables of report.md."""
    yield "# From posts to labels\n"
    yield _format_table(("step", "count"), _list_counts(facts))
    yield "\n## Images\n"
    yield "What became of the images of the posts kept.\n"
    yield _format_table(
        ("images", "count"),
        [(title, facts["images"][name]) for name, title in IMAGE_KINDS.items()],
    )
    yield from _list_matches(facts["hashtags"], facts["wordnet_counts"])
    yield from _list_classes(facts["labels"], vocabulary)
    yield "\n## Labels per image\n"
    yield "![labels per image](report/labels.png)\n"
    yield "## Coverage\n"
    yield "Share of all labels covered by the most frequent classes.\n"
    yield "![share of labels by number of classes](report/coverage.png)\n"
    yield from _list_imagenet(facts["imagenet"])
    hashtags, parameters = facts["hashtags"], facts["parameters"]
    if unused := hashtags["unused_stopwords"]:
        yield (
            f"\nAdded stop words that match no hashtag, {len(unused):,}: "
            f"{list_names(unused, MAX_ROWS)}"
        )
    if unused := hashtags["unused_overrides"]:
        yield f"\nOverrides of hashtags that no post has: {list_names(unused, MAX_ROWS)}"
    if parameters["languages"]:
        yield from _list_languages(parameters["languages"])
    if rows := hashtags["false_friends"]:
        yield from _list_hashtags(
            "Words of several languages, by the other hashtags of the post", rows
        )
    if rows := hashtags["own"]:
        yield from _list_hashtags("Classes of their own", rows)
    ambiguous = f"Ambiguous hashtags, by the policy {parameters['senses']!r}"
    yield from _list_hashtags(ambiguous, hashtags["ambiguous"])
    yield from _list_hashtags("Stopped hashtags", hashtags["stopped"])
    yield from _list_hashtags("Unknown hashtags", hashtags["unknown"])


def _list_counts(facts: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield the steps from posts to samples, and how much each of them left."""
    posts, hashtags, classes, labels = (
        facts[name] for name in ("posts", "hashtags", "classes", "labels")
    )
    yield "posts read", posts["read"]
    for reason, count in sorted(posts["rejected"].items()):
        yield f"rejected: {reason}", count
    yield "with another license", posts["other_licenses"]
    yield "excluded by id or hash", posts["excluded"]
    yield "repeated id", posts["repeated_ids"]
    yield "repeated url", posts["repeated_urls"]
    no_hash = "unknown: no post has a hash"
    yield "repeated hash", posts["repeated_hashes"] if posts["with_hash"] else no_hash
    yield "posts kept", posts["kept"]
    yield "hashtags of these posts", hashtags["uses"]["all"]
    yield "distinct hashtags", hashtags["distinct"]["all"]
    yield "classes found", classes["found"]
    yield "classes with too few images", classes["too_few"]
    yield "classes above the maximum number", classes["too_many"]
    yield "classes", classes["kept"]
    yield "images with a class", labels["images"]
    yield "labels", labels["labels"]
    yield "samples in an epoch, expected", round(labels["samples"])


def _list_matches(hashtags: Mapping[str, Any], has_counts: bool) -> Iterable[str]:
    """Yield how hashtags were matched; `has_counts`: whether WordNet has the counts of senses."""
    yield "\n## Hashtags\n"
    yield (
        "How hashtags, as spelled in the posts, were matched with WordNet's nouns. "
        "[hashtags.parquet](hashtags.parquet) has what became of each. Those dropped by context "
        "mean no noun beside the other hashtags of their posts.\n"
    )
    kinds = [kind for kind in hashtags["distinct"] if kind != "all"]
    yield _format_table(
        ("hashtags", "distinct", "uses"),
        [(kind, hashtags["distinct"][kind], hashtags["uses"][kind]) for kind in kinds],
    )
    if not has_counts:
        yield (
            "\nThis WordNet has no cntlist.rev, the counts of senses: adjectives are not "
            "recognised, and senses that were counted are taken as equally frequent.\n"
        )
    repaired = [
        f"{distinct:,} with {kind} ({uses:,} uses)"
        for kind, (distinct, uses) in hashtags["repaired"].items()
        if distinct
    ]
    if repaired:
        yield f"\nHashtags whose text was repaired first: {', '.join(repaired)}."


def _list_classes(
    labels: Mapping[str, Any], vocabulary: Sequence[Mapping[str, Any]]
) -> Iterable[str]:
    """Yield the frequencies of the classes."""
    yield "\n## Frequency\n"
    yield (
        "Number of images of each class, and of its samples in an epoch after resampling. "
        "Both axes are logarithmic.\n"
    )
    if "threshold" in labels:  # of the sampling "metaclip"
        share = labels["tail_labels"] / labels["labels"]
        yield (
            f"Each class keeps {labels['threshold']:,.12g} of its images on average, and all if it "
            f"has fewer, as {count_noun(labels['tail_classes'], 'class')} with {share:.1%} of the "
            "labels. An image is kept if one of its classes keeps it.\n"
        )
    yield "![frequency of classes before and after resampling](report/frequency.png)\n"
    rows = vocabulary
    if len(vocabulary) > MAX_ROWS:  # the most and the least frequent classes
        rows = [*vocabulary[: MAX_ROWS // 2], *vocabulary[-(MAX_ROWS // 2) :]]
    yield _format_table(
        ("class", "hashtag", "synset", "images", "samples"),
        [
            (row["class"], row["hashtag"], row["synset"], row["images"], round(row["samples"]))
            for row in rows
        ],
    )


def _list_languages(files: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    yield "\n## Languages\n"
    yield "Words of other languages that can be matched.\n"
    yield _format_table(
        ("file", "language", "words", "without a synset of WordNet 3.0"),
        [
            (file["file"], language, counts["words"], counts["without_synset"])
            for file in files
            for language, counts in file["languages"].items()
        ],
    )


def _list_imagenet(coverage: Mapping[str, Any]) -> Iterable[str]:
    yield "## ImageNet-1k\n"
    yield (
        "How its 1,000 classes are covered by the vocabulary: by the same synset, otherwise by "
        "the nearest class below (hyponym) or above (hypernym).\n"
    )
    yield _format_table(("how", "classes"), list(coverage["counts"].items()))
    if missing := coverage["missing"]:
        # manifest.json has the complete list
        ellipsis = " ..." if len(missing) > MAX_ROWS else ""
        yield f"\nNot covered: {', '.join(missing[:MAX_ROWS])}{ellipsis}"


def _list_hashtags(title: str, rows: Sequence[Sequence[Any]]) -> Iterable[str]:
    yield f"\n## {title}\n"
    if not rows:
        yield "None."
        return
    if len(rows) >= MAX_ROWS:
        yield f"The {MAX_ROWS} most frequently used ones.\n"
    header = ("hashtag", "uses", "sense used", "other senses")[: len(rows[0])]
    yield _format_table(header, rows[:MAX_ROWS])


def _format_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return markdown_table(header, [[_format_cell(cell) for cell in row] for row in rows])


def _format_cell(cell: object) -> str:
    if isinstance(cell, int):
        return f"{cell:,}"
    # a hashtag may end in a backslash, which would escape the border of its cell
    return str(cell).replace("\\", "\\\\")


def _plot_frequency(images: Sequence[int], samples: Sequence[float]) -> "Figure":
    figure, axes = _make_figure("class, from the most frequent", "images or samples")
    ranks = range(1, len(images) + 1)
    # a few classes have most of the images; only logarithmic axes show the others
    axes.loglog(ranks, images, label="images")
    axes.loglog(ranks, samples, ".", markersize=3, label="samples in an epoch")
    axes.legend()
    return figure


def _plot_labels(per_image: Mapping[str, int]) -> "Figure":
    figure, axes = _make_figure("classes of an image", "images")
    axes.bar([int(size) for size in per_image], list(per_image.values()))
    axes.set_yscale("log")
    return figure


def _plot_coverage(images: Sequence[int]) -> "Figure":
    figure, axes = _make_figure("most frequent classes", "share of all labels")
    total = sum(images)
    shares = [count / total for count in itertools.accumulate(images)]
    axes.semilogx(range(1, len(images) + 1), shares)
    axes.set_ylim(0, 1.02)
    return figure


def _make_figure(x_label: str, y_label: str) -> "tuple[Figure, Any]":
    figure = make_figure(7, 4, layout=None)
    # fixed margins, because matplotlib's layout engine takes seconds
    axes = figure.subplots(gridspec_kw={"left": 0.12, "right": 0.97, "bottom": 0.14, "top": 0.96})
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    return figure, axes
