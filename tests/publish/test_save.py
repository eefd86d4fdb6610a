"""A model saved as a folder loads as the same model; interrupted saves never load."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY_SPECS, VIT_SPEC, images, load_tiny
from torch import nn

import swag_models
from swag_models import get_spec, load_model, load_preprocess
from swag_models.errors import (
    CheckpointError,
    ConfigError,
    FetchError,
    PublishError,
    UnknownModelError,
)
from swag_models.hub.fetch import verify_weights
from swag_models.hub.hf_format import CONFIG_FILE, INDEX_FILE
from swag_models.publish import push, save

NANO = "vit_nano_hashtags"
every_family = pytest.mark.parametrize("family", TINY_SPECS)
Caplog = pytest.LogCaptureFixture

pytestmark = pytest.mark.usefixtures("caches")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "my_model"


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """Both models have equal state dicts."""
    state, other_state = model.state_dict(), other.state_dict()
    assert state.keys() == other_state.keys()
    assert all(torch.equal(tensor, other_state[key]) for key, tensor in state.items())


class TestRoundTrip:
    @every_family
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"num_classes": None},
            {"num_classes": 3, "image_size": 32},
            {"image_size": (96, 64)},
            {"in_chans": 1},
        ],
        ids=["plain", "backbone", "small", "oblong", "grey"],
    )
    def test_a_folder_loads_as_the_model_that_was_saved(
        self, family: str, options: dict[str, Any], folder: Path
    ) -> None:
        model = load_tiny(family, **options)
        assert save(model, folder) == folder
        loaded = load_model(folder)
        assert_same(loaded, model)
        assert (loaded.num_classes, loaded.image_size, loaded.in_chans) == (
            model.num_classes,
            model.image_size,
            model.in_chans,
        )
        inputs = images(2, model.image_size, model.in_chans)
        # Not bit by bit: mapped weights may be aligned differently, which changes last bits.
        torch.testing.assert_close(loaded(inputs), model(inputs))
        assert load_preprocess(folder).preprocess.size == model.image_size

    def test_whether_a_model_is_multi_label_is_kept_with_its_classes(self, folder: Path) -> None:
        assert not get_spec(save(load_tiny(), folder)).multi_label
        assert get_spec(save(load_tiny(), folder, multi_label=True)).multi_label
        again = load_model(folder)
        assert get_spec(save(again, folder)).multi_label
        assert "any number of which an image can have" in (folder / "README.md").read_text()
        assert not get_spec(save(again, folder, multi_label=False)).multi_label
        again.reset_classifier(3)  # other classes
        assert not get_spec(save(again, folder)).multi_label
        with pytest.raises(ConfigError, match="multi_label is True, but the model has no classes"):
            save(load_tiny(num_classes=None), folder, multi_label=True)
        with pytest.raises(ConfigError, match="invalid multi_label 1: allowed: bool or None"):
            save(load_tiny(), folder, multi_label=1)  # type: ignore[arg-type]

    def test_pooling_is_kept(self, folder: Path) -> None:
        model = load_tiny(global_pool="avg")
        save(model, folder)
        inputs = images()
        torch.testing.assert_close(load_model(folder)(inputs), model(inputs))
        assert load_model(folder, global_pool="token").global_pool == "token"

    def test_positions_of_an_oblong_grid_are_not_taken_for_a_square(self, folder: Path) -> None:
        model = load_tiny(image_size=(16, 64))  # a grid of 2 x 8, as many patches as 4 x 4
        save(model, folder)
        assert_same(load_model(folder), model)
        resized = load_model(folder, image_size=(32, 64))
        # Index 0 is the class token; the first and the last row of patches stay where they are.
        assert torch.equal(resized.pos_embed[0, 1:9], model.pos_embed[0, 1:9])
        assert torch.equal(resized.pos_embed[0, -8:], model.pos_embed[0, -8:])

    def test_load_options_work_as_with_a_catalog_name(self, folder: Path, caplog: Caplog) -> None:
        save(load_tiny(), folder, license="mit")
        model = load_model(folder, num_classes=7, image_size=128, in_chans=1, dtype="bfloat16")
        assert model(images(2, 128, 1).bfloat16()).shape == (2, 7)
        assert "the head of 7 classes is freshly initialised" in caplog.text
        assert load_model(str(folder), num_classes=None).num_classes == 0

    def test_a_half_precision_file_loads_as_float32_by_default(self, folder: Path) -> None:
        model = load_tiny(dtype="bfloat16")
        save(model, folder)
        assert json.loads((folder / CONFIG_FILE).read_text())["dtype"] == "bfloat16"
        assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {
            torch.bfloat16
        }
        assert next(load_model(folder).parameters()).dtype == torch.float32
        assert_same(load_model(folder, dtype="bfloat16"), model)

    def test_a_model_from_a_folder_can_be_saved_again(self, folder: Path, tmp_path: Path) -> None:
        save(
            load_tiny(image_size=(16, 64)),
            folder,
            classes=[f"c{i}" for i in range(10)],
            license="mit",
        )
        first = load_model(folder)
        again = load_model(save(first, tmp_path / "again"))
        assert_same(first, again)
        assert (again.spec.classes, again.spec.license) == (first.spec.classes, "mit")
        assert again.spec.description == first.spec.description
        expected = "derived from tiny_vit: its architecture only, not its weights"
        assert first.spec.description == expected
        save(again, folder, description="mine,\n  and good", classes=["\xa0\u200d"] * 10)
        assert swag_models.get_spec(folder).description == "mine, and good"

    def test_saved_weights_can_be_verified(self, folder: Path) -> None:
        save(load_tiny(), folder)
        (check,) = verify_weights(load_model(folder).spec)
        assert check.ok
        assert check.path == str(folder / "model.safetensors")

    def test_a_catalog_name_takes_precedence_over_a_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        save(load_tiny(), Path(NANO))
        assert swag_models.get_spec(NANO).num_classes == 65
        assert swag_models.get_spec(NANO).arch == "vit_nano"
        assert swag_models.get_spec(f"./{NANO}").arch == "vit_b16"
        assert swag_models.get_spec(Path(NANO)).arch == "vit_b16"

    @pytest.mark.parametrize("name", ["no/such", "~/no_such_model", Path("no_such")])
    def test_a_missing_folder_is_an_error_of_one_line(self, name: str | Path) -> None:
        with pytest.raises(
            UnknownModelError,
            match=r"folder .*no_?/?such.* does not exist; "
            "a repository of the Hub is written hf-hub:org/repo",
        ):
            load_model(name)

    def test_a_file_instead_of_a_folder_is_an_error_with_the_fix(self, folder: Path) -> None:
        save(load_tiny(), folder)
        with pytest.raises(
            UnknownModelError, match=r"is a file, not a folder; .* weights='.*model.safetensors'"
        ):
            load_model(folder / "model.safetensors")


class TestShards:
    @every_family
    def test_large_weights_are_sharded_and_load(self, family: str, folder: Path) -> None:
        model = load_tiny(family)
        save(model, folder, max_shard_size=20_000)
        shards = sorted(path.name for path in folder.glob("*.safetensors"))
        assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
        assert len(shards) > 2
        loaded = load_model(folder)
        assert_same(loaded, model)
        assert all(check.ok for check in verify_weights(loaded.spec))
        assert len(verify_weights(loaded.spec)) == 1 + len(shards)

    def test_a_mapped_model_is_sharded_by_the_size_of_its_tensors(
        self, folder: Path, tmp_path: Path
    ) -> None:
        save(load_tiny(), folder)
        mapped = load_model(folder)
        save(mapped, tmp_path / "whole", max_shard_size=10**6)
        assert (tmp_path / "whole" / "model.safetensors").exists()
        again = save(mapped, folder, max_shard_size=30_000)
        sizes = [
            sum(tensor.nbytes for tensor in load_file(path).values())
            for path in sorted(again.glob("*.safetensors"))
        ]
        assert max(sizes) <= 30_000
        assert len(sizes) > 2
        assert json.loads((again / INDEX_FILE).read_text())["metadata"]["total_size"] == sum(sizes)
        assert_same(load_model(folder), mapped)

    def test_huggingface_hub_loads_the_shards(self, folder: Path) -> None:
        from huggingface_hub import load_torch_model

        model = load_tiny()
        save(model, folder, max_shard_size=20_000)
        other = load_tiny()
        # `strict` would be applied to each shard before huggingface_hub 1.33
        load_torch_model(other, folder, weights_only=True)
        assert_same(other, model)

    def test_files_of_an_earlier_save_are_deleted(self, folder: Path) -> None:
        model = load_tiny()
        save(model, folder)
        save(model, folder, max_shard_size=20_000)
        assert not (folder / "model.safetensors").exists()
        assert_same(load_model(folder), model)
        save(model, folder)
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            CONFIG_FILE,
            "model.safetensors",
        ]
        assert_same(load_model(folder), model)

    def test_a_corrupted_shard_is_an_error(self, folder: Path) -> None:
        save(load_tiny(), folder, max_shard_size=20_000)
        shard = sorted(folder.glob("*.safetensors"))[1]
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        with pytest.raises(FetchError, match=rf"{shard.name}: SHA-256 is \w+, not \w+"):
            load_model(folder)

    def test_a_missing_shard_is_an_error_naming_it(self, folder: Path) -> None:
        save(load_tiny(), folder, max_shard_size=20_000)
        shard = sorted(folder.glob("*.safetensors"))[1]
        shard.unlink()
        with pytest.raises(FetchError, match=f"{shard.name}: no such file"):
            load_model(folder)
        with pytest.raises(
            CheckpointError, match=f"names {shard.name}, which is not in the same folder"
        ):
            load_model(VIT_SPEC, weights=folder / INDEX_FILE)

    def test_the_index_loads_as_a_checkpoint(self, folder: Path) -> None:
        model = load_tiny()
        save(model, folder, max_shard_size=20_000)
        assert_same(load_model(VIT_SPEC, weights=folder / INDEX_FILE), model)

    def test_a_tensor_in_two_shards_is_an_error(self, folder: Path) -> None:
        save(load_tiny(), folder, max_shard_size=20_000)
        first, second = sorted(folder.glob("*.safetensors"))[:2]
        extra = dict(list(load_file(first).items())[:1])
        save_file({**load_file(second), **extra}, second)
        with pytest.raises(
            CheckpointError,
            match=f"does not contain the tensors that {INDEX_FILE} lists; "
            f"they differ in {next(iter(extra))}",
        ):
            load_model(VIT_SPEC, weights=folder / INDEX_FILE)


class TestFolder:
    def test_a_model_can_be_saved_to_the_folder_that_it_is_mapped_from(self, folder: Path) -> None:
        save(load_tiny(), folder)
        model = load_model(folder)
        with torch.no_grad():
            model.norm.bias += 1
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        save(model, folder)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert_same(load_model(folder), model)

    def test_weights_that_differ_from_the_config_are_an_error(
        self, folder: Path, tmp_path: Path
    ) -> None:
        save(load_tiny(), folder)
        other = save(load_tiny(), tmp_path / "other")
        os.replace(other / "model.safetensors", folder / "model.safetensors")
        with pytest.raises(FetchError, match=r"SHA-256 is \w{64}, not \w{64}") as caught:
            load_model(folder)
        assert "copied by hand" not in str(caught.value)

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_after_a_kill_the_folder_loads_as_before_or_not_at_all(self, folder: Path) -> None:
        script = """
