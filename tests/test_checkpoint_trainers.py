"""Checkpoints as the field's training code writes them: objects beside the weights, wrappers."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import logging
import pathlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from tiny import TINY_SPECS, VIT_SPEC, tiny, torchvision_twin
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from swag_models import load_model
from swag_models.checkpoint import convert_checkpoint, read_state_dict
from swag_models.cli import main
from swag_models.errors import CheckpointError, UnsafeCheckpointError
from swag_models.formatting import count_noun
from swag_models.models import FeaturePyramid


@dataclasses.dataclass
class Settings:
    """A script's own settings."""

    rate: float = 0.1


class Attributes(dict[str, Any]):
    """A dict with attributes, as yacs, easydict and Lightning have."""

    __getattr__ = dict.__getitem__


class Mode(enum.Enum):
    TRAIN = 1


def save(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(ours[key], tensor), key


@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, {"pickle_protocol": 5}], ids=str)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "item",
    [
        argparse.Namespace(lr=0.1, output_dir=pathlib.PosixPath("/x")),
        pathlib.PurePosixPath("a/b"),
        np.float64(81.2),
        np.arange(3),
        np.dtype("int8"),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        datetime.timedelta(3),
        collections.defaultdict(list, a=[1]),
        collections.deque([1]),
        collections.Counter("aab"),
        types.SimpleNamespace(a=1),
        functools.partial(int, base=2),
        {1, 2},
        frozenset({3}),
        1 + 2j,
        slice(3),
        range(3),
        np.random.default_rng(0),
        InterpolationMode.BICUBIC,
        torch.device("cpu"),
        torch.Size([2]),
        Settings(),
        Attributes(a=1),
        torch.Generator().get_state(),
        torch.nn.Linear,
        {(1, 2): 3},
    ],
    ids=lambda item: type(item).__name__,
)
def test_objects_beside_the_weights_are_ignored(
    item: Any, zipped: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    state = tiny("vit").state_dict()
    content = {"args": item, "model": state, "epoch": 3, "best": [item, {"item": item}]}
    options |= {} if zipped else {"_use_new_zipfile_serialization": False}
    path = save(content, tmp_path / "checkpoint.pth", **options)
    assert_same(read_state_dict(path), state)


def test_a_call_of_an_unknown_name_is_rejected_unless_the_user_allows_it(tmp_path: Path) -> None:
    state = tiny("vit").state_dict()
    path = save({"mode": Mode.TRAIN, "model": state}, tmp_path / "checkpoint.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"test_checkpoint_trainers\.Mode"):
        read_state_dict(path)
    allowed: list[Any] = [Mode, (Mode, f"{__name__}.Mode")]
    for entry in allowed:
        with torch.serialization.safe_globals([entry]):
            assert_same(read_state_dict(path), state)


def test_a_checkpoint_of_torchvisions_reference_script_is_read(tmp_path: Path) -> None:
    model = torchvision_twin(VIT_SPEC.config, 10, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
        "scaler": None,
    }
    path = save(content, tmp_path / "checkpoint.pth")
    assert_same(read_state_dict(path), model.state_dict())
    path = save({**content, "model_ema": averaged.state_dict()}, tmp_path / "ema.pth")
    assert_same(read_state_dict(path), model.state_dict())
    load_model(VIT_SPEC, weights=path)
    convert_checkpoint(path, tmp_path / "converted.safetensors", "timm")


def test_a_checkpoint_of_timms_saver_is_read(tmp_path: Path) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=4,
        mlp_ratio=2, num_classes=10,
    )  # fmt: skip
    saver = timm.utils.CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        args=argparse.Namespace(model="vit_tiny", lr=np.float64(0.1)),
        model_ema=timm.utils.ModelEmaV3(model),
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=np.float64(81.5))
    assert_same(read_state_dict(tmp_path / "last.pth.tar"), model.state_dict())
    load_model(VIT_SPEC, weights=tmp_path / "last.pth.tar")


