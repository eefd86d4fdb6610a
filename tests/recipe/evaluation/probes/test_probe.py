"""Probes give the same results on every machine, and better results with more labels."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import finish, make_digits, read_errors, run, start
from shards_support import make_shards, read_bytes

from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.probes.features import extract_features
from swag_models.recipe.evaluation.probes.few_shot import check_shots, choose_shots, hold_back
from swag_models.recipe.evaluation.probes.logistic_regression import fit_logistic, scale_features
from swag_models.recipe.evaluation.probes.probe import FEW_SHOT_C, probe
from swag_models.recipe.evaluation.probes.probe_files import write_probes
from swag_models.recipe.evaluation.results import Probe
from swag_models.recipe.training.distributed import DistContext
from swag_models.recipe.training.losses import count_hits

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = "vit_nano_hashtags"


@pytest.fixture(scope="module")
def model() -> EvaluatedModel:
    return open_evaluated_model(MODEL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits for training and testing, and a cache for their features."""
    root = tmp_path_factory.mktemp("probe")
    make_digits(root / "train", 300)
    make_digits(root / "test", 200, first=300)
    return root


def run_probe(folder: Path, model: EvaluatedModel, **options: Any) -> list[Probe]:
    return probe(model, folder / "train", folder / "test", cache=folder / "cache", **options)


def test_shots_are_nested_and_independent_of_order() -> None:
    labels = np.arange(600) % 7
    names = [f"{number}.png" for number in range(600)]
    subsets = {shots: choose_shots(names, labels, shots, 0) for shots in (0.001, 1, 5, 0.1, 20)}
    for shots, count in ((0.001, 1), (1, 1), (5, 5)):
        assert np.bincount(labels[subsets[shots]]).tolist() == [count] * 7
    assert np.bincount(labels[subsets[0.1]]).tolist() == [9] * 5 + [8] * 2  # of 86 and 85 images
    for fewer, more in ((1, 5), (5, 0.1), (0.1, 20)):
        assert set(subsets[fewer]) < set(subsets[more])
    order = np.random.default_rng(0).permutation(600)
    shuffled = choose_shots([names[index] for index in order], labels[order], 5, 0)
    assert set(order[shuffled]) == set(subsets[5])
    assert set(choose_shots(names, labels, 5, 1)) != set(subsets[5])
    assert subsets[1].tolist() == [54, 95, 140, 149, 262, 414, 503]  # the same on every machine


def test_a_fifth_of_each_class_is_held_back() -> None:
    labels = np.repeat([0, 1, 3], [100, 12, 1])
    mask = hold_back([str(number) for number in range(113)], labels)
    assert np.bincount(labels[mask], minlength=4).tolist() == [20, 2, 0, 0]


def test_invalid_shots_are_rejected() -> None:
    labels = np.array([0, 0, 1, 1])
    for shots in (0, -1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="allowed whole numbers of at least 1, and shares"):
            check_shots([1, shots], labels, None)
    with pytest.raises(ConfigError, match="no class has 3 training images, which the choice of C"):
        check_shots([1, None], labels, None)
    check_shots([1, 0.5], labels, None)


