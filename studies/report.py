"""The report of the miniature study: tables, plots, and which claims of the paper are confirmed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.summary import CLAIMS_NOTE, format_mean, judge, measure_deviation
from swag_models.atomic import disk_errors, write_json, write_text
from swag_models.formatting import markdown_table
from swag_models.recipe.plotting import make_figure, save_png
from swag_models.runtime import find_versions

Row = Mapping[str, Any]
INTRODUCTION = """{posts:,} generated posts with hashtags, {things} things, {test} labelled test
images of each; {seeds} seeds. Top-1 accuracy in percent, averaged over things, as mean ± standard
deviation over seeds; chance is {chance:.1f}. The tail is the rarer half of the things. Written by
`python -m studies run` with {versions}."""
LIMITS = """Three seeds are few, and networks, images and runs are a millionth of the paper's:
a claim that is not confirmed here may hold at that scale, and vice versa."""
HASHTAG_NOTE = """By hashtags: no true labels are used; the prediction is the most probable hashtag
among the names of the things."""
COLOURS = {"finetune": "tab:blue", "linear": "tab:green", "scratch": "tab:grey"}


def write_study_report(folder: Path, rows: Sequence[Row], facts: Mapping[str, int]) -> None:
    """Write study.md, study.png and results.json.

    Args:
        folder: output folder; created if missing.
        rows: one for each trained network: arch, seed, sampling (None: from scratch), objective,
            measure ("hashtags", "finetune" or "linear"), shots, and accuracy in percent, averaged
            over "all" things and over the "tail".
        facts: numbers of posts, things, test images of each thing, and seeds.

    Raises:
        OutputError: the folder cannot be written.
    """
    versions = find_versions("swag_models", "torch", "python")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _draw(rows, folder / "study.png")
        write_json(folder / "results.json", {**facts, "versions": versions, "rows": rows}, indent=1)
        write_text(folder / "study.md", _write_markdown(rows, facts, versions))


def _write_markdown(
    rows: Sequence[Row], facts: Mapping[str, int], versions: Mapping[str, str]
) -> str:
    version_list = ", ".join(f"{name} {version}" for name, version in versions.items())
    archs = sorted({row["arch"] for row in rows})
    shots = sorted({row["shots"] for row in rows if row["shots"]})
    parts = [
        "# The miniature study",
        INTRODUCTION.format(**facts, chance=100 / facts["things"], versions=version_list),
        "![accuracy by number of labels, and by sampling and objective](study.png)",
        "## With and without pre-training",
        _tabulate_pretraining(rows, archs, shots),
        "## Sampling and objective",
        HASHTAG_NOTE,
        _tabulate_samplings(rows, shots),
        "## Claims of the paper",
        CLAIMS_NOTE,
        _judge_claims(rows, archs, shots),
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _tabulate_pretraining(rows: Sequence[Row], archs: Sequence[str], shots: Sequence[int]) -> str:
    header = ["network", "initial weights", "trained", *(f"{count} labels each" for count in shots)]
    table = []
    for arch in archs:
        for measure, sampling in (("finetune", "sqrt"), ("linear", "sqrt"), ("finetune", None)):
            cells = [
                format_mean(_collect(rows, arch, sampling, "softmax", measure, count))
                for count in shots
            ]
            initial = "hashtags" if sampling else "random"
            trained = "everything" if measure == "finetune" else "linear classifier"
            table.append([arch, initial, trained, *cells])
    return markdown_table(header, table)


def _tabulate_samplings(rows: Sequence[Row], shots: Sequence[int]) -> str:
    most = shots[-1]
    header = ["network", "sampling", "objective", "by hashtags", "tail"]
    header += [f"linear, {most} labels", "tail"]
    table = []
    for arch, sampling, objective in _list_pretrained(rows):
        cells = [
            format_mean(_collect(rows, arch, sampling, objective, measure, count, part))
            for measure, count in (("hashtags", 0), ("linear", most))
            for part in ("all", "tail")
        ]
        table.append([arch, sampling, objective, *cells])
    return markdown_table(header, table)


def _judge_claims(rows: Sequence[Row], archs: Sequence[str], shots: Sequence[int]) -> str:
    """A table with a row for each claim and way to measure it, and a column for each network."""
    pre_training = "pre-training beats random weights"
    claims: list[tuple[Any, ...]] = [
        (pre_training, f"{count} labels each", "finetune", count, (None, "softmax"), "all")
        for count in shots
    ]
    measures = (
        ("by hashtags", "hashtags", 0),
        (f"linear, {shots[-1]} labels", "linear", shots[-1]),
    )
    for text, baseline, part in (
        ("square-root sampling beats natural sampling in the tail", ("natural", "softmax"), "tail"),
        ("square-root sampling beats uniform sampling in the tail", ("uniform", "softmax"), "tail"),
        ("a softmax with 1/K beats a sigmoid per hashtag", ("sqrt", "sigmoid"), "all"),
    ):
        claims += [(text, *measure, baseline, part) for measure in measures]
    table = [
        [text, how]
        + [
            judge(
                _collect(rows, arch, "sqrt", "softmax", measure, count, part),
                _collect(rows, arch, sampling, objective, measure, count, part),
            )
            for arch in archs
        ]
        for text, how, measure, count, (sampling, objective), part in claims
    ]
    return markdown_table(["claim", "measured", *archs], table)


def _list_pretrained(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(arch, sampling, objective) of every pre-trained network, in order."""
    keys = dict.fromkeys((row["arch"], row["sampling"], row["objective"]) for row in rows)
    return [key for key in keys if key[1]]


