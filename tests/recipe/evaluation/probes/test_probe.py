"""Probes are the same on every machine, and tell good features from bad ones."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import make_digits, run

from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.probes.features import extract_features
from swag_models.recipe.evaluation.probes.few_shot import choose_shots, hold_back
from swag_models.recipe.evaluation.probes.logistic_regression import fit_logistic
from swag_models.recipe.evaluation.probes.probe import FEW_SHOT_C, probe, write_probes
from swag_models.recipe.evaluation.probes.scaling import scale, scale_like
from swag_models.recipe.training.losses import count_hits

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = "vit_nano_hashtags"


@pytest.fixture(scope="module")
def candidate() -> EvaluatedModel:
    return open_evaluated_model(MODEL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits to train and to test on, and a cache for their features."""
    root = tmp_path_factory.mktemp("probe")
    make_digits(root / "train", 300)
    make_digits(root / "test", 200, first=300)
    return root


def ask(folder: Path, candidate: EvaluatedModel, **options: Any) -> list[Any]:
    return probe(candidate, folder / "train", folder / "test", cache=folder / "cache", **options)


def test_shots_are_nested_fixed_and_alike_in_any_order() -> None:
    labels = np.arange(600) % 7
    names = [f"{number}.png" for number in range(600)]
    chosen = {shots: choose_shots(names, labels, shots, 0) for shots in (0.001, 1, 5, 0.1, 20)}
    assert [np.bincount(labels[each]).tolist() for each in chosen.values()][:3] == [
        [1] * 7,
        [1] * 7,
        [5] * 7,
    ]
    assert np.bincount(labels[chosen[0.1]]).tolist() == [9] * 5 + [8] * 2  # of 86 and 85
    for few, many in ((1, 5), (5, 0.1), (0.1, 20)):
        assert set(chosen[few]) < set(chosen[many])
    order = np.random.default_rng(0).permutation(600)
    mixed = choose_shots([names[place] for place in order], labels[order], 5, 0)
    assert set(order[mixed]) == set(chosen[5])
    assert set(choose_shots(names, labels, 5, 1)) != set(chosen[5])
    assert chosen[1].tolist() == [54, 95, 140, 149, 262, 414, 503]  # these, on every machine


def test_validation_pictures_are_a_fifth_of_each_class() -> None:
    labels = np.repeat([0, 1, 3], [100, 12, 1])
    held = hold_back([str(number) for number in range(113)], labels)
    assert np.bincount(labels[held], minlength=4).tolist() == [20, 2, 0, 0]


def test_shots_that_a_class_cannot_give_are_refused() -> None:
    names, labels = list("abcde"), np.array([0, 0, 0, 1, 1])
    with pytest.raises(ConfigError, match="class dog has 2 pictures; 3 shots need as many"):
        choose_shots(names, labels, 3, 0, ["cat", "dog"])
    for shots in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="whole numbers from 1 on, and shares"):
            choose_shots(names, labels, shots, 0)


def test_scaled_features_are_unlike_in_direction_only() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 8)) + 3
    scaled = scale(vectors, np.arange(0, 50, 2))
    rows = scaled[:]
    assert rows.shape == scaled.shape == (25, 8)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
    assert (rows**2).mean() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(
        scale_like(scale(vectors * 7, scaled.places), vectors * 7)[0:50:2], rows, atol=1e-4
    )


def test_more_labels_and_more_pictures_are_better(folder: Path, candidate: EvaluatedModel) -> None:
    found = ask(folder, candidate, shots=(1, 10, 0.1, None), splits=3)
    by = {(each.method, each.shots, each.settings.get("k")): each for each in found}
    assert list(by) == [
        *(("knn", None, k) for k in (10, 20, 100, 200)),
        *(("logistic", each, None) for each in (1, 10, 0.1, None)),
    ]
    one, ten, share, every = (by["logistic", shots, None] for shots in (1, 10, 0.1, None))
    assert [len(each.values) for each in (one, ten, share, every)] == [3, 3, 3, 1]
    assert 15 < one.mean + 5 < ten.mean < every.mean
    assert one.mean < share.mean < ten.mean
    assert by["knn", None, 10].mean > 20  # of ten digits
    validation = every.settings["validation"]
    assert validation[every.settings["C"]] == max(validation.values())
    assert all(each.settings["converged"] for each in (one, ten, share))
    assert [each.values for each in ask(folder, candidate, shots=(1,), splits=2)][-1] == one.values[
        :2
    ]