def test_classes_with_fewer_images_than_shots_are_known_before_features(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for digit in range(10):
        images = sorted((folder / "train" / f"digit {digit}").iterdir())
        (tmp_path / f"digit {digit}").mkdir()
        for image in images[: 2 if digit in (3, 4) else 5]:
            (tmp_path / f"digit {digit}" / image.name).symlink_to(image)
    model = open_evaluated_model(MODEL)
    options = {"test": folder / "test", "methods": ["logistic"], "splits": 2}
    (result,) = probe(model, tmp_path, shots=[5], cache=folder / "cache", **options)  # type: ignore[arg-type]
    message = "5 shots: 2 classes with fewer training images, of which all are used: "
    assert message + "digit 3 (2), digit 4 (2)" in caplog.text
    assert result.shots == 5

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("features are computed")

    monkeypatch.setattr("swag_models.recipe.evaluation.probes.probe.extract_features", fail)
    for shots in ([1.5], [0.0]):
        with pytest.raises(ConfigError, match="invalid shots"):
            probe(model, tmp_path, shots=shots, **options)  # type: ignore[arg-type]


def test_more_labels_give_higher_accuracy(folder: Path, model: EvaluatedModel) -> None:
    probes = run_probe(folder, model, shots=(1, 10, 0.1, None), splits=3)
    by_key = {(result.method, result.shots, result.settings.get("k")): result for result in probes}
    assert list(by_key) == [
        *(("knn", None, k) for k in (10, 20, 100, 200)),
        *(("logistic", shots, None) for shots in (1, 10, 0.1, None)),
    ]
    one, ten, share, full = (by_key["logistic", shots, None] for shots in (1, 10, 0.1, None))
    assert [len(result.values) for result in (one, ten, share, full)] == [3, 3, 3, 1]
    assert 15 < one.mean + 5 < ten.mean < full.mean
    assert one.mean < share.mean < ten.mean
    assert by_key["knn", None, 10].mean > 20  # chance is 10
    validation = full.settings["validation"]
    assert validation[full.settings["C"]] == max(validation.values())
    assert all(result.settings["converged"] for result in (one, ten, share))
    fewer_splits = run_probe(folder, model, shots=(1,), splits=2)[-1]
    assert fewer_splits.values == one.values[:2]


def test_few_shot_c_suits_digits_too(folder: Path, model: EvaluatedModel) -> None:
    train, test = (
        extract_features(model, folder / part, folder / "cache") for part in ("train", "test")
    )
    means = {}
    for C in (1e-3, FEW_SHOT_C, 10.0):  # noqa: N806
        scores = []
        for split in range(3):
            indices = choose_shots(train.names, train.labels, 5, split)
            scaled = scale_features(train.vectors, indices)
            fitted = fit_logistic(scaled, train.labels[indices], 10, C)
            predicted = fitted.predict(scaled.scale_like(test.vectors))
            scores.append(100 * (predicted == test.labels).mean())
        means[C] = statistics.mean(scores)
    assert means[FEW_SHOT_C] > max(means.values()) - 4
    assert means[FEW_SHOT_C] > means[1e-3] + 5


@pytest.mark.slow
def test_sgd_trains_a_head_as_the_preset_says(
    folder: Path, model: EvaluatedModel, tmp_path: Path
) -> None:
    data = ["--train", str(folder / "train"), "--test", str(folder / "test")]
    settings = ["steps=80", "image_size=32", "augment.interpolation=bilinear"]
    overrides = [word for setting in settings for word in ("--set", setting)]
    output = tmp_path / "sgd"
    options = ["--methods", "sgd", *overrides, "--quiet", "-o", str(output)]
    run(["recipe", "probe", MODEL, *data, *options])
    [stored] = json.loads((output / "probes.json").read_text())
    assert stored["settings"]["preset"] == "vit_nano_linear"
    assert stored["settings"]["run"]["steps"] == 80
    trained = open_evaluated_model(str(output / "sgd" / "model"))
    loader = open_eval_loader(
        folder / "test", trained.fit, batch_size=50, rank=0, world_size=1, workers=0
    )
    hits = sum(count_hits(trained.classify(batch.images), batch.classes) for batch in loader)
    assert stored["mean"] == 100 * hits / 200 > 15
    with pytest.raises(ConfigError, match="give output"):
        run_probe(folder, model, methods=["sgd"])


def test_test_classes_missing_in_training_are_reported(
    folder: Path, model: EvaluatedModel, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    for number in range(3):
        (tmp_path / "train" / f"digit {number}").symlink_to(folder / "train" / f"digit {number}")
    with pytest.raises(
        ConfigError,
        match=r"classes that the training set does not have: digit 3, .*; it has 3 classes",
    ):
        probe(model, tmp_path / "train", folder / "test", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_command_prints_and_writes_a_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: EvaluatedModel
) -> None:
    data = ["--train", str(folder / "train"), "--test", str(folder / "test")]
    command = ["recipe", "probe", MODEL, *data, "--quiet"]
    options = ["--shots", "1,5%", "--splits", "2", "--methods", "logistic"]
    options += ["--cache", str(folder / "cache")]
    assert main([*command, *options, "-o", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "probes.md").read_text() == table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[:3] for row in rows] == [[MODEL, "logistic", "1"], [MODEL, "logistic", "5%"]]
    assert main([*command, *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "probes.json").read_text())
    cells = [f"{values['mean']:.2f} ± {values['spread']:.2f}" for values in printed]
    assert cells == [row[3] for row in rows]
    probes = run_probe(folder, model, methods=["logistic"], shots=(1, 0.05), splits=2)
    assert [Probe.from_dict(values) for values in printed] == probes
    write_probes(probes, tmp_path / "other")
    other, first = (path / "probes.json" for path in (tmp_path / "other", tmp_path))
    assert other.read_text() == first.read_text()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--shots=x", "invalid --shots 'x': allowed"),
        ("--shots=100%", "a share below 100%"),
        ("--methods=svm", "invalid method 'svm': allowed knn, logistic, sgd"),
        ("--methods=knn,sgd", "the method sgd needs a folder for its training run; give output"),
        ("--splits=0", "invalid splits 0: allowed: 1 or more"),
        ("--set=foo=1", "setting 'foo=1' needs the method sgd"),
    ],
)
def test_invalid_options_are_rejected(
    option: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--train", str(folder / "train"), "--test", str(folder / "test")]
    assert main(["recipe", "probe", MODEL, *data, "--quiet", option]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_number_of_ranks_does_not_change_probes(kind: str, folder: Path, tmp_path: Path) -> None:
    """A folder with a broken image, or shards; features and results are the same bit for bit."""
    train, test = tmp_path / "train", folder / "test"
    if kind == "folder":
        make_digits(train, 101)
        next(train.rglob("7.png")).write_bytes(b"")
    else:
        for split, count in (("train", 103), ("test", 50)):
            (tmp_path / split).mkdir()
            make_shards(tmp_path / split, count, 9)
        train, test = tmp_path / "train" / "shards", tmp_path / "test" / "shards"
    outputs = dict[int, Any]()
    for ranks in (1, 2, 3):
        output = tmp_path / str(ranks)
        arguments = ["recipe", "probe", "regnety_nano_hashtags", "--train", str(train)]
        arguments += ["--test", str(test), "--shots", "1,5,all", "--batch-size", "8", "--quiet"]
        arguments += ["--cache", str(tmp_path / f"cache {ranks}"), "-o", str(output)]
        code = 1 if kind == "folder" else 0
        assert finish(start(arguments, ranks)) == [code] * ranks, read_errors(arguments)
        assert read_errors(arguments).count("labels of each class") == 1  # one rank prints
        cache = tmp_path / f"cache {ranks}"
        features = {str(path.relative_to(cache)): path for path in cache.glob("*/*.npy")}
        assert len(features) == 4
        contents = {name: path.read_bytes() for name, path in features.items()}
        outputs[ranks] = read_bytes(output) | contents
    assert outputs[1] == outputs[2] == outputs[3]


def test_sgd_needs_one_process(folder: Path, model: EvaluatedModel, tmp_path: Path) -> None:
    dist = DistContext(1, 3, torch.device("cpu"))
    with pytest.raises(ConfigError, match="the method sgd runs in one process, not in 3"):
        run_probe(folder, model, methods=("sgd",), output=tmp_path, dist=dist)
