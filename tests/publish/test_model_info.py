"""The spec of a published model is correct; models that it cannot describe are rejected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import VIT_SPEC, load_tiny
from torch import nn

import swag_models
from swag_models import load_classes, load_model
from swag_models.errors import ConfigError
from swag_models.publish import save
from swag_models.spec import Metrics, ModelSpec

NANO = "vit_nano_hashtags"
Caplog = pytest.LogCaptureFixture

pytestmark = pytest.mark.usefixtures("caches")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "my_model"


class TestPublishedSpec:
    """The spec of a published model holds nothing that no longer applies."""

    def spec_of(self, model: nn.Module, folder: Path, **options: Any) -> ModelSpec:
        """Save a model and read its spec."""
        return swag_models.get_spec(save(model, folder, **options))

    def test_numbers_are_those_of_the_changed_model(self, folder: Path) -> None:
        model = load_model(NANO, num_classes=3, image_size=96, in_chans=1)
        spec = self.spec_of(model, folder)
        assert spec.num_params == sum(parameter.numel() for parameter in model.parameters())
        assert (spec.num_classes, spec.image_size, spec.in_chans) == (3, 96, 1)
        assert spec.gmacs > 4 * swag_models.get_spec(NANO).gmacs

    def test_gmacs_equal_those_of_the_catalog(self) -> None:
        from swag_models.publish.model_info import count_gmacs

        specs = list(map(swag_models.get_spec, swag_models.list_models()))
        assert [count_gmacs(spec) for spec in specs] == [spec.gmacs for spec in specs]

    def test_accuracy_is_only_taken_from_the_caller(self, folder: Path) -> None:
        model = load_model(NANO)
        assert model.spec is not None
        assert model.spec.metrics is not None
        assert self.spec_of(model, folder).metrics is None
        measured = Metrics("my own", top1=50.0, top5=90.5)
        assert self.spec_of(model, folder, metrics=measured).metrics == measured
        assert self.spec_of(load_model(folder), folder).metrics is None

    @pytest.mark.parametrize(
        ("metrics", "datasets", "expected"),
        [
            ({"dataset": "flowers", "top1": 91.5}, (), Metrics("flowers", 91.5)),
            ({"dataset": "flowers", "top1": 91, "top5": 99}, (), Metrics("flowers", 91.0, 99.0)),
            ({"top1": 91.5}, ("org/flowers",), Metrics("org/flowers", 91.5)),
            ({"dataset": "x", "top1": torch.tensor(50.0)}, (), Metrics("x", 50.0)),
            ({"dataset": "x", "top1": np.float32(50)}, ("org/y",), Metrics("x", 50.0)),
        ],
    )
    def test_metrics_may_be_a_dict(
        self, metrics: Any, datasets: tuple[str, ...], expected: Metrics, folder: Path
    ) -> None:
        spec = self.spec_of(load_tiny(), folder, metrics=metrics, datasets=datasets)
        assert spec.metrics == expected

    @pytest.mark.parametrize(
        ("metrics", "message"),
        [
            ({"top1": 70}, "metrics has no dataset; name the one"),
            ({"dataset": "x"}, "metrics: missing 1 required .*'top1'"),
            ({"dataset": "x", "top1": "70"}, "metrics.top1 is '70'"),
            ({"dataset": "x", "top1": 101}, "top1 is 101"),
            ({"dataset": "x", "top1": float("nan")}, "metrics.top1 is nan"),
            ({"dataset": "x", "top1": 70, "f1": 3}, "metrics has no field f1; fields: dataset"),
            ({"dataset": "x", 3: 70}, "metrics has no field 3"),
            ({"dataset": "a\nb", "top1": 70}, "control characters"),
            ({"dataset": "x", "top1": torch.ones(2)}, "metrics.top1 is of type Tensor"),
            (70, "invalid metrics 70: allowed: a dict such as"),
            ([("top1", 70)], "invalid metrics"),
        ],
    )
    def test_other_metrics_are_rejected(self, metrics: Any, message: str, folder: Path) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            save(load_tiny(), folder, metrics=metrics)
        assert str(caught.value).isprintable()
        assert not folder.exists()

    def test_class_names_are_kept_with_a_head_of_their_size(
        self, folder: Path, caplog: Caplog
    ) -> None:
        model = load_model(NANO)
        assert self.spec_of(model, folder).classes == swag_models.load_classes(NANO)
        assert load_classes(folder)[:2] == ("flower", "car")
        model.reset_classifier(2)
        assert self.spec_of(model, folder).classes is None
        assert "my_model: no names for its 2 classes; pass them as classes=[...]" in caplog.text
        with pytest.raises(
            ConfigError, match="my_model has 2 classes without names; name them with publish"
        ):
            load_classes(folder)
        assert self.spec_of(model, folder, classes=["cat", "dog"]).classes == ("cat", "dog")
        assert load_classes(folder) == ("cat", "dog")
        model.reset_classifier(None)
        assert self.spec_of(model, folder).classes is None
        message = (
            "my_model gives features and has no classes; models with classes: vit_nano_hashtags"
        )
        with pytest.raises(ConfigError, match=message):
            load_classes(folder)

    @pytest.mark.parametrize(
        ("num_classes", "classes", "message"),
        [
            (2, ["cat"], "1 class name for 2 classes"),
            (2, [1, 2], "pass one string each"),
            (None, ["cat"], "1 class name for no classes"),
            (2, ["cat", "d\no\x1bg"], r"my_model: 'd\\no\\x1bg' has control characters"),
            (2, "imagenet-1k", "invalid classes 'imagenet-1k': pass 2 names"),
            (1000, "imagenet-21k", "invalid classes 'imagenet-21k': pass 1,000 names"),
        ],
    )
    def test_class_names_that_do_not_fit_are_rejected(
        self, num_classes: int | None, classes: Any, message: str, folder: Path
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            save(load_tiny(num_classes=num_classes), folder, classes=classes)
        assert not folder.exists()

    def test_a_label_set_can_be_passed_by_name(self, folder: Path) -> None:
        save(load_tiny(num_classes=1000), folder, classes="imagenet-1k")
        assert load_classes(folder)[:2] == ("tench", "goldfish")

    def test_the_licence_of_the_weights_is_kept(
        self, folder: Path, tmp_path: Path, caplog: Caplog
    ) -> None:
        save_file(load_tiny().state_dict(), tmp_path / "other.safetensors")
        origin = replace(VIT_SPEC, classes=None)
        model = load_model(origin, weights=tmp_path / "other.safetensors")
        spec = self.spec_of(model, folder)
        assert (spec.license, spec.license_url) == (VIT_SPEC.license, VIT_SPEC.license_url)
        assert spec.license == "cc-by-nc-4.0"
        assert not caplog.messages
        assert self.spec_of(load_model(folder), folder).license == "cc-by-nc-4.0"
        assert self.spec_of(model, folder, license="MIT").license == "mit"
        warning = "my_model: the weights derive from tiny_vit, licensed CC-BY-NC-4.0 (https"
        assert warning in caplog.text

    def test_untrained_weights_have_no_licence_until_one_is_passed(
        self, folder: Path, caplog: Caplog
    ) -> None:
        model = load_model("vit_b16", pretrained=False, image_size=32, num_classes=2)
        assert model.spec is not None
        assert (model.spec.metrics, model.spec.license, model.spec.sources) == (None, "unknown", ())
        model = load_tiny()
        assert self.spec_of(model, folder).license == "unknown"
        warning = 'my_model: no licence is known for these weights; state it with license="..."'
        assert warning in caplog.text
        spec = self.spec_of(model, folder, license="mit", license_url="https://x/license")
        assert (spec.license, spec.license_url) == ("mit", "https://x/license")

    @pytest.mark.parametrize(("name", "expected"), [("two words", "two-words"), ("_x.1", "_x.1")])
    def test_the_default_name_is_the_folders(
        self, name: str, expected: str, tmp_path: Path
    ) -> None:
        assert self.spec_of(load_tiny(), tmp_path / name).name == expected

    def test_an_invalid_name_is_rejected(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="invalid name 'a/b': allowed: letters, digits and"):
            save(load_tiny(), folder, name="a/b")


class TestRejectedModels:
    """Models that config.json cannot describe are rejected before anything is written."""

    @pytest.fixture(autouse=True)
    def _nothing_is_written(self, folder: Path) -> Any:
        yield
        assert not folder.exists()

    def check_rejected(self, model: Any, folder: Path, message: str) -> None:
        """`save` raises an error of one line."""
        with pytest.raises(ConfigError, match=message) as caught:
            save(model, folder)
        assert "\n" not in str(caught.value)

    def test_models_of_other_libraries_are_rejected(self, folder: Path) -> None:
        self.check_rejected(
            nn.Linear(2, 2),
            folder,
            "cannot publish a Linear; pass the model that load_model returned",
        )

    def test_peft_models_are_rejected(self, folder: Path) -> None:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(target_modules=["qkv"], r=2)
        self.check_rejected(
            peft.get_peft_model(load_tiny(), config),
            folder,
            r"cannot publish a PeftModel; .* merge_and_unload\(\)",
        )

    def test_models_with_injected_adapters_are_rejected(self, folder: Path) -> None:
        peft = pytest.importorskip("peft")
        model = load_tiny()
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["qkv"], r=2), model)
        self.check_rejected(
            model, folder, "tensors differ from those of a vit_b16 .*qkv.* merge adapters into it"
        )

    def test_models_with_another_head_are_rejected(self, folder: Path) -> None:
        model = load_tiny()
        model.head = nn.Linear(32, 4)
        self.check_rejected(
            model, folder, r"tensors differ from those of a vit_b16 \(head.bias, head.weight\)"
        )

    def test_quantised_models_are_rejected(self, folder: Path) -> None:
        model = load_tiny()
        model.head.weight = nn.Parameter(torch.zeros(10, 32, dtype=torch.int8), requires_grad=False)
        self.check_rejected(
            model, folder, "head.weight is torch.int8; publish the model before quantising"
        )

    def test_models_without_weights_are_rejected(self, folder: Path) -> None:
        self.check_rejected(load_tiny().to("meta"), folder, "on the meta device and has no weights")

    def test_models_of_unknown_origin_are_rejected(self, folder: Path) -> None:
        from swag_models.models import build

        model = build(VIT_SPEC.config, num_classes=2, image_size=64)
        message = "a model of unknown origin: make it with load_model, or set its attribute spec"
        self.check_rejected(model, folder, message)
        model.spec = VIT_SPEC
        assert save(model, folder.with_name("other")).is_dir()


def test_a_loaded_model_has_the_spec_that_it_was_loaded_from(tmp_path: Path) -> None:
    spec = swag_models.get_spec(NANO)
    assert load_model(NANO).spec == spec
    assert load_model(NANO, num_classes=3).spec == spec
    save_file(load_model(NANO).state_dict(), tmp_path / "x.safetensors")
    spec_of_file = load_model(NANO, weights=tmp_path / "x.safetensors").spec
    assert spec_of_file == replace(spec, metrics=None, sources=())
