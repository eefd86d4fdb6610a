"""What users of torch and torchvision call on a model, with assertions on what they rely on.

Each function is the check of one row of compatibility.py.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from peers.subjects import Subject
from torch import nn
from torch.func import functional_call, grad, vmap
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import swag_models


def _same_output(convert: Callable[[nn.Module, Any], Any], tolerance: float = 1e-4) -> Any:
    """Return a check that the converted model gives the logits of the model."""

    def check(subject: Subject) -> None:
        model, images = subject.load(), subject.images(2)
        with torch.no_grad():
            expected = model(images)
            ours = convert(model, images)(images)
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)

    return check


def _pickled(model: nn.Module, _: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def _saved_script(model: nn.Module, _: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    return torch.jit.load(file)


def _fused(model: nn.Module, _: Any) -> Any:
    from torch.fx.experimental.optimization import fuse

    return fuse(model)


deep_copy = _same_output(lambda model, _: copy.deepcopy(model))
pickled = _same_output(_pickled)
jit_script = _same_output(_saved_script)
jit_trace = _same_output(lambda model, images: torch.jit.trace(model, images, check_trace=False))
exported = _same_output(lambda model, images: torch.export.export(model, (images,)).module())
compiled = _same_output(
    lambda model, _: torch.compile(model, backend="eager", fullgraph=True), tolerance=1e-3
)
symbolic_trace = _same_output(lambda model, _: torch.fx.symbolic_trace(model))
fused = _same_output(_fused, tolerance=1e-3)
channels_last = _same_output(lambda model, _: model.to(memory_format=torch.channels_last))
functional = _same_output(
    lambda model, _: lambda images: functional_call(model, dict(model.named_parameters()), images)
)


def feature_extractor(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    node = _stage(subject)
    with torch.no_grad():
        (features,) = create_feature_extractor(model, [node])(images).values()
        assert torch.equal(features, _hooked(model, node, images))


def graph_node_names(subject: Subject) -> None:
    model = subject.load()
    train, evaluation = get_graph_node_names(model)
    assert train == evaluation
    assert any(name.startswith(_stage(subject)) for name in train)


def _stage(subject: Subject) -> str:
    if subject.library == "torchvision":
        regnet, vit = "trunk_output.block2", "encoder.layers.encoder_layer_1"
    else:
        regnet, vit = "s2", "blocks.1"
    return vit if subject.family == "vit" else regnet


def _hooked(model: nn.Module, name: str, images: torch.Tensor) -> torch.Tensor:
    outputs: list[torch.Tensor] = []
    with model.get_submodule(name).register_forward_hook(lambda *call: outputs.append(call[2])):
        model(images)
    return outputs[0]


def hooks_are_not_overwritten(subject: Subject) -> None:
    """Every module's output is the same after the forward pass as when its hook saw it."""
    model, images = subject.load(), subject.images()
    kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(*call: Any) -> None:
            kept[name] = (call[2], call[2].clone())

        return hook

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(keep(name))
    model(images)
    assert len(kept) > 10
    changed = [name for name, (output, copy) in kept.items() if not torch.equal(output, copy)]
    assert not changed


def full_backward_hooks(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    forward: set[str] = set()
    backward: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: forward.add(name))
        module.register_full_backward_hook(lambda *_, name=name: backward.add(name))
    model(images.requires_grad_()).sum().backward()
    assert backward == forward
    assert len(forward) > 20


def per_sample_gradients(subject: Subject) -> None:
    model, images = subject.load(num_classes=5), subject.images(2)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters: Any, image: torch.Tensor) -> torch.Tensor:
        return functional_call(model, parameters, (image[None],)).square().sum()

    batch = vmap(grad(loss), in_dims=(None, 0))(parameters, images)
    single = grad(loss)(parameters, images[1])
    for name, values in single.items():
        torch.testing.assert_close(batch[name][1], values, rtol=1e-3, atol=1e-4)


def layer_getter(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    layers = {"s1": "first", "s2": "second"}
    if subject.family == "vit":
        layers = {"patch_embed": "first", "blocks": "second"}
    elif subject.library == "torchvision":
        model, images = model.trunk_output, torch.randn(1, 32, 32, 32)
        layers = {"block1": "first", "block2": "second"}
    with torch.no_grad():
        maps = IntermediateLayerGetter(model, layers)(images)
    assert list(maps) == ["first", "second"]
    assert maps["first"].shape[-1] == maps["second"].shape[-1] * (1 + (maps["first"].ndim == 4))


def backbone_with_fpn(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    layers = {"s1": "0", "s2": "1", "s3": "2"}
    if subject.library == "torchvision":
        model, images = model.trunk_output, torch.randn(1, 32, 32, 32)
        layers = {"block1": "0", "block2": "1", "block3": "2"}
        widths = [info.shape[1] for info in IntermediateLayerGetter(model, layers)(images).values()]
    else:
        widths = [info["num_chs"] for info in model.feature_info[1:4]]
    maps = BackboneWithFPN(model, layers, widths, 16)(images)
    assert list(maps) == ["0", "1", "2", "pool"]
    assert all(level.shape[1] == 16 for level in maps.values())


def double_precision(subject: Subject) -> None:
    model = subject.load().double()
    assert model(subject.images().double()).dtype == torch.float64


def autocast(subject: Subject) -> None:
    model, images = subject.load(), subject.images()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


def input_gradients(subject: Subject) -> None:
    model, images = subject.load(num_classes=5), subject.images().requires_grad_()
    for parameter in model.parameters():  # heads are zero in the beginning
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    model(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def _library(subject: Subject) -> Any:
    """Return the module whose functions find models by name."""
    return swag_models if subject.is_ours else torchvision.models


def get_model(subject: Subject) -> None:
    """Without weights the values are random."""
    first, second = (_library(subject).get_model(subject.name, weights=None) for _ in range(2))
    different = [
        not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    ]
    assert sum(different) > 10


def get_model_builder(subject: Subject) -> None:
    builder = _library(subject).get_model_builder(subject.name)
    assert builder.__name__ == subject.name
    assert isinstance(builder(weights=None), nn.Module)


def get_weights(subject: Subject) -> None:
    library = _library(subject)
    weights = library.get_model_weights(subject.name)
    assert weights.DEFAULT in list(weights)
    assert library.get_weight(f"{weights.__name__}.{weights.DEFAULT.name}") is weights.DEFAULT
    for again in (pickle.loads(pickle.dumps(weights.DEFAULT)), copy.deepcopy(weights.DEFAULT)):
        assert again is weights.DEFAULT


def list_models(subject: Subject) -> None:
    library = _library(subject)
    included = library.list_models(include=f"{subject.name[:5]}*")
    assert subject.name in included
    remaining = library.list_models(include=f"{subject.name[:5]}*", exclude=[subject.name])
    assert set(included) - set(remaining) == {subject.name}


def default_weights(subject: Subject) -> None:
    published = swag_models.load_model(subject.name).state_dict()
    by_name = swag_models.load_model(subject.name, weights="DEFAULT").state_dict()
    weights = swag_models.get_model_weights(subject.name).DEFAULT
    by_enum = swag_models.get_model(subject.name, weights=weights).state_dict()
    for name, values in published.items():
        assert torch.equal(values, by_name[name])
        assert torch.equal(values, by_enum[name])


def weights_at_a_url(subject: Subject) -> None:
    swag_models.load_model(subject.name, weights="https://example.org/model.pth")


def weights_of_another_model(subject: Subject) -> None:
    swag_models.load_model(subject.name, weights=torchvision.models.ResNet18_Weights.DEFAULT)
