"""Folders that trainers write, by the trainers themselves where they are installed."""

from __future__ import annotations

import collections
import json
import logging
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from ranks import run_ranks
from safetensors.torch import save_file
from tiny import TINY_SPECS, VIT_SPEC, add_lora, tiny
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from swag_models import load_classes, load_model
from swag_models.checkpoint import read_state_dict
from swag_models.errors import CheckpointError, SwagModelsError, UnsafeCheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def assert_same(path: Path, expected: dict[str, Tensor], **options: Any) -> None:
    ours = read_state_dict(path, **options)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("family", ["vit", "regnet"])
def test_folders_of_accelerate_are_read(
    family: str, safe: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, accelerator = tiny(family), Accelerator(cpu=True)
    state = model.state_dict()
    prepared = accelerator.prepare(model)
    accelerator.save_state(str(tmp_path / "state"), safe_serialization=safe)
    accelerator.save_model(prepared, str(tmp_path / "model"), safe_serialization=safe)
    accelerator.save_model(prepared, str(tmp_path / "shards"), "20KB", safe_serialization=safe)
    assert len(list((tmp_path / "shards").iterdir())) > 3
    (index,) = (tmp_path / "shards").glob("*.index.json")
    for path in (tmp_path / "state", tmp_path / "model", tmp_path / "shards", index):
        assert_same(path, state)
        assert_same(path, state, backend="pread")
    assert load_model(TINY_SPECS[family], weights=tmp_path / "state").num_classes == 10
    accelerator.prepare(nn.Linear(1, 1))
    accelerator.save_state(str(tmp_path / "two"), safe_serialization=safe)
    with caplog.at_level(logging.WARNING, "swag_models"):
        assert_same(tmp_path / "two", state)
    other = "model_1.safetensors" if safe else "pytorch_model_1.bin"
    assert f", not {other}" in caplog.text


def test_class_names_in_a_config_beside_the_weights_are_kept(tmp_path: Path) -> None:
    torch.save(tiny("vit", 3).state_dict(), tmp_path / "pytorch_model.bin")
    names = ("a", "b", "c")
    for config in (
        {"id2label": dict(enumerate(names)), "label2id": {"a": 0}},
        {"label_names": names},
        {"pretrained_cfg": {"label_names": names}},
        {"swag_models": {"classes": names}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert load_classes(load_model(VIT_SPEC, weights=tmp_path).spec) == names
    for text in ("{", "[1]", '{"id2label": {"0": 3, "1": 4, "2": 5}}'):
        (tmp_path / "config.json").write_text(text)
        assert load_model(VIT_SPEC, weights=tmp_path).spec.classes is None


def test_a_folder_of_peft_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = add_lora(tiny("vit"))
    model.save_pretrained(tmp_path / "adapter")
    torch.save({"model": model.state_dict()}, tmp_path / "whole.pt")
    torch.save(model.base_model.model.state_dict(), tmp_path / "inner.pt")
    for path in (
        tmp_path / "adapter",
        tmp_path / "adapter" / "adapter_model.safetensors",
        tmp_path / "whole.pt",
        tmp_path / "inner.pt",
    ):
        with pytest.raises(CheckpointError, match=r"has adapters of PEFT.*merge_and_unload\(\)"):
            load_model(VIT_SPEC, weights=path)
    torch.save(model.merge_and_unload().state_dict(), tmp_path / "merged.pt")
    load_model(VIT_SPEC, weights=tmp_path / "merged.pt")


def test_a_checkpoint_of_deepspeed_is_read_or_refused_with_the_script(tmp_path: Path) -> None:
    state = tiny("vit").state_dict()
    step = tmp_path / "global_step3"
    step.mkdir()
    (tmp_path / "latest").write_text("global_step3")
    (tmp_path / "zero_to_fp32.py").touch()
    shapes = [collections.OrderedDict((name, tensor.shape) for name, tensor in state.items())]
    content = {"module": state, "param_shapes": shapes, "ds_config": {}, "ds_version": "0.19"}
    torch.save(content, step / "mp_rank_00_model_states.pt")
    assert_same(step / "mp_rank_00_model_states.pt", state)
    with pytest.raises(CheckpointError, match=r"python zero_to_fp32\.py \. OUT"):
        read_state_dict(tmp_path)
    content["module"] = {name: torch.empty(0, dtype=x.dtype) for name, x in state.items()}
    torch.save(content, step / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"empty tensors: .* run zero_to_fp32\.py"):
        read_state_dict(step / "zero_pp_rank_0_mp_rank_00_model_states.pt")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "it has no files$"),
        (["epoch=3.ckpt", "last.ckpt"], r"pass a weight file.*it has epoch=3.ckpt, last.ckpt$"),
        (["checkpoint-9/", "checkpoint-10/", "runs/"], "pass one: checkpoint-10$"),
        (["checkpoints/"], "it has checkpoints$"),
        ([f"{n}.pt" for n in range(99)], "and 94 more$"),
    ],
    ids=str,
)
def test_a_folder_without_weights_is_refused_with_what_it_has(
    names: list[str], message: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(VIT_SPEC, weights=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", ["teacher", "model_ema"])
def test_two_models_in_an_index_are_told_apart(
    other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = {"student": tiny("vit").state_dict(), other: tiny("vit").state_dict()}
    tensors = {f"{key}.{name}": x for key, state in models.items() for name, x in state.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "a.safetensors")}))
    for key, state in models.items():
        assert_same(tmp_path, state, key=key)
    if other == "model_ema":
        assert_same(tmp_path, models[other])
        assert "using model_ema" in caplog.text
    else:
        with pytest.raises(CheckpointError, match="2 state dicts: student, teacher; choose one"):
            read_state_dict(tmp_path)


