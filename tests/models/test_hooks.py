"""Hooks, explanations and torch.func see what each module computed, as for timm's models."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from tiny import CONFIGS, IMAGE_SIZE, deviation, images, tiny
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from swag_models.models import build

FAMILIES = ("vit", "regnet")
LAYERS = ("stem", "s1.b1.conv1.bn", "s2.b1.conv3", "s2.b1.drop_path", "s3.b1.downsample", "s4")


def list_modules(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name}


@pytest.mark.parametrize("family", FAMILIES)
class TestHooks:
    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("train", [False, True])
    def test_no_tensor_is_overwritten(
        self, family: str, train: bool, mode: Callable[[], Any]
    ) -> None:
        model = tiny(family, drop_path_rate=0.3).train(train)
        seen: list[tuple[str, Tensor, Tensor]] = []

        def keep(name: str) -> Any:
            def hook(module: object, inputs: Any, output: Tensor) -> None:
                seen.extend(
                    (name, each, each.clone()) for each in (*inputs, output) if each is not None
                )

            return hook

        for name, module in list_modules(model).items():
            module.register_forward_hook(keep(name))
        with mode():
            model(images(4))
        assert {name for name, *_ in seen} >= set(list_called(model))
        assert not [name for name, live, copy in seen if not torch.equal(live, copy)]

    def test_every_module_takes_full_backward_hooks(self, family: str) -> None:
        model = tiny(family).train()
        batch = images().requires_grad_()
        gradients: dict[str, Tensor] = {}
        expected: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(module: object, inputs: Any, output: Tensor) -> None:
                output.register_hook(lambda gradient: expected.update({name: gradient}))

            return hook

        for name, module in list_modules(model).items():
            module.register_forward_hook(keep(name))
            module.register_full_backward_hook(
                lambda module, before, after, name=name: gradients.update({name: after[0]})
            )
        model(batch).square().sum().backward()
        assert gradients.keys() == expected.keys() >= set(list_called(model))
        for name, gradient in gradients.items():
            assert torch.equal(gradient, expected[name]), name


def list_called(model: nn.Module) -> list[str]:
    """Return the names of the modules that compute a layer."""
    kinds = (nn.Conv2d, nn.Linear, nn.ReLU, nn.GELU, nn.BatchNorm2d, nn.LayerNorm, nn.Sigmoid)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("layer", LAYERS)
def test_grad_cam_is_that_of_its_definition(layer: str) -> None:
    """Selvaraju et al., arXiv 1610.02391, equations 1 and 2."""
    cam = pytest.importorskip("pytorch_grad_cam")
    model, batch, kept = tiny("regnet"), images(1), []
    with cam.GradCAM(model, [model.get_submodule(layer)]) as explain:
        (heat,) = explain(batch, targets=None)

    def keep(module: object, inputs: object, output: Tensor) -> Tensor:
        output = output.clone()
        output.retain_grad()
        kept.append(output)
        return output.clone()

    model.get_submodule(layer).register_forward_hook(keep)
    logits = model(batch)
    logits[0, logits[0].argmax()].backward()
    (activation,) = kept
    weights = activation.grad.mean((2, 3), keepdim=True)
    expected = (weights * activation).sum(1).relu().detach().numpy()
    # The package scales each layer's map, and their mean again.
    scale = importlib.import_module("pytorch_grad_cam.utils.image").scale_cam_image
    (expected,) = scale(scale(expected, (IMAGE_SIZE, IMAGE_SIZE)))
    assert np.abs(heat - expected).max() < 1e-5


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("family", FAMILIES)
class TestFunctional:
    @pytest.mark.parametrize("image_size", [64, 96])
    def test_gradients_per_sample(self, family: str, image_size: int) -> None:
        model, batch = tiny(family), images(3, image_size)
        parameters = dict(model.named_parameters())
        buffers = dict(model.named_buffers())

        def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
            return functional_call(model, (parameters, buffers), image[None]).square().sum()

        detached = {name: parameter.detach() for name, parameter in parameters.items()}
        gradients = vmap(grad(loss), in_dims=(None, 0))(detached, batch)
        for index, image in enumerate(batch):
            model.zero_grad()
            loss(parameters, image).backward()
            for name, parameter in parameters.items():
                scale = parameter.grad.abs().max() + 1e-6
                assert (gradients[name][index] - parameter.grad).abs().max() / scale < 1e-3, name

    @torch.no_grad()
    def test_an_ensemble(self, family: str) -> None:
        models = [tiny(family) for _ in range(2)]
        parameters, buffers = torch.func.stack_module_state(models)
        batch = images(image_size=96)
        outputs = vmap(
            lambda *state: functional_call(models[0], state, batch), randomness="different"
        )(parameters, buffers)
        for model, output in zip(models, outputs, strict=True):
            assert deviation(output, model(batch)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
class TestInitialisation:
    def test_init_weights_after_to_empty_equals_building(self, family: str) -> None:
        torch.manual_seed(0)
        built = build(CONFIGS[family], num_classes=10, image_size=64)
        with torch.device("meta"):
            model = build(CONFIGS[family], num_classes=10, image_size=64)
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.fill_(77)  # what memory contains
        torch.manual_seed(0)
        model.init_weights()
        expected = built.state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected[name]), name

    def test_without_a_head(self, family: str) -> None:
        with torch.device("meta"):
            model = build(CONFIGS[family], num_classes=None, image_size=64)
        model.init_weights()  # on the meta device: no effect
        model.to_empty(device="cpu").init_weights()
        assert model(images()).isfinite().all()

    def test_parts_can_be_replaced_under_empty_weights(self, family: str) -> None:
        with init_empty_weights():
            model = build(CONFIGS[family], num_classes=10, image_size=64)
            model.reset_classifier(3)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert model.get_classifier().out_features == 3


class RecordedOperators(TorchDispatchMode):
    """Keep the names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class TestReluInPlace:
    """ReLU writes into its input in inference mode, where nobody else can hold the tensor."""

    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_only_in_inference_mode(self, mode: Callable[[], Any]) -> None:
        model = tiny("regnet")
        with RecordedOperators() as operators, mode():
            model(images())
        assert ("aten.relu_.default" in operators.names) == (mode is torch.inference_mode)

    @pytest.mark.parametrize("layer", ["conv", "bn", "act", "all"])
    def test_a_tensor_that_a_hook_keeps_is_not_overwritten(self, layer: str) -> None:
        model = tiny("regnet")
        seen: list[tuple[Tensor, Tensor]] = []

        def hook(module: object, inputs: Any, output: Tensor) -> None:
            seen.extend((each, each.clone()) for each in (*inputs, output))

        block: Any = model.get_submodule("s2.b1.conv1")
        handle = (
            nn.modules.module.register_module_forward_hook(hook)
            if layer == "all"
            else getattr(block, layer).register_forward_hook(hook)
        )
        try:
            with torch.inference_mode():
                model(images())
        finally:
            handle.remove()
        assert seen
        assert all(torch.equal(live, copy) for live, copy in seen)

    def test_an_input_that_layers_return_is_not_overwritten(self) -> None:
        block: Any = tiny("regnet").get_submodule("s2.b1.conv1")
        block.conv, block.bn = nn.Identity(), nn.Identity()
        x = torch.randn(1, 4, 3, 3)
        before = x.clone()
        with torch.inference_mode():
            block(x)
        assert torch.equal(x, before)
