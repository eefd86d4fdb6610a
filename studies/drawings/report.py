"""Tables and plots of the study on real images, all from its results.json.

    python -m studies.drawings.report RESULTS docs

writes the part of docs/drawings.md between its marks, docs/drawings_study.png, and a copy of the
results, docs/drawings.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.drawings.study import MAIN, SCRATCH, TRANSFERS, VARIANTS
from studies.summary import CLAIMS_NOTE, format_mean, judge, measure_deviation
from swag_models.atomic import disk_errors, write_json, write_text
from swag_models.cli import run_command
from swag_models.cli.common import OK
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, markdown_table
from swag_models.paths import expand_path, read_lines
from swag_models.recipe.plotting import make_figure, save_png

PAGE, PLOT, RESULTS = "drawings.md", "drawings_study.png", "drawings.json"
BEGIN, END = "<!-- results: written by studies/drawings/report.py -->", "<!-- /results -->"
NOT_RUN = "The complete study has not been run yet."
INTRODUCTION = """{posts:,} drawings with keywords, {runs}, networks at 64 pixels; classes
have at least {min_images} images; all training runs have {length:g} times their full length. In
percent, as mean ± standard deviation over seeds. Written by
`python -m studies drawings` with {versions}."""
MEASURES = ("keyword, first", "keyword, first five", "rare keyword, first five", "neighbours")
STARTS = {  # title -> variant, kind of transfer
    "random, everything trained": (SCRATCH, "finetune"),
    "keywords, everything trained": (MAIN, "finetune"),
    "keywords, everything trained, head from hashtags": (MAIN, "finetune, head from hashtags"),
    "keywords, linear classifier": (MAIN, "linear"),
    "keywords, linear classifier, head from hashtags": (MAIN, "linear, head from hashtags"),
}
COLOURS = ("tab:grey", "tab:blue", "tab:cyan", "tab:green", "tab:olive")
# claim -> variants that are compared, the first against the second, and the measures
CLAIMS = (
    ("square-root beats natural sampling", MAIN, "natural", (MEASURES[2], "linear")),
    ("square-root beats uniform sampling", MAIN, "uniform", (MEASURES[2], "linear")),
    ("square-root beats metaclip sampling", MAIN, "metaclip", (MEASURES[2], "linear")),
    ("a softmax with 1/K beats a sigmoid", MAIN, "sigmoid", (MEASURES[1], "linear")),
    ("IDF weights beat 1/K", "idf", MAIN, (MEASURES[1], "linear")),
    ("hashtags beat captions", MAIN, "captions", ("neighbours", "linear")),
    ("hashtags and captions beat hashtags", "both", MAIN, ("neighbours", "linear")),
    ("chosen senses beat first senses", MAIN, "first sense", ("neighbours", "linear")),
)
Row = Mapping[str, Any]


def format_results(results: Mapping[str, Any]) -> str:
    """Return the Markdown of all tables.

    Args:
        results: content of results.json.
    """
    facts, rows = results["facts"], results["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    archs, shots = facts["archs"], facts["shots"]
    parts = [
        INTRODUCTION.format(**facts, runs=count_noun(facts["seeds"], "seed"), versions=versions),
        f"![accuracy by number of labels, and of each variant]({PLOT})",
        "### With and without pre-training",
        "Top-1 accuracy on the groups of Unicode, averaged over groups.",
        _tabulate_starts(rows, archs, shots),
        "### Variants",
        _tabulate_variants(rows, archs, max(shots)),
        "### Claims",
        CLAIMS_NOTE,
        _judge_claims(rows, archs, shots),
    ]
    return "\n\n".join(parts) + "\n"


def collect(rows: Sequence[Row], arch: str, variant: str, measure: str, shots: int) -> list[float]:
    """Return the value of every seed, ordered by seed.

    Args:
        rows: of results.json.
        arch: the network.
        variant: key of `VARIANTS`, or `SCRATCH`.
        measure: one of `MEASURES`, with 0 shots, or key of `TRANSFERS`.
        shots: number of labels.
    """
    key, names = (arch, variant, measure, shots), ("arch", "variant", "measure", "shots")
    matching = [row for row in rows if tuple(row[name] for name in names) == key]
    if not matching:
        raise ConfigError(f"the results have no {measure!r} of {variant!r} and {arch}")
    return [row["value"] for row in sorted(matching, key=lambda row: row["seed"])]


def write_report(results: Mapping[str, Any], folder: Path) -> None:
    """Write the page's part, the plot and the results into a folder.

    Args:
        results: content of results.json.
        folder: contains drawings.md with the marks of the part.

    Raises:
        ConfigError: there is no such page.
        OutputError: the folder cannot be written.
    """
    page = folder / PAGE
    with disk_errors(folder):
        text = replace_part(page.read_text("utf-8"), format_results(results), page)
        draw(results, folder / PLOT)
        write_json(folder / RESULTS, results, indent=1)
        write_text(page, text)


def replace_part(text: str, part: str, page: Path) -> str:
    """Return the text of a page with another part between the marks.

    Args:
        text: of the page.
        part: the new part.
        page: for messages.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"{page} lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{part}\n{END}{after}"


