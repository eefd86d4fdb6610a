"""Every benchmark is read in its published folder layout."""

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
    MAPPED_WNIDS,
    WNIDS,
    compute_logits,
    list_images,
    read_labels,
    save_tiny,
    write_image,
    write_objectnet,
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
    UNNAMED,
    find_published,
    open_benchmark,
)
from swag_models.recipe.evaluation.accuracy.evaluate import evaluate
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.results import Evaluation
from swag_models.recipe.training.distributed import init_distributed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(model_folder: Path) -> EvaluatedModel:
    return open_evaluated_model(str(model_folder))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("imagenet") / "val", WNIDS).parent


@pytest.fixture(scope="module")
def logits(imagenet: Path, model_folder: Path) -> dict[str, torch.Tensor]:
    return compute_logits(model_folder, list_images(imagenet / "val"))


def measure(model: EvaluatedModel, root: Path, benchmark: str, **options: bool) -> Evaluation:
    with init_distributed() as dist:
        return evaluate(
            model, root, benchmark, dist=dist, batch_size=128, progress=False, **options
        )


def open_dataset(benchmark: str, root: Path, model: EvaluatedModel) -> ImageDataset:
    dataset = open_benchmark(benchmark, root, model).data
    assert isinstance(dataset, ImageDataset)
    return dataset