def test_the_constant_for_few_shots_does_for_other_pictures_too(
    folder: Path, candidate: EvaluatedModel
) -> None:
    known, asked = (
        extract_features(candidate, folder / part, folder / "cache") for part in ("train", "test")
    )
    means = {}
    for C in (1e-3, FEW_SHOT_C, 10.0):  # noqa: N806
        scores = []
        for split in range(3):
            places = choose_shots(known.names, known.labels, 5, split)
            rows = scale(known.vectors, places)
            predicted = fit_logistic(rows, known.labels[places], 10, C).predict(
                scale_like(rows, asked.vectors)
            )
            scores.append(100 * (predicted == asked.labels).mean())
        means[C] = statistics.mean(scores)
    assert means[FEW_SHOT_C] > max(means.values()) - 4
    assert means[FEW_SHOT_C] > means[1e-3] + 5


@pytest.mark.slow
def test_a_head_is_trained_as_the_preset_says(
    folder: Path, candidate: EvaluatedModel, tmp_path: Path
) -> None:
    words = [
        "recipe",
        "probe",
        MODEL,
        "--train",
        str(folder / "train"),
        "--test",
        str(folder / "test"),
        "--methods",
        "sgd",
    ]
    settings = [
        "--set",
        "steps=80",
        "--set",
        "image_size=32",
        "--set",
        "augment.interpolation=bilinear",
    ]
    run([*words, *settings, "--quiet", "-o", str(tmp_path / "sgd")])
    [found] = json.loads((tmp_path / "sgd" / "probes.json").read_text())
    assert (found["settings"]["preset"], found["settings"]["run"]["steps"]) == (
        "vit_nano_linear",
        80,
    )
    tuned = open_evaluated_model(str(tmp_path / "sgd" / "sgd" / "model"))
    check = open_eval_loader(
        folder / "test", tuned.fit, batch_size=50, rank=0, world_size=1, workers=0
    )
    hits = sum(count_hits(tuned.classify(batch.images), batch.classes) for batch in check)
    assert found["mean"] == 100 * hits / 200 > 15
    with pytest.raises(ConfigError, match="give output"):
        ask(folder, candidate, methods=["sgd"])


def test_classes_that_were_not_learnt_are_told(
    folder: Path, candidate: EvaluatedModel, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    for number in range(3):
        (tmp_path / "train" / f"digit {number}").symlink_to(folder / "train" / f"digit {number}")
    with pytest.raises(
        ConfigError,
        match=r"test has classes that the training set does not have: digit 3, .*; its 3 classes begin",
    ):
        probe(candidate, tmp_path / "train", folder / "test", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_command_prints_and_writes_a_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], candidate: EvaluatedModel
) -> None:
    words = [
        "recipe",
        "probe",
        MODEL,
        "--train",
        str(folder / "train"),
        "--test",
        str(folder / "test"),
        "--quiet",
    ]
    options = [
        "--cache",
        str(folder / "cache"),
        "--shots",
        "1,5%",
        "--splits",
        "2",
        "--methods",
        "logistic",
    ]
    assert main([*words, *options, "-o", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "probes.md").read_text() == printed
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:]]
    assert [row[:3] for row in rows] == [[MODEL, "logistic", "1"], [MODEL, "logistic", "5%"]]
    assert main([*words, *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "probes.json").read_text())
    assert [f"{each['mean']:.2f} ± {each['spread']:.2f}" for each in told] == [
        row[3] for row in rows
    ]
    write_probes(
        ask(folder, candidate, methods=["logistic"], shots=(1, 0.05), splits=2), tmp_path / "other"
    )
    assert (tmp_path / "other" / "probes.json").read_text() == (
        tmp_path / "probes.json"
    ).read_text()
    for wrong, words_of_it in (
        ("--shots=x", "--shots has 'x'"),
        ("--shots=100%", "shares below 100%"),
        ("--methods=svm", "no method 'svm'"),
        ("--methods=knn,sgd", "sgd trains a head in a folder of its own"),
        ("--set=foo=1", "settings has 'foo=1', and only sgd has any"),
    ):
        assert main([*words, wrong]) == 2
        assert words_of_it in capsys.readouterr().err
