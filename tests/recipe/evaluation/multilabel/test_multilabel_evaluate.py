"""`recipe evaluate` and `recipe report` on images with several labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_support import make_pixels
from PIL import Image
from pyarrow.parquet import read_table
from runs import finish, read_errors, start
from shards_support import read_bytes
from sklearn.metrics import average_precision_score
from tiny import load_tiny

from swag_models import load_model, load_preprocess
from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.publish import save
from swag_models.recipe.evaluation.accuracy.evaluate import evaluate
from swag_models.recipe.evaluation.evaluation_files import restore_evaluation
from swag_models.recipe.evaluation.models import open_evaluated_model
from swag_models.recipe.evaluation.multilabel.evaluate import evaluate_multilabel
from swag_models.recipe.evaluation.multilabel.results import MEASURES, MultilabelEvaluation
from swag_models.recipe.training.distributed import init_distributed

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")
COUNT = 23


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("multilabel") / "tiny"
    return save(load_tiny(), folder, license="mit", classes=NAMES, multi_label=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 images with 0 to 3 labels, none of them "jay"; one is broken, and one is missing."""
    root, generator = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    labels = {}
    for number in range(COUNT):
        if number:
            Image.fromarray(make_pixels(number)).save(root / f"{number}.png")
        chosen = generator.choice(9, generator.integers(0, 4), replace=False)
        labels[f"{number}.png"] = [NAMES[index] for index in chosen]
    (root / "7.png").write_bytes(b"broken")
    path = root / "labels.json"
    path.write_text(json.dumps(labels))
    return path