def check_error(message: str, benchmark: str, root: Path, model: EvaluatedModel) -> None:
    """Check that opening the benchmark raises a ConfigError with a matching one-line message."""
    with pytest.raises(ConfigError, match=message) as caught:
        open_benchmark(benchmark, root, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("benchmark", ["imagenet", "sketch"])
def test_wnid_folders_are_the_classes(
    benchmark: str, imagenet: Path, model: EvaluatedModel, logits: dict[str, torch.Tensor]
) -> None:
    root = imagenet if benchmark == "imagenet" else imagenet / "val"
    evaluation = measure(model, root, benchmark)
    assert [record.name for record in evaluation.records] == sorted(logits)
    hits = 0
    for record in evaluation.records:
        image_logits = logits[record.name]
        top = image_logits.topk(5).indices
        assert record.labels == (WNIDS.index(record.name.split("/")[0]),)
        assert record.top == tuple(top.tolist())
        probability = image_logits.softmax(0)[top[0]].item()
        assert record.probability == pytest.approx(probability, rel=1e-4)
        hits += record.labels[0] == top[0]
    assert evaluation.top1.value == pytest.approx(hits / 10)
    assert len(evaluation.classes) == 1000


def test_imagenet_v2_folders_are_class_numbers(tmp_path: Path, model: EvaluatedModel) -> None:
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    for number in range(1000):
        write_image(root / str(number) / "a.png", number)
    labels = read_labels(open_dataset("imagenet-v2", tmp_path, model))
    assert labels == {f"{number}/a.png": (number,) for number in range(1000)}
    shutil.rmtree(root / "10")
    message = "has no folder 10; the release has 1000, named 0 to 999"
    check_error(message, "imagenet-v2", tmp_path, model)


def test_real_counts_any_label_and_leaves_out_unlabelled_images(
    imagenet: Path, model: EvaluatedModel, logits: dict[str, torch.Tensor]
) -> None:
    generator, real, expected = random.Random(3), [[] for _ in range(1000)], {}
    for name, image_logits in logits.items():
        top = image_logits.topk(8).indices.tolist()
        labels = generator.choice(
            [
                [],
                top[:1],
                [generator.randrange(1000), top[0]],
                top[4:6],
                top[5:7],
                [generator.randrange(1000)],
            ]
        )
        real[int(name[-12:-4]) - 1] = labels
        if labels:
            expected[name] = (top[0] in labels, bool(set(top[:5]) & set(labels)))
    (imagenet / "real.json").write_text(json.dumps(real))
    evaluation = measure(model, imagenet, "imagenet-real")
    assert [record.name for record in evaluation.records] == sorted(expected)
    assert 0 < len(expected) < 1000
    hits1, hits5 = zip(*expected.values())
    assert evaluation.top1.value == pytest.approx(100 * sum(hits1) / len(expected))
    assert evaluation.top5.value == pytest.approx(100 * sum(hits5) / len(expected))
    assert 20 < evaluation.top1.value < evaluation.top5.value < 80
    # If the sub-folder is passed, real.json is found beside it.
    assert measure(model, imagenet / "val", "imagenet-real").top1 == evaluation.top1


def test_damaged_real_labels_are_rejected(
    imagenet: Path, tmp_path: Path, model: EvaluatedModel
) -> None:
    (tmp_path / "val").symlink_to(imagenet / "val")
    path = tmp_path / "real.json"
    for content, message in (
        ([[0]] * 500, r"is not one of the 500 images labelled by .*real.json"),
        ([[1000]] * 1000, "does not contain lists of labels from 0 to 999"),
    ):
        path.write_text(json.dumps(content))
        check_error(message, "imagenet-real", tmp_path, model)
    path.unlink()
    message = r"real.json is neither in .*; get it from github.com/google-research/reassessed"
    check_error(message, "imagenet-real", tmp_path, model)


@pytest.mark.parametrize("benchmark", ["imagenet-a", "imagenet-r"])
def test_only_the_200_classes_of_the_release_compete(
    benchmark: str, tmp_path: Path, model_folder: Path, model: EvaluatedModel
) -> None:
    classes = sorted(random.Random(5).sample(range(1000), 200))
    root = write_release(tmp_path / benchmark, [WNIDS[index] for index in classes])
    (root / "README.txt").write_text("about")
    evaluation = measure(model, tmp_path, benchmark)
    logits = compute_logits(model_folder, list_images(root))
    excluded = torch.tensor([index for index in range(1000) if index not in classes])
    hits = 0
    for record in evaluation.records:
        competing = logits[record.name].index_fill(0, excluded, -torch.inf)
        assert record.top == tuple(competing.topk(5).indices.tolist())
        assert record.probability == pytest.approx(competing.softmax(0).max().item(), rel=1e-4)
        hits += record.labels == record.top[:1]
    assert evaluation.top1.value == pytest.approx(hits / 2)
    # The test would prove nothing if excluded classes never had the highest logit.
    assert any(record.top[0] != logits[record.name].argmax() for record in evaluation.records)
    shutil.rmtree(root / WNIDS[classes[0]])
    check_error("has 199 folders, 199 of them WordNet ids", benchmark, tmp_path, model)


@pytest.mark.parametrize("first_line", [0, 1])
def test_objectnet_is_mapped_and_its_border_cropped(
    first_line: int, tmp_path: Path, model: EvaluatedModel
) -> None:
    write_objectnet(tmp_path / "objectnet-1.0", first_line)
    dataset = open_dataset("objectnet", tmp_path, model)
    assert read_labels(dataset) == {
        f"{folder}/{10 * number + i}.png": tuple(map(WNIDS.index, wnids))
        for number, (folder, wnids) in enumerate(MAPPED_WNIDS.items())
        for i in range(2)
        if wnids
    }
    for index in range(len(dataset)):
        seed = int(Path(dataset.name(index)).stem)
        assert np.array_equal(np.asarray(dataset.read(index)), make_pixels(seed, 10, 12))
    evaluation = measure(model, tmp_path, "objectnet")
    labels = {label for record in evaluation.records for label in record.labels}
    assert {label for record in evaluation.records for label in record.top} - labels
    present = measure(model, tmp_path, "objectnet", only_present=True)
    assert {label for record in present.records for label in record.top} <= labels


def test_image_without_pixels_inside_the_border_is_broken(
    tmp_path: Path, model: EvaluatedModel
) -> None:
    write_objectnet(tmp_path)
    write_images(tmp_path / "images" / "tie", 1, height=4, width=9)
    dataset = open_dataset("objectnet", tmp_path, model)
    index = list(dataset.names).index("tie/0000.png")
    with pytest.raises(ImageError, match=r"tie/0000.png has 9x4 pixels, too few to crop 2 from"):
        dataset.read(index)


def test_damaged_objectnet_is_rejected(tmp_path: Path, model: EvaluatedModel) -> None:
    write_objectnet(tmp_path)
    path = tmp_path / "mappings" / "objectnet_to_imagenet_1k.json"
    for content, message in (
        (
            '{"Tie": "bow tie; no such thing"}',
            "maps Tie to 'bow tie', which is not a class of ImageNet",
        ),
        ("{}", "has no image with a class of ImageNet-1k"),
        ("{", r"objectnet_to_imagenet_1k.json is damaged: .*; get it again"),
        ("[]", "has a list instead of a dict; get it again"),
    ):
        path.write_text(content)
        check_error(message, "objectnet", tmp_path, model)
    path.unlink()
    check_error("unpack the release again", "objectnet", tmp_path, model)
    path.write_text("{}")
    (tmp_path / "mappings" / "imagenet_to_label_2012_v2").write_text("tench\n")
    check_error("does not number the 1000 classes", "objectnet", tmp_path, model)
    shutil.rmtree(tmp_path / "images")
    check_error("has no folder named images", "objectnet", tmp_path, model)


@pytest.mark.parametrize("benchmark", sorted(set(BENCHMARKS) - {*UNNAMED}))
def test_missing_release_is_reported_with_its_source(
    benchmark: str, tmp_path: Path, model: EvaluatedModel
) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        message = r"is not a folder with .*; get .*(\.org|\.com/|\.dev)"
        check_error(message, benchmark, root, model)


@pytest.mark.parametrize("benchmark", sorted(set(BENCHMARKS) - {*UNNAMED}))
def test_model_with_other_classes_is_rejected(benchmark: str, tmp_path: Path) -> None:
    model = open_evaluated_model("vit_nano_hashtags")
    message = "invalid model vit_nano_hashtags: .* needs the classes of ImageNet-1k"
    check_error(message, benchmark, tmp_path, model)


def test_incomplete_imagenet_is_rejected(tmp_path: Path, model: EvaluatedModel) -> None:
    path = write_image(tmp_path / "ILSVRC2012_val_00000001.png", 0)
    message = "all images in one folder; move them to one folder per WordNet id, with torchvision"
    check_error(message, "imagenet", tmp_path, model)
    path.rename(write_image(tmp_path / WNIDS[1] / "x.png", 0).with_name(path.name))
    message = f"has 1 of 1000 folders .* but not {WNIDS[0]}; .* benchmark 'folder'"
    check_error(message, "imagenet", tmp_path, model)


@pytest.mark.parametrize(
    ("name_folder", "message"),
    [
        (lambda spec, index: spec.classes[index], None),
        (lambda spec, index: spec.synsets[index], None),
        (lambda spec, index: spec.classes[index].replace("body", " Body").capitalize(), None),
        (lambda spec, index: f"x{index}", "has classes that the model .*: x0, x45"),
    ],
)
def test_folders_may_be_named_by_class_wnid_or_hashtag(
    name_folder: Callable[..., str], message: str | None, tmp_path: Path
) -> None:
    model, spec = open_evaluated_model("vit_nano_hashtags"), get_spec("vit_nano_hashtags")
    assert spec.classes[45] == "celestialbody"
    for index in (45, 0):
        write_images(tmp_path / name_folder(spec, index), 2)
    if message:
        check_error(message, "folder", tmp_path, model)
        return
    labels = read_labels(open_dataset("folder", tmp_path, model)).values()
    assert set(labels) == {(0,), (45,)}
    all_classes = measure(model, tmp_path, "folder")
    present = measure(model, tmp_path, "folder", only_present=True)
    assert {len(record.top) for record in all_classes.records} == {5}
    assert {frozenset(record.top) for record in present.records} == {frozenset({0, 45})}
    assert present.top5.value == 100


def test_shards_are_labelled_by_class_numbers(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 12, 6)
    model = open_evaluated_model("vit_nano_hashtags")
    assert open_benchmark("folder", shards, model).data == shards
    with pytest.raises(ConfigError, match="only_present needs the classes of all images"):
        open_benchmark("folder", shards, model, only_present=True)
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    vocabulary = {"class": [1, 0], "synset": ["n00000001", "n00000002"], "hashtag": ["a", "b"]}
    parquet.write_table(pyarrow.table(vocabulary), shards / "vocabulary.parquet")
    check_error(r"vocabulary.parquet is not the vocabulary of the model", "folder", shards, model)


def test_unknown_benchmark_is_rejected(tmp_path: Path, model: EvaluatedModel) -> None:
    message = "invalid benchmark 'imagenet-c': allowed folder, multilabel, imagenet, "
    check_error(message, "imagenet-c", tmp_path, model)


def test_model_without_classes_is_rejected(tmp_path: Path) -> None:
    model = open_evaluated_model(save_tiny(tmp_path / "backbone", None, None))
    check_error("it has features but no classes; choose one with a head", "folder", tmp_path, model)


def test_published_results_are_of_known_models_and_benchmarks(
    imagenet: Path, model_folder: Path
) -> None:
    for name, benchmark in PUBLISHED:
        assert get_spec(name).classes == "imagenet-1k"
        assert benchmark in BENCHMARKS
    model = open_evaluated_model(str(model_folder))
    assert find_published(model, "imagenet") is None
    model.name, model.published = "vit_h14_in1k", get_spec("vit_h14_in1k").metrics
    published = [find_published(model, name) for name in ("imagenet", "objectnet", "folder")]
    assert published == [88.55, 69.5, None]
    evaluation = measure(model, imagenet, "imagenet")
    assert (evaluation.published, evaluation.differs) == (88.55, True)
    assert measure(model, imagenet, "imagenet", only_present=True).published is None
