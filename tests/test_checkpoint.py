"""Reading, unwrapping, writing and converting weight files."""

from __future__ import annotations

import itertools
import logging
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY_SPECS, VIT_SPEC, images, tiny
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from swag_models import load_model
from swag_models.architectures import ViTConfig
from swag_models.checkpoint import convert_checkpoint, read_state_dict, write_state_dict
from swag_models.errors import CheckpointError
from swag_models.layouts import recognise_layout, translate_layout
from swag_models.models import build
from swag_models.spec import Layout

resource = pytest.importorskip("resource")
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
FAMILIES = ("vit", "regnet")
SUFFIXES = (".safetensors", ".pth", ".pt", ".torch", ".bin")


def save_legacy(state: Any, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


SAVERS: dict[str, Callable[[Any, Path], None]] = {
    "safetensors": save_file,
    "zip": torch.save,
    "legacy": save_legacy,
}


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key


class TestReading:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("kind", SAVERS)
    @pytest.mark.parametrize("backend", ["mmap", "pread"])
    def test_every_format_and_layout_is_read(
        self, family: str, layout: Layout, kind: str, backend: Any, tmp_path: Path
    ) -> None:
        state = translate_layout(tiny(family).state_dict(), layout)
        SAVERS[kind](state, tmp_path / "file")  # recognised by content, not by name
        read = read_state_dict(tmp_path / "file", backend=backend)
        assert recognise_layout(read) == (family, layout)
        assert_same(read, state)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("kind", SAVERS)
    def test_load_model_gives_the_saved_model(
        self, family: str, layout: Layout, kind: str, tmp_path: Path
    ) -> None:
        source, batch = tiny(family), images()
        SAVERS[kind](translate_layout(source.state_dict(), layout), tmp_path / "file")
        model = load_model(TINY_SPECS[family], weights=str(tmp_path / "file"))
        assert not model.training
        assert all(
            parameter.requires_grad and parameter.is_leaf for parameter in model.parameters()
        )
        # Mapped weights are aligned differently, which may change the last bits.
        torch.testing.assert_close(model(batch), source(batch))

    def test_backend_must_be_known(self, tmp_path: Path) -> None:
        torch.save(tiny("vit").state_dict(), tmp_path / "file")
        with pytest.raises(CheckpointError, match="unknown backend 'ram'; allowed: mmap, pread"):
            read_state_dict(tmp_path / "file", backend="ram")  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
    @pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
    def test_half_precision_becomes_float32_or_the_requested_dtype(
        self, kind: str, half: torch.dtype, tmp_path: Path
    ) -> None:
        state = tiny("regnet").to(half).state_dict()
        SAVERS[kind](state, tmp_path / "file")
        for asked, expected in (
            (None, torch.float32),
            ("bfloat16", torch.bfloat16),
            (torch.float16, torch.float16),
        ):
            loaded = load_model(
                TINY_SPECS["regnet"], weights=tmp_path / "file", dtype=asked
            ).state_dict()
            for key, tensor in state.items():
                assert torch.equal(
                    loaded[key], tensor.to(expected) if tensor.is_floating_point() else tensor
                ), key


class TestWrappers:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
            lambda state: {"model": state},
            lambda state: {"model_ema": state},
            lambda state: {"model": {"state_dict": state}},
            lambda state: {
                "classy_state_dict": {
                    "base_model": {"model": {"trunk": state, "heads": {}}},
                    "phase": 1,
                }
            },
            lambda state: {f"module.{key}": value for key, value in state.items()},
            lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
            lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
            lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
            lambda state: {f"module.module.{key}": value for key, value in state.items()},
            lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
            lambda state: {
                "n_averaged": torch.tensor(5),
                **{f"module.{key}": value for key, value in state.items()},
            },
        ],
        ids=lambda wrap: ", ".join(map(str, wrap({"cls_token": 0}))),
    )
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_wrappers_are_removed(
        self, wrap: Callable[[dict[str, Tensor]], Any], layout: Layout, tmp_path: Path
    ) -> None:
        state = translate_layout(tiny("vit").state_dict(), layout)
        torch.save(wrap(state), tmp_path / "file")
        assert_same(read_state_dict(tmp_path / "file"), state)

    @pytest.mark.parametrize(
        "wrap",
        [
            nn.DataParallel,
            AveragedModel,
            lambda model: AveragedModel(nn.DataParallel(model)),
            torch.compile,
        ],
        ids=["DataParallel", "AveragedModel", "AveragedModel of DataParallel", "compile"],
    )
    def test_wrappers_of_torch_are_removed(
        self, wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
    ) -> None:
        model = tiny("regnet")
        # DataParallel moves the model to a GPU if there is one
        expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        torch.save(wrap(model).state_dict(), tmp_path / "file")
        assert_same(read_state_dict(tmp_path / "file"), expected)

    def test_averaged_weights_come_first_and_the_choice_is_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        state = tiny("vit").state_dict()
        torch.save({"model": tiny("vit").state_dict(), "model_ema": state}, tmp_path / "file")
        with caplog.at_level(logging.WARNING, "swag_models"):
            assert_same(read_state_dict(tmp_path / "file"), state)
        (message,) = caplog.messages
        assert "using model_ema" in message
        assert str(tmp_path / "file") in message


