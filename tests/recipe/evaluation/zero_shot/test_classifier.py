"""Zero-shot accuracy is far above chance, and equals that of a plain computation."""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from runs import finish, read_errors, start
from shards_support import read_bytes
from tiny import load_tiny

from studies.scenes import write_scenes
from studies.scenes.gallery import WORDNET
from studies.scenes.things import BY_NAME, NAMES
from swag_models.cli import main
from swag_models.cli.common import make_adder
from swag_models.cli.transfer import add_commands
from swag_models.errors import ConfigError
from swag_models.publish import save
from swag_models.recipe.classes.class_matching import NamedClasses
from swag_models.recipe.classes.mapping_kinds import MAPPINGS
from swag_models.recipe.classes.wordnet_mapping import (
    HashtagMapping,
    Target,
    parse_targets,
)
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.zero_shot.classifier import (
    evaluate_zero_shot,
    list_zero_shot_configs,
    run_ablation,
    score_targets,
)
from swag_models.recipe.evaluation.zero_shot.logits import (
    find_classes,
    is_labelled,
    open_unlabelled,
    read_logits,
)
from swag_models.recipe.evaluation.zero_shot.report import format_zero_shot
from swag_models.recipe.evaluation.zero_shot.results import (
    AGGREGATIONS,
    ZeroShotConfig,
    ZeroShotResult,
)
from swag_models.recipe.wordnet import WordNet

pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = ("vit_nano_hashtags", "regnety_nano_hashtags")
CHANCE = 100 / len(NAMES)
EACH = 12


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zeroshot") / "scenes"
    write_scenes(folder, 1, len(NAMES) * EACH, seed=7, processes=1, progress=False)
    return folder / "held_out"


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet.load(WORDNET)


@pytest.fixture(scope="module")
def targets(wordnet: WordNet) -> tuple[Target, ...]:
    return parse_targets(sorted(NAMES), wordnet)


@pytest.fixture(scope="module")
def model() -> EvaluatedModel:
    return open_evaluated_model(MODELS[0])


@pytest.fixture(scope="module")
def cells(model: EvaluatedModel, scenes: Path, wordnet: WordNet) -> list[ZeroShotResult]:
    """All configurations, for the true senses of the things: two have no hashtag."""
    targets = [Target(name, (BY_NAME[name].synset,)) for name in sorted(NAMES)]
    return run_ablation(model, scenes, targets, wordnet, list_zero_shot_configs(), progress=False)


@pytest.mark.parametrize("model_name", MODELS)
def test_accuracy_is_far_above_chance_and_higher_with_platt_scaling(
    model_name: str, scenes: Path, wordnet: WordNet, targets: tuple[Target, ...]
) -> None:
    configs = [
        ZeroShotConfig(platt, HashtagMapping(kind))
        for kind in ("related", "same")
        for platt in (True, False)
    ]
    results = run_ablation(
        open_evaluated_model(model_name), scenes, targets, wordnet, configs, progress=False
    )
    for scaled, plain in (results[:2], results[2:]):
        assert scaled.mean_per_class >= 5 * CHANCE
        assert scaled.mean_per_class > plain.mean_per_class
        assert scaled.top5 > scaled.top1
    assert len(results[0].predictions) == len(NAMES) * EACH
    assert results[0].unlabelled == results[0].facts
    assert results[1].unlabelled is None


