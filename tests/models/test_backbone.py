"""Models of both families: heads, rates, errors, parameter counts, compilers, training."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import timm.models._manipulate as timm_manipulate
import torch
from PIL import Image
from tiny import CONFIGS, IMAGE_SIZE, TINY_SPECS, deviation, images, tiny, torchvision_twin
from torch import nn

from swag_models import load_model
from swag_models.catalog import MODELS
from swag_models.errors import ConfigError, SwagModelsError
from swag_models.models import build
from swag_models.models.drop_path import DropPath
from swag_models.spec import ModelSpec

FAMILIES = ("vit", "regnet")
ARCHITECTURES = ("vit_b16", "vit_l16", "vit_h14", "regnety_16gf", "regnety_32gf", "regnety_128gf")
FULL_SIZE = {spec.arch: spec for spec in MODELS if spec.arch in ARCHITECTURES and spec.num_classes}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.name)
def test_parameter_count_is_the_catalogs(spec: ModelSpec) -> None:
    with torch.device("meta"):
        model = build(spec.config, num_classes=spec.num_classes, image_size=spec.image_size)
    assert count(model) == spec.num_params


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parameter_count_is_torchvisions(arch: str) -> None:
    with torch.device("meta"):
        model = build(FULL_SIZE[arch].config, num_classes=1000, image_size=224)
    reference = torchvision_twin(FULL_SIZE[arch].config, 1000, 224, device="meta")
    assert count(model) == count(reference)


@pytest.mark.parametrize("family", FAMILIES)
def test_building_on_meta_allocates_nothing_and_imports_no_symbolic_shapes(family: str) -> None:
    name = {"vit": "vit_h14", "regnet": "regnety_128gf"}[family]
    code = f"""
import resource, sys, torch
from swag_models import get_spec
from swag_models.models import build
before, peak = set(sys.modules), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.device("meta"):
    model = build(get_spec("{name}").config, num_classes=1000, image_size=224)