def _tabulate_starts(rows: Sequence[Row], archs: Sequence[str], shots: Sequence[int]) -> str:
    labels = [f"{count_noun(count, 'label')} each" for count in shots]
    table = [
        [arch, title] + [format_mean(collect(rows, arch, variant, kind, count)) for count in shots]
        for arch in archs
        for title, (variant, kind) in STARTS.items()
    ]
    return markdown_table(["network", "initial weights", *labels], table)


def _tabulate_variants(rows: Sequence[Row], archs: Sequence[str], most: int) -> str:
    table = [
        [arch, variant]
        + [format_mean(collect(rows, arch, variant, measure, 0)) for measure in MEASURES]
        + [format_mean(collect(rows, arch, variant, "linear", most))]
        for arch in archs
        for variant in VARIANTS
    ]
    return markdown_table(
        ["network", "variant", *MEASURES, f"linear, {count_noun(most, 'label')}"], table
    )


def _judge_claims(rows: Sequence[Row], archs: Sequence[str], shots: Sequence[int]) -> str:
    """A table with a row for each claim and way to measure it, and a column for each network."""
    pretraining, head = "pre-training beats random weights", "a head from hashtags beats a new one"
    finetune, linear = "finetune", "linear"
    claims: list[tuple[str, str, tuple[str, str, int], tuple[str, str, int]]] = []
    for count in shots:
        how = f"fine-tuned, {count_noun(count, 'label')}"
        claims.append((pretraining, how, (MAIN, finetune, count), (SCRATCH, finetune, count)))
    for kind, title in ((finetune, "fine-tuned"), (linear, "linear")):
        for count in shots:
            first, second = (MAIN, f"{kind}, head from hashtags", count), (MAIN, kind, count)
            claims.append((head, f"{title}, {count_noun(count, 'label')}", first, second))
    for text, variant, baseline, measures in CLAIMS:
        for measure in measures:
            count = max(shots) if measure in TRANSFERS else 0
            how = f"{measure}, {count_noun(count, 'label')}" if count else measure
            claims.append((text, how, (variant, measure, count), (baseline, measure, count)))
    table = [
        [text, how]
        + [judge(collect(rows, arch, *first), collect(rows, arch, *second)) for arch in archs]
        for text, how, first, second in claims
    ]
    return markdown_table(["claim", "measured", *archs], table)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the accuracy by number of labels, and the variants, each network in a row.

    Args:
        results: content of results.json.
        path: the PNG file to write.
    """
    archs, shots, rows = results["facts"]["archs"], results["facts"]["shots"], results["rows"]
    figure = make_figure(13, 3.6 * len(archs))
    grid = figure.subplots(len(archs), 3, squeeze=False, sharey=True, width_ratios=(1, 1.3, 1.3))
    for arch, (left, *others) in zip(archs, grid, strict=True):
        for colour, (title, (variant, kind)) in zip(COLOURS, STARTS.items(), strict=True):
            series = [collect(rows, arch, variant, kind, count) for count in shots]
            means, spread = map(statistics.mean, series), map(measure_deviation, series)
            left.errorbar(
                shots, [*means], [*spread], marker="o", capsize=3, label=title, color=colour
            )
        left.set(title=arch, xlabel="labels of each group", ylabel="%", xscale="log")
        left.set_xticks(shots, [str(count) for count in shots])
        left.minorticks_off()
        left.legend(fontsize=6)
        for axes, measure in zip(others, (MEASURES[1], "neighbours"), strict=True):
            series = [collect(rows, arch, variant, measure, 0) for variant in VARIANTS]
            axes.bar(
                range(len(VARIANTS)),
                [statistics.mean(values) for values in series],
                0.7,
                yerr=[measure_deviation(values) for values in series],
                capsize=3,
            )
            axes.set_xticks(range(len(VARIANTS)), list(VARIANTS), rotation=30, fontsize=7)
            axes.set(title=measure)
        for axes in (left, *others):  # equal axes, so that heights can be compared
            axes.set_ylim(0, 100)
            axes.grid(alpha=0.3, axis="y")
    save_png(figure, path, unique=True)


def run(options: argparse.Namespace) -> int:
    """Write the page, the plot and the results."""
    path = expand_path(options.results, "results")
    text = "\n".join(read_lines(path, "results.json of a study", str(path)))
    try:
        write_report(json.loads(text), expand_path(options.folder, "folder"))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is no results.json of this study") from None
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit codes are those of `swag-models`."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.drawings.report",
        description="Write docs/drawings.md's tables and plot from the results of the study.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("results", help="results.json of python -m studies drawings")
    parser.add_argument("folder", help="folder of drawings.md")
    return run_command(lambda: parser.parse_args(arguments), ends=arguments is None)


if __name__ == "__main__":
    sys.exit(main())