def measure(model: Path, data: Path, **options: Any) -> MultilabelEvaluation:
    with init_distributed() as dist:
        opened = open_evaluated_model(str(model))
        return evaluate_multilabel(opened, data, dist=dist, progress=False, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def evaluation(model: Path, data: Path) -> MultilabelEvaluation:
    return measure(model, data)


@torch.inference_mode()
def compute_by_hand(model: Path, data: Path) -> tuple[Any, Any, list[str]]:
    """Sigmoids, targets and names of the readable images."""
    network, preprocess = load_model(model), load_preprocess(model)
    labels = json.loads(data.read_text())
    names = sorted(name for name in labels if name not in ("0.png", "7.png"))
    inputs = [preprocess(Image.open(data.with_name(name)).convert("RGB")) for name in names]
    targets = np.array([[name in labels[image] for name in NAMES] for image in names])
    return network(torch.stack(inputs)).double().sigmoid().numpy(), targets, names


def test_measures_are_those_of_the_model_alone(
    model: Path, data: Path, evaluation: MultilabelEvaluation
) -> None:
    probabilities, targets, names = compute_by_hand(model, data)
    present = targets.any(axis=0)
    expected = average_precision_score(targets[:, present], probabilities[:, present])
    assert evaluation.measures["mAP"].value == pytest.approx(100 * expected, abs=1e-6)
    assert [record.name for record in evaluation.records] == names
    for record, row, truth in zip(evaluation.records, probabilities, targets):
        assert record.labels == tuple(np.flatnonzero(truth))
        order = [index for index in np.argsort(-row) if row[index] >= 0.5]
        assert record.predicted == tuple(order)
        assert record.probabilities == pytest.approx(tuple(row[order]), abs=1e-5)
    hits = targets & (probabilities >= 0.5)
    assert evaluation.measures["OR"].value == pytest.approx(100 * hits.sum() / targets.sum())
    missing = [name for name, found in zip(NAMES, present) if not found]
    assert evaluation.without_positives == missing
    assert "jay" in missing
    assert sum(evaluation.skipped.values()) == 2
    assert evaluation.settings["probability"] == "sigmoid"
    values = json.loads(json.dumps(evaluation.to_dict()))
    assert restore_evaluation(values) == evaluation


def test_accuracy_of_a_multi_label_model_has_sigmoids_for_probabilities(
    model: Path, data: Path
) -> None:
    one = data.with_name("one.json")
    one.write_text('{"1.png": ["ant"], "2.png": ["bee"]}')
    probabilities, _, names = compute_by_hand(model, data)
    with init_distributed() as dist:
        opened = open_evaluated_model(str(model))
        records = evaluate(opened, one, dist=dist, progress=False).records
    for record in records:
        highest = probabilities[names.index(record.name)].max()
        assert record.probability == pytest.approx(highest, abs=1e-5)


def test_thresholds_and_models_with_a_softmax(model: Path, data: Path, tmp_path: Path) -> None:
    probabilities, targets, _ = compute_by_hand(model, data)
    limits = [0.1 * index for index in range(10)]
    found = measure(model, data, threshold=limits)
    hits = targets & (probabilities >= limits)
    assert found.measures["OR"].value == pytest.approx(100 * hits.sum() / targets.sum())
    assert found.settings["threshold"] == limits
    single = save(load_model(model), tmp_path / "single", license="mit", multi_label=False)
    evaluation = measure(single, data)
    logits = np.log(probabilities / (1 - probabilities))
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    present = targets.any(axis=0)
    expected = average_precision_score(targets[:, present], softmax[:, present])
    assert evaluation.measures["mAP"].value == pytest.approx(100 * expected, abs=1e-6)
    assert max(len(record.predicted) for record in evaluation.records) <= 1


def test_the_command_writes_and_repeats_nothing(
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The model is multi-label, so that no benchmark has to be named."""
    data = data.with_name("again.json")
    data.write_bytes(data.with_name("labels.json").read_bytes())
    command = ["recipe", "evaluate", str(model), "--data", str(data), "--quiet"]
    command += ["-o", str(tmp_path / "out")]
    assert main(command) == 1  # two images cannot be read
    out, err = capsys.readouterr()
    assert out.startswith("| model | images | classes | mAP | CP | CR | CF1 | OP | OR | OF1 |")
    assert "| 21, 2 broken |" in out
    assert ", without " in out
    assert err.count("swag-models: skipped: ") == 2
    assert caplog.messages == ["again.json: missing: 1 of 23 images, such as 0.png"]
    stored = json.loads((tmp_path / "out" / "tiny-multilabel.json").read_text())
    assert set(MEASURES) < stored.keys()
    assert [row["name"] for row in stored["classes"]] == list(NAMES)
    rows = read_table(tmp_path / "out" / "tiny-multilabel.parquet").to_pylist()
    assert len(rows) == 21
    assert set(rows[0]) >= {"name", "labels", "predicted", "predicted_names", "probabilities"}
    before = read_bytes(tmp_path / "out")
    assert main(command) == 1
    assert caplog.text.count("is already done") == 1
    assert main([*command, "--threshold", "0.7"]) == 2
    assert "has results of other settings" in capsys.readouterr().err
    assert read_bytes(tmp_path / "out") == before


def test_invalid_requests_are_one_line(
    model: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (data.parent / "none.json").write_text('{"1.png": [], "2.png": ["jay"]}')
    (data.parent / "other.json").write_text('{"1.png": ["yak"]}')
    (data.parent / "nothing.csv").write_text("file_name,ant\n1.png,0\n")
    command = ["recipe", "evaluate", str(model), "--quiet", "--data"]
    for arguments, message in (
        ([data, "--benchmark", "folder"], "has no class; give images with at least one class each"),
        ([data, "--benchmark", "folder", "--threshold", "1"], "needs --benchmark multilabel"),
        ([data, "--only-present"], "only_present is not possible with the benchmark multilabel"),
        ([data, "--threshold", "2"], "invalid threshold 2.0: allowed: a number from 0 to 1"),
        ([data.parent / "other.json"], "has classes that the model does not have: yak"),
        ([data.parent / "nothing.csv"], "no image of nothing.csv has a label"),
    ):
        assert main([*command, *map(str, arguments)]) == 2
        err = capsys.readouterr().err.splitlines()
        assert message in err[-1]
        assert len(err[-1]) < 500
    monkeypatch.setattr("swag_models.recipe.evaluation.multilabel.evaluate.MAX_SCORES", 1)
    with pytest.raises(ConfigError, match=r"too many scores, of .*; allowed: 1 in all"):
        measure(model, data)


def test_a_report_shows_them(model: Path, data: Path, tmp_path: Path) -> None:
    command = ["recipe", "report", str(model), "-o", str(tmp_path / "report"), "--quiet"]
    command += ["--benchmarks", f"multilabel={data}"]
    assert main(command) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    evaluation = measure(model, data)
    assert "## Several labels" in text
    assert "| model | mAP | CP | CR | CF1 | OP | OR | OF1 | images |" in text
    assert f"{evaluation.measures['mAP'].value:.2f}" in text
    assert "tiny: classes in the means: 8 of 10, without cow, jay; lowest average" in text
    assert "sigmoid, threshold 0.5" in text
    assert text.count("Skipped: ") == 2
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"{evaluation.measures['OF1'].value:.2f}" in page
    assert "## Calibration" not in text


@pytest.mark.slow
def test_the_number_of_ranks_does_not_change_results(
    model: Path, data: Path, tmp_path: Path
) -> None:
    outputs = {}
    for ranks in (1, 2, 3):
        output = tmp_path / str(ranks)
        arguments = ["recipe", "evaluate", str(model), "--data", str(data), "-o", str(output)]
        arguments += ["--batch-size", "4", "--quiet"]
        assert finish(start(arguments, ranks)) == [1] * ranks, read_errors(arguments)
        outputs[ranks] = read_bytes(output)
    assert outputs[1] == outputs[2] == outputs[3]