def test_ablation_has_each_configuration_once_with_the_same_result_as_alone(
    cells: list[ZeroShotResult], model: EvaluatedModel, scenes: Path, wordnet: WordNet
) -> None:
    assert (
        len({cell.config for cell in cells}) == len(cells) == 2 * len(MAPPINGS) * len(AGGREGATIONS)
    )
    targets = [Target(name, (BY_NAME[name].synset,)) for name in sorted(NAMES)]
    alone = evaluate_zero_shot(
        model, scenes, targets, wordnet, progress=False, workers=1, batch_size=100
    )
    same = next(cell for cell in cells if cell.config == ZeroShotConfig())
    assert [prediction[:3] for prediction in alone.predictions] == [
        prediction[:3] for prediction in same.predictions
    ]
    assert alone.to_dict() == same.to_dict()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_accuracies_equal_a_plain_computation(
    aggregation: str,
    cells: list[ZeroShotResult],
    model: EvaluatedModel,
    scenes: Path,
    wordnet: WordNet,
) -> None:
    result = next(
        cell
        for cell in cells
        if cell.config == ZeroShotConfig(False, HashtagMapping("hyponyms"), aggregation)
    )  # type: ignore[arg-type]
    read = read_logits(model, scenes, NamedClasses("the targets", sorted(NAMES)), progress=False)
    assert model.synsets is not None
    below = {
        name: wordnet.descendants(BY_NAME[name].synset) | {BY_NAME[name].synset: 0}
        for name in sorted(NAMES)
    }
    correct, first, fifth = Counter[str](), 0, 0
    for values, path in zip(read.values[:].tolist(), read.names, strict=True):
        total = math.fsum(map(math.exp, values))
        products = {
            name: [
                math.exp(z) / total * 0.5 ** near[tag]
                for z, tag in zip(values, model.synsets)
                if tag in near
            ]
            for name, near in below.items()
        }
        scores = {
            name: (sum if aggregation == "sum" else max)([0.0, *terms])
            for name, terms in products.items()
        }
        best = sorted((name for name in scores if scores[name]), key=lambda name: -scores[name])
        thing = path.partition("/")[0]
        correct[thing] += best[0] == thing
        first += best[0] == thing
        fifth += thing in best[:5]
    assert result.top1 == pytest.approx(100 * first / len(read.names))
    assert result.top5 == pytest.approx(100 * fifth / len(read.names))
    assert result.mean_per_class == pytest.approx(
        sum(100 * correct[name] / EACH for name in NAMES) / len(NAMES)
    )
    confusions = Counter({sorted(NAMES)[label or 0]: 0 for label, _ in result.confusions})
    for (label, best_place), count in result.confusions.items():
        assert label is not None
        confusions[sorted(NAMES)[label]] += count * (label == best_place)
    assert confusions == correct


def test_unreached_targets_are_listed_and_never_predicted(cells: list[ZeroShotResult]) -> None:
    unreached = {cell.config.mapping.kind: cell.unreached for cell in cells}
    assert unreached["same"] == unreached["hyponyms"] == ("banana", "table")
    assert unreached["related"] == unreached["path"] == unreached["wup"] == ()
    places = {sorted(NAMES).index(name) for name in ("banana", "table")}
    for cell in cells:
        if cell.unreached:
            assert not any(places & set(prediction.top) for prediction in cell.predictions)
    assert (
        "Mapping same: no hashtag reaches these targets, so they are never predicted: "
        "banana, table\n" in format_zero_shot(cells)
    )


def test_shares_are_fractions_of_all_scores(cells: list[ZeroShotResult]) -> None:
    for prediction in cells[0].predictions:
        assert list(prediction.shares) == sorted(prediction.shares, reverse=True)
        assert 0 < sum(prediction.shares) <= 1 + 1e-9


@pytest.mark.parametrize("sparse", [True, False])
def test_scores_are_sums_or_maxima(sparse: bool) -> None:
    probabilities, weights = torch.rand(5, 7), torch.rand(7, 4) * (torch.rand(7, 4) < 0.5)
    weights[:, 2] = 0
    given = weights.to_sparse() if sparse else weights
    torch.testing.assert_close(score_targets(probabilities, given), probabilities @ weights)
    torch.testing.assert_close(
        score_targets(probabilities, given, "max"), (probabilities[:, :, None] * weights).amax(1)
    )
    with pytest.raises(ConfigError, match="invalid aggregation 'mean': allowed: sum, max"):
        ZeroShotConfig(aggregation="mean")  # type: ignore[arg-type]


