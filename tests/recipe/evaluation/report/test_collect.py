"""The report: its numbers are those that were measured, in both of its forms, and nothing is measured twice."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from report_support import DATE, MODELS, Tables, make_scenes, measure, read_measured
from sklearn.metrics import confusion_matrix

from swag_models.api import load_classes, load_model
from swag_models.cli import main
from swag_models.errors import ConfigError, OutputError
from swag_models.publish import save
from swag_models.recipe.evaluation.report.collect import MEASURED, collect_report, write_report
from swag_models.recipe.evaluation.report.confusions import (
    find_confusions,
    find_misses,
    pick_misses,
)
from swag_models.recipe.evaluation.report.plots import plot_neighbours, plot_shots
from swag_models.recipe.evaluation.report.tables import group_benchmarks, make_accuracy
from swag_models.recipe.evaluation.results import Evaluation, Probe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def page(scenes: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measure(tmp_path_factory.mktemp("report") / "report", *scenes)


@pytest.fixture(scope="module")
def evaluations(page: Path) -> list[Evaluation]:
    return read_measured(page.parent)[0]


def read_tables(page: Path) -> tuple[list[list[list[str]]], list[list[list[str]]]]:
    """Of the page and of its Markdown."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    text = markdown.render((page.parent / "report.md").read_text("utf-8"))
    return Tables(page.read_text("utf-8")).tables, Tables(text).tables


def test_both_forms_have_the_numbers_that_were_measured(
    page: Path, evaluations: list[Evaluation]
) -> None:
    shown, written = read_tables(page)
    accuracy, shots = shown
    assert written[:2] == shown
    assert [row[0] for row in accuracy] == list(MODELS)
    for row, evaluation in zip(accuracy, evaluations, strict=True):
        estimates = (evaluation.top1, evaluation.top5, evaluation.mean_per_class, evaluation.ece)
        assert row[1:] == [
            *(f"{each.value:.2f} {each.low:.1f} to {each.high:.1f}" for each in estimates),
            "96",
        ]
    probes = read_measured(page.parent)[1]
    means = Counter(f"{probe.mean:.2f}" for probe in probes)
    assert (
        Counter(cell.split()[0] for row in shots for cell in row[2:] if cell != "\N{EN DASH}")
        == means
    )
    assert {row[0] for row in shots} == set(MODELS)
    assert [[cell.split()[0] for cell in row] for row in written[2]] == [
        [evaluation.model, each.truth, each.answer, str(len(each.records)), f"{each.share:.0f}%"]
        for evaluation in evaluations
        for each in find_confusions(evaluation, 6)
    ]


