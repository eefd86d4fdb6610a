"""`head_init="hashtags"`: a new head starts from the rows of the hashtags that it is about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from runs import compare, make_arguments, read_weights, run
from torch import nn

from studies.scenes.gallery import WORDNET, write_scenes
from swag_models.api import get_spec, load_classes, load_model, load_preprocess
from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.finetuning import finetune
from swag_models.publish import save
from swag_models.recipe.classes.class_rows import ClassRows
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.data.sources import open_image_dataset
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.classes import Classes
from swag_models.recipe.training.head_init import init_head, match_head, plan_head
from swag_models.recipe.training.model import make_model
from swag_models.recipe.training.trainer import Trainer
from swag_models.recipe.wordnet import WordNet

pytestmark = pytest.mark.usefixtures("one_thread")
Capture = pytest.CaptureFixture[str]
THINGS = ("apple", "bed", "car", "flower", "guitar", "house", "moon", "umbrella")
# the same as folders of people may name them, and one that no hashtag is about
FOLDERS = ("apple, fruit", "n02818832", "car", "Flowers", "guitars", "House", "moon", "widget")
SMALL = ("steps=6", "checkpoint.every=2", "image_size=24", "batch_size=4", "head_init=hashtags")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    return write_scenes(
        tmp_path_factory.mktemp("scenes") / "scenes", 1, 96, processes=1, progress=False
    ).path


@pytest.fixture(autouse=True)
def _wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WNHOME", str(tmp_path / "wordnet"))
    shutil.copytree(WORDNET, tmp_path / "wordnet" / "dict")


@pytest.fixture(scope="module")
def images(scenes: Path) -> Path:
    root = scenes.with_name("things")
    for thing, folder in zip(THINGS, FOLDERS):
        shutil.copytree(scenes / "held_out" / thing, root / folder)
    return root


def make_run(*settings: str, arch: str = "vit_nano") -> Run:
    init = f"init={arch}_hashtags"
    return override(get_preset(f"{arch}_finetune").run, [init, "head_init=hashtags", *settings])


def plan(run: Run, names: Sequence[str], output: Path = Path("absent")) -> Classes:
    classes = Classes(len(names), tuple(names))
    return replace(classes, head=plan_head(run, output, classes.names, classes.synsets))


@pytest.mark.parametrize("keep_biases", [True, False])
def test_rows_are_weighted_means_of_the_old_rows(keep_biases: bool) -> None:
    old, head = nn.Linear(8, 5), nn.Linear(8, 4)
    weight, bias = (tensor.detach().double().numpy().copy() for tensor in head.parameters())
    weights = np.zeros((4, 5))
    weights[0, 2], weights[1, [0, 4]], weights[3, [1, 2, 3]] = 1, (0.25, 0.75), (0.5, 0.3, 0.2)
    rows = ClassRows(
        "m",
        tuple("abcd"),
        ("name", "hyponyms", "", "synset"),
        tuple({int(k): row[k] for k in row.nonzero()[0]} for row in weights),
        tuple("vwxyz"),
    )
    init_head(head, old, rows, keep_biases=keep_biases)
    expected = weights @ old.weight.detach().double().numpy()
    expected[2] = weight[2]
    np.testing.assert_allclose(head.weight.detach().double().numpy(), expected, rtol=0, atol=1e-7)
    biases = weights @ old.bias.detach().double().numpy()
    biases[2] = biases[[0, 1, 3]].mean()
    expected_biases = biases if keep_biases else bias
    np.testing.assert_allclose(head.bias.detach().numpy(), expected_biases, rtol=0, atol=1e-7)
    assert all(weight.requires_grad for weight in head.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["vit_nano", "regnety_nano"])
def test_a_head_names_things_before_it_is_trained(arch: str, scenes: Path) -> None:
    run = make_run(arch=arch)
    dataset = open_image_dataset(scenes / "held_out")
    assert dataset.class_names is not None
    model, spec = make_model(run, plan(run, dataset.class_names))
    fit, normalise = load_preprocess(spec).fit, load_preprocess(spec).normalise
    batch = torch.stack([fit(dataset.read(index)) for index in range(len(dataset))])
    labels = torch.tensor([label for (label,) in dataset.labels])
    with torch.inference_mode():
        predicted = model.eval()(normalise(batch)).argmax(1)
    # of 32 things, 3.1% by chance; 1,920 images give 23 and 33
    assert 100 * (predicted == labels).float().mean() > 12


def test_a_sigmoid_starts_at_the_frequency_of_each_class() -> None:
    run = make_run("objective.kind=sigmoid")
    counts = (5.0, 1.0, 2.0)
    classes = replace(plan(run, ("apple", "cars", "widget")), sample_counts=counts, samples=8)
    model, _ = make_model(run, classes)
    old, names = load_model("vit_nano_hashtags"), load_classes("vit_nano_hashtags")
    head, columns = model.get_classifier(), [names.index(name) for name in ("apple", "car")]
    assert torch.equal(head.weight[:2], old.get_classifier().weight[columns])
    assert not head.weight[2].any()  # as a new head of a ViT
    assert classes.shares
    torch.testing.assert_close(head.bias.sigmoid(), torch.tensor(classes.shares))
    # of a softmax, nothing is known about the frequencies without the data
    model, _ = make_model(run, replace(classes, sample_counts=None))
    assert not model.get_classifier().bias.any()


@pytest.mark.slow
def test_a_frozen_model_and_layer_decay_train_a_head_of_hashtags(
    images: Path, tmp_path: Path
) -> None:
    for kind, settings in (
        ("head", ["trainable=head"]),
        ("all", ["optimizer.layer_decay=0.5", "ema.decay=0.9", "objective.label_smoothing=0.1"]),
    ):
        options = ["--init", "vit_nano_hashtags"]
        arguments = make_arguments(
            images, tmp_path / kind, *SMALL, "steps=1", *settings, options=options
        )
        assert main(arguments) == 0
        assert get_spec(tmp_path / kind / "model").classes == tuple(sorted(FOLDERS))


@pytest.mark.slow
def test_what_was_matched_is_logged_and_recorded(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, options = tmp_path / "run", ["--init", "vit_nano_hashtags"]
    assert main(make_arguments(images, output, *SMALL, options=options)) == 0
    (line,) = [text for text in caplog.messages if text.startswith("head_init: ")]
    assert line == (
        "head_init: 7 of 8 classes start from rows of vit_nano_hashtags "
        "(4 by name, 3 by synset), 1 start anew: widget"
    )
    record = json.loads((output / "run.json").read_text())
    recipe = json.loads((output / "model" / "recipe.json").read_text())
    assert record["head_init"] == recipe["head_init"]
    assert recipe["head_init"]["model"] == "vit_nano_hashtags"
    assert recipe["head_init"]["classes"]["apple, fruit"] == ["apple"]
    assert recipe["head_init"]["unmatched"] == ["widget"]
    card = (output / "model" / "README.md").read_text()
    assert (
        "| initial head | rows of the hashtags of vit_nano_hashtags, for 7 of 8 classes |" in card
    )


@pytest.mark.slow
def test_a_stopped_run_resumes_in_the_same_weights_without_matching_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--init", "vit_nano_hashtags"]
    whole, output = tmp_path / "whole", tmp_path / "run"
    assert main(make_arguments(images, whole, *SMALL, options=options)) == 0
    arguments = make_arguments(images, output, *SMALL, options=options)
    step = Trainer.step

    def stop(self: Trainer, *values: object) -> object:
        if self.done == 5:
            self.checkpointer.finish()
            raise KeyboardInterrupt
        return step(self, *values)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        assert main(arguments) != 0
    assert any((output / "checkpoints").glob("step-*"))
    monkeypatch.setattr("swag_models.recipe.training.head_init.match_head", None)
    assert main(arguments) == 0
    assert read_weights(output) == read_weights(whole)
    for name in ("run.json", "model/recipe.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (output, whole))
        assert ours["head_init"] == theirs["head_init"]


@pytest.mark.slow
def test_a_run_of_a_version_without_the_setting_resumes(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = make_arguments(images, output, *SMALL[:-1])
    assert main(arguments) == 0
    record = json.loads((output / "run.json").read_text())
    assert "head_init" not in record
    del record["run"]["head_init"]
    (output / "run.json").write_text(json.dumps(record))
    assert main(arguments) == 0
    assert main([*arguments, "--set", "head_init=hashtags"]) != 0


def test_a_head_with_the_classes_of_the_data_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    names = get_spec("vit_nano_hashtags").classes
    run = make_run()
    assert isinstance(names, tuple)
    model, _ = make_model(run, plan(run, names))
    assert torch.equal(model.get_classifier().weight, load_model(run.init).get_classifier().weight)
    assert caplog.messages == [
        "head_init: vit_nano_hashtags has the classes of the data; its head is kept"
    ]


def test_runs_that_cannot_start_from_hashtags_are_rejected(tmp_path: Path) -> None:
    names = ("apple", "car")
    bare = save(load_model("vit_nano_hashtags", num_classes=None), tmp_path / "bare")
    unnamed = save(load_model("vit_nano_hashtags", num_classes=5), tmp_path / "unnamed")
    for settings, classes, message in (
        (["init=none"], names, "init is none; give init= a model with hashtags"),
        ([], None, "the classes of the data have no names; name them"),
        ([f"init={bare}"], names, "bare has no head, so a new head cannot start from its"),
        ([f"init={unnamed}"], names, "unnamed has classes without names, so a new head"),
        ([], ("widget", "Hund"), r"no class of the data \(widget, Hund\) is or is near a class of"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            match_head(make_run(*settings), classes, None)
        assert len(str(caught.value)) < 500
        assert str(caught.value).isprintable()


def test_a_vocabulary_that_is_not_that_of_the_head_is_rejected(tmp_path: Path) -> None:
    folder = save(load_model("vit_nano_hashtags"), tmp_path / "published")
    synsets, names = get_spec(folder).synsets, load_classes(folder)
    assert synsets
    rows = [
        {"class": number, "synset": synset, "hashtag": name, "hashtags": [name, f"{name}photo"]}
        for number, (synset, name) in enumerate(zip(synsets, names))
    ]
    run = make_run(f"init={folder}")
    pq.write_table(pa.Table.from_pylist(rows), folder / "vocabulary.parquet")
    matched = match_head(run, ("Car photo", "widget"), None)
    assert matched
    assert matched.kinds == ("name", "")
    pq.write_table(pa.Table.from_pylist(rows[:-1]), folder / "vocabulary.parquet")
    with pytest.raises(ConfigError, match="does not belong to the model beside it"):
        match_head(run, ("Car photo", "widget"), None)


def test_without_wordnet_equal_names_match_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> WordNet:
        raise ConfigError("WordNet is not installed")

    monkeypatch.setattr(WordNet, "load", fail)
    rows = match_head(make_run(), ("Apple", "cars"), None)
    assert rows
    assert rows.kinds == ("name", "")
    assert "1 start anew: cars; without WordNet, only equal names match: " in caplog.text


@pytest.mark.slow
def test_ranks_start_from_the_same_head(images: Path, tmp_path: Path) -> None:
    options = ["--init", "vit_nano_hashtags"]
    for ranks, settings in ((1, ()), (2, ()), (2, ("engine.parallel=fsdp",))):
        output = tmp_path / f"{ranks}{len(settings)}"
        # AdamW would make differences of rounding as large as its rate
        plain = ("optimizer.kind=sgd", "optimizer.lr=0.01", *settings)
        run(make_arguments(images, output, *SMALL, *plain, options=options), ranks)
    compare(tmp_path / "10", tmp_path / "20")
    compare(tmp_path / "10", tmp_path / "21")


@pytest.mark.slow
def test_few_labels_go_further_from_hashtags(scenes: Path, tmp_path: Path) -> None:
    things = sorted(path.name for path in (scenes / "held_out").iterdir())
    for thing in things:
        first, *others = sorted((scenes / "held_out" / thing).iterdir())
        for part, paths in (("train", [first]), ("val", others)):
            (tmp_path / part / thing).mkdir(parents=True)
            for path in paths:
                shutil.copyfile(path, tmp_path / part / thing / path.name)
    accuracy = {
        kind: finetune(
            tmp_path / "train",
            tmp_path / kind,
            val=tmp_path / "val",
            model="regnety_nano_hashtags",
            linear=True,
            head_init=kind,
            settings=["eval_every=none"],
            device="cpu",
            progress=False,
        ).metrics["top1"][0]
        for kind in ("random", "hashtags")
    }
    assert accuracy["hashtags"] > accuracy["random"] + 5
