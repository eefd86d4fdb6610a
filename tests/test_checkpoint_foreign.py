"""Odd tensors, foreign formats, hostile pickles, disks without mmap, descriptions out of bounds."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY_SPECS, VIT_SPEC, tiny
from torch import Tensor, nn

from swag_models import get_spec, load_model, pickle_reader
from swag_models.architectures import RegNetConfig, ViTConfig
from swag_models.checkpoint import read_state_dict
from swag_models.errors import CheckpointError, ConfigError, SwagModelsError, UnsafeCheckpointError
from swag_models.hub.hf_format import CONFIG_FILE
from swag_models.model_limits import LIMITS
from swag_models.publish import save as save_model
from swag_models.spec import ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore")
LEGACY = {"_use_new_zipfile_serialization": False}
HEADER = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."  # of a legacy file


def reject(path: Path, **options: Any) -> str:
    """Check that reading takes little CPU and fails with one line; return the message."""
    start = time.process_time()
    with pytest.raises(CheckpointError) as error:
        read_state_dict(path, **options)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 500
    assert time.process_time() - start < 20
    return message


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Tensor.to_sparse, "a sparse tensor"),
        (Tensor.to_sparse_csr, "a sparse tensor"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "a quantised tensor"),
        (
            lambda x: torch.quantize_per_channel(
                x, torch.ones(len(x)), torch.zeros(len(x)), 0, torch.quint8
            ),
            "a quantised tensor",
        ),
        (lambda x: torch.nested.nested_tensor([x, x]), "a nested tensor"),
        (lambda x: x.to("meta"), "a tensor without values"),
        (lambda x: x.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (lambda x: x.to(torch.float8_e5m2), "torch.float8_e5m2"),
        (lambda x: x.to(torch.complex64), "torch.complex64"),
        (lambda x: x.bool(), "torch.bool"),
        (lambda x: x.to(torch.uint16), "torch.uint16"),
        (lambda x: [x], "a list"),
        (lambda x: torch._neg_view(x), "a view of negated values"),
    ],
    ids=range(13),
)
def test_an_odd_tensor_is_rejected_by_name(
    make: Callable[[Tensor], Any], kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    state: dict[str, Any] = tiny("vit").state_dict()
    state["blocks.0.mlp.fc1.weight"] = make(state["blocks.0.mlp.fc1.weight"])
    torch.save(state, tmp_path / "odd.pth", **options)
    assert f"blocks.0.mlp.fc1.weight is {kind}" in reject(tmp_path / "odd.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8])
def test_integers_in_place_of_weights_are_rejected_by_name(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    state = tiny("vit").state_dict()
    state["norm.weight"] = state["norm.weight"].to(dtype)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=rf"wrong kinds norm.weight {dtype}"):
        load_model(VIT_SPEC, weights=tmp_path / "odd.safetensors")


@pytest.mark.parametrize("name", ["pos_embed", "cls_token", "norm.weight"])
def test_a_tensor_without_values_is_rejected_by_name(name: str, tmp_path: Path) -> None:
    state = tiny("vit").state_dict()
    state[name] = state[name][:0]
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=rf"wrong shapes {name} \(0"):
        load_model(VIT_SPEC, weights=tmp_path / "odd.safetensors")


def test_counters_of_another_integer_type_are_converted(tmp_path: Path) -> None:
    state = tiny("regnet").state_dict()
    torch.save({k: v if v.is_floating_point() else v.int() for k, v in state.items()},
               tmp_path / "x.pth")  # fmt: skip
    loaded = load_model(TINY_SPECS["regnet"], weights=tmp_path / "x.pth").state_dict()
    assert all(loaded[key].dtype == tensor.dtype for key, tensor in state.items())


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.npz", "x"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_content_decides_and_not_the_suffix(
    kind: str, name: str, backend: Any, tmp_path: Path
) -> None:
    state = tiny("regnet").state_dict()
    if kind == "safetensors":
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / "other", **(LEGACY if kind == "legacy" else {}))
        (tmp_path / "other").rename(tmp_path / name)
    read = read_state_dict(tmp_path / name, backend=backend)
    assert all(torch.equal(read[key], tensor) for key, tensor in state.items())
    torch.save(read, tmp_path / "again.pth")  # each tensor has its own storage


def make_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


def make_scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (make_npz, "npz"),
        (make_scripted, "TorchScript"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(99)), "gzip"),
        (lambda path: path.write_bytes(b"<html>log in</html>" * 9), "HTML"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "lfs"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5"),
        (lambda path: path.write_bytes(b""), "empty"),
        (os.mkfifo, "a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_foreign_file_is_named(
    make: Callable[[Path], object], word: str, name: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    assert word in reject(tmp_path / name)


def test_three_odd_tensors_are_named(tmp_path: Path) -> None:
    state = tiny("vit").state_dict()
    torch.save({name: tensor.cfloat() for name, tensor in state.items()}, tmp_path / "x.pth")
    message = reject(tmp_path / "x.pth")
    assert message.count("is torch.complex64") == 3


def test_the_first_16_bytes_of_an_unknown_format_are_shown(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"0123456789abcdefg")
    shown = "it starts with b'0123456789abcdef' (neither safetensors nor torch.save)"
    assert reject(tmp_path / "x.pth").endswith(shown)


@pytest.mark.parametrize("size", [9, 15, 64, 200])
def test_a_safetensors_file_cut_short_is_named(size: int, tmp_path: Path) -> None:
    save_file(tiny("vit").state_dict(), tmp_path / "x.safetensors")
    os.truncate(tmp_path / "x.safetensors", size)
    assert "safetensors, cut short" in reject(tmp_path / "x.safetensors")


def nest(depth: int) -> bytes:
    return b"\x80\x02" + b")" + b"\x85" * depth + b"."


@pytest.mark.parametrize(
    "program",
    [
        b"c" + b"a" * 100_000 + b"\nb\n)R.",  # torch's regular expression takes 15 s
        b"c" + b"a." * 50_000 + b"\n" + b"b" * 100_000 + b"\n)R.",
        b"}(" + b")" + b"2\x86" * 60 + b"Nu.",  # the hash of nested tuples: 2**60 steps
        b"}" + b")" + b"\x85" * 300_000 + b"Ns.",  # the same, overflowing the C stack
        b"]q\x00(" + b"N" * 1000 + b"e" + b"(h\x00e" * 100_000 + b".",
        b"](" + b"K\x01" * 600_000 + b"e.",
        b"]r\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\x7f" + bytes(100),
        b"X\xff\xff\xff\xff" + bytes(100),
        b"c__builtin__\neval\n(X\x03\x00\x00\x001+1tR.",
        b"ctorch.hub\nload\n)R.",
        b"ctorch.storage\n_load_from_bytes\n)R.",
        b"ccollections\nOrderedDict\n)R}(X\x01\x00\x00\x00aK\x01ub.",
        b"\x80\x05\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
        b"(ios\nsystem\n.",
        b"\x82\x01.",
    ],
    ids=range(16),
)
def test_a_pickle_bomb_is_bounded(
    program: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle_reader, "MAX_OPCODES", 500_000)
    data = b"\x80\x02" + program
    (tmp_path / "legacy").write_bytes(HEADER + data + pickle.dumps([], 2))
    reject(tmp_path / "legacy")
    with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
    reject(tmp_path / "zip")


def test_a_zip_bomb_is_bounded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"cls_token": torch.zeros(3_000_000)}, buffer)
    with (
        zipfile.ZipFile(buffer) as old,
        zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "more than 64 times its size" in reject(tmp_path / "bomb")


def test_an_error_gives_none_of_torchs_advice(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    torch.save({"model": tiny("vit").state_dict(), "\x1b[2J": Evil()}, tmp_path / "x.pth")
    message = reject(tmp_path / "x.pth")
    assert "posix.system" in message or "os.system" in message
    assert "Weights only" not in message
    assert "trust the source" not in message


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static int refused(int file) {
  char link[64], path[4096];
  if (file < 0) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return strstr(path, "/nommap/") != NULL;
}
#define WRAP(NAME)                                                                  \
  void *NAME(void *a, size_t n, int p, int f, int file, off_t o) {                  \
    static void *(*real)(void *, size_t, int, int, int, off_t);                     \
    if (!real) real = dlsym(RTLD_NEXT, #NAME);                                      \
    if (refused(file)) { errno = ENODEV; return MAP_FAILED; }                       \
    return real(a, n, p, f, file, o);                                               \
  }
WRAP(mmap)
WRAP(mmap64)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and gcc"
)
def test_a_disk_that_cannot_be_mapped_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "nommap"
    folder.mkdir()
    save_model(load_model("vit_nano_hashtags"), folder / "model", license="mit")
    save_model(load_model("vit_nano_hashtags"), folder / "shards", license="mit",
               max_shard_size=100_000)  # fmt: skip
    torch.save(load_model("vit_nano_hashtags").state_dict(), folder / "x.pth")
    (tmp_path / "shim.c").write_text(SHIM)
    shim = tmp_path / "shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, tmp_path / "shim.c", "-ldl"], check=True)
    code = """
