"""Models inside wrappers of training code: saved and exported as the bare model, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny import add_lora, images, load_tiny
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from swag_models import load_model
from swag_models.errors import ConfigError
from swag_models.export import export_model
from swag_models.models import FeaturePyramid, ViT
from swag_models.models.unwrap import unwrap
from swag_models.publish import save


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Task(nn.Module):
    """A training module with the model as an attribute, as LightningModules have."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def compile_blocks(model: Any) -> nn.Module:
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend="eager")
    return model


def checkpoint_blocks(model: Any) -> nn.Module:
    for index, block in enumerate(model.blocks):
        model.blocks[index] = checkpoint_wrapper(block)
    return model


def compile_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def prepare_by_accelerate(model: nn.Module) -> nn.Module:
    AcceleratorState._reset_state(reset_partial_state=True)  # other tests use other precisions
    return Accelerator(cpu=True, mixed_precision="bf16").prepare(model)


TRANSPARENT: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": lambda model: torch.compile(model, backend="eager"),
    "compile in place": compile_in_place,
    "compiled blocks": compile_blocks,
    "checkpointed blocks": checkpoint_blocks,
    "DDP": DistributedDataParallel,
    "DDP of compile": lambda model: DistributedDataParallel(torch.compile(model, backend="eager")),
    "compile of DDP": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "AveragedModel of DDP": lambda model: AveragedModel(DistributedDataParallel(model)),
    "ModelEmaV2": timm.utils.ModelEmaV2,
    "ModelEmaV3": timm.utils.ModelEmaV3,
    "accelerate": prepare_by_accelerate,
}
OTHERS: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "PEFT": (
        add_lora,
        r"a PeftModel; pass merge_and_unload\(\) of it",
    ),
    "compile of PEFT": (
        lambda model: torch.compile(add_lora(model)),
        r"a PeftModel; pass merge_and_unload\(\) of it",
    ),
    "FeaturePyramid": (
        lambda model: FeaturePyramid(model, 8),
        "a FeaturePyramid; pass the ViT in it, its attribute trunk$",
    ),
    "attribute": (lambda model: Task(net=model), "a Task; .* its attribute net$"),
    "nested": (
        lambda model: DistributedDataParallel(Task(a=Task(b=model))),
        r"a Task; .* its attribute a\.b$",
    ),
    "Sequential": (
        lambda model: nn.Sequential(model, nn.Softmax(1)),
        "a Sequential; pass the ViT in it, its attribute 0$",
    ),
    "two": (
        lambda model: Task(student=model, teacher=copy.deepcopy(model)),
        "a Task; pass one of the 2 models in it: student, teacher$",
    ),
    "none": (lambda model: nn.Linear(1, 1), "a Linear; pass the model that load_model returned$"),
    "FSDP2": (fully_shard, "a model whose parameters are sharded: "),
    "FSDP2 of blocks": (
        lambda model: (fully_shard(model.blocks[0]), model)[1],
        "a model whose parameters are sharded: ",
    ),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_a_wrapped_model_is_saved_as_the_bare_one(kind: str, tmp_path: Path) -> None:
    bare = load_tiny("vit")
    wrapped = TRANSPARENT[kind](copy.deepcopy(bare))
    save(wrapped, tmp_path / "wrapped", name="x")
    save(bare, tmp_path / "bare", name="x")
    for file in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "wrapped" / file).read_bytes() == (tmp_path / "bare" / file).read_bytes()


@pytest.mark.parametrize(
    "kind",
    [
        "accelerate",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("compile of DDP", "compiled blocks")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_wrapped_model_is_exported_as_the_bare_one(kind: str, tmp_path: Path) -> None:
    bare = load_tiny("vit")
    wrapped = TRANSPARENT[kind](copy.deepcopy(bare))
    path = export_model(wrapped, tmp_path / "x.pt2").path
    x = images()
    torch.testing.assert_close(torch.export.load(path).module()(x), bare(x), rtol=1e-4, atol=1e-5)
    assert isinstance(wrapped(x), torch.Tensor)  # and still runs


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.filterwarnings("ignore")
def test_a_module_that_computes_something_else_is_refused(kind: str, tmp_path: Path) -> None:
    wrap, message = OTHERS[kind]
    wrapped = wrap(load_tiny("vit"))
    with pytest.raises(ConfigError, match=f"cannot publish {message}") as error:
        save(wrapped, tmp_path / "x")
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=f"cannot export {message}"):
        export_model(wrapped, tmp_path / "x.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.filterwarnings("ignore")
def test_the_only_model_inside_of_a_module_is_found(kind: str) -> None:
    model = load_tiny("vit")
    wrapped = OTHERS[kind][0](model)
    if kind in ("none", "two"):
        with pytest.raises(ConfigError, match="cannot train"):
            unwrap(wrapped, "train", inside=True)
    else:
        assert unwrap(wrapped, "train", inside=True) is model


def test_something_that_is_no_module_is_refused() -> None:
    for value in (None, 3, "vit", {}, load_model):
        with pytest.raises(ConfigError, match=r"pass the model that load_model returned$"):
            unwrap(value, "train", inside=True)


@pytest.mark.slow
def test_a_model_with_adapters_inside_is_exported_with_them(tmp_path: Path) -> None:
    peft = add_lora(load_tiny("vit"))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    inner = peft.base_model.model
    assert isinstance(inner, ViT)
    path = export_model(inner, tmp_path / "x.pt2").path
    x = images()
    expected = copy.deepcopy(peft).merge_and_unload()(x)
    torch.testing.assert_close(torch.export.load(path).module()(x), expected, rtol=1e-3, atol=1e-4)
