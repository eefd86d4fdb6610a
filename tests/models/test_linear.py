"""The faster path for linear layers gives equal results and is invisible to users of a model."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import deviation, images, tiny
from torch import Tensor, nn

from swag_models.models import layers
from swag_models.models.layers import MIN_PRODUCTS, OneDNNLinear, accelerate_linear

LAYERS_PER_BLOCK, BLOCKS = 4, 2  # of the tiny ViT: qkv, proj, fc1, fc2


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Force the faster path for every CPU and size, and record each use of it."""
    calls: list[int] = []

    def convolve(*arguments: Tensor) -> Tensor:
        calls.append(1)
        return plain(*arguments)

    plain = layers.apply_as_convolution
    monkeypatch.setattr(layers, "apply_as_convolution", convolve)
    monkeypatch.setattr(layers, "is_mkl_slow", lambda: True)
    monkeypatch.setattr(layers, "MIN_PRODUCTS", 1)
    return calls


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer as `Blocks` calls a block."""
    with accelerate_linear(x):
        return layer(x)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_faster_path_gives_the_same_numbers_in_the_same_memory_layout(
    convolutions: list[int], bias: bool
) -> None:
    layer = nn.Linear(48, 80, bias=bias)
    for x in (
        torch.randn(3, 17, 48),
        torch.randn(1, 5, 48),
        torch.randn(3, 48, 17).transpose(1, 2),
    ):
        y = apply(layer, x)
        assert deviation(y, layer(x)) < 1e-5
        assert y.is_contiguous()
    assert len(convolutions) == 3


@torch.no_grad()
def test_every_linear_layer_of_the_blocks_takes_the_faster_path(convolutions: list[int]) -> None:
    model, x = tiny("vit"), images()
    logits = model(x)
    assert len(convolutions) == LAYERS_PER_BLOCK * BLOCKS
    _, maps = model.forward_intermediates(x)
    assert len(convolutions) == 2 * LAYERS_PER_BLOCK * BLOCKS
    with torch.enable_grad():  # the plain path
        assert deviation(logits, model(x)) < 1e-5
        for ours, plain in zip(maps, model.forward_intermediates(x)[1], strict=True):
            assert deviation(ours, plain) < 1e-5
    assert len(convolutions) == 2 * LAYERS_PER_BLOCK * BLOCKS


@torch.no_grad()
def test_a_regnet_has_nothing_to_accelerate(convolutions: list[int]) -> None:
    tiny("regnet")(images())
    assert not isinstance(accelerate_linear(torch.zeros(1, 1, 2, 2)), OneDNNLinear)
    assert convolutions == []


@torch.no_grad()
def test_hooks_run(convolutions: list[int]) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(2, 3, 8)
    plain = layer(x + 1) + 1
    layer.register_forward_pre_hook(lambda _layer, inputs: (inputs[0] + 1,))
    layer.register_forward_hook(lambda _layer, _inputs, output: output + 1)
    assert deviation(apply(layer, x), plain) < 1e-5


class DoublingLinear(nn.Linear):
    """A substitute for a linear layer, as adapter libraries insert."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * F.linear(x, self.weight, self.bias)


@torch.no_grad()
def test_a_substitute_for_a_linear_layer_runs_its_own_forward(convolutions: list[int]) -> None:
    layer, x = DoublingLinear(8, 8), torch.randn(2, 3, 8)
    assert deviation(apply(layer, x), layer(x)) < 1e-5


def make_parametrised() -> nn.Module:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    layer = nn.Linear(8, 8)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def make_with_tensor_subclass() -> nn.Module:
    class Weight(Tensor):
        """A tensor subclass, like quantised or distributed weights."""

    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Weight))
    return layer


@pytest.mark.parametrize(
    "make",
    [
        make_parametrised,
        make_with_tensor_subclass,
        lambda: nn.Linear(8, 8).double(),
        nn.Identity,
    ],
)
@torch.no_grad()
def test_anything_but_a_plain_float32_weight_takes_the_usual_path(
    convolutions: list[int], make: Callable[[], nn.Module]
) -> None:
    layer = make()
    dtype = next((parameter.dtype for parameter in layer.parameters()), torch.float32)
    x = torch.randn(2, 3, 8, dtype=dtype)
    torch.testing.assert_close(apply(layer, x), layer(x), rtol=0, atol=0)
    assert convolutions == []