def test_a_broken_index_of_bin_files_is_refused(tmp_path: Path) -> None:
    state = tiny("vit").state_dict()
    torch.save(state, tmp_path / "a.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    for tensors, message in (
        (dict.fromkeys(state, "b.bin"), "not in the same folder"),
        (dict.fromkeys(state, "../a.bin"), r"invalid file .*names \.bin files beside it"),
        (dict.fromkeys(state, "a.safetensors"), r"invalid file"),
        ({"x": "a.bin"}, "does not contain the tensors"),
    ):
        index.write_text(json.dumps({"weight_map": tensors}))
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(tmp_path)
    torch.save({"model": state}, tmp_path / "a.bin")
    index.write_text(json.dumps({"weight_map": {"model": "a.bin"}}))
    with pytest.raises(CheckpointError, match="not a part of a state dict"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    ("family", "wrap"),
    [
        ("regnet", lambda state: state),
        ("vit", lambda state: {"model": state, "epoch": 3, "loss": torch.tensor(2.0)}),
        ("vit", lambda state: {"a": {"model": {f"net.{k}": v for k, v in state.items()}, "x": ""}}),
    ],
    ids=range(3),
)
def test_a_folder_of_dcp_is_read(wrap: Any, family: str, tmp_path: Path) -> None:
    state = tiny(family).state_dict()
    dcp.save(wrap(state), checkpoint_id=tmp_path / "dcp")
    for path in (tmp_path / "dcp", *(tmp_path / "dcp").iterdir()):
        assert_same(path, state)
    assert load_model(TINY_SPECS[family], weights=tmp_path / "dcp").num_classes == 10
    (tmp_path / "accelerate").mkdir()
    shutil.copytree(tmp_path / "dcp", tmp_path / "accelerate" / "pytorch_model_fsdp_0")
    assert_same(tmp_path / "accelerate", state)


def save_sharded(folder: str) -> None:
    """Save a model that FSDP2 shards, and what each rank has of it with torch.save."""
    state = torch.load(Path(folder) / "whole.pt")
    model = tiny("vit")
    model.load_state_dict(state)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    dcp.save({"model": model.state_dict()}, checkpoint_id=Path(folder) / "dcp")
    torch.save(model.state_dict(), Path(folder) / f"{torch.distributed.get_rank()}.pt")


