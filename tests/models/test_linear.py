"""The linear layers' faster way is taken only where nobody can tell, and gives the same numbers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import deviation
from torch import Tensor, nn

import swag_models.models.linear as linear
from swag_models.models.linear import apply_linear


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take the faster way whatever the processor and the size, and note each time."""
    calls: list[int] = []

    def convolve(*arguments: Tensor) -> Tensor:
        calls.append(1)
        return plain(*arguments)

    plain = F.conv2d
    monkeypatch.setattr(linear.F, "conv2d", convolve)
    monkeypatch.setattr(linear, "is_mkl_slow", lambda: True)
    monkeypatch.setattr(linear, "MIN_PRODUCTS", 1)
    return calls


class OwnLinear(nn.Linear):
    """As an adapter library would put in a linear layer's place."""


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_faster_way_gives_the_same_numbers_in_the_same_layout(
    convolutions: list[int], bias: bool
) -> None:
    layer = nn.Linear(48, 80, bias=bias)
    for x in (
        torch.randn(3, 17, 48),
        torch.randn(1, 5, 48),
        torch.randn(3, 48, 17).transpose(1, 2),
    ):
        given = apply_linear(layer, x)
        assert deviation(given, layer(x)) < 1e-5
        assert given.is_contiguous()
    assert len(convolutions) == 3


def hooked() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda _layer, _inputs, output: output + 1)
    return layer


def entered() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.register_forward_pre_hook(lambda _layer, inputs: (inputs[0] + 1,))
    return layer


@pytest.mark.parametrize(
    "make",
    [hooked, entered, lambda: OwnLinear(8, 8), lambda: nn.Linear(8, 8).double(), nn.Identity],
)
@torch.no_grad()
def test_anything_but_a_plain_float32_layer_is_called(
    convolutions: list[int], make: Callable[[], nn.Module]
) -> None:
    layer = make()
    x = torch.randn(
        2, 3, 8, dtype=next((parameter.dtype for parameter in layer.parameters()), torch.float32)
    )
    torch.testing.assert_close(apply_linear(layer, x), layer(x), rtol=0, atol=0)
    assert convolutions == []


def test_autograd_autocast_and_tracing_see_a_linear_layer(convolutions: list[int]) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(2, 3, 8)
    assert "Convolution" not in str(apply_linear(layer, x).grad_fn)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert apply_linear(layer, x).dtype == torch.bfloat16
    with torch.no_grad():
        compiled = torch.compile(apply_linear, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(layer, x), layer(x), rtol=0, atol=0)
    assert convolutions == []


@torch.no_grad()
def test_small_products_are_not_worth_it(
    convolutions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(2, 3, 8)
    monkeypatch.setattr(linear, "MIN_PRODUCTS", 2 * 3 * 8 * 8)
    apply_linear(layer, x)
    assert len(convolutions) == 1
    apply_linear(layer, x[:1])
    assert len(convolutions) == 1


def test_the_processor_decides() -> None:
    vendor = Path("/proc/cpuinfo")
    if not vendor.exists() or not torch.backends.mkl.is_available():
        pytest.skip("needs Linux and a torch with MKL")
    text = vendor.read_text()
    assert linear.is_mkl_slow() == ("AuthenticAMD" in text and "avx512f" in text)
