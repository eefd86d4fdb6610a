"""The report shows the measured numbers, as HTML and as Markdown, and measures nothing twice."""

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
from runs import read_errors, run
from sklearn.metrics import confusion_matrix

from swag_models.api import load_classes, load_model
from swag_models.cli import main
from swag_models.errors import ConfigError, OutputError
from swag_models.publish import save
from swag_models.recipe.evaluation.report.collect import (
    MEASURED_FOLDER,
    collect_report,
    write_report,
)
from swag_models.recipe.evaluation.report.confusions import (
    find_confusions,
    find_misses,
    pick_misses,
)
from swag_models.recipe.evaluation.report.plots import plot_few_shot, plot_neighbours
from swag_models.recipe.evaluation.report.tables import (
    build_accuracy_table,
    group_benchmarks,
)
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
    """The tables of the page, and those of its Markdown."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    text = markdown.render((page.parent / "report.md").read_text("utf-8"))
    return Tables(page.read_text("utf-8")).tables, Tables(text).tables


def test_page_and_markdown_show_the_measured_numbers(
    page: Path, evaluations: list[Evaluation]
) -> None:
    shown, written = read_tables(page)
    accuracy, shots, neighbours = shown
    assert written[:3] == shown
    assert [row[0] for row in accuracy] == list(MODELS)
    for row, evaluation in zip(accuracy, evaluations, strict=True):
        estimates = (evaluation.top1, evaluation.top5, evaluation.mean_per_class, evaluation.ece)
        assert row[1:] == [
            *(
                f"{estimate.value:.2f} {estimate.low:.1f} to {estimate.high:.1f}"
                for estimate in estimates
            ),
            "96",
        ]
    probes = read_measured(page.parent)[1]
    cells = [cell for row in shots for cell in row[2:]] + [c for row in neighbours for c in row[1:]]
    assert Counter(cell.split()[0] for cell in cells) == Counter(
        f"{probe.mean:.2f}" for probe in probes
    )
    assert [row[0] for row in shots] == [row[0] for row in neighbours] == list(MODELS)
    assert [[cell.split()[0] for cell in row] for row in written[3]] == [
        [
            evaluation.model,
            confusion.truth,
            confusion.predicted,
            str(len(confusion.records)),
            f"{confusion.share:.0f}%",
        ]
        for evaluation in evaluations
        for confusion in find_confusions(evaluation, 6)
    ]


def test_measured_results_are_not_measured_again(
    page: Path, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "report"
    shutil.copytree(page.parent, output)
    before = {
        path.name: path.stat().st_mtime_ns for path in (output / MEASURED_FOLDER).glob("*.json")
    }
    assert len(before) == 4
    texts = [
        (output / name).read_bytes()
        for name in ("index.html", "report.md", "curves.png", "calibration.png")
    ]
    gone = max((output / MEASURED_FOLDER).glob("*.json"), key=lambda path: path.stat().st_size)
    content = gone.read_bytes()
    gone.unlink()
    (output / MEASURED_FOLDER / f".{gone.name}.tmp").write_text("half")  # left by a killed run
    measure(output, *scenes)
    assert gone.read_bytes() == content
    after = {
        path.name: path.stat().st_mtime_ns
        for path in (output / MEASURED_FOLDER).iterdir()
        if path.name != ".lock"
    }
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {gone.name}
    assert [
        (output / name).read_bytes()
        for name in ("index.html", "report.md", "curves.png", "calibration.png")
    ] == texts


def test_changed_data_are_measured_and_broken_images_are_counted(
    page: Path, scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    output, test = tmp_path / "report", tmp_path / "held out"
    shutil.copytree(page.parent, output)
    shutil.copytree(scenes[1], test)
    broken = test / "car" / "zz.jpg"
    broken.write_bytes(b"not an image")
    measure(output, scenes[0], test, MODELS[1:])
    assert len(list((output / MEASURED_FOLDER).glob("*.json"))) == 6
    shown, written = read_tables(output / "index.html")
    assert shown[0][0][-1] == written[0][0][-1] == "96 1 skipped"
    assert "zz.jpg" in (output / "report.md").read_text()


def test_image_replaced_by_one_of_the_same_size_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "data" / load_classes(MODELS[1])[0] / "0.bmp"
    path.parent.mkdir(parents=True)
    tops = []
    for shade in (0, 200):
        Image.new("RGB", (16, 16), (shade, 255 - shade, shade)).save(path)
        os.utime(path, (shade, shade))
        collect_report(
            MODELS[1:],
            [("folder", str(tmp_path / "data"))],
            tmp_path / "out",
            date=DATE,
            progress=False,
        )
        tops.append(
            {evaluation.records[0].probability for evaluation in read_measured(tmp_path / "out")[0]}
        )
    assert (len(tops[0]), len(tops[1])) == (1, 2)


def test_best_value_of_a_column_is_bold(page: Path, evaluations: list[Evaluation]) -> None:
    best = max(evaluations, key=lambda evaluation: evaluation.top1.value).top1.value
    lowest = min(evaluations, key=lambda evaluation: evaluation.ece.value).ece.value
    for text in (
        page.read_text("utf-8").replace("<strong>", "**").replace("</strong>", "**"),
        (page.parent / "report.md").read_text(),
    ):
        assert f"**{best:.2f}**" in text
        assert f"**{lowest:.2f}**" in text
        assert all(
            f"**{evaluation.ece.value:.2f}**" not in text
            for evaluation in evaluations
            if evaluation.ece.value != lowest
        )


@pytest.mark.parametrize(
    ("gap", "warning"), [(0.05, ""), (-0.05, ""), (-0.5, "measured +0.50"), (2.0, "measured -2.00")]
)
def test_difference_from_the_published_value_is_marked(
    evaluations: list[Evaluation], gap: float, warning: str
) -> None:
    published = evaluations[0].top1.value + gap
    table = build_accuracy_table([replace(evaluations[0], published=published), evaluations[1]])
    cells = [cells[table.header.index("published")] for _, cells in table.rows]
    assert [(cell.text, cell.warning) for cell in cells] == [
        (f"{published:.2f}", warning),
        ("\N{EN DASH}", ""),
    ]


def test_benchmarks_are_shown_side_by_side(evaluations: list[Evaluation], tmp_path: Path) -> None:
    """One benchmark on two data sets of the same name, and one that a model was not measured on."""
    first, second = evaluations
    second = replace(second, published=second.top1.value + 1)
    other = replace(first, facts={**first.facts, "sha256": "0" * 64})
    sketch = replace(second, benchmark="sketch", facts={**first.facts, "name": "release"})
    assert {
        benchmark: [evaluation.model for evaluation in group]
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


def test_confusions_equal_those_of_a_confusion_matrix(evaluations: list[Evaluation]) -> None:
    for evaluation in evaluations:
        truths = [record.labels[0] for record in evaluation.records]
        predicted = [record.top[0] for record in evaluation.records]
        matrix = confusion_matrix(truths, predicted, labels=range(len(evaluation.classes)))
        totals = matrix.sum(1)
        np.fill_diagonal(matrix, 0)
        confusions = find_confusions(evaluation, 10_000)
        assert sum(len(confusion.records) for confusion in confusions) == matrix.sum()
        assert [len(confusion.records) for confusion in confusions] == sorted(
            matrix[matrix > 0], reverse=True
        )
        for confusion in confusions:
            truth, predicted_class = (
                evaluation.classes.index(name) for name in (confusion.truth, confusion.predicted)
            )
            assert len(confusion.records) == matrix[truth, predicted_class]
            assert confusion.share == pytest.approx(
                100 * matrix[truth, predicted_class] / totals[truth]
            )
            probabilities = [record.probability for record in confusion.records]
            assert probabilities == sorted(probabilities, reverse=True)


def test_misses_are_wrong_for_every_model(evaluations: list[Evaluation]) -> None:
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
    confidences = [sum(row[2] for row in miss.predictions) for miss in misses]
    assert confidences == sorted(confidences, reverse=True)
    picked = pick_misses(misses, 10_000)
    assert sum(count for _, count in picked) == len(misses)
    assert len({miss.truth for miss, _ in picked}) == len(picked)


def test_any_of_several_labels_is_correct(evaluations: list[Evaluation]) -> None:
    records = tuple(
        record._replace(labels=(*record.labels, record.top[0])) for record in evaluations[0].records
    )
    assert find_confusions(replace(evaluations[0], records=records), 10) == []


def test_curves_place_shares_and_all_images_on_the_axis() -> None:
    probes = [
        *(
            Probe("a", "logistic", shots, (10.0 * place, 12.0 * place), {"C": 1})
            for place, shots in enumerate((1, 5, 0.1, None))
        ),
        *(Probe("a", "knn", None, (30.0 + k,), {"k": k}) for k in (10, 20, 100)),
        Probe("a", "knn", 1, (7.0,), {"k": 1}),
    ]
    curves = plot_few_shot(probes, 200.0)
    assert curves
    assert curves.description == (
        "logistic regression, a: 1 0.00, 5 11.00, 10% 22.00, all 33.00. "
        "nearest neighbours, a: 1 7.00, all 50.00"
    )
    figure = pytest.importorskip("matplotlib.figure").Figure()
    curves.draw(figure)
    lines = [line.get_xdata() for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 4]
    assert list(lines[0]) == [1, 5, 20, 200]
    few = plot_few_shot(probes, 50.0)
    assert few
    few.draw(figure)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == [
        "1",
        "5\n10%",
        "\nall",
    ]
    neighbours = plot_neighbours(probes)
    assert neighbours
    assert neighbours.description == "nearest neighbours, a: 10 40.00, 20 50.00, 100 130.00"
    assert plot_few_shot(probes[2:3], None) is None


def test_markdown_shows_names_literally(evaluations: list[Evaluation], tmp_path: Path) -> None:
    name = r"a_b | <b>*x*</b> & `c` [d](e) \ _f_ $g$"
    named = replace(
        evaluations[0],
        model=name,
        classes=tuple(f"{name} | <i>&" for name in evaluations[0].classes),
    )
    shown, written = read_tables(write_report(tmp_path, [named], date=DATE))
    assert shown[0][0][0] == written[0][0][0] == name
    assert all(row[1].endswith(" | <i>&") for row in written[1])


def test_models_of_the_same_name_are_named_by_their_folder(
    scenes: tuple[Path, Path], tmp_path: Path
) -> None:
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


def test_command_prints_the_path_of_the_page(
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
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == (f"{output / 'index.html'}\n", "")
    assert sorted(path.name for path in output.iterdir()) == [
        "calibration.png",
        "index.html",
        "measured",
        "report.md",
    ]
    with Image.open(output / "calibration.png") as plot:
        assert len(plot.convert("RGB").getcolors(1 << 20) or []) > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to report; pass a model, and --benchmarks"),
        (
            ["--benchmarks", "images"],
            "invalid --benchmarks 'images': allowed: NAME=FOLDER, for example folder=images",
        ),
        (["--train", "a"], "--train without --test: pass both or neither"),
        (
            ["--train", "a", "--test", "b", "--shots", "1,0%"],
            "invalid --shots '0%': allowed: a number of images per class such as 5",
        ),
        (["--train", "a", "--test", "b", "--shots", "few"], "invalid --shots 'few': allowed"),
        (["--benchmarks", "imagenet-q=a"], "imagenet-q"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["recipe", "report", MODELS[1], *arguments, "-o", str(tmp_path / "report"), "--quiet"])
        == 2
    )
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_folder_in_use_by_another_process_is_rejected(tmp_path: Path) -> None:
    (tmp_path / MEASURED_FOLDER).mkdir()
    with (
        FileLock(tmp_path / MEASURED_FOLDER / ".lock"),
        pytest.raises(ConfigError, match="another process is writing"),
    ):
        collect_report(MODELS, [("folder", "images")], tmp_path, date=DATE, progress=False)


@pytest.mark.slow
def test_number_of_ranks_does_not_change_the_report(
    scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    train, test = map(str, scenes)
    outputs = dict[int, list[bytes]]()
    for ranks in (1, 2):
        output = tmp_path / str(ranks)
        arguments = ["recipe", "report", MODELS[0], "--benchmarks", f"folder={test}", "--quiet"]
        arguments += ["--train", train, "--test", test, "--shots", "1", "-o", str(output)]
        run([*arguments, "--batch-size", "7"], ranks)
        names = ("report.md", "index.html", "curves.png", "calibration.png")
        outputs[ranks] = [(output / name).read_bytes() for name in names]
        assert read_errors(arguments).count("index.html") == 1  # one rank prints
    assert outputs[1] == outputs[2]


def test_folder_that_cannot_be_created_is_named(
    evaluations: list[Evaluation], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/report cannot be written: Not a directory"):
        write_report(tmp_path / "file" / "report", evaluations, date=DATE)