assert all(tensor.is_meta for tensor in model.state_dict().values())
heavy = ("sympy", "torch._decomp", "torch._dynamo", "torch._inductor", "torch._refs")
assert not [name for name in set(sys.modules) - before if name.startswith(heavy)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    kibibytes = int(run.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kibibytes < 100 * 1024


@pytest.mark.parametrize("family", FAMILIES)
class TestHead:
    def test_logits_are_the_head_of_the_pooled_features(self, family: str) -> None:
        model = tiny(family)
        batch = images()
        features = model.forward_features(batch)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        assert torch.equal(model.get_classifier()(pooled), model(batch))
        assert torch.equal(model.forward_head(features), model(batch))

    def test_no_head_gives_features(self, family: str) -> None:
        model = tiny(family, num_classes=None)
        assert isinstance(model.get_classifier(), nn.Identity)
        assert not [key for key in model.state_dict() if key.startswith("head")]

    def test_reset_classifier_initialises_a_new_head(self, family: str) -> None:
        model = tiny(family).to(torch.bfloat16)
        backbone = {
            key: tensor for key, tensor in model.state_dict().items() if not key.startswith("head")
        }
        model.reset_classifier(3)
        head = model.get_classifier()
        assert isinstance(head, nn.Linear)
        assert (head.out_features, head.weight.dtype, model.num_classes) == (3, torch.bfloat16, 3)
        assert head.weight.requires_grad
        assert float(head.weight.detach().abs().max()) < 0.1
        assert not head.bias.any()
        assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in backbone.items())

    @pytest.mark.parametrize("none", [None, 0])
    def test_reset_classifier_can_remove_the_head(self, family: str, none: int | None) -> None:
        model = tiny(family)
        batch = images()
        pooled = model.forward_head(model.forward_features(batch), pre_logits=True)
        model.reset_classifier(none)
        assert model.num_classes == 0
        output = model(batch)
        # The original's RegNet returns its map; timm's is pooled.
        assert output.ndim == (4 if family == "regnet" and none is None else 2)
        torch.testing.assert_close(
            output if output.ndim == 2 else output.mean((2, 3)), pooled, rtol=0, atol=0
        )

    def test_reset_classifier_works_on_meta(self, family: str) -> None:
        with torch.device("meta"):
            model = build(CONFIGS[family], num_classes=None, image_size=IMAGE_SIZE)
            model.reset_classifier(4)
        assert model.get_classifier().weight.shape == (4, model.num_features)

    def test_reset_classifier_rejects_a_negative_number(self, family: str) -> None:
        model = tiny(family)
        with pytest.raises(
            ConfigError, match=r"num_classes is -2; give a positive number, or None"
        ):
            model.reset_classifier(-2)
        assert (model.num_classes, model(images()).shape) == (10, (2, 10))


@pytest.mark.parametrize("family", FAMILIES)
class TestStem:
    @pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 7])
    def test_pretrained_stem_is_adapted_as_timm_does(
        self, family: str, in_chans: int, tmp_path: Any
    ) -> None:
        source = tiny(family)
        torch.save(source.state_dict(), tmp_path / "three.pth")
        model = load_model(TINY_SPECS[family], weights=tmp_path / "three.pth", in_chans=in_chans)
        key = {"vit": "patch_embed.proj.weight", "regnet": "stem.conv.weight"}[family]
        expected = timm_manipulate.adapt_input_conv(in_chans, source.state_dict()[key])
        torch.testing.assert_close(model.state_dict()[key], expected, rtol=0, atol=1e-7)
        assert model(images(in_chans=in_chans)).shape == (2, 10)

    def test_grey_model_equals_the_original_on_grey_images(
        self, family: str, tmp_path: Any
    ) -> None:
        torch.save(tiny(family).state_dict(), tmp_path / "three.pth")
        colour, grey = (
            load_model(TINY_SPECS[family], weights=tmp_path / "three.pth", in_chans=n)
            for n in (3, 1)
        )
        batch = images(in_chans=1)
        assert deviation(grey(batch), colour(batch.expand(-1, 3, -1, -1))) < 1e-4

    @pytest.mark.parametrize("shape", [(2, 4, 64, 64), (3, 64, 64), (2, 1, 64, 64)])
    def test_input_of_another_shape_is_rejected(self, family: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(
            ConfigError, match=r"input has shape \(.*\); expected \(N, 3, H, W\)"
        ) as error:
            tiny(family)(torch.zeros(shape))
        assert str(shape) in str(error.value)

    @pytest.mark.parametrize("side", [1_000_000, 16_416])
    def test_input_that_no_memory_holds_is_rejected(self, family: str, side: int) -> None:
        model = tiny(family)
        images = torch.zeros(1).expand(1, 3, side, side)
        with pytest.raises(ConfigError, match=rf"image size {side}x{side} is too large; allowed"):
            model(images)
        with pytest.raises(ConfigError, match="is too large"):
            model.forward_intermediates(images)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_input_of_another_precision_is_torchs_error(
        self, family: str, dtype: torch.dtype
    ) -> None:
        images = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=dtype)
        with pytest.raises(RuntimeError) as error:
            tiny(family)(images)
        assert not isinstance(error.value, SwagModelsError)

    def test_input_that_was_not_preprocessed_is_rejected(self, family: str) -> None:
        model = tiny(family)
        with pytest.raises(
            ConfigError, match=r"input is a tensor of torch\.uint8; give load_preprocess"
        ):
            model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        with pytest.raises(ConfigError, match="input is of type Image; give load_preprocess"):
            model(Image.new("RGB", (64, 64)))