class TestMapping:
    CONFIG = ViTConfig(patch_size=16, depth=4, width=512, num_heads=8, mlp_width=2048)
    CODE = """
import sys
from dataclasses import replace
from swag_models import ModelSpec, load_model
from swag_models.checkpoint import read_state_dict

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

spec, big, small, backend = ModelSpec.from_json(sys.argv[1]), *sys.argv[2:]
read_state_dict(small)
# Smaller, so that the memory that it frees is not enough for the other model.
less = replace(spec.config, depth=1, width=64, mlp_width=64)
load_model(replace(spec, config=less), pretrained=False, num_classes=1)
before = anonymous()
model = load_model(spec, weights=big, backend=backend)
assert sum(float(parameter.detach().sum()) for parameter in model.parameters()) != 0
print(anonymous() - before)
"""

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    @pytest.mark.parametrize(("backend", "copies"), [("mmap", False), ("pread", True)])
    @pytest.mark.parametrize("kind", ["safetensors", "zip"])
    def test_loading_copies_nothing_by_default(
        self, kind: str, backend: str, copies: bool, tmp_path: Path
    ) -> None:
        spec = replace(
            VIT_SPEC, config=self.CONFIG, preprocess=replace(VIT_SPEC.preprocess, image_size=64)
        )
        big, small = tmp_path / "big", tmp_path / "small"
        SAVERS[kind](build(self.CONFIG, num_classes=10, image_size=64).state_dict(), big)
        SAVERS[kind](tiny("vit").state_dict(), small)
        size = big.stat().st_size // 1024
        assert size > 45_000
        arguments = [sys.executable, "-c", self.CODE, spec.to_json(), str(big), str(small), backend]
        run = subprocess.run(arguments, capture_output=True, text=True, check=False)
        big.unlink()
        assert run.returncode == 0, run.stderr
        assert (int(run.stdout) > 0.9 * size) if copies else (int(run.stdout) < 0.2 * size)

    @pytest.mark.parametrize("backend", ["mmap", "pread"])
    @pytest.mark.parametrize("kind", SAVERS)
    def test_changing_the_model_does_not_change_the_file(
        self, kind: str, backend: Any, tmp_path: Path
    ) -> None:
        SAVERS[kind](tiny("vit").state_dict(), tmp_path / "file")
        before = (tmp_path / "file").read_bytes()
        model = load_model(VIT_SPEC, weights=tmp_path / "file", backend=backend)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(3)
        del model
        assert (tmp_path / "file").read_bytes() == before

    @pytest.mark.parametrize("kind", SAVERS)
    def test_a_mapped_model_can_be_trained(self, kind: str, tmp_path: Path) -> None:
        SAVERS[kind](tiny("regnet").state_dict(), tmp_path / "file")
        model = load_model(TINY_SPECS["regnet"], weights=tmp_path / "file").train()
        before = model.stem.conv.weight.detach().clone()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        model(images()).square().sum().backward()
        optimiser.step()
        assert not torch.equal(model.stem.conv.weight, before)


