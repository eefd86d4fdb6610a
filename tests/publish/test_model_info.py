"""What a published model says of itself holds; what cannot be said is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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


class TestWhatIsSaid:
    """The spec of a published model claims nothing that does not hold."""

    def spec_of(self, model: nn.Module, folder: Path, **options: Any) -> ModelSpec:
        return swag_models.get_spec(save(model, folder, **options))

    def test_numbers_are_those_of_the_model_as_it_is(self, folder: Path) -> None:
        model = load_model(NANO, num_classes=3, image_size=96, in_chans=1)
        spec = self.spec_of(model, folder)
        assert spec.num_params == sum(parameter.numel() for parameter in model.parameters())
        assert (spec.num_classes, spec.image_size, spec.in_chans) == (3, 96, 1)
        assert spec.gmacs > 4 * swag_models.get_spec(NANO).gmacs

    @pytest.mark.parametrize("name", ["vit_b16_in1k", "regnety_16gf_in1k"])
    def test_gmacs_are_counted_as_in_the_catalog(self, name: str) -> None:
        from swag_models.publish.model_info import count_gmacs

        spec = swag_models.get_spec(name)
        assert count_gmacs(spec) == spec.gmacs

    def test_accuracy_is_only_what_the_caller_measured(self, folder: Path) -> None:
        model = load_model(NANO)
        assert model.spec is not None
        assert model.spec.metrics is not None
        assert self.spec_of(model, folder).metrics is None
        measured = Metrics("my own", top1=50.0, top5=90.5)
        assert self.spec_of(model, folder, metrics=measured).metrics == measured
        assert self.spec_of(load_model(folder), folder).metrics is None

    def test_class_names_go_with_a_head_of_their_size(self, folder: Path, caplog: Caplog) -> None:
        model = load_model(NANO)
        assert self.spec_of(model, folder).classes == swag_models.load_classes(NANO)
        assert load_classes(folder)[:2] == ("flower", "car")
        model.reset_classifier(2)
        assert self.spec_of(model, folder).classes is None
        assert "my_model: its 2 classes have no names; give them with classes=[...]" in caplog.text
        with pytest.raises(
            ConfigError, match="my_model has 2 classes without names; save it again with classes="
        ):
            load_classes(folder)
        assert self.spec_of(model, folder, classes=["cat", "dog"]).classes == ("cat", "dog")
        assert load_classes(folder) == ("cat", "dog")
        model.reset_classifier(None)
        assert self.spec_of(model, folder).classes is None
        with pytest.raises(
            ConfigError,
            match="my_model gives features and has no classes; models with classes: vit_nano_hashtags",
        ):
            load_classes(folder)

    @pytest.mark.parametrize(
        ("num_classes", "classes", "message"),
        [
            (2, ["cat"], "1 class names for 2 classes"),
            (2, [1, 2], "give one string for each"),
            (None, ["cat"], "1 class names for no classes"),
            (2, ["cat", "d\no\x1bg"], r"my_model: 'd\\no\\x1bg' holds control characters"),
            (2, "imagenet-1k", "classes is 'imagenet-1k'; give 2 names"),
            (1000, "imagenet-21k", "classes is 'imagenet-21k'; give 1000 names"),
        ],
    )
    def test_class_names_that_do_not_fit_are_refused(
        self, num_classes: int | None, classes: Any, message: str, folder: Path
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            save(load_tiny(num_classes=num_classes), folder, classes=classes)
        assert not folder.exists()

    def test_a_label_set_can_be_named(self, folder: Path) -> None:
        save(load_tiny(num_classes=1000), folder, classes="imagenet-1k")
        assert load_classes(folder)[:2] == ("tench", "goldfish")

    def test_a_licence_goes_with_the_weights(
        self, folder: Path, tmp_path: Path, caplog: Caplog
    ) -> None:
        save_file(load_tiny().state_dict(), tmp_path / "theirs.safetensors")
        model = load_model(VIT_SPEC, weights=tmp_path / "theirs.safetensors")
        spec = self.spec_of(model, folder)
        assert (
            (spec.license, spec.license_url)
            == (VIT_SPEC.license, VIT_SPEC.license_url)
            == ("cc-by-nc-4.0", spec.license_url)
        )
        assert not caplog.messages
        assert self.spec_of(load_model(folder), folder).license == "cc-by-nc-4.0"
        assert self.spec_of(model, folder, license="MIT").license == "mit"
        assert (
            "my_model: the weights derive from tiny_vit, licensed CC-BY-NC-4.0 (https"
            in caplog.text
        )

    def test_weights_of_ones_own_have_no_licence_until_one_is_stated(
        self, folder: Path, caplog: Caplog
    ) -> None:
        model = load_model("vit_b16", pretrained=False, image_size=32, num_classes=2)
        assert model.spec is not None
        assert (model.spec.metrics, model.spec.license, model.spec.sources) == (None, "unknown", ())
        model = load_tiny()
        assert self.spec_of(model, folder).license == "unknown"
        assert (
            'my_model: no licence is known for these weights; say which with license="..."'
            in caplog.text
        )
        spec = self.spec_of(model, folder, license="mit", license_url="https://x/license")
        assert (spec.license, spec.license_url) == ("mit", "https://x/license")

    @pytest.mark.parametrize(("name", "expected"), [("two words", "two-words"), ("_x.1", "_x.1")])
    def test_a_name_is_the_folders(self, name: str, expected: str, tmp_path: Path) -> None:
        assert self.spec_of(load_tiny(), tmp_path / name).name == expected

    def test_a_name_that_cannot_be_is_refused(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="name is 'a/b'; use letters, digits and"):
            save(load_tiny(), folder, name="a/b")


class TestForeignModels:
    """What config.json cannot tell is refused in one line, before anything is written."""

    @pytest.fixture(autouse=True)
    def _nothing_is_written(self, folder: Path) -> Any:
        yield
        assert not folder.exists()

    def refuse(self, model: Any, folder: Path, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            save(model, folder)
        assert "\n" not in str(caught.value)

    def test_of_other_libraries(self, folder: Path) -> None:
        self.refuse(
            nn.Linear(2, 2),
            folder,
            "cannot publish a Linear; give the model that load_model returned",
        )

    def test_compiled(self, folder: Path) -> None:
        model = load_tiny()
        self.refuse(
            torch.compile(model), folder, "cannot publish a OptimizedModule; .* its _orig_mod"
        )

    def test_with_adapters_around_it(self, folder: Path) -> None:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(target_modules=["qkv"], r=2)
        self.refuse(
            peft.get_peft_model(load_tiny(), config),
            folder,
            r"cannot publish a PeftModel; .* merge_and_unload\(\)",
        )

    def test_with_adapters_in_it(self, folder: Path) -> None:
        peft = pytest.importorskip("peft")
        model = load_tiny()
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["qkv"], r=2), model)
        self.refuse(
            model, folder, "tensors are not those of a vit_b16 .*qkv.* merge adapters into it"
        )

    def test_with_another_head(self, folder: Path) -> None:
        model = load_tiny()
        model.head = nn.Linear(32, 4)
        self.refuse(model, folder, r"tensors are not those of a vit_b16 \(head.bias, head.weight\)")

    def test_with_whole_numbers_for_weights(self, folder: Path) -> None:
        model = load_tiny()
        model.head.weight = nn.Parameter(torch.zeros(10, 32, dtype=torch.int8), requires_grad=False)
        self.refuse(
            model, folder, "head.weight is torch.int8; publish the model before it is quantised"
        )

    def test_without_weights(self, folder: Path) -> None:
        self.refuse(load_tiny().to("meta"), folder, "on the meta device and has no weights")

    def test_of_unknown_origin(self, folder: Path) -> None:
        from swag_models.models import build

        model = build(VIT_SPEC.config, num_classes=2, image_size=64)
        self.refuse(
            model,
            folder,
            "does not say where it came from; make it with load_model, or set its attribute spec",
        )
        model.spec = VIT_SPEC
        assert save(model, folder.with_name("other")).is_dir()


def test_a_model_knows_where_it_came_from(tmp_path: Path) -> None:
    spec = swag_models.get_spec(NANO)
    assert load_model(NANO).spec == spec
    assert load_model(NANO, num_classes=3).spec == spec
    save_file(load_model(NANO).state_dict(), tmp_path / "x.safetensors")
    own = load_model(NANO, weights=tmp_path / "x.safetensors").spec
    assert own == replace(spec, metrics=None, sources=())
