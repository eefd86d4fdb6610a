"""Models that were trained, changed or adapted are exported as they are, or refused in one line."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import deviation, images, load_tiny, randomise
from torch import nn

from swag_models.errors import MAX_MESSAGE, ConfigError
from swag_models.export import Metadata, export_model, read_metadata
from swag_models.models import FeatureNet

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["cat", "dog", "horse"]


def adapt(model: Any, **options: Any) -> Any:
    """A PEFT model whose adapters have an effect."""
    adapted = get_peft_model(model, LoraConfig(target_modules=["qkv"], **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_()
    return adapted


def replace_head(model: Any) -> Any:
    model.reset_classifier(3)
    return randomise(model)


def remove_head(model: Any) -> Any:
    model.reset_classifier(0)
    return model


def resize(model: Any) -> Any:
    model.set_input_size((72, 40))
    return model


def train(model: Any) -> Any:
    model.freeze("blocks.0")
    model.set_grad_checkpointing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(images()).square().mean().backward()
    optimizer.step()
    return model


def parametrise(model: Any) -> Any:
    nn.utils.parametrizations.weight_norm(model.head)
    return model


def hook(model: Any) -> Any:
    model.blocks[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def quantise_by_torchao(model: Any) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model


RIGHT: dict[str, Callable[[Any], Any]] = {
    "merged adapters": lambda model: adapt(model, modules_to_save=["head"]).merge_and_unload(),
    "another head": replace_head,
    "no head": remove_head,
    "one channel": lambda _: load_tiny("vit", in_chans=1).eval(),
    "another size": resize,
    "training": train,
    "bfloat16": lambda model: model.bfloat16(),
    "float64": lambda model: model.double(),
    "weight norm": parametrise,
    "hook": hook,
    "torchao": quantise_by_torchao,
}
FAST = ("merged adapters", "training")


def describe_state(model: nn.Module) -> list[Any]:
    """Everything about a model that an export could change."""
    return [
        [module.training for module in model.modules()],
        [
            (name, p.dtype, p.device, p.requires_grad, id(p), p._version, p.grad is None)
            for name, p in (*model.named_parameters(), *model.named_buffers())
        ],
        [id(module) for module in model.modules()],
        [list(module._forward_hooks) for module in model.modules()],
        sorted(vars(model)),
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in FAST else pytest.mark.slow) for k in RIGHT]
)
@pytest.mark.filterwarnings("ignore")
def test_a_changed_model_is_exported_as_it_is(kind: str, tmp_path: Path) -> None:
    if kind == "torchao":
        pytest.importorskip("torchao")
    model = RIGHT[kind](load_tiny("vit").eval())
    batch = images(2, model.image_size, in_chans=model.in_chans)
    before, gradients = describe_state(model), [p.grad for p in model.parameters()]
    path = export_model(model, tmp_path / "x.pt2").path
    assert describe_state(model) == before
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients))
    reference = copy.deepcopy(model).float().eval()
    with torch.no_grad():
        assert deviation(torch.export.load(path).module()(batch), reference(batch)) < 1e-4
    metadata = read_metadata(path)
    assert metadata.preprocess.size == model.image_size
    assert metadata.output == ("logits" if model.num_classes else "features")


def share_lock(model: Any) -> Any:
    model.lock = threading.Lock()
    return model


def keep_output(model: Any) -> Any:
    model.last = model(images())
    return model


class Branch(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2 if x.sum() > 0 else 1)


def branch(model: Any) -> Any:
    model.head = Branch(32, 10)
    return model


def quantise_by_torch(model: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "adapters": (adapt, r"cannot export a PeftModel; pass merge_and_unload\(\) of it"),
    "feature maps": (FeatureNet, "cannot export a FeatureNet; pass the ViT in it"),
    "meta": (lambda model: model.to("meta"), "on the meta device, which has no weights"),
    "lock": (share_lock, "invalid model of type ViT: it raises TypeError: cannot pickle"),
    "kept output": (keep_output, "invalid model of type ViT: it raises RuntimeError: Only Tens"),
    "branch": (branch, "it raises GuardOnDataDependentSymNode: .* or branches on values"),
    "quantised": (quantise_by_torch, "invalid model of type ViT: .*; undo changes of its layers"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_be_exported_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    change, message = REFUSED[kind]
    model = change(load_tiny("vit").eval())
    with pytest.raises(ConfigError, match=message) as error:
        export_model(model, tmp_path / "x.pt2")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < MAX_MESSAGE + 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_class_names_can_be_given_with_a_model(tmp_path: Path) -> None:
    model = replace_head(load_tiny("vit"))
    assert model.spec is not None
    model.spec = replace(model.spec, multi_label=True)
    path = export_model(model, tmp_path / "x.pt2", classes=NAMES).path
    metadata = read_metadata(path)
    assert metadata.classes == tuple(NAMES)
    assert metadata.multi_label
    strings = metadata.to_strings()
    assert Metadata.from_strings(strings) == metadata
    del strings["multi_label"]  # as in files of earlier versions
    assert not Metadata.from_strings(strings).multi_label
    with pytest.raises(ConfigError, match="2 class names for 3 classes; pass one string each"):
        export_model(model, path, classes=NAMES[:2])
    with pytest.raises(ConfigError, match="1 class name for no classes"):
        export_model(remove_head(model), path, classes=["cat"])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_settings_of_the_caller_have_no_effect(suffix: str, tmp_path: Path) -> None:
    model, batch = load_tiny("vit").eval(), images()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            report = export_model(model, tmp_path / f"x{suffix}", dynamic_size=True)
            assert torch.empty(1).is_meta
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert report.max_deviation < 1e-5
    if suffix == ".pt2":
        assert deviation(torch.export.load(report.path).module()(batch), model(batch)) < 1e-5