import os, signal, sys, torch
from swag_models import load_model
from swag_models.publish import push, save
folder, replaced = sys.argv[1], os.replace
model = load_model("vit_nano_hashtags")
for moment in range(3):
    if os.fork() == 0:
        calls = iter(range(9))
        def replace(source, target):
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            replaced(source, target)
        os.replace = replace
        with torch.no_grad():
            model.norm.bias += 1
        save(model, f"{folder}{moment}")
    assert os.wait()[1] == signal.SIGKILL
"""
        model = load_model(NANO)
        for moment in range(3):
            save(model, f"{folder}{moment}")
        subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(folder)], check=True)
        assert_same(load_model(f"{folder}0"), model)  # nothing has been replaced
        for moment in (1, 2):  # the weights have been replaced, config.json has not
            with pytest.raises(FetchError, match="SHA-256"):
                load_model(f"{folder}{moment}")

    def test_a_folder_that_cannot_be_created_is_an_error_of_one_line(self, folder: Path) -> None:
        folder.write_text("a file")
        with pytest.raises(PublishError, match=f"cannot create the folder {folder}: File exists"):
            save(load_tiny(), folder)

    def test_a_full_disk_is_an_error_of_one_line_and_leaves_no_file(self, folder: Path) -> None:
        from fetch_support import small_disk

        model = load_model(
            replace(VIT_SPEC, classes=None, config=replace(VIT_SPEC.config, width=256)),  # type: ignore[arg-type]
            pretrained=False,
        )
        with small_disk(folder, 0.5) as disk:
            with pytest.raises(
                PublishError, match=r"cannot write .*model.safetensors: .*(No space|space left)"
            ):
                save(model, disk)
            assert not list(disk.iterdir())


def test_saving_an_unchanged_model_logs_nothing(folder: Path, caplog: Caplog) -> None:
    with caplog.at_level(logging.DEBUG, "swag_models"):
        save(load_model(NANO), folder)
    assert not caplog.messages


def test_synsets_are_kept_with_their_classes(tmp_path: Path) -> None:
    model = swag_models.load_model("vit_nano_hashtags")
    save(model, tmp_path / "kept")
    assert (
        swag_models.get_spec(tmp_path / "kept").synsets
        == swag_models.get_spec("vit_nano_hashtags").synsets
    )
    model.reset_classifier(2)
    save(model, tmp_path / "other", classes=["cat", "dog"])
    assert swag_models.get_spec(tmp_path / "other").synsets is None
    save(
        model,
        tmp_path / "named",
        classes=["cat", "dog"],
        synsets=["n02121620", "n02084071"],
        training="For an hour.",
    )
    assert swag_models.get_spec(tmp_path / "named").synsets == ("n02121620", "n02084071")
    assert "\nFor an hour.\n" in (tmp_path / "named" / "README.md").read_text()
    with pytest.raises(ConfigError, match="1 synset for 2 classes; pass one WordNet id each"):
        save(model, tmp_path / "wrong", classes=["cat", "dog"], synsets=["n02121620"])


def test_the_recipe_of_earlier_weights_is_deleted_first(folder: Path) -> None:
    save(load_tiny(), folder)
    for name in ("recipe.json", "vocabulary.parquet"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()  # so that writing the weights fails
    with pytest.raises(PublishError):
        save(load_tiny(), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_recipe_and_vocabulary_in_the_folder_are_pushed(tmp_path: Path) -> None:
    save(swag_models.load_model("vit_nano_hashtags"), tmp_path / "model")
    for name in ("recipe.json", "vocabulary.parquet", "notes.txt"):
        (tmp_path / "model" / name).write_text("{}")
    names = [name for name, _ in push(tmp_path / "model", "org/repo", dry_run=True).files]
    assert sorted(names) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.json",
        "vocabulary.parquet",
    ]