def test_autograd_and_autocast_see_a_linear_layer(convolutions: list[int]) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(2, 3, 8)
    assert "Convolution" not in str(apply(layer, x).grad_fn)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert apply(layer, x).dtype == torch.bfloat16
    with torch.no_grad(), accelerate_linear(x), torch.enable_grad():
        assert "Convolution" not in str(layer(x).grad_fn)
    assert convolutions == []


@pytest.mark.filterwarnings(
    "ignore:.*jit:FutureWarning",
    "ignore:.*jit:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)
@torch.no_grad()
def test_compilers_and_exporters_see_a_linear_layer(convolutions: list[int]) -> None:
    model, x = tiny("vit"), images()
    plain = model(x)
    convolutions.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert deviation(compiled(x), plain) < 1e-5
    exported = torch.export.export(model, (x,))
    assert deviation(exported.module()(x), plain) < 1e-5
    assert "aten.linear" in str(exported.graph)
    traced = torch.jit.trace(model, x, check_trace=False)  # the check would run the model again
    assert "aten::linear" in str(traced.inlined_graph)
    assert deviation(traced(x), plain) < 1e-5
    assert convolutions == []
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    assert deviation(model(x), plain) < 1e-5
    assert convolutions == []


@torch.no_grad()
def test_types_copies_and_state_are_those_of_a_plain_model(convolutions: list[int]) -> None:
    model, x = tiny("vit"), images()
    plain = model(x)
    assert {type(block.mlp.fc1) for block in model.blocks} == {nn.Linear}
    assert all("forward" not in vars(module) for module in model.modules())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x), plain, rtol=0, atol=0)
        for parameter in twin.parameters():
            parameter.zero_()
        assert not twin(x).any()
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*quantization:DeprecationWarning", "ignore::UserWarning")
@torch.no_grad()
def test_a_quantiser_replaces_the_layers(convolutions: list[int]) -> None:
    model, x = tiny("vit"), images()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert not isinstance(quantised.blocks[0].mlp.fc1, nn.Linear)
    convolutions.clear()
    assert torch.nn.functional.cosine_similarity(quantised(x), model(x)).min() > 0.99
    assert len(convolutions) == LAYERS_PER_BLOCK * BLOCKS  # only those of the original model


@torch.no_grad()
def test_adapters_are_added_and_removed(convolutions: list[int]) -> None:
    peft = pytest.importorskip("peft")
    model, x = tiny("vit"), images()
    plain = model(x)
    config = peft.LoraConfig(target_modules=["qkv"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    changed = adapted(x)
    assert deviation(changed, plain) > 1e-3
    assert deviation(adapted.merge_and_unload()(x), changed) < 1e-4


@torch.no_grad()
def test_small_products_take_the_usual_path(
    convolutions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(2, 3, 8)
    monkeypatch.setattr(layers, "MIN_PRODUCTS", 2 * 3 * 8 * 8)
    apply(layer, x)
    assert len(convolutions) == 1
    apply(layer, x[:1])
    assert len(convolutions) == 1


@torch.no_grad()
def test_products_are_small_below_ten_million(
    convolutions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "MIN_PRODUCTS", MIN_PRODUCTS)
    layer, x = nn.Linear(100, 1000), torch.randn(1, 100, 100)
    apply(layer, x[:, 1:])
    assert convolutions == []
    apply(layer, x)
    assert len(convolutions) == 1


def test_the_context_does_nothing_where_no_layer_would_be_faster(convolutions: list[int]) -> None:
    x = torch.zeros(1, 2, 3)
    assert not isinstance(accelerate_linear(x), OneDNNLinear)  # with gradients
    with torch.no_grad():
        assert isinstance(accelerate_linear(x), OneDNNLinear)
        for other in (x.double(), x.bfloat16(), x[0], x[None], x.to("meta")):
            assert not isinstance(accelerate_linear(other), OneDNNLinear)


def test_the_cpu_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_info = Path("/proc/cpuinfo")
    if not cpu_info.exists() or not torch.backends.mkl.is_available():
        pytest.skip("needs Linux and a torch with MKL")
    # ATEN_CPU_CAPABILITY can restrict torch to fewer instructions than the CPU has.
    avx512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
    assert layers.is_mkl_slow() == ("AuthenticAMD" in cpu_info.read_text() and avx512)
    monkeypatch.setattr(layers, "is_mkl_slow", lambda: False)
    with torch.no_grad():
        assert not isinstance(accelerate_linear(torch.zeros(1, 2, 3)), OneDNNLinear)