@pytest.mark.parametrize("count", [2, 3])
def test_a_tensor_in_parts_is_joined(count: int, tmp_path: Path) -> None:
    state = tiny("vit").state_dict()
    position = state.pop("pos_embed")
    blocks = {(0, 0): position[:, :20, :8], (0, 8): position[:, :20, 8:], (20, 0): position[:, 20:]}
    if count == 2:
        blocks = {(0, 0): position[:, :20], (20, 0): position[:, 20:]}
    dcp.save(state | {str(at): block for at, block in blocks.items()}, checkpoint_id=tmp_path)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    entry = metadata.state_dict_metadata[str((0, 0))]
    chunk = type(entry.chunks[0])
    entry.size = position.shape
    entry.chunks = [chunk(torch.Size((0, *at)), block.shape) for at, block in blocks.items()]
    metadata.state_dict_metadata["pos_embed"] = entry
    for index, place in list(metadata.storage_data.items()):
        for at in blocks:
            if index.fqn == str(at):
                metadata.storage_data[type(index)("pos_embed", (0, *at))] = place
    for at in blocks:
        del metadata.state_dict_metadata[str(at)]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_same(tmp_path, state | {"pos_embed": position})
    (tmp_path / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read __0_0\.distcp: No such file"):
        read_state_dict(tmp_path)


@pytest.mark.slow
def test_a_sharded_model_is_read_from_dcp_and_its_parts_alone_are_refused(tmp_path: Path) -> None:
    state = tiny("vit").state_dict()
    torch.save(state, tmp_path / "whole.pt")
    run_ranks(2, save_sharded, str(tmp_path))
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 2
    assert_same(tmp_path / "dcp", state)
    with pytest.raises(CheckpointError, match=r"a part of a DTensor.*full_state_dict=True"):
        read_state_dict(tmp_path / "1.pt")
    (tmp_path / "dcp" / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp"):
        read_state_dict(tmp_path / "dcp")


class Call:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_metadata_that_would_run_code_is_refused(tmp_path: Path) -> None:
    dcp.save(tiny("vit").state_dict(), checkpoint_id=tmp_path / "dcp")
    path = tmp_path / "dcp" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.planner_data = Call(tmp_path / "ran")
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(UnsafeCheckpointError, match=r"nothing in it ran: its \.metadata calls"):
        read_state_dict(tmp_path / "dcp")
    assert not (tmp_path / "ran").exists()


def change(metadata: Any, field: str, value: Any) -> None:
    """Change one field of the entry of `cls_token`."""
    entry = metadata.state_dict_metadata["cls_token"]
    (index,) = (key for key in metadata.storage_data if key.fqn == "cls_token")
    if field in ("relative_path", "offset", "length", "transform_descriptors"):
        setattr(metadata.storage_data[index], field, value)
    elif field in ("offsets", "sizes"):
        setattr(entry.chunks[0], field, torch.Size(value))
    elif field == "size":
        entry.size = torch.Size(value)
    elif field == "dtype":
        entry.properties.dtype = value
    elif field == "chunks":
        entry.chunks *= value
    else:
        setattr(metadata, field, value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("relative_path", "/etc/passwd"),
        ("relative_path", "../__0_0.distcp"),
        ("relative_path", ".metadata"),
        ("relative_path", 3),
        ("offset", -1),
        ("offset", 2**40),
        ("offset", "x"),
        ("length", 2**50),
        ("length", 3),
        ("transform_descriptors", ["zstd"]),
        ("size", (1, 1, 10**15)),
        ("size", (10**9,) * 80),
        ("size", ()),
        ("sizes", (1, 1, 31)),
        ("sizes", (10**9, 10**9, 10**9)),
        ("offsets", (0, 0, 5)),
        ("offsets", (0, 0)),
        ("dtype", torch.float16),
        ("dtype", torch.int64),
        ("chunks", 0),
        ("chunks", 2),
        ("storage_data", {}),
        ("storage_data", None),
        ("state_dict_metadata", [1]),
        ("state_dict_metadata", {3: 4}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_damaged_metadata_are_refused(field: str, value: Any, tmp_path: Path) -> None:
    dcp.save(tiny("vit").state_dict(), checkpoint_id=tmp_path / "dcp")
    path = tmp_path / "dcp" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata, field, value)
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError) as error:
        read_state_dict(tmp_path / "dcp")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_tensor_larger_than_its_files_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    dcp.save(tiny("vit").state_dict(), checkpoint_id=tmp_path / "dcp")
    path = tmp_path / "dcp" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    entry = metadata.state_dict_metadata["cls_token"]
    (index,) = (key for key in metadata.storage_data if key.fqn == "cls_token")
    chunk, copies = entry.chunks[0], 300
    entry.size = torch.Size((copies, 10**9, 32))
    entry.chunks = [
        type(chunk)(torch.Size((n, 0, 0)), torch.Size((1, 10**9, 32))) for n in range(copies)
    ]
    for n in range(copies):
        metadata.storage_data[type(index)("cls_token", (n, 0, 0))] = metadata.storage_data[index]
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="larger than the files of its parts"):
        read_state_dict(tmp_path / "dcp")


def test_random_damage_to_a_folder_of_dcp_raises_only_checkpoint_errors(tmp_path: Path) -> None:
    dcp.save({"model": tiny("vit").state_dict()}, checkpoint_id=tmp_path / "dcp")
    rng = random.Random(5)
    outcomes: collections.Counter[str] = collections.Counter()
    for name in (".metadata", "__0_0.distcp"):
        original = (tmp_path / "dcp" / name).read_bytes()
        for _ in range(25):
            damaged = bytearray(original)
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            (tmp_path / "dcp" / name).write_bytes(damaged[: rng.choice([None, -9, 99])])
            try:
                read_state_dict(tmp_path / "dcp")
                outcomes["read"] += 1
            except SwagModelsError as error:
                outcomes[type(error).__name__] += 1
        (tmp_path / "dcp" / name).write_bytes(original)
    assert outcomes["CheckpointError"] > 12, outcomes
