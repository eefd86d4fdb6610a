"""Models whose outputs are not numbers: one error, which names the model and the reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from swag_models import load_model
from swag_models.cli import main
from swag_models.errors import CheckpointError, ConfigError
from swag_models.inference import Classifier, Embedder
from swag_models.inference.finite import check_finite

VIT, REGNET = "vit_nano_hashtags", "regnety_nano_hashtags"
IMAGE = Path("examples/scenes/cup.jpg")


def set_value(name: str, value: float) -> Callable[[nn.Module], None]:
    return lambda model: model.get_parameter(name).data.view(-1)[:1].fill_(value)


@pytest.mark.parametrize("kind", [Classifier, Embedder])
@pytest.mark.parametrize(
    ("name", "tensor", "value"),
    [
        (VIT, "blocks.0.mlp.fc1.weight", torch.nan),
        (VIT, "norm.bias", torch.inf),
        (REGNET, "stem.conv.weight", torch.nan),
    ],
)
def test_weights_that_are_no_numbers_are_named(
    kind: type[Classifier | Embedder], name: str, tensor: str, value: float
) -> None:
    model = load_model(name)
    set_value(tensor, value)(model)
    with pytest.raises(CheckpointError, match=rf"{name} returns NaN .*: {tensor}; load another"):
        kind(model)(IMAGE)


def test_a_buffer_is_named_too() -> None:
    model = load_model(REGNET)
    model.get_buffer("s1.b1.conv1.bn.running_var").fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"its weights .*conv1\.bn\.running_var; load"):
        Embedder(model)(IMAGE)


def test_an_overflow_is_told_from_wrong_weights() -> None:
    model = load_model(VIT)
    model.norm.weight.data.fill_(1e30)
    model.head.weight.data.fill_(1e30)
    with pytest.raises(ConfigError, match=r"infinity in torch.float32, although its weights are"):
        Classifier(model)(IMAGE)


def test_classes_can_be_switched_off_by_a_bias() -> None:
    model = load_model(VIT)
    first = Classifier(model)(IMAGE)[0][0]
    model.head.bias.data[first.index] = -torch.inf
    predictions = Classifier(model)(IMAGE, top_k=65)[0]
    assert predictions[-1].index == first.index
    assert predictions[-1].probability == 0


def test_the_command_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_model(VIT).state_dict()
    state["head.weight"][3] = torch.nan
    save_file(state, tmp_path / "x.safetensors")
    from swag_models.publish import save

    save(load_model(VIT, weights=tmp_path / "x.safetensors"), tmp_path / "model")
    assert main(["classify", str(IMAGE), "--model", str(tmp_path / "model")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("swag-models: error: model returns NaN or infinity, because its weights")


def test_finite_outputs_cost_no_look_at_the_weights() -> None:
    class Unreadable(nn.Module):
        def state_dict(self, *args: object, **options: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
            raise AssertionError

    check_finite(torch.ones(3), Unreadable(), "x")
