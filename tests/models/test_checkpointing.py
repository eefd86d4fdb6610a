"""Gradient checkpointing changes memory only: results, random numbers and statistics stay equal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import images, tiny
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from swag_models.models import RegNet, ViT
from swag_models.models.layers import Blocks

FAMILIES = ("vit", "regnet")
RATES: dict[str, dict[str, float]] = {
    "vit": {"drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.3},
    "regnet": {"drop_rate": 0.2, "drop_path_rate": 0.3},
}
BATCH = 4


def train_once(model: nn.Module, call: Any = None) -> dict[str, Tensor]:
    """Run a training step; return its output, gradients, parameters, buffers and random state."""
    torch.manual_seed(1)
    output = (model if call is None else call)(images(BATCH))
    output.square().mean().backward()
    left = {"output": output.detach(), "random": torch.rand(1), **model.state_dict()}
    return left | {f"{name}.grad": parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


def pair(family: str, **options: Any) -> tuple[ViT | RegNet, ViT | RegNet]:
    """Return a model in training mode, and a copy with checkpointing."""
    plain = tiny(family, **options).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    return plain, checkpointed


@pytest.mark.parametrize("family", FAMILIES)
class TestSameResults:
    def test_a_training_step_gives_exactly_the_same(self, family: str) -> None:
        plain, checkpointed = pair(family, **RATES[family])
        assert_equal(train_once(checkpointed), train_once(plain))

    def test_a_step_in_eval_mode_gives_the_same(self, family: str) -> None:
        plain, checkpointed = pair(family, **RATES[family])
        assert_equal(train_once(checkpointed.eval()), train_once(plain.eval()))

    def test_a_step_through_intermediates_gives_the_same(self, family: str) -> None:
        plain, checkpointed = pair(family, **RATES[family])
        ours, theirs = (
            train_once(
                model, lambda x, model=model: model.forward_intermediates(x, stop_early=True)[1][-1]
            )
            for model in (checkpointed, plain)
        )
        names = {name for name, tensor in theirs.items() if tensor is not None}
        assert names == {name for name, tensor in ours.items() if tensor is not None}
        assert_equal({name: ours[name] for name in names}, {name: theirs[name] for name in names})

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_a_compiled_step_gives_the_same(self, family: str, backend: str) -> None:
        plain, checkpointed = pair(family, **RATES[family])
        torch._dynamo.reset()
        ours, theirs = (
            train_once(model, torch.compile(model, backend=backend, fullgraph=True))
            for model in (checkpointed, plain)
        )
        if backend == "aot_eager":
            return assert_equal(ours, theirs)
        for name, tensor in ours.items():  # operations are fused differently
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=name)
        return None

    def test_a_step_with_frozen_layers_gives_the_same(self, family: str) -> None:
        plain, checkpointed = pair(family, **RATES[family])
        for model in (plain, checkpointed):
            model.freeze(up_to={"vit": "blocks.0", "regnet": "s2"}[family])
        ours, theirs = train_once(checkpointed), train_once(plain)
        assert [name for name, tensor in ours.items() if tensor is None] == [
            n for n, t in theirs.items() if t is None
        ]
        assert_equal(
            *(
                {name: tensor for name, tensor in left.items() if tensor is not None}
                for left in (ours, theirs)
            )
        )

    def test_nothing_runs_twice_after_it_is_turned_off(self, family: str) -> None:
        _, model = pair(family)
        ran: list[int] = []
        first = next(module for module in model.modules() if isinstance(module, Blocks))[0]
        first.register_forward_pre_hook(lambda *_: ran.append(1))
        train_once(model)
        assert len(ran) == 2
        model.set_grad_checkpointing(False)
        train_once(model)
        assert len(ran) == 3

    def test_blocks_run_once_without_gradients(self, family: str) -> None:
        plain, checkpointed = pair(family)
        batch = images()
        with torch.no_grad():
            assert torch.equal(checkpointed.eval()(batch), plain.eval()(batch))

    def test_exported_and_saved_models_do_not_contain_it(self, family: str) -> None:
        plain, checkpointed = (model.eval() for model in pair(family))
        assert list(checkpointed.state_dict()) == list(plain.state_dict())
        batch = images()
        exported = torch.export.export(checkpointed, (batch,))
        assert torch.equal(exported.module()(batch), plain(batch))
        assert "checkpoint" not in str(exported.graph)


def count_stored_bytes(model: nn.Module, batch: Tensor) -> int:
    """Return the bytes stored for the backward pass, without the model's tensors."""
    model_storages = {
        tensor.untyped_storage().data_ptr()
        for tensor in [*model.parameters(), *model.buffers(), batch]
    }
    storages: dict[int, int] = {}
    alive = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in model_storages:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)  # so that no other storage reuses its address
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(batch)
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_less_memory_is_used(family: str) -> None:
    plain, checkpointed = pair(family)
    batch = images(BATCH)
    assert count_stored_bytes(plain, batch) > {"vit": 4, "regnet": 2}[family] * count_stored_bytes(
        checkpointed, batch
    )


def test_a_vit_stores_one_input_per_block() -> None:
    _, model = pair("vit")
    tokens = BATCH * (1 + 64) * 32 * 4
    stored = count_stored_bytes(model, images(BATCH))
    blocks = len(model.blocks) * tokens
    assert (
        blocks <= stored < blocks + 5 * tokens
    )  # plus what the patches, the last norm and the head store
