"""Weights beside an .onnx: whatever interrupts a run, the file and its weights fit together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny import VIT_SPEC, deviation, images, tiny
from torch import Tensor, nn

import swag_models
from swag_models.architectures import ViTConfig
from swag_models.cli import main
from swag_models.errors import ConfigError, ExportError
from swag_models.export import export_model, external_data, read_metadata
from swag_models.export.external_data import move_into_place
from swag_models.models import build

pytestmark = pytest.mark.usefixtures("one_thread")


def write_model(path: Path, value: float, *, beside: bool, size: int = 4096) -> Path:
    """An .onnx that returns a vector of `size` equal values, which are its weights."""
    weights = onnx.numpy_helper.from_array(np.full(size, value, np.float32), "weights")
    kind = onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [size])
    node = onnx.helper.make_node("Identity", ["weights"], ["output"])
    graph = onnx.helper.make_graph([node], "constant", [], [kind], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 10
    location = f"{path.name}.data" if beside else None
    onnx.save(model, path, save_as_external_data=beside, location=location)
    return path


def read_value(path: Path) -> float:
    """What such an .onnx returns."""
    (output,) = onnxruntime.InferenceSession(path).run(None, {})
    (value,) = set(output.tolist())
    return float(value)


def run(path: Path, batch: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def list_names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.is_file())


def prepare(folder: Path, old: str) -> Path:
    """The path of an .onnx, in the state that earlier runs left."""
    path = folder / "x.onnx"
    if old != "nothing":
        write_model(path, 1, beside=old != "one file")
    if old == "killed after both":  # before the weights of the file that was replaced were removed
        model = onnx.load(path, load_external_data=False)
        external_data.list_data_paths(path)[0].rename(folder / "x.onnx.new.data")
        for entry in model.graph.initializer[0].external_data:
            entry.value = "x.onnx.new.data" if entry.key == "location" else entry.value
        onnx.save(model, path)
        (folder / "x.onnx.data").write_bytes(bytes(4096 * 4))
    if old == "killed after weights":
        (folder / "x.onnx.new.data").write_bytes(bytes(100))
    return path


OLD = ("nothing", "one file", "pair", "killed after both", "killed after weights")


def in_child(work: Callable[[], object]) -> int:
    """Do some work in a forked process; returns the number of the signal that ended it, or 0."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def stop_at(step: int, stop: Callable[[], None]) -> None:
    """Make this process stop before its n-th change of a file name."""
    count = 0
    for name in ("replace", "unlink", "rename", "remove", "link"):
        original = getattr(os, name)

        def change(*arguments: Any, _original: Any = original, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                stop()
            return _original(*arguments, **options)

        setattr(os, name, change)


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("beside", [True, False], ids=["beside", "inside"])
@pytest.mark.parametrize("value", [1.0, 2.0], ids=["same weights", "other weights"])
def test_a_killed_run_leaves_the_old_file_or_the_new_one(
    old: str, beside: bool, value: float, tmp_path: Path
) -> None:
    for step in range(1, 9):
        folder = tmp_path / str(step)
        (folder / "temporary").mkdir(parents=True)
        path = prepare(folder, old)
        new = write_model(folder / "temporary" / "x.onnx", value, beside=beside)

        def work(step: int = step, new: Path = new, path: Path = path) -> None:
            stop_at(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
            move_into_place(new, path)

        killed = in_child(work)
        if path.exists() or old != "nothing":
            assert read_value(path) in (1, value)
        rerun = write_model(folder / "temporary" / "x.onnx", 3, beside=beside)
        move_into_place(rerun, path)
        assert read_value(path) == 3
        assert len(list_names(folder)) == 1 + beside
        if not killed:
            break
    else:
        raise AssertionError("it was always killed")
    assert step > (2 if beside else 1), "it was killed at every step"


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("beside", [True, False], ids=["beside", "inside"])
def test_a_refused_change_leaves_the_old_file_or_the_new_one(
    old: str, beside: bool, tmp_path: Path
) -> None:
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    for step in range(1, 9):
        folder = tmp_path / str(step)
        (folder / "temporary").mkdir(parents=True)
        path = prepare(folder, old)
        new = write_model(folder / "temporary" / "x.onnx", 2, beside=beside)
        ended = folder / "ended"

        def work(step: int = step, new: Path = new, path: Path = path, ended: Path = ended) -> None:
            stop_at(step, refuse)
            try:
                move_into_place(new, path)
            except PermissionError:
                ended.write_text("refused")
            else:
                ended.write_text("done")

        assert in_child(work) == 0
        if ended.read_text() == "done":
            assert read_value(path) == 2
        elif path.exists() or old != "nothing":
            assert read_value(path) == 1


def test_weights_are_named_after_their_file_unless_others_use_the_name(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    path, names = tmp_path / "x.onnx", []
    for value in (1, 1, 2, 2, 3):
        move_into_place(write_model(tmp_path / "temporary" / "x.onnx", value, beside=True), path)
        assert read_value(path) == value
        names.append(list_names(tmp_path)[1:])
    assert names == [
        ["x.onnx.data"],
        ["x.onnx.data"],
        ["x.onnx.new.data"],
        ["x.onnx.data"],
        ["x.onnx.new.data"],
    ]
    move_into_place(write_model(tmp_path / "temporary" / "x.onnx", 4, beside=False), path)
    assert list_names(tmp_path) == ["x.onnx"]
    path.write_bytes(b"not an .onnx")
    move_into_place(write_model(tmp_path / "temporary" / "x.onnx", 5, beside=True), path)
    assert list_names(tmp_path) == ["x.onnx", "x.onnx.data"]


def test_runs_at_the_same_time_do_not_mix_their_weights(tmp_path: Path) -> None:
    path, new = tmp_path / "x.onnx", []
    for size in (1000, 2000):
        (tmp_path / str(size)).mkdir()
        new.append(write_model(tmp_path / str(size) / "x.onnx", size, beside=True, size=size))
    reader, writer = os.pipe()

    def pause() -> None:
        os.write(writer, b"the weights have their name")
        time.sleep(0.3)

    child = os.fork()
    if not child:
        try:
            stop_at(2, pause)
            move_into_place(new[0], path)
            os._exit(0)
        finally:
            os._exit(1)
    os.read(reader, 1)
    move_into_place(new[1], path)
    assert os.waitpid(child, 0)[1] == 0
    (output,) = onnxruntime.InferenceSession(path).run(None, {})
    assert output.tolist() == [2000] * 2000
    assert len(list_names(tmp_path)) == 2


@pytest.mark.slow
def test_large_weights_are_stored_beside_an_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = tiny("vit"), tmp_path / "model.onnx"
    monkeypatch.setattr(external_data, "MAX_SINGLE_FILE_SIZE", 10_000)
    report = export_model(model, path, spec=VIT_SPEC)
    assert list_names(tmp_path) == ["model.onnx", "model.onnx.data"]
    assert report.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert (tmp_path / "model.onnx.data").stat().st_size > 0.8 * sum(
        parameter.nbytes for parameter in model.parameters()
    )
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).rename(moved / name)
    batch = images(3)
    assert deviation(run(moved / "model.onnx", batch), model(batch)) < 1e-4
    assert read_metadata(moved / "model.onnx").name == "tiny_vit"
    with pytest.raises(ConfigError, match=r"external_data=False is not possible for 0\.0 GB"):
        export_model(model, path, spec=VIT_SPEC, external_data=False)
    monkeypatch.undo()
    export_model(model, moved / "model.onnx", spec=VIT_SPEC)  # in one file again
    assert [file.name for file in moved.iterdir()] == ["model.onnx"]
    assert deviation(run(moved / "model.onnx", batch), model(batch)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_weights_of_every_precision_can_be_stored_beside_the_file(
    dtype: str, tmp_path: Path, scenes: Path
) -> None:
    path = tmp_path / "model.onnx"
    folder = scenes if dtype == "int8" else None
    export_model("vit_nano_hashtags", path, dtype=dtype, external_data=True, images=folder)
    assert list_names(tmp_path) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < (tmp_path / "model.onnx.data").stat().st_size
    onnx.checker.check_model(str(path), full_check=True)


@pytest.fixture
def scenes() -> Path:
    return Path(swag_models.__file__).parents[1] / "examples" / "scenes"


@pytest.mark.slow
def test_the_command_repeats_nothing_unless_a_file_or_an_option_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)

    def is_done(*options: str) -> bool:
        caplog.clear()
        assert main(["export", "vit_nano_hashtags", "x.onnx", *options]) == 0
        return any("is already done" in message for message in caplog.messages)

    assert not is_done("--external-data")
    assert is_done("--external-data")
    data = tmp_path / "x.onnx.data"
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.write_bytes(damaged)
    assert not is_done("--external-data"), "its weights were changed"
    assert is_done("--external-data")
    before = onnxruntime.InferenceSession("x.onnx")
    assert before.get_inputs()[0].shape == ["batch", 3, 48, 48]
    assert not is_done("--dynamic-size")
    assert list_names(tmp_path) == ["x.onnx"]
    assert is_done("--dynamic-size")
    assert not is_done("--dynamic-size", "--dtype", "fp16")


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_pair(tmp_path: Path) -> None:
    path = export_model("vit_nano_hashtags", tmp_path / "x.onnx", external_data=True).path
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def work() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        with pytest.raises(ExportError, match=r"x\.onnx was not written: the disk took only"):
            export_model("vit_nano_hashtags", path, external_data=True, num_classes=9)

    assert in_child(work) == 0
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_an_onnx_of_more_than_2_gib_returns_what_the_model_returns(tmp_path: Path) -> None:
    config = ViTConfig(patch_size=8, depth=1, width=2048, num_heads=8, mlp_width=2048)
    model = build(config, num_classes=280_000, image_size=32).eval()
    nn.init.normal_(model.head.weight, std=0.02)
    spec = replace(VIT_SPEC, config=config, num_classes=280_000, classes=None)
    path = tmp_path / "x.onnx"
    report = export_model(model, path, spec=spec, dynamic_size=True)
    assert report.size > 2**31
    assert list_names(tmp_path) == ["x.onnx", "x.onnx.data"]
    batch = images(2, (48, 40))
    with torch.inference_mode():
        assert deviation(run(path, batch), model(batch)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_h14", "regnety_128gf"])
def test_a_model_larger_than_protobufs_limit_is_exported(name: str, tmp_path: Path) -> None:
    report = export_model(name, tmp_path / "model.onnx", pretrained=False)
    assert report.size > 2**31
    assert (tmp_path / "model.onnx").stat().st_size < 2**24
    assert list_names(tmp_path) == ["model.onnx", "model.onnx.data"]
    batch = images(1, 224)
    assert np.isfinite(run(tmp_path / "model.onnx", batch).numpy()).all()
