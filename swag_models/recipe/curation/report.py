"""What a curation found, for people: report.md and its plots."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swag_models.atomic import atomic_write
from swag_models.recipe.plotting import make_figure, save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 50  # rows of a table


def write_report(
    folder: Path, facts: Mapping[str, Any], vocabulary: Sequence[Mapping[str, Any]]
) -> None:
    """report.md and report/*.png. facts: the counts of each step, as in the manifest; vocabulary: rows, most frequent first."""
    plots = folder / "report"
    plots.mkdir(exist_ok=True)
    images = [row["images"] for row in vocabulary]
    _draw(plots / "frequency.png", _plot_frequency(images, [row["samples"] for row in vocabulary]))
    _draw(plots / "labels.png", _plot_labels(facts["labels"]["per_image"]))
    _draw(plots / "coverage.png", _plot_coverage(images))
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text("\n".join(_write_lines(facts, vocabulary)), encoding="utf-8")


def _write_lines(
    facts: Mapping[str, Any], vocabulary: Sequence[Mapping[str, Any]]
) -> Iterable[str]:
    posts, hashtags, classes, labels = (
        facts[name] for name in ("posts", "hashtags", "classes", "labels")
    )
    yield "# From posts to labels\n"
    yield from _table(
        ("step", "count"),
        [
            ("posts read", posts["read"]),
            *(
                (f"rejected: {reason}", count)
                for reason, count in sorted(posts["rejected"].items())
            ),
            ("under other licences", posts["other_licenses"]),
            ("excluded by id or hash", posts["excluded"]),
            ("repeated id", posts["repeated_ids"]),
            ("repeated url", posts["repeated_urls"]),
            ("posts kept", posts["kept"]),
            ("hashtags written on them", hashtags["uses"]["all"]),
            ("distinct hashtags", hashtags["distinct"]["all"]),
            ("classes found", classes["found"]),
            ("classes with too few images", classes["too_few"]),
            ("classes beyond the largest vocabulary", classes["too_many"]),
            ("classes", classes["kept"]),
            ("images with a class", labels["images"]),
            ("labels", labels["labels"]),
            ("samples in an epoch, expected", round(labels["samples"])),
        ],
    )
    yield "\n## Hashtags\n"
    yield "How hashtags, as written, were matched with WordNet's nouns.\n"
    kinds = [kind for kind in hashtags["distinct"] if kind != "all"]
    yield from _table(
        ("hashtags", "distinct", "uses"),
        [(kind, hashtags["distinct"][kind], hashtags["uses"][kind]) for kind in kinds],
    )
    yield "\n## Frequency\n"
    yield "Images with each class, and samples of it in an epoch after resampling; both axes are logarithmic.\n"
    yield "![frequency of classes before and after resampling](report/frequency.png)\n"
    yield from _table(
        ("class", "hashtag", "synset", "images", "samples"),
        [
            (row["class"], row["hashtag"], row["synset"], row["images"], round(row["samples"]))
            for row in _both_ends(vocabulary, SHOWN // 2)
        ],
    )
    yield "\n## Labels per image\n"
    yield "![labels per image](report/labels.png)\n"
    yield "## Coverage\n"
    yield "Labels that the most frequent classes make up.\n"
    yield "![share of labels by number of classes](report/coverage.png)\n"
    yield from _write_imagenet(facts["imagenet"])
    yield from _write_tags(
        f"Ambiguous hashtags, by the policy {facts['parameters']['senses']!r}",
        hashtags["ambiguous"],
    )
    yield from _write_tags("Stopped hashtags", hashtags["stopped"])
    yield from _write_tags("Unknown hashtags", hashtags["unknown"])


def _write_imagenet(cover: Mapping[str, Any]) -> Iterable[str]:
    yield "## ImageNet-1k\n"
    yield "Its 1,000 classes that have a class here: the same synset, else the nearest below (hyponym) or above (hypernym).\n"
    yield from _table(("how", "classes"), list(cover["counts"].items()))
    if cover["missing"]:
        yield f"\nWithout one: {', '.join(cover['missing'][:SHOWN])}{' ...' if len(cover['missing']) > SHOWN else ''}"


def _write_tags(title: str, tags: Sequence[Sequence[Any]]) -> Iterable[str]:
    yield f"\n## {title}\n"
    if not tags:
        yield "None."
        return
    if len(tags) == SHOWN:
        yield f"The {SHOWN} most used.\n"
    yield from _table(("hashtag", "uses", "taken as", "other senses")[: len(tags[0])], tags)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(value) for value in row)} |"


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _both_ends(rows: Sequence[Mapping[str, Any]], count: int) -> Sequence[Mapping[str, Any]]:
    return rows if len(rows) <= 2 * count else [*rows[:count], *rows[-count:]]


def _plot_frequency(images: Sequence[int], samples: Sequence[float]) -> Figure:
    figure, axes = _make_figure("class, from the most frequent", "images or samples")
    ranks = range(1, len(images) + 1)
    axes.loglog(ranks, images, label="images")
    axes.loglog(ranks, samples, ".", markersize=3, label="samples in an epoch")
    axes.legend()
    return figure


def _plot_labels(per_image: Mapping[str, int]) -> Figure:
    figure, axes = _make_figure("classes of an image", "images")
    axes.bar([int(size) for size in per_image], list(per_image.values()))
    axes.set_yscale("log")
    return figure


def _plot_coverage(images: Sequence[int]) -> Figure:
    figure, axes = _make_figure("most frequent classes", "share of all labels")
    total = sum(images)
    axes.semilogx(
        range(1, len(images) + 1), [sum_ / total for sum_ in itertools.accumulate(images)]
    )
    axes.set_ylim(0, 1.02)
    return figure


def _make_figure(x: str, y: str) -> tuple[Figure, Any]:
    figure = make_figure(7, 4, layout=None)
    axes = figure.subplots(
        gridspec_kw={"left": 0.12, "right": 0.97, "bottom": 0.14, "top": 0.96}
    )  # to lay it out takes seconds
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _draw(path: Path, figure: Figure) -> None:
    save_png(figure, path, dpi=120)