class TestRates:
    @pytest.mark.parametrize(
        ("family", "name"),
        [
            ("vit", "drop_rate"),
            ("vit", "attn_drop_rate"),
            ("vit", "drop_path_rate"),
            ("regnet", "drop_rate"),
            ("regnet", "drop_path_rate"),
        ],
    )
    def test_rate_acts_in_training_only(self, family: str, name: str) -> None:
        model, plain = tiny(family, **{name: 0.5}), tiny(family)
        plain.load_state_dict(model.state_dict())
        batch = images(8)
        assert torch.equal(model(batch), plain(batch))
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        assert not torch.equal(model(batch), model(batch))

    def test_stochastic_depth_drops_whole_samples_and_keeps_the_expectation(self) -> None:
        scaled = DropPath(0.3).train()(torch.ones(20_000, 2, 3)).flatten(1)
        assert torch.equal(scaled, scaled[:, :1].expand(-1, 6))
        assert torch.allclose(scaled.unique(), torch.tensor([0.0, 1 / 0.7]))
        assert abs(float(scaled.mean()) - 1) < 0.03

    def test_a_branch_that_is_never_dropped_draws_no_random_numbers(self) -> None:
        state, x = torch.get_rng_state(), torch.ones(2, 3)
        assert torch.equal(DropPath(0.0).train()(x), x)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_stochastic_depth_grows_linearly_to_the_last_layer(self, family: str) -> None:
        model = build(CONFIGS[family], num_classes=None, image_size=IMAGE_SIZE, drop_path_rate=0.3)
        rates = torch.tensor(
            [
                module.rate
                for name, module in model.named_modules()
                if isinstance(module, DropPath) and not name.endswith("drop_path2")
            ]
        )
        assert torch.allclose(rates, torch.linspace(0, 0.3, CONFIGS[family].depth))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_dropout_before_the_head_keeps_the_expectation(self, family: str) -> None:
        model = tiny(family, drop_rate=0.4)
        features = model.forward_features(images(1)).detach()
        expected = model.forward_head(features)
        many = model.train().forward_head(features.expand(20_000, *features.shape[1:]))
        assert deviation(many.mean(dim=0, keepdim=True), expected) < 0.05

    @pytest.mark.parametrize("family", FAMILIES)
    def test_rates_are_0_by_default(self, family: str) -> None:
        built = build(CONFIGS[family], num_classes=4, image_size=IMAGE_SIZE)
        size = (IMAGE_SIZE, IMAGE_SIZE)
        model = type(built)(CONFIGS[family], num_classes=4, image_size=size)  # type: ignore[arg-type]
        assert str(model) == str(built)
        for module in model.modules():
            for rate in ("rate", "drop_rate"):
                assert getattr(module, rate, 0) == 0
        assert (model.in_chans, model.head_drop.p) == (3, 0)

    @pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
    @pytest.mark.parametrize("name", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
    def test_invalid_rate_is_rejected(self, name: str, rate: float) -> None:
        with pytest.raises(ConfigError, match=rf"{name} is {rate}; give a number of at least 0"):
            build(CONFIGS["vit"], num_classes=None, image_size=IMAGE_SIZE, **{name: rate})  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
class TestInvalidArguments:
    @pytest.mark.parametrize("num_classes", [-3, -1])
    def test_invalid_number_of_classes(self, family: str, num_classes: int) -> None:
        with pytest.raises(
            ConfigError, match=rf"num_classes is {num_classes}; give a positive number, or None"
        ):
            build(CONFIGS[family], num_classes=num_classes, image_size=IMAGE_SIZE)

    @pytest.mark.parametrize("in_chans", [0, -3])
    def test_invalid_channels(self, family: str, in_chans: int) -> None:
        with pytest.raises(ConfigError, match=rf"in_chans is {in_chans}; give a positive number"):
            build(CONFIGS[family], num_classes=1, image_size=IMAGE_SIZE, in_chans=in_chans)

    @pytest.mark.parametrize(
        "size", [0, -32, "64", 64.0, None, (64,), (64, 64, 64), (64, 0), (64, "64")]
    )
    def test_invalid_image_size(self, family: str, size: Any) -> None:
        with pytest.raises(
            ConfigError, match=r"image_size is .*; give pixels as an int or \(height, width\)"
        ) as error:
            build(CONFIGS[family], num_classes=1, image_size=size)
        assert repr(size) in str(error.value)

    @pytest.mark.parametrize("dtype", ["int8", "float7", "nn", torch.int64, 32])
    def test_invalid_dtype(self, family: str, dtype: Any) -> None:
        with pytest.raises(
            ConfigError, match=r"dtype .* is not allowed; give float32, bfloat16"
        ) as error:
            load_model(TINY_SPECS[family], pretrained=False, dtype=dtype)
        assert repr(dtype) in str(error.value)

    @pytest.mark.parametrize("device", ["tpu9", "cuda:4711", "", 3.5])
    def test_invalid_device(self, family: str, device: Any) -> None:
        with pytest.raises(
            ConfigError, match=r"device .* cannot be used here .* allowed for example: cpu"
        ) as error:
            load_model(TINY_SPECS[family], pretrained=False, device=device)
        assert repr(device) in str(error.value)
        assert "\n" not in str(error.value)

    def test_invalid_pooling(self, family: str) -> None:
        with pytest.raises(ConfigError, match=r"global_pool is 'max'; allowed .*avg"):
            build(CONFIGS[family], num_classes=1, image_size=IMAGE_SIZE, global_pool="max")  # type: ignore[arg-type]


def test_config_of_an_unknown_family_is_rejected() -> None:
    with pytest.raises(
        ConfigError, match=r"config is 'vit'; give a ViTConfig, a RegNetConfig or a ResNetConfig"
    ):
        build("vit", num_classes=1, image_size=IMAGE_SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_model_is_in_eval_mode_and_of_the_requested_dtype(family: str) -> None:
    model = load_model(TINY_SPECS[family], pretrained=False, dtype="bfloat16", num_classes=3)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(images().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
class TestTools:
    @pytest.mark.parametrize(
        "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
    )
    def test_compiled_model_equals_eager(self, family: str, backend: str) -> None:
        model, batch = tiny(family), images()
        torch._dynamo.reset()
        with torch.no_grad():
            compiled = torch.compile(model, backend=backend, fullgraph=True)
            assert deviation(compiled(batch), model(batch)) < 1e-4

    def test_exported_model_runs_at_another_batch_size(self, family: str) -> None:
        model = tiny(family)
        shapes = {"x": {0: torch.export.Dim("batch")}}
        exported = torch.export.export(model, (images(2),), dynamic_shapes=shapes)
        batch = images(5)
        assert deviation(exported.module()(batch), model(batch)) < 1e-5

    @pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
    @pytest.mark.filterwarnings(
        "ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning"
    )
    def test_traced_model_runs_at_another_batch_size(self, family: str) -> None:
        model = tiny(family)
        with torch.no_grad():
            traced, batch = torch.jit.trace(model, images(2), check_trace=False), images(5)
            assert deviation(traced(batch), model(batch)) < 1e-5

    @pytest.mark.parametrize(
        "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
    )
    def test_copies_are_equal_and_independent(self, family: str, clone: Any) -> None:
        model, batch = tiny(family), images()
        copied = clone(model)
        assert torch.equal(copied(batch), model(batch))
        nn.init.zeros_(copied.get_classifier().weight)
        assert not torch.equal(copied(batch), model(batch))


@pytest.mark.parametrize("family", FAMILIES)
class TestTraining:
    def test_gradients_reach_every_parameter(self, family: str) -> None:
        model = tiny(family, drop_rate=0.1, drop_path_rate=0.1).train()
        model(images(8)).square().sum().backward()
        assert not [
            name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
        ]

    def test_fresh_model_learns(self, family: str) -> None:
        model = build(CONFIGS[family], num_classes=2, image_size=IMAGE_SIZE).train()
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        batch, labels = images(8), torch.arange(8) % 2
        losses = []
        for _ in range(15):
            loss = nn.functional.cross_entropy(model(batch), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.3 * losses[0]