import sys, torch, swag_models
expected = swag_models.load_model("vit_nano_hashtags")
for backend in ("pread", "mmap"):
    print(backend, file=sys.stderr)
    for folder, weights in (("model", None), ("shards", None), (None, "x.pth")):
        model = swag_models.load_model(
            f"{sys.argv[1]}/{folder}" if folder else "vit_nano_hashtags",
            weights=f"{sys.argv[1]}/{weights}" if weights else ...,
            backend=backend,
        )
        for key, tensor in expected.state_dict().items():
            assert torch.equal(model.state_dict()[key], tensor), key
"""
    result = subprocess.run(
        [sys.executable, "-c", code, folder],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    quiet, loud = result.stderr.split("mmap\n", 1)
    assert "cannot be mapped" not in quiet
    assert "No such device" in loud


CONFIG = {"patch_size": 8, "depth": 2, "width": 32, "num_heads": 4, "mlp_width": 64}


@pytest.mark.parametrize("field", [f for f in LIMITS if f not in ("mean", "std", "top1", "top5")])
@pytest.mark.parametrize("factor", [1.01, 1000, 1e18, 1e300])
def test_a_number_beyond_its_limit_is_rejected_at_once(field: str, factor: float) -> None:
    value: Any = LIMITS[field][1] * min(factor, 1e290)
    data = json.loads(get_spec("regnety_nano_hashtags").to_json())
    if field in CONFIG and field != "depth":
        data = json.loads(VIT_SPEC.to_json())
    if field in ("depths", "groups"):
        data = json.loads(get_spec("resnet18_swsl_in1k").to_json())
    counts = field not in ("w_a", "w_m", "se_ratio", "gmacs", "crop_pct")
    value = int(value) if counts else value
    value = [value, 2, 2, 2] if field == "depths" else value
    part = next((p for p in (data["config"], data["preprocess"], data) if field in p), None)
    assert part is not None
    part[field] = value
    with pytest.raises(ConfigError, match=field):
        ModelSpec.from_dict(data)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"name": ' * 100_000,
        "1" + "0" * 5000,
        '{"name": 1, "name": 2}',
        "\ud800",
        "",
    ],
    ids=range(6),
)
def test_a_spec_of_hostile_text_is_rejected(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelSpec.from_json(text)
    assert len(str(error.value)) < 500


def test_published_limits_leave_room_for_the_catalog() -> None:
    ViTConfig(patch_size=14, depth=48, width=6144, num_heads=48, mlp_width=24_576)  # ViT-22B
    RegNetConfig(depth=27, w_0=1744, w_a=620.83, w_m=2.52, group_width=1010)  # SEER's 10B
    with pytest.raises(ConfigError, match="parameters"):
        ViTConfig(patch_size=14, depth=512, width=32_768, num_heads=64, mlp_width=65_536)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"depth": 400}}, r"does not fit the model: missing blocks\.10"),
        ({"preprocess": {"image_size": 3200}}, r"pos_embed .* where its description says 160,001"),
        ({"in_chans": 4000}, r"patch_embed\.proj\.weight .* where its description says 4,000"),
        (
            {"num_classes": 1_000_000, "classes": None, "synsets": None},
            r"head\.weight .* 1,000,000",
        ),
        ({"num_classes": 3}, "class names for 3 classes"),
        ({"classes": "imagenet-1k"}, "1,000 class names for"),
        ({"classes": "coco"}, "classes is 'coco'; allowed: imagenet-1k"),
    ],
    ids=range(7),
)
def test_a_config_that_contradicts_the_file_is_rejected_before_anything_is_built(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save_model(load_model("vit_nano_hashtags"), tmp_path / "model", license="mit")
    config = json.loads((folder / CONFIG_FILE).read_text())
    for key, value in changes.items():
        merged = {**config["swag_models"][key], **value} if isinstance(value, dict) else value
        config["swag_models"][key] = merged
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    start = time.process_time()
    with pytest.raises(SwagModelsError, match=message):
        load_model(folder)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "weights",
    [3, b"x", {}, [], True, io.BytesIO(), "a\0b", "\ud800", "https://x/y.pth", "hf://a/b/c", ""],
    ids=lambda value: type(value).__name__,
)
def test_weights_of_another_kind_are_rejected_in_one_line(weights: Any) -> None:
    for call in (lambda: load_model("vit_nano_hashtags", weights=weights),
                 lambda: read_state_dict(weights)):  # fmt: skip
        with pytest.raises(SwagModelsError) as error:
            call()
        assert str(error.value).isprintable()


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(tiny("vit").state_dict(), tmp_path / "x.pth")
    load_model(VIT_SPEC, weights="~/x.pth")


def test_a_pickled_model_is_rejected_by_name(tmp_path: Path) -> None:
    torch.save({"model": tiny("vit"), "epoch": 3}, tmp_path / "x.pth", **LEGACY)
    with pytest.raises(UnsafeCheckpointError, match=r"swag_models\.models\.vit\.ViT"):
        read_state_dict(tmp_path / "x.pth")


def test_a_tensor_that_repeats_its_values_is_rejected_among_the_weights_only(
    tmp_path: Path,
) -> None:
    state, repeated = tiny("vit").state_dict(), torch.ones(1).expand(10**12)
    torch.save({"model": state, "schedule": repeated}, tmp_path / "beside.pth")
    assert read_state_dict(tmp_path / "beside.pth").keys() == state.keys()
    state["norm.weight"] = repeated
    torch.save(state, tmp_path / "among.pth")
    assert "norm.weight repeats its values" in reject(tmp_path / "among.pth")