def test_platt_scaling_is_fitted_on_unlabelled_images(
    model: EvaluatedModel,
    scenes: Path,
    wordnet: WordNet,
    targets: tuple[Target, ...],
    tmp_path: Path,
) -> None:
    few = [next((scenes / name).iterdir()) for name in ("owl", "car")]
    result = evaluate_zero_shot(
        model, [str(path) for path in few], targets, wordnet, unlabelled=scenes, progress=False
    )
    assert result.unlabelled is not None
    assert result.unlabelled["samples"] == len(NAMES) * EACH
    every = evaluate_zero_shot(model, scenes, targets, wordnet, progress=False)
    expected = {Path(prediction.name).name: prediction for prediction in every.predictions}
    for path, prediction in zip(few, result.predictions, strict=True):
        assert prediction.name == str(path)
        assert prediction.label is None
        assert prediction.top == expected[path.name].top
    assert not result.labelled
    assert result.to_dict()["mean_per_class"] is None


def test_broken_images_are_skipped_and_reported(
    model: EvaluatedModel,
    scenes: Path,
    wordnet: WordNet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("owl", "car"):
        shutil.copytree(scenes / name, tmp_path / "data" / name)
    broken = next((tmp_path / "data" / "owl").iterdir())
    broken.write_bytes(b"")
    arguments = [
        "recipe",
        "zeroshot",
        MODELS[0],
        "--wordnet",
        str(WORDNET),
        "--no-platt",
        "--quiet",
    ]
    assert main([*arguments, "--data", str(tmp_path / "data")]) == 1
    out, err = capsys.readouterr()
    assert f"{2 * EACH - 1} images, 2 targets" in out
    assert broken.name in err
    platt = [argument for argument in arguments if argument != "--no-platt"]
    options = ["--data", str(scenes / "owl"), "--targets", "owl"]
    assert main([*platt, *options, "--unlabelled", str(tmp_path / "data")]) == 0
    expected = rf"^left out 1 image or shard of data that could not be read: .*{broken.name}"
    assert [text for text in caplog.messages if re.search(expected, text)]
    capsys.readouterr()
    assert main([*arguments, "--data", str(broken), "--targets", "owl"]) == 2
    assert "no image of" in capsys.readouterr().err
    assert main([*arguments, "--data", str(tmp_path / "gone"), "--targets", "owl"]) == 2
    assert (
        "gone cannot be read: No such file or directory; pass images or folders"
        in capsys.readouterr().err
    )
    taken = tmp_path / "taken"
    taken.touch()
    assert (
        main([*arguments, "--data", str(scenes / "owl"), "--targets", "owl", "-o", str(taken)]) == 1
    )
    assert "taken cannot be written: File exists" in capsys.readouterr().err


def test_labelled_data_are_recognised(scenes: Path, tmp_path: Path) -> None:
    assert is_labelled(scenes)
    assert find_classes(scenes) == tuple(sorted(NAMES))
    assert is_labelled(tmp_path / "x.tar")
    assert is_labelled([tmp_path / "x.tar", "https://host.example/y.tar"])
    for images in (
        scenes / "owl",
        str(scenes / "owl" / "*.jpg"),
        [scenes / "owl", scenes / "car"],
    ):
        assert not is_labelled(images)
    album = open_unlabelled(str(scenes / "owl"))
    assert len(album) == EACH
    assert (
        album.sha256
        == open_unlabelled([str(path) for path in sorted((scenes / "owl").iterdir())]).sha256
    )
    assert album.sha256 != open_unlabelled(str(scenes / "car")).sha256


def test_command_prints_and_writes_the_same(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cells: list[ZeroShotResult]
) -> None:
    arguments = [
        "recipe",
        "zeroshot",
        MODELS[0],
        "--data",
        str(scenes),
        "--wordnet",
        str(WORDNET),
        "--quiet",
    ]
    assert main([*arguments, "-o", str(tmp_path / "one")]) == 0
    table = capsys.readouterr().out
    assert table == (tmp_path / "one" / "zeroshot.md").read_text()
    (one,) = json.loads((tmp_path / "one" / "zeroshot.json").read_text())
    lines = [
        json.loads(line)
        for line in (tmp_path / "one" / "predictions.jsonl").read_text().splitlines()
    ]
    hits = [
        next(iter(line["top"])) == line["label"] == line["name"].partition("/")[0] for line in lines
    ]
    assert one["top1"] == pytest.approx(100 * sum(hits) / len(lines))
    accuracies = " | ".join(f"{one[name]:.2f}" for name in ("mean_per_class", "top1", "top5"))
    assert f"| yes | related | sum | {accuracies} |" in table
    path = tmp_path / "meant.txt"
    path.write_text("\n".join(f"{name} {BY_NAME[name].synset}" for name in sorted(NAMES)))
    assert main([*arguments, "--targets", str(path), "--ablation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        json.dumps([cell.to_dict() for cell in cells])
    )


def test_command_predicts_images_without_labels(
    scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "recipe",
        "zeroshot",
        MODELS[1],
        "--data",
        str(scenes / "owl"),
        "--wordnet",
        str(WORDNET),
        "--quiet",
    ]
    assert main([*arguments, "--targets", "owl,vehicle,fruit", "--unlabelled", str(scenes)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == EACH
    assert sum(": owl " in line for line in lines) > EACH / 2
    assert (
        main([*arguments, "--targets", "owl,vehicle,fruit", "--unlabelled", str(scenes), "--json"])
        == 0
    )
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line, prediction in zip(lines, predictions, strict=True):
        assert line.startswith(f"{prediction['name']}: {next(iter(prediction['top']))} ")
    assert main([*arguments, "--targets", "n01621127,fruit", "--unlabelled", str(scenes)]) == 0
    assert "n01621127 (owl) " in capsys.readouterr().out
    assert main(arguments) == 2
    assert "owl has no sub-folders of classes; pass --targets" in capsys.readouterr().err
    assert main([*arguments, "--targets", "owl", "--ablation"]) == 2
    assert "has no labels; omit it" in capsys.readouterr().err


def test_commands_of_the_documentation_run(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(scenes.parent.parent)
    text = (Path(__file__).parents[4] / "docs" / "zeroshot.md").read_text()
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    commands = [words for line in lines if (words := shlex.split(line, comments=True))]
    assert len(commands) == 3
    for program, *arguments in commands:
        assert program == "swag-models"
        assert main([*arguments, "--quiet"]) == 0
    rows = re.findall(r"^\| (\w+) \| (\w+) \|", text, re.MULTILINE)
    assert rows[1:] == [(kind, aggregation) for kind in MAPPINGS for aggregation in AGGREGATIONS]
    assert len(capsys.readouterr().out.splitlines()) > 24


def test_invalid_requests_are_rejected(
    model: EvaluatedModel,
    scenes: Path,
    wordnet: WordNet,
    targets: tuple[Target, ...],
    tmp_path: Path,
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"the list of targets does not have: airplane, .* and 26 more; it has 1 class, first",
    ):
        evaluate_zero_shot(model, scenes, [Target("owl", ("n01621127",))], wordnet, progress=False)
    excerpt = WordNet({synset: wordnet.synsets[synset] for synset in targets[0].synsets}, {}, {})
    with pytest.raises(
        ConfigError,
        match=r"this WordNet lacks 64 of the 65 synsets of vit_nano_hashtags, such as n",
    ):
        evaluate_zero_shot(model, scenes, targets, excerpt, progress=False)
    calls: list[object] = []
    hook = model.network.register_forward_pre_hook(lambda *arguments: calls.append(arguments))
    with pytest.raises(ConfigError, match="nosuch"):
        evaluate_zero_shot(
            model, scenes, targets, wordnet, unlabelled=scenes / "nosuch", progress=False
        )
    hook.remove()
    assert not calls
    with pytest.raises(ConfigError, match="unlabelled images are for Platt scaling, which is off"):
        evaluate_zero_shot(
            model,
            scenes,
            targets,
            wordnet,
            ZeroShotConfig(platt=False),
            unlabelled=scenes,
            progress=False,
        )
    without_hashtags = open_evaluated_model(
        str(save(load_tiny(), tmp_path / "model", license="mit"))
    )
    with pytest.raises(
        ConfigError,
        match=r"has no hashtags with WordNet ids; .* such as vit_nano_hashtags",
    ):
        evaluate_zero_shot(without_hashtags, scenes, targets, wordnet, progress=False)


def test_overflowing_logits_are_rejected(scenes: Path) -> None:
    model = open_evaluated_model(MODELS[0], dtype="float16")
    model.network.head.bias.data.fill_(6e4)
    model.network.norm.bias.data.fill_(6e4)
    with pytest.raises(
        ConfigError,
        match=r"vit_nano_hashtags returns NaN or infinity in torch.float16, .*; use dtype float32",
    ):
        read_logits(model, scenes / "owl", None, progress=False)


def test_a_multi_label_model_is_measured_by_its_sigmoids(
    scenes: Path, targets: list[Target], wordnet: WordNet
) -> None:
    model = open_evaluated_model(MODELS[0])
    model.multi_label = True
    with pytest.raises(ConfigError, match=r"vit_nano_hashtags is multi-label: .* --no-platt"):
        evaluate_zero_shot(model, scenes, targets, wordnet, progress=False)
    mapping = HashtagMapping("same")
    config = ZeroShotConfig(platt=False, mapping=mapping)
    result = evaluate_zero_shot(model, scenes, targets, wordnet, config, progress=False)
    assert model.synsets is not None
    logits = torch.from_numpy(read_logits(model, scenes, None, progress=False).values[:]).double()
    scores = logits.sigmoid() @ mapping.weigh(wordnet, model.synsets, targets).to_dense()
    assert [prediction.top[0] for prediction in result.predictions] == scores.argmax(1).tolist()
    share = (scores / scores.sum(1, keepdim=True)).max(1).values
    assert [p.shares[0] for p in result.predictions] == pytest.approx(share.tolist())


def test_command_accepts_every_mapping() -> None:
    parser = argparse.ArgumentParser()
    add_commands(make_adder(parser))
    for kind in MAPPINGS:
        assert (
            parser.parse_args(["zeroshot", "m", "--data", "d", "--mapping", kind]).mapping == kind
        )


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_number_of_ranks_does_not_change_results(
    labelled: bool, scenes: Path, tmp_path: Path
) -> None:
    """One image is broken; images are no multiple of batches, nor batches of ranks."""
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    next((data / "owl").iterdir()).write_bytes(b"")
    outputs = dict[int, dict[str, bytes]]()
    for ranks in (1, 2, 3):
        output = tmp_path / str(ranks)
        arguments = ["recipe", "zeroshot", MODELS[1], "--wordnet", str(WORDNET), "--quiet"]
        arguments += ["--batch-size", "7", "-o", str(output), "--data", str(data)]
        if not labelled:
            arguments += ["--targets", "owl,car", "--unlabelled", str(data)]
            arguments[arguments.index("--data") + 1] = str(data / "owl")
        assert finish(start(arguments, ranks)) == [1] * ranks, read_errors(arguments)
        outputs[ranks] = read_bytes(output)
        assert read_errors(arguments).count("skipped: ") == 1  # one rank prints
    assert len(outputs[1]) == (3 if labelled else 2)
    assert outputs[1] == outputs[2] == outputs[3]
    assert not list(tmp_path.glob("tmp*"))