def test_what_is_measured_is_not_measured_again(
    page: Path, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "report"
    shutil.copytree(page.parent, output)
    before = {path.name: path.stat().st_mtime_ns for path in (output / MEASURED).glob("*.json")}
    assert len(before) == 4
    texts = [
        (output / name).read_bytes()
        for name in ("index.html", "report.md", "curves.png", "calibration.png")
    ]
    gone = max((output / MEASURED).glob("*.json"), key=lambda path: path.stat().st_size)
    content = gone.read_bytes()
    gone.unlink()
    (output / MEASURED / f".{gone.name}.tmp").write_text("half")  # as a kill leaves it
    measure(output, *scenes)
    assert gone.read_bytes() == content
    after = {
        path.name: path.stat().st_mtime_ns
        for path in (output / MEASURED).iterdir()
        if path.name != ".lock"
    }
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {gone.name}
    assert [
        (output / name).read_bytes()
        for name in ("index.html", "report.md", "curves.png", "calibration.png")
    ] == texts


def test_other_pictures_are_measured_anew_and_broken_ones_are_counted(
    page: Path, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    output, test = tmp_path / "report", tmp_path / "held out"
    shutil.copytree(page.parent, output)
    shutil.copytree(scenes[1], test)
    broken = test / "car" / "zz.jpg"
    broken.write_bytes(b"no picture")
    measure(output, scenes[0], test, MODELS[1:])
    assert len(list((output / MEASURED).glob("*.json"))) == 6
    shown, written = read_tables(output / "index.html")
    assert shown[0][0][-1] == written[0][0][-1] == "96 1 skipped"
    assert "zz.jpg" in (output / "report.md").read_text()


def test_a_picture_replaced_by_one_of_the_same_size_is_measured_anew(tmp_path: Path) -> None:
    picture = tmp_path / "data" / load_classes(MODELS[1])[0] / "0.bmp"
    picture.parent.mkdir(parents=True)
    tops = []
    for shade in (0, 200):
        Image.new("RGB", (16, 16), (shade, 255 - shade, shade)).save(picture)
        os.utime(picture, (shade, shade))
        collect_report(
            MODELS[1:],
            [("folder", str(tmp_path / "data"))],
            tmp_path / "out",
            date=DATE,
            progress=False,
        )
        tops.append({each.records[0].probability for each in read_measured(tmp_path / "out")[0]})
    assert (len(tops[0]), len(tops[1])) == (1, 2)


def test_the_best_of_a_column_is_bold(page: Path, evaluations: list[Evaluation]) -> None:
    best = max(evaluations, key=lambda each: each.top1.value).top1.value
    calm = min(evaluations, key=lambda each: each.ece.value).ece.value
    for text in (
        page.read_text("utf-8").replace("<strong>", "**").replace("</strong>", "**"),
        (page.parent / "report.md").read_text(),
    ):
        assert f"**{best:.2f}**" in text
        assert f"**{calm:.2f}**" in text
        assert all(
            f"**{each.ece.value:.2f}**" not in text
            for each in evaluations
            if each.ece.value != calm
        )


@pytest.mark.parametrize(
    ("gap", "warning"), [(0.05, ""), (-0.05, ""), (-0.5, "measured +0.50"), (2.0, "measured -2.00")]
)
def test_a_difference_from_what_was_published_is_warned_of(
    evaluations: list[Evaluation], gap: float, warning: str
) -> None:
    stated = evaluations[0].top1.value + gap
    table = make_accuracy([replace(evaluations[0], published=stated), evaluations[1]])
    cells = [cells[table.heads.index("published")] for _, cells in table.rows]
    assert [(cell.text, cell.warning) for cell in cells] == [
        (f"{stated:.2f}", warning),
        ("\N{EN DASH}", ""),
    ]


def test_suites_stand_side_by_side(evaluations: list[Evaluation], tmp_path: Path) -> None:
    """The same benchmark on other data of the same name, and on none for one model."""
    first, second = evaluations
    second = replace(second, published=second.top1.value + 1)
    other = replace(first, facts={**first.facts, "sha256": "0" * 64})
    sketch = replace(second, benchmark="sketch", facts={**first.facts, "name": "release"})
    assert {
        benchmark: [each.model for each in group]
        for benchmark, group in group_benchmarks([first, other, second, sketch]).items()
    } == {
        ("folder", "held out"): list(MODELS),
        ("folder", "held out (2)"): [MODELS[0]],
        ("sketch", "release"): [MODELS[1]],
    }
    shown, written = read_tables(write_report(tmp_path, [first, other, second, sketch], date=DATE))
    one, two = shown[0]
    assert two[2].endswith("⚠ measured -1.00")
    assert one[1:12] == written[0][0][1:] + written[1][0][1:]
    assert two[7:12] == ["\N{EN DASH}"] * 5
    assert two[1:7] + two[12:] == written[0][1][1:] + written[2][0][1:]


def test_confusions_are_those_of_a_matrix(evaluations: list[Evaluation]) -> None:
    for evaluation in evaluations:
        truths = [record.labels[0] for record in evaluation.records]
        answers = [record.top[0] for record in evaluation.records]
        matrix = confusion_matrix(truths, answers, labels=range(len(evaluation.classes)))
        totals = matrix.sum(1)
        np.fill_diagonal(matrix, 0)
        found = find_confusions(evaluation, 10_000)
        assert sum(len(each.records) for each in found) == matrix.sum()
        assert [len(each.records) for each in found] == sorted(matrix[matrix > 0], reverse=True)
        for each in found:
            truth, answer = (evaluation.classes.index(name) for name in (each.truth, each.answer))
            assert len(each.records) == matrix[truth, answer]
            assert each.share == pytest.approx(100 * matrix[truth, answer] / totals[truth])
            sure = [record.probability for record in each.records]
            assert sure == sorted(sure, reverse=True)


def test_what_all_models_get_wrong_is_wrong_for_each(evaluations: list[Evaluation]) -> None:
    wrong = [
        {
            record.name
            for record in evaluation.records
            if not set(record.top[:1]) & set(record.labels)
        }
        for evaluation in evaluations
    ]
    misses = find_misses(evaluations)
    assert {miss.record.name for miss in misses} == wrong[0] & wrong[1]
    assert 0 < len(misses) < min(map(len, wrong))
    sure = [sum(probability for _, _, probability in miss.answers) for miss in misses]
    assert sure == sorted(sure, reverse=True)
    picked = pick_misses(misses, 10_000)
    assert sum(count for _, count in picked) == len(misses)
    assert len({miss.truth for miss, _ in picked}) == len(picked)


def test_a_label_among_several_is_right(evaluations: list[Evaluation]) -> None:
    records = tuple(
        record._replace(labels=(*record.labels, record.top[0])) for record in evaluations[0].records
    )
    assert find_confusions(replace(evaluations[0], records=records), 10) == []


def test_curves_have_shares_and_all_at_their_place() -> None:
    probes = [
        *(
            Probe("a", "logistic", shots, (10.0 * place, 12.0 * place), {"C": 1})
            for place, shots in enumerate((1, 5, 0.1, None))
        ),
        *(Probe("a", "knn", None, (30.0 + k,), {"k": k}) for k in (10, 20, 100)),
        Probe("a", "knn", 1, (7.0,), {"k": 1}),
    ]
    curves = plot_shots(probes, 200.0)
    assert curves
    assert (
        curves.words
        == "logistic regression, a: 1 0.00, 5 11.00, 10% 22.00, all 33.00. nearest neighbours, a: 1 7.00, all 50.00"
    )
    figure = pytest.importorskip("matplotlib.figure").Figure()
    curves.draw(figure)
    lines = [line.get_xdata() for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 4]
    assert list(lines[0]) == [1, 5, 20, 200]
    few = plot_shots(probes, 50.0)
    assert few
    few.draw(figure)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == [
        "1",
        "5\n10%",
        "\nall",
    ]
    neighbours = plot_neighbours(probes)
    assert neighbours
    assert neighbours.words == "nearest neighbours, a: 10 40.00, 20 50.00, 100 130.00"
    assert plot_shots(probes[2:3], None) is None


def test_markdown_takes_names_as_they_are(evaluations: list[Evaluation], tmp_path: Path) -> None:
    name = r"a_b | <b>*x*</b> & `c` [d](e) \ _f_ $g$"
    named = replace(
        evaluations[0],
        model=name,
        classes=tuple(f"{each} | <i>&" for each in evaluations[0].classes),
    )
    shown, written = read_tables(write_report(tmp_path, [named], date=DATE))
    assert shown[0][0][0] == written[0][0][0] == name
    assert all(row[1].endswith(" | <i>&") for row in written[1])


def test_models_of_the_same_name_are_told_apart(scenes: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in ("one", "two"):
        model = load_model(MODELS[1])
        if folder == "two":
            model.reset_classifier(65)
        save(model, tmp_path / folder, name="mine", license="mit")
    models = [str(tmp_path / folder) for folder in ("one", "two")]
    page = collect_report(
        models, [("folder", str(scenes[1]))], tmp_path / "report", date=DATE, progress=False
    )
    rows = Tables(page.read_text("utf-8")).tables[0]
    assert [row[0] for row in rows] == ["mine", models[1]]
    assert rows[0][1] != rows[1][1]


def test_the_command_prints_the_page(
    scenes: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report"
    for _ in range(2):
        assert (
            main(
                [
                    "recipe",
                    "report",
                    MODELS[1],
                    "--benchmarks",
                    f"folder={scenes[1]}",
                    "-o",
                    str(output),
                    "--quiet",
                ]
            )
            == 0
        )
        said = capsys.readouterr()
        assert (said.out, said.err) == (f"{output / 'index.html'}\n", "")
    assert sorted(path.name for path in output.iterdir()) == [
        "calibration.png",
        "index.html",
        "measured",
        "report.md",
    ]
    with Image.open(output / "calibration.png") as plot:
        assert len(plot.convert("RGB").getcolors(1 << 20) or []) > 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to report; give a model, and --benchmarks NAME=FOLDER"),
        (
            ["--benchmarks", "pictures"],
            "--benchmarks has 'pictures'; allowed: NAME=FOLDER, for example folder=pictures",
        ),
        (["--train", "a"], "--train alone tells nothing; give --train and --test, or neither"),
        (
            ["--train", "a", "--test", "b", "--shots", "1,0%"],
            "invalid --shots '0%': allowed images of each class such as 5",
        ),
        (["--train", "a", "--test", "b", "--shots", "few"], "invalid --shots 'few': allowed"),
        (["--benchmarks", "imagenet-q=a"], "imagenet-q"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["recipe", "report", MODELS[1], *arguments, "-o", str(tmp_path / "report"), "--quiet"])
        == 2
    )
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_report_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / MEASURED).mkdir()
    with (
        FileLock(tmp_path / MEASURED / ".lock"),
        pytest.raises(ConfigError, match="another process measures for"),
    ):
        collect_report(MODELS, [("folder", "pictures")], tmp_path, date=DATE, progress=False)


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="made by one process, not 2; start it without torchrun"):
        collect_report(MODELS, [("folder", "pictures")], tmp_path, date=DATE, progress=False)


def test_a_folder_that_cannot_be_made_is_named(
    evaluations: list[Evaluation], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/report cannot be written: Not a directory"):
        write_report(tmp_path / "file" / "report", evaluations, date=DATE)
