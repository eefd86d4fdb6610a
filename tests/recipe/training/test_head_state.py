"""A head that is trained on stored embeddings equals one that is trained on the images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import compare, make_digits
from shards_support import make_labels, make_shards

from swag_models.errors import ConfigError
from swag_models.inference import Classifier, Embedder
from swag_models.inference.embed import write_embeddings
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.data.embeddings import StoredEmbeddings, open_embedded
from swag_models.recipe.data.train_loader import _draw_repeated
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.head_state import check_embeddings
from swag_models.recipe.training.trainer import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
MODEL = "vit_nano_hashtags"
PLAIN = ("augment.scale=1,1", "augment.ratio=1,1", "augment.flip=0")


def make_run(*settings: str) -> Run:
    short = ("steps=6", "batch_size=12", "log_every=1")
    return override(get_preset("vit_nano_linear").run, [*short, *PLAIN, *settings])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "train", 36)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    path = tmp_path_factory.mktemp("stored") / "e.parquet"
    write_embeddings(Embedder(MODEL, device="cpu"), images, path, progress=False)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("objective.kind=sigmoid", "ema.decay=0.5"),
        ("engine.parallel=fsdp", "engine.micro_batch=5"),
    ],
)
def test_the_head_equals_that_of_images(
    settings: tuple[str, ...], images: Path, stored: Path, tmp_path: Path
) -> None:
    run = make_run(*settings)
    train(run, images, tmp_path / "images", progress=False)
    folder = train(run, images, tmp_path / "features", embeddings=stored, progress=False)
    compare(tmp_path / "images", tmp_path / "features", losses=1e-5, weights=1e-5)
    path = str(next(images.rglob("*.png")))
    ours, theirs = (Classifier(model)(path)[0][0] for model in (folder, tmp_path / "images/model"))
    assert (ours.label, ours.index) == (theirs.label, theirs.index)


def test_images_moved_since_are_found_by_the_end_of_their_path(
    images: Path, stored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(images, moved)
    extra = next(moved.rglob("*.png")).with_name("extra.png")
    shutil.copy(next(images.rglob("*.png")), extra)
    data, _ = open_embedded(str(moved), StoredEmbeddings(stored))
    assert len(data) == 36
    assert "1 image of elsewhere left out" in caplog.text
    assert "extra.png" in caplog.text


@pytest.mark.parametrize("form", ["shards", "labels.parquet"])
def test_labels_of_shards_and_of_a_curation(form: str, tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 12, 6)
    write_embeddings(Embedder(MODEL), tmp_path / "images", tmp_path / "e.npy", progress=False)
    stored = StoredEmbeddings(tmp_path / "e.npy")
    if form == "labels.parquet":
        with pytest.raises(ConfigError, match=r"vocabulary\.parquet does not exist"):
            open_embedded(tmp_path / form, stored)
        return
    data, _ = open_embedded(shards, stored)
    labels = make_labels(12)
    assert dict(zip(data.names, data.labels)) == {
        name: tuple(classes) for name, (classes, _) in labels.items()
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("trainable=all",), "trainable is all and init vit_nano_hashtags; set trainable=head"),
        (("objective.mixup=0.2",), "embeddings are of images that are not mixed"),
        (("image_size=64",), "whose weights are not those of init vit_nano_hashtags at 64 pixels"),
        (("arch=regnety_nano", "init=regnety_nano_hashtags"), "has embeddings of vit_nano_hasht"),
        (("augment.flip=0.3",), r"augment\.flip is 0\.3, and has no effect on .* leave it at 0\.5"),
        (("augment.scale=0.5,1",), r"augment\.scale is \(0\.5, 1\.0\), and has no effect"),
        (("augment.auto=rand",), r"augment\.auto is rand, .* leave it at None"),
        (("augment.sizes=32,48",), r"augment\.sizes is \(32, 48\), and has no effect"),
        (("augment.interpolation=bilinear",), r"augment\.interpolation is bilinear, and has no"),
        (("drop_path_rate=0.1",), r"drop_path_rate is 0\.1, and has no effect"),
        (("optimizer.layer_decay=0.7",), r"optimizer\.layer_decay is 0\.7, and has no effect"),
        (("engine.grad_checkpointing=true",), r"grad_checkpointing is True, .* leave it at False"),
        (("engine.lanes=4",), r"engine\.lanes is 4, and has no effect"),
    ],
)
def test_embeddings_of_another_model_are_refused(
    settings: tuple[str, ...], message: str, stored: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_embeddings(make_run(*settings), StoredEmbeddings(stored))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        ("augment.scale=0.8,1", "augment.ratio=0.75,1.3333333333333333", "augment.flip=0.5"),
        ("engine.workers=2", "engine.channels_last=false", "objective.kind=sigmoid"),
        ("engine.compile=true", "ema.decay=0.5"),
    ],
)
def test_values_of_presets_and_settings_with_an_effect_are_allowed(
    settings: tuple[str, ...], stored: Path
) -> None:
    check_embeddings(make_run(*settings), StoredEmbeddings(stored))


def test_an_epoch_has_each_image_floor_or_ceil_of_its_repeats_times() -> None:
    repeats = [0.0, 0.5, 1.0, 2.25, 3.25]
    counts = [0] * 5
    for seed in range(200):
        drawn = _draw_repeated(repeats, 7, seed * 2**63 // 200)
        assert len(drawn) == 7
        for index, repeat in enumerate(repeats):
            count = int((drawn == index).sum())
            assert repeat - 1 < count < repeat + 1
            counts[index] += count
    assert [count / 200 for count in counts] == pytest.approx(repeats, abs=0.02)