class Task(nn.Module):
    """A training module around a model, with other tensors."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.register_buffer("total", torch.zeros(1))


@pytest.mark.parametrize(
    ("wrap", "left_out"),
    [
        (lambda model: {"module": model.state_dict()}, 0),
        (lambda model: {"ema": model.state_dict()}, 0),
        (lambda model: {"net": model.state_dict(), "acc": 3}, 0),
        (lambda model: {"weights": {"deeper": {"still": model.state_dict()}}}, 0),
        (lambda model: (model.state_dict(), 3), 0),
        (lambda model: nn.Sequential(model, nn.Linear(2, 2)).state_dict(), 2),
        (lambda model: Task(encoder=Task(trunk=model)).state_dict(), 2),
        (
            lambda model: {"state_dict": Task(model=model, criterion=nn.Linear(2, 2)).state_dict()},
            3,
        ),
        (lambda model: {"teacher": Task(backbone=model, head=nn.Linear(3, 3)).state_dict()}, 3),
        (lambda model: {f"base_model.model.{k}": v for k, v in model.state_dict().items()}, 0),
        (lambda model: {f"_forward_module.vit.{k}": v for k, v in model.state_dict().items()}, 0),
        (
            lambda model: {
                k.replace("norm1.", "_checkpoint_wrapped_module.norm1."): v
                for k, v in model.state_dict().items()
            },
            0,
        ),
    ],
    ids=range(12),
)
def test_any_key_and_prefix_is_found(
    wrap: Callable[[nn.Module], Any],
    left_out: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny("vit")
    path = save(wrap(model), tmp_path / "checkpoint.pth")
    with caplog.at_level(logging.WARNING, "swag_models"):
        assert_same(read_state_dict(path), model.state_dict())
    count = sum(1 for line in caplog.messages if "left out" in line)
    assert count == (1 if left_out else 0)
    assert not left_out or f": left out {count_noun(left_out, 'tensor')} outside" in caplog.text


def test_a_detector_trained_on_the_pyramid_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("vit")
    detector = Task(backbone=FeaturePyramid(model, 32))
    path = save(detector.state_dict(), tmp_path / "detector.pth")
    state = read_state_dict(path)
    assert_same(state, model.state_dict())
    assert "outside backbone.trunk: " in caplog.text


def two(first: str, second: str, nested: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Two state dicts in one checkpoint, and the second one."""
    states = tiny("regnet").state_dict(), tiny("regnet").state_dict()
    if nested:
        return dict(zip((first, second), states)), states[1]
    flat = {f"{name}.{key}": v for name, s in zip((first, second), states) for key, v in s.items()}
    return flat, states[1]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(
    "names",
    [
        ("model", "model_ema"),
        ("state_dict", "state_dict_ema"),
        ("net", "ema"),
        ("model", "ema_net"),
    ],
    ids=str,
)
def test_averaged_weights_are_taken_and_said(
    names: tuple[str, str], nested: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for order in (names, names[::-1]):
        content, state = two(*names, nested)
        content = content if order == names else dict(reversed(content.items()))
        assert_same(read_state_dict(save(content, tmp_path / "two.pth")), state)
    assert f"using {names[1]}" in caplog.text


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("names", [("student", "teacher"), ("model", "backbone")], ids=str)
def test_an_ambiguous_checkpoint_is_rejected_with_the_way_to_choose(
    names: tuple[str, str], nested: bool, tmp_path: Path
) -> None:
    content, state = two(*names, nested)
    path = save(content, tmp_path / "two.pth")
    message = rf"2 state dicts: {names[0]}, {names[1]}; choose one, .*weights_key=\"{names[0]}\""
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(path)
    assert_same(read_state_dict(path, key=names[1]), state)
    load_model(TINY_SPECS["regnet"], weights=path, weights_key=names[1])
    with pytest.raises(CheckpointError, match=f"no state dicts at key 'x'; allowed: {names[0]}"):
        read_state_dict(path, key="x")


@pytest.mark.parametrize(
    "describe", [lambda x: x.shape, lambda x: 0.5, lambda x: {"exp_avg": x}], ids=range(3)
)
def test_values_of_other_kinds_by_the_same_names_are_no_state_dict(
    describe: Callable[[Tensor], Any], tmp_path: Path
) -> None:
    state = tiny("vit").state_dict()
    # DeepSpeed writes the shapes as a list of dicts, other trainers write rates or moments.
    others = collections.OrderedDict((name, describe(x)) for name, x in state.items())
    path = save({"param_shapes": [others], "module": state}, tmp_path / "x.pt")
    assert_same(read_state_dict(path), state)


def test_two_names_of_one_model_are_not_ambiguous(tmp_path: Path) -> None:
    model = tiny("regnet")
    path = save(Task(net=model, alias=model).state_dict(), tmp_path / "alias.pth")
    assert_same(read_state_dict(path), model.state_dict())


def test_the_command_line_chooses_a_state_dict_and_a_backend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, state = two("student", "teacher", nested=True)
    path = save(content, tmp_path / "two.pth")
    arguments = ["convert", str(path), str(tmp_path / "x.safetensors"), "--to", "timm"]
    assert main(arguments) == 1
    assert "choose one" in capsys.readouterr().err
    assert main([*arguments, "--key", "teacher", "--backend", "pread"]) == 0
    assert_same(read_state_dict(tmp_path / "x.safetensors"), state)


def test_a_model_of_torchvision_in_an_attribute_named_stem_is_read(tmp_path: Path) -> None:
    twin = torchvision_twin(TINY_SPECS["regnet"].config, 10, 64)
    for task in (Task(stem=twin), Task(stem=Task(stem=twin)), Task(trunk_output=Task(stem=twin))):
        path = save(task.state_dict(), tmp_path / "stem.pth")
        assert_same(read_state_dict(path), twin.state_dict())


@pytest.mark.parametrize("family", ["vit", "regnet"])
def test_losses_and_metrics_of_the_model_itself_are_left_out_and_named(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(family)
    expected = model.state_dict()
    model.criterion = nn.CrossEntropyLoss(torch.ones(10))
    model.train_loss = Task()
    model.val_acc = Task()
    path = save({"state_dict": model.state_dict()}, tmp_path / "x.ckpt")
    with caplog.at_level(logging.WARNING, "swag_models"):
        assert_same(read_state_dict(path), expected)
    assert "left out 3 tensors outside the model: criterion.weight, train_loss" in caplog.text
    model.neck = nn.Linear(2, 2)  # may change what the model computes
    with pytest.raises(CheckpointError, match=r"unexpected neck\.weight"):
        load_model(TINY_SPECS[family], weights=save(model.state_dict(), path))


def test_averaged_weights_of_lightning_are_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    averaged, current = (Task(net=tiny("vit")).state_dict() for _ in range(2))
    for content in (
        {"state_dict": averaged, "current_model_state": current, "averaging_state": {"n": 3}},
        {"current_model_state": current, "state_dict": averaged},
    ):
        path = save(content, tmp_path / "x.ckpt")
        ours = read_state_dict(path)
        assert torch.equal(ours["cls_token"], averaged["net.cls_token"])
        assert "using state_dict.net; " in caplog.text
        other = read_state_dict(path, key="current_model_state")
        assert torch.equal(other["cls_token"], current["net.cls_token"])


def test_a_vit_of_transformers_is_refused_by_its_layout(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    model = transformers.ViTForImageClassification(config)
    for module in (model, Task(net=model), model.vit):
        path = save(module.state_dict(), tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="a ViT in the layout of transformers"):
            read_state_dict(path)