@contextmanager
def file_size_limit(count: int) -> Iterator[None]:
    """Make writes fail after `count` bytes of a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestConverting:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("pair", list(itertools.product(LAYOUTS, repeat=2)), ids="-".join)
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_converts_between_all_layouts(
        self, family: str, pair: tuple[Layout, Layout], suffix: str, tmp_path: Path
    ) -> None:
        state = tiny(family).state_dict()
        for index, save in enumerate(SAVERS.values()):
            source, target = tmp_path / f"source{index}", tmp_path / f"target{index}{suffix}"
            save(translate_layout(state, pair[0]), source)
            convert_checkpoint(source, target, pair[1])
            assert_same(read_state_dict(target), translate_layout(state, pair[1]))
            assert target.stat().st_size < 1.3 * source.stat().st_size

    def test_converts_torchvisions_early_names(self, tmp_path: Path) -> None:
        state = translate_layout(tiny("vit").state_dict(), "torchvision")
        early = {
            key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): state[key]
            for key in state
        }
        torch.save(early, tmp_path / "early.pth")
        for layout in ("swag", "timm"):
            convert_checkpoint(tmp_path / "early.pth", tmp_path / "new.pth", layout)  # type: ignore[arg-type]
            assert_same(read_state_dict(tmp_path / "new.pth"), translate_layout(state, layout))  # type: ignore[arg-type]

    def test_converts_a_file_in_place(self, tmp_path: Path) -> None:
        path, state = tmp_path / "model.safetensors", tiny("vit").state_dict()
        write_state_dict(state, path)
        convert_checkpoint(path, path, "swag")
        assert_same(read_state_dict(path), translate_layout(state, "swag"))

    def test_keeps_half_precision(self, tmp_path: Path) -> None:
        state = tiny("vit").half().state_dict()
        torch.save(state, tmp_path / "half.pth")
        convert_checkpoint(tmp_path / "half.pth", tmp_path / "half.safetensors", "timm")
        assert_same(read_state_dict(tmp_path / "half.safetensors"), state)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_files_get_the_usual_permissions(self, suffix: str, tmp_path: Path) -> None:
        (tmp_path / "usual").touch()
        write_state_dict(tiny("vit").state_dict(), tmp_path / f"model{suffix}")
        modes = [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()]
        assert modes[0] == modes[1]

    def test_the_temporary_file_of_another_writer_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / ".model.pth.tmp").write_bytes(b"half")
        write_state_dict({"weight": torch.ones(1)}, tmp_path / "model.pth")
        assert (tmp_path / ".model.pth.tmp").read_bytes() == b"half"

    def test_lists_tensors_that_no_layout_has(self, tmp_path: Path) -> None:
        extra = {f"neck.{index}": torch.ones(1) for index in range(10)}
        torch.save(tiny("vit").state_dict() | extra, tmp_path / "source.pth")
        with pytest.raises(
            CheckpointError, match=r"no layout has: neck\.0, neck\.1, .* and 2 more"
        ):
            convert_checkpoint(tmp_path / "source.pth", tmp_path / "target.pth", "swag")
        assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]

    @pytest.mark.parametrize("name", ["model.onnx", "model", "model.safetensors.gz"])
    def test_rejects_an_unknown_suffix(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(
            CheckpointError, match=rf"cannot write .*{name}: end the name in \.safetensors or \.pth"
        ):
            write_state_dict(tiny("vit").state_dict(), tmp_path / name)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("existing", [True, False])
    def test_leaves_nothing_behind_on_a_full_disk(
        self, suffix: str, existing: bool, tmp_path: Path
    ) -> None:
        path = tmp_path / f"model{suffix}"
        if existing:
            path.write_bytes(b"precious")
        with (
            file_size_limit(20_000),
            pytest.raises(CheckpointError, match=r"cannot write .*model") as error,
        ):
            write_state_dict(tiny("vit").state_dict(), path)
        assert "\n" not in str(error.value)
        assert [(left.name, left.read_bytes()) for left in tmp_path.iterdir()] == [
            (path.name, b"precious")
        ] * existing

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("target", ["missing", "file", "long"])
    def test_reports_a_path_that_cannot_be_written(
        self, suffix: str, target: str, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_bytes(b"not a folder")
        path = {
            "missing": tmp_path / "missing" / f"model{suffix}",
            "file": tmp_path / "file" / f"model{suffix}",
            "long": tmp_path / f"model{'l' * 300}{suffix}",
        }[target]
        with pytest.raises(CheckpointError, match=r"cannot write .*model") as error:
            write_state_dict(tiny("vit").state_dict(), path)
        assert "\n" not in str(error.value)
        assert [left.name for left in tmp_path.iterdir()] == ["file"]

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_does_not_replace_a_folder(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"model{suffix}"
        path.mkdir()
        with pytest.raises(CheckpointError, match="cannot write"):
            write_state_dict(tiny("vit").state_dict(), path)
        assert list(tmp_path.iterdir()) == [path]
