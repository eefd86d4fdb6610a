"""What the miniature study found, for people: a table, plots, and for each claim of the paper whether it is seen here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swag_models.atomic import atomic_write
from swag_models.recipe.plotting import make_figure, save_png
from swag_models.recipe.training.run_dir import find_versions

Row = Mapping[str, Any]
INTRODUCTION = """{posts:,} generated posts with hashtags, {things} things, {test} test pictures of each with their true names;
{seeds} seeds. Top-1 accuracy in percent, the mean over things, as mean ± standard deviation over seeds; guessing gives
{chance:.1f}. The tail is the rarer half of the things. Made by `python -m studies run` with {versions}."""
LIMITS = """Three seeds are few, and networks, pictures and runs a millionth of the paper's: what is not seen here may hold
there, and the other way round."""
COLOURS = {"finetune": "tab:blue", "linear": "tab:green", "scratch": "tab:grey"}


def write_findings(folder: Path, rows: Sequence[Row], facts: Mapping[str, int]) -> None:
    """study.md, study.png and results.json.

    rows: arch, seed, sampling (None from scratch), objective, measure ("hashtags", "finetune" or "linear"), shots, and accuracy
    in percent over "all" things and over those of the "tail".
    """
    folder.mkdir(parents=True, exist_ok=True)
    _draw(rows, folder / "study.png")
    versions = find_versions()
    for name, text in {
        "results.json": json.dumps({**facts, "versions": versions, "rows": rows}, indent=1) + "\n",
        "study.md": "\n".join(_write_lines(rows, facts, versions)) + "\n",
    }.items():
        with atomic_write(folder / name, unique=True) as to:
            to.write_text(text, "utf-8")


def _write_lines(
    rows: Sequence[Row], facts: Mapping[str, int], versions: Mapping[str, str]
) -> list[str]:
    archs = sorted({row["arch"] for row in rows})
    shots = sorted({row["shots"] for row in rows if row["shots"]})
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# The miniature study",
        "",
        INTRODUCTION.format(**facts, chance=100 / facts["things"], versions=made),
        "",
        "![accuracy over labels, and of samplings and objectives](study.png)",
        "",
        "## With and without pre-training",
        "",
        f"| network | begins with | trained | {' | '.join(f'{count} labels each' for count in shots)} |",
        f"|---|---|---|{'---|' * len(shots)}",
    ]
    for arch in archs:
        for measure, start in (("finetune", "sqrt"), ("linear", "sqrt"), ("finetune", None)):
            cells = [
                _write(_collect(rows, arch, start, "softmax", measure, count)) for count in shots
            ]
            begins = "hashtags" if start else "random weights"
            trained = "everything" if measure == "finetune" else "linear classifier"
            lines.append(f"| {arch} | {begins} | {trained} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Sampling and objective",
        "",
        "By hashtags: no true label is used; the most probable of the things' own hashtags is the answer.",
        "",
        f"| network | sampling | objective | by hashtags | tail | linear, {shots[-1]} labels | tail |",
        "|---|---|---|---|---|---|---|",
    ]
    for arch, sampling, objective in dict.fromkeys(
        (row["arch"], row["sampling"], row["objective"]) for row in rows
    ):
        if sampling:
            cells = [
                _write(_collect(rows, arch, sampling, objective, measure, count, part))
                for measure, count in (("hashtags", 0), ("linear", shots[-1]))
                for part in ("all", "tail")
            ]
            lines.append(f"| {arch} | {sampling} | {objective} | {' | '.join(cells)} |")
    lines += ["", "## What of the paper is seen here", ""]
    for arch in archs:
        for count in shots:
            lines.append(
                _judge(
                    f"{arch}: with {count} labels of each thing, pre-training beats random weights",
                    _collect(rows, arch, "sqrt", "softmax", "finetune", count),
                    _collect(rows, arch, None, "softmax", "finetune", count),
                )
            )
    measures = (("hashtags", 0, "by hashtags"), ("linear", shots[-1], "with a linear classifier"))
    for arch in archs:
        for measure, count, name in measures:
            for other in ("natural", "uniform"):
                lines.append(
                    _judge(
                        f"{arch}: square-root sampling beats {other} sampling in the tail, {name}",
                        _collect(rows, arch, "sqrt", "softmax", measure, count, "tail"),
                        _collect(rows, arch, other, "softmax", measure, count, "tail"),
                    )
                )
            lines.append(
                _judge(
                    f"{arch}: 1/K softmax beats a sigmoid per hashtag, {name}",
                    _collect(rows, arch, "sqrt", "softmax", measure, count),
                    _collect(rows, arch, "sqrt", "sigmoid", measure, count),
                )
            )
    return [*lines, "", LIMITS]


def _collect(
    rows: Sequence[Row],
    arch: str,
    sampling: str | None,
    objective: str,
    measure: str,
    shots: int,
    part: str = "all",
) -> list[float]:
    """A figure of every seed, by seed."""
    wanted = (arch, sampling, objective, measure, shots)
    found = [
        row
        for row in rows
        if tuple(row[name] for name in ("arch", "sampling", "objective", "measure", "shots"))
        == wanted
    ]
    return [row[part] for row in sorted(found, key=lambda row: row["seed"])]


def _write(values: Sequence[float]) -> str:
    return (
        f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}"
    )


def _judge(claim: str, these: Sequence[float], others: Sequence[float]) -> str:
    """Whether the first are larger with every seed, or on the mean, or not."""
    gains = [this - other for this, other in zip(these, others, strict=True)]
    if min(gains) > 0:
        verdict = "**seen**, with every seed"
    elif statistics.mean(gains) > 0:
        verdict = "**not clear**: on the mean, not with every seed"
    else:
        verdict = "**not seen**"
    return f"- {claim}: {verdict} ({_write(these)} against {_write(others)})."


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
            spread = [statistics.stdev(values) if len(values) > 1 else 0 for values in series]
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
    kinds = [
        key
        for key in dict.fromkeys((row["arch"], row["sampling"], row["objective"]) for row in rows)
        if key[1]
    ]
    for shift, part in ((-0.2, "all"), (0.2, "tail")):
        series = [_collect(rows, *key, "hashtags", 0, part) for key in kinds]
        right.bar(
            [place + shift for place in range(len(kinds))],
            [statistics.mean(values) for values in series],
            0.38,
            yerr=[statistics.stdev(values) if len(values) > 1 else 0 for values in series],
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