def _collect(
    rows: Sequence[Row],
    arch: str,
    sampling: str | None,
    objective: str,
    measure: str,
    shots: int,
    part: str = "all",
) -> list[float]:
    """The accuracy of every seed, ordered by seed."""
    key = (arch, sampling, objective, measure, shots)
    names = ("arch", "sampling", "objective", "measure", "shots")
    matching = [row for row in rows if tuple(row[name] for name in names) == key]
    return [row[part] for row in sorted(matching, key=lambda row: row["seed"])]


def _draw(rows: Sequence[Row], path: Path) -> None:
    figure = make_figure(13, 3.6)
    archs = sorted({row["arch"] for row in rows})
    shots = sorted({row["shots"] for row in rows if row["shots"]})
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.7))
    for axes, arch in zip((left, middle), archs):
        for label, start, measure in (
            ("hashtags, fine-tuned", "sqrt", "finetune"),
            ("hashtags, linear", "sqrt", "linear"),
            ("from scratch", None, "finetune"),
        ):
            series = [_collect(rows, arch, start, "softmax", measure, count) for count in shots]
            means = [statistics.mean(values) for values in series]
            spread = list(map(measure_deviation, series))
            axes.errorbar(
                shots,
                means,
                spread,
                marker="o",
                capsize=3,
                label=label,
                color=COLOURS[measure if start else "scratch"],
            )
        axes.set(
            title=arch,
            xlabel="labels of each thing",
            ylabel="top-1, %",
            xscale="log",
            ylim=(0, None),
        )
        axes.set_xticks(shots, [str(count) for count in shots])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    kinds = _list_pretrained(rows)
    for shift, part in ((-0.2, "all"), (0.2, "tail")):
        series = [_collect(rows, *key, "hashtags", 0, part) for key in kinds]
        right.bar(
            [position + shift for position in range(len(kinds))],
            [statistics.mean(values) for values in series],
            0.38,
            yerr=list(map(measure_deviation, series)),
            capsize=3,
            label={"all": "all things", "tail": "tail"}[part],
        )
    right.set_xticks(
        range(len(kinds)),
        [f"{arch.split('_')[0]}\n{sampling}\n{objective}" for arch, sampling, objective in kinds],
    )
    right.tick_params(axis="x", labelsize=7)
    right.set(
        title="by hashtags, without labels", ylabel="top-1, %", ylim=(0, 1.25 * right.get_ylim()[1])
    )
    right.grid(alpha=0.3, axis="y")
    right.legend()
    save_png(figure, path, unique=True)
