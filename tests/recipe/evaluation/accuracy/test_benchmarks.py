"""Every benchmark, in the folders in which it is released."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks_support import (
    IDS,
    list_pictures,
    read_labels,
    run_by_hand,
    save_tiny,
    write_objectnet,
    write_picture,
    write_release,
)
from image_support import make_pixels, write_images
from shards_support import make_shards

from swag_models import get_spec
from swag_models.errors import ConfigError, ImageError
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.evaluation.accuracy.benchmarks import (
    BENCHMARKS,
    PUBLISHED,
    find_published,
    open_benchmark,
)
from swag_models.recipe.evaluation.accuracy.evaluate import evaluate
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.results import Evaluation
from swag_models.recipe.training.distributed import init_distributed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def candidate(model: Path) -> EvaluatedModel:
    return open_evaluated_model(str(model))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("imagenet") / "val", IDS).parent


@pytest.fixture(scope="module")
def logits(imagenet: Path, model: Path) -> dict[str, torch.Tensor]:
    return run_by_hand(model, list_pictures(imagenet / "val"))


def measure(candidate: EvaluatedModel, root: Path, benchmark: str, **options: bool) -> Evaluation:
    with init_distributed() as dist:
        return evaluate(
            candidate, root, benchmark, dist=dist, batch_size=128, progress=False, **options
        )


def open_image_dataset(benchmark: str, root: Path, candidate: EvaluatedModel) -> ImageDataset:
    album = open_benchmark(benchmark, root, candidate).data
    assert isinstance(album, ImageDataset)
    return album


@pytest.mark.parametrize("benchmark", ["imagenet", "sketch"])
def test_imagenet_is_a_folder_for_each_id(
    benchmark: str, imagenet: Path, candidate: EvaluatedModel, logits: dict[str, torch.Tensor]
) -> None:
    found = measure(candidate, imagenet if benchmark == "imagenet" else imagenet / "val", benchmark)
    assert [record.name for record in found.records] == sorted(logits)
    hits = 0
    for record in found.records:
        assert record.labels == (IDS.index(record.name.split("/")[0]),)
        best = logits[record.name].topk(5).indices
        assert record.top == tuple(best.tolist())
        assert record.probability == pytest.approx(
            logits[record.name].softmax(0)[best[0]].item(), rel=1e-4
        )
        hits += record.labels[0] == best[0]
    assert found.top1.value == pytest.approx(hits / 10)
    assert len(found.classes) == 1000


def test_the_numbers_of_v2_are_in_order(tmp_path: Path, candidate: EvaluatedModel) -> None:
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    for number in range(1000):
        write_picture(root / str(number) / "a.png", number)
    labels = read_labels(open_image_dataset("imagenet-v2", tmp_path, candidate))
    assert labels == {f"{number}/a.png": (number,) for number in range(1000)}
    shutil.rmtree(root / "10")
    with pytest.raises(ConfigError, match="has no folder 10; the release has 1000, named 0 to 999"):
        open_benchmark("imagenet-v2", tmp_path, candidate)


def test_real_leaves_pictures_out_and_any_label_is_a_hit(
    imagenet: Path, candidate: EvaluatedModel, logits: dict[str, torch.Tensor]
) -> None:
    draw, real, expected = random.Random(3), [[] for _ in range(1000)], {}
    for name, values in logits.items():
        best = values.topk(8).indices.tolist()
        labels = draw.choice(
            [
                [],
                best[:1],
                [draw.randrange(1000), best[0]],
                best[4:6],
                best[5:7],
                [draw.randrange(1000)],
            ]
        )
        real[int(name[-12:-4]) - 1] = labels
        if labels:
            expected[name] = (best[0] in labels, bool(set(best[:5]) & set(labels)))
    (imagenet / "real.json").write_text(json.dumps(real))
    found = measure(candidate, imagenet, "imagenet-real")
    assert [record.name for record in found.records] == sorted(expected)
    assert 0 < len(expected) < 1000
    for value, hits in zip((found.top1.value, found.top5.value), zip(*expected.values())):
        assert value == pytest.approx(100 * sum(hits) / len(expected))
    assert 20 < found.top1.value < found.top5.value < 80
    assert (
        measure(candidate, imagenet / "val", "imagenet-real").top1 == found.top1
    )  # real.json lies beside
    (imagenet / "real.json").write_text(json.dumps(real[:500]))
    with pytest.raises(
        ConfigError, match=r"is none of the 500 pictures that .*real.json has labels of"
    ):
        open_benchmark("imagenet-real", imagenet, candidate)
    (imagenet / "real.json").write_text(json.dumps([[1000]] * 1000))
    with pytest.raises(ConfigError, match="does not have lists of labels from 0 to 999"):
        open_benchmark("imagenet-real", imagenet, candidate)
    (imagenet / "real.json").unlink()
    with pytest.raises(
        ConfigError,
        match=r"has real.json; get it from github.com/google-research/reassessed-imagenet",
    ):
        open_benchmark("imagenet-real", imagenet, candidate)


@pytest.mark.parametrize("benchmark", ["imagenet-a", "imagenet-r"])
def test_of_200_classes_no_other_competes(
    benchmark: str, tmp_path: Path, model: Path, candidate: EvaluatedModel
) -> None:
    own = sorted(random.Random(5).sample(range(1000), 200))
    root = write_release(tmp_path / benchmark, [IDS[index] for index in own])
    (root / "README.txt").write_text("about")
    found = measure(candidate, tmp_path, benchmark)
    logits = run_by_hand(model, list_pictures(root))
    others = torch.tensor([index for index in range(1000) if index not in own])
    hits = 0
    for record in found.records:
        values = logits[record.name].index_fill(0, others, -torch.inf)
        assert record.top == tuple(values.topk(5).indices.tolist())
        assert record.probability == pytest.approx(values.softmax(0).max().item(), rel=1e-4)
        hits += record.labels == record.top[:1]
    assert found.top1.value == pytest.approx(hits / 2)
    assert any(record.top[0] != logits[record.name].argmax() for record in found.records)
    shutil.rmtree(root / IDS[own[0]])
    with pytest.raises(ConfigError, match="has 199 folders, 199 of them WordNet ids"):
        open_benchmark(benchmark, tmp_path, candidate)


@pytest.mark.parametrize("first", [0, 1])
def test_objectnet_is_mapped_and_its_border_cropped(
    first: int, tmp_path: Path, candidate: EvaluatedModel
) -> None:
    ids = write_objectnet(tmp_path / "objectnet-1.0", first)
    album = open_image_dataset("objectnet", tmp_path, candidate)
    assert read_labels(album) == {
        f"{folder}/{10 * number + i}.png": tuple(map(IDS.index, own))
        for number, (folder, own) in enumerate(ids.items())
        for i in range(2)
        if own
    }
    for index in range(len(album)):
        pixels = make_pixels(int(album.name(index).split("/")[1].removesuffix(".png")), 10, 12)
        assert np.array_equal(np.asarray(album.read(index)), pixels)
    found = measure(candidate, tmp_path, "objectnet")
    assert {label for record in found.records for label in record.top} - {
        label for r in found.records for label in r.labels
    }
    present = measure(candidate, tmp_path, "objectnet", only_present=True)
    assert {label for record in present.records for label in record.top} <= {
        i for r in found.records for i in r.labels
    }


def test_what_is_all_border_is_broken(tmp_path: Path, candidate: EvaluatedModel) -> None:
    write_objectnet(tmp_path)
    write_images(tmp_path / "images" / "tie", 1, height=4, width=9)
    album = open_image_dataset("objectnet", tmp_path, candidate)
    index = next(index for index in range(len(album)) if album.name(index) == "tie/0000.png")
    with pytest.raises(ImageError, match=r"tie/0000.png has 9x4 pixels, which are all border"):
        album.read(index)


def test_a_broken_mapping_is_refused(tmp_path: Path, candidate: EvaluatedModel) -> None:
    write_objectnet(tmp_path)
    path = tmp_path / "mappings" / "objectnet_to_imagenet_1k.json"
    path.write_text(json.dumps({"Tie": "bow tie; no such thing"}))
    with pytest.raises(ConfigError, match="maps Tie to 'bow tie', which is no class there"):
        open_benchmark("objectnet", tmp_path, candidate)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="has no picture with a class of ImageNet-1k"):
        open_benchmark("objectnet", tmp_path, candidate)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"objectnet_to_imagenet_1k.json cannot be read"):
        open_benchmark("objectnet", tmp_path, candidate)
    path.unlink()
    with pytest.raises(ConfigError, match="it comes with the release"):
        open_benchmark("objectnet", tmp_path, candidate)
    (tmp_path / "mappings" / "imagenet_to_label_2012_v2").write_text("tench\n")
    path.write_text("{}")
    with pytest.raises(ConfigError, match="does not number the 1000 classes"):
        open_benchmark("objectnet", tmp_path, candidate)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(ConfigError, match="has no folder images"):
        open_benchmark("objectnet", tmp_path, candidate)


@pytest.mark.parametrize("benchmark", sorted(set(BENCHMARKS) - {"folder"}))
def test_what_is_missing_is_said_with_where_to_get_it(
    benchmark: str, tmp_path: Path, candidate: EvaluatedModel
) -> None:
    for root in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            ConfigError, match=r"is no folder with .*; get .*(\.org|\.com/|\.dev)"
        ) as caught:
            open_benchmark(benchmark, root, candidate)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        ConfigError, match="has the classes of ImageNet-1k, vit_nano_hashtags has others"
    ):
        open_benchmark(benchmark, tmp_path, open_evaluated_model("vit_nano_hashtags"))


def test_pictures_without_folders_are_refused(tmp_path: Path, candidate: EvaluatedModel) -> None:
    path = write_picture(tmp_path / "ILSVRC2012_val_00000001.png", 0)
    with pytest.raises(
        ConfigError,
        match=r"side by side; torchvision.datasets.ImageNet, or the usual valprep.sh, moves them",
    ):
        open_benchmark("imagenet", tmp_path, candidate)
    path.rename(write_picture(tmp_path / IDS[1] / "x.png", 0).with_name(path.name))
    with pytest.raises(
        ConfigError, match=f"has 1 of 1000 folders .* and not {IDS[0]}; .* benchmark folder"
    ):
        open_benchmark("imagenet", tmp_path, candidate)


@pytest.mark.parametrize(
    ("spell", "message"),
    [
        (lambda spec, index: spec.classes[index], None),
        (lambda spec, index: spec.synsets[index], None),
        (lambda spec, index: spec.classes[index].replace("body", " Body").capitalize(), None),
        (lambda spec, index: f"x{index}", "has classes that the model does not have: x0, x45"),
    ],
)
def test_folders_are_named_by_class_id_or_hashtag(
    spell: Callable[..., str], message: str | None, tmp_path: Path
) -> None:
    candidate, spec = open_evaluated_model("vit_nano_hashtags"), get_spec("vit_nano_hashtags")
    assert spec.classes[45] == "celestialbody"
    for index in (45, 0):
        write_images(tmp_path / spell(spec, index), 2)
    if message:
        with pytest.raises(ConfigError, match=message):
            open_benchmark("folder", tmp_path, candidate)
        return
    assert set(read_labels(open_image_dataset("folder", tmp_path, candidate)).values()) == {
        (0,),
        (45,),
    }
    everything, present = (
        measure(candidate, tmp_path, "folder", only_present=only) for only in (False, True)
    )
    assert {len(record.top) for record in everything.records} == {5}
    assert {frozenset(record.top) for record in present.records} == {frozenset({0, 45})}
    assert present.top5.value == 100


def test_shards_have_the_models_numbers(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 12, 6)
    candidate = open_evaluated_model("vit_nano_hashtags")
    assert open_benchmark("folder", shards, candidate).data == shards
    with pytest.raises(ConfigError, match="only_present needs to know the classes"):
        open_benchmark("folder", shards, candidate, only_present=True)
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table(
            {"class": [1, 0], "synset": ["n00000001", "n00000002"], "hashtag": ["a", "b"]}
        ),
        shards / "vocabulary.parquet",
    )
    with pytest.raises(ConfigError, match=r"vocabulary.parquet is not the vocabulary of the model"):
        open_benchmark("folder", shards, candidate)


def test_a_model_needs_classes(tmp_path: Path, candidate: EvaluatedModel) -> None:
    with pytest.raises(
        ConfigError, match="benchmark 'imagenet-c' is not known; allowed: folder, imagenet, "
    ):
        open_benchmark("imagenet-c", tmp_path, candidate)
    candidate = open_evaluated_model(save_tiny(tmp_path / "trunk", None, None))
    with pytest.raises(ConfigError, match="gives features and has no classes"):
        open_benchmark("folder", tmp_path, candidate)


def test_what_was_published_is_of_models_and_suites_there_are(imagenet: Path, model: Path) -> None:
    assert all(
        get_spec(name).classes == "imagenet-1k" and benchmark in BENCHMARKS
        for name, benchmark in PUBLISHED
    )
    candidate = open_evaluated_model(str(model))
    assert find_published(candidate, "imagenet") is None
    candidate.name, candidate.published = "vit_h14_in1k", get_spec("vit_h14_in1k").metrics
    assert [
        find_published(candidate, benchmark) for benchmark in ("imagenet", "objectnet", "folder")
    ] == [
        88.55,
        69.5,
        None,
    ]
    found = measure(candidate, imagenet, "imagenet")
    assert (found.published, found.differs) == (88.55, True)
    assert measure(candidate, imagenet, "imagenet", only_present=True).published is None
