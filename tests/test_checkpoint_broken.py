"""Malicious, damaged and foreign weight files give a one-line error, and nothing in them runs."""

from __future__ import annotations

import builtins
import itertools
import os
import pickle
import random
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import VIT_SPEC, tiny
from torch import nn

from swag_models import load_model
from swag_models.checkpoint import read_state_dict
from swag_models.errors import CheckpointError, UnsafeCheckpointError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Detected pickle protocol", "ignore:.*torch.jit.* is deprecated"
)


class Call:
    """An object whose pickle makes unpickling call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def save_bare(content: Any, path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def save_zip(content: Any, path: Path, protocol: int) -> None:
    torch.save(content, path, pickle_protocol=protocol)


def save_legacy(content: Any, path: Path, protocol: int) -> None:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def read_error(path: Path, backend: Any = "mmap") -> str:
    """Return the error message, or an empty string if the file can be read."""
    try:
        read_state_dict(path, backend=backend)
    except CheckpointError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check_rejected(
    path: Path, kind: type[CheckpointError] = CheckpointError, **options: Any
) -> str:
    """Check that reading fails with a one-line message that names the file; return it."""
    with pytest.raises(kind) as error:
        read_state_dict(path, **options)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


class TestMalicious:
    @pytest.mark.parametrize("protocol", [2, pickle.DEFAULT_PROTOCOL])
    @pytest.mark.parametrize("save", [save_bare, save_zip, save_legacy])
    @pytest.mark.parametrize("backend", ["mmap", "pread"])
    @pytest.mark.parametrize(
        ("function", "argument"),
        [
            (os.system, "touch '{}'"),
            (builtins.eval, "open({!r}, 'w')"),
            (builtins.exec, "open({!r}, 'w')"),
            (os.mkdir, "{}"),
        ],
    )
    def test_call_is_rejected_by_name_and_not_made(
        self,
        function: Callable[..., Any],
        argument: str,
        save: Any,
        protocol: int,
        backend: Any,
        tmp_path: Path,
    ) -> None:
        marker = tmp_path / "marker"
        call = Call(function, argument.format(str(marker)))
        path = tmp_path / "hostile.pth"
        beside: list[Any] = [tiny("vit").state_dict()] if save is not save_bare else []
        for content in (call, {"state_dict": [*beside, call]}):
            save(content, path, protocol)
            message = check_rejected(path, UnsafeCheckpointError, backend=backend)
            assert function.__name__ in message
            assert "nothing in it ran" in message
            assert not marker.exists()

    def test_call_is_rejected_by_load_model(self, tmp_path: Path) -> None:
        torch.save({"model": Call(os.mkdir, str(tmp_path / "marker"))}, tmp_path / "hostile.pth")
        with pytest.raises(UnsafeCheckpointError, match="mkdir"):
            load_model(VIT_SPEC, weights=tmp_path / "hostile.pth")
        assert not (tmp_path / "marker").exists()

    def test_the_test_would_notice_a_call(self, tmp_path: Path) -> None:
        save_bare(Call(os.mkdir, str(tmp_path / "marker")), tmp_path / "hostile.pth", 2)
        pickle.loads((tmp_path / "hostile.pth").read_bytes())
        assert (tmp_path / "marker").exists()

    def test_pickled_model_is_rejected_by_name(self, tmp_path: Path) -> None:
        torch.save(tiny("vit"), tmp_path / "model.pth")
        assert "swag_models.models.vit.ViT" in check_rejected(
            tmp_path / "model.pth", UnsafeCheckpointError
        )

    def test_endless_nesting_is_rejected(self, tmp_path: Path) -> None:
        endless: dict[str, Any] = {}
        endless["state_dict"] = endless
        torch.save(endless, tmp_path / "endless.pth")

        def give_up(*_: object) -> None:
            raise TimeoutError("still unwrapping after 5 s")

        before = signal.signal(signal.SIGALRM, give_up)
        signal.alarm(5)
        try:
            check_rejected(tmp_path / "endless.pth")
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def saved(kind: str, path: Path) -> bytes:
    state = {
        key: tensor.clone() for key, tensor in itertools.islice(tiny("vit").state_dict().items(), 4)
    }
    match kind:
        case "safetensors":
            save_file(state, path)
        case "zip":
            torch.save(state, path)
        case _:
            save_legacy(state, path, 2)
    return path.read_bytes()


class TestDamaged:
    @pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
    @pytest.mark.parametrize("backend", ["mmap", "pread"])
    @pytest.mark.parametrize("size", [1, 4, 8, 9, 15, 64, 500, 0.25, 0.5, 0.9, -100, -1])
    def test_truncated_file(self, kind: str, backend: Any, size: float, tmp_path: Path) -> None:
        path = tmp_path / "cut"
        content = saved(kind, path)
        count = size if isinstance(size, int) else int(size * len(content))
        path.write_bytes(content[:count])
        check_rejected(path, backend=backend)

    @pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
    def test_flipped_bytes_read_or_are_rejected(self, kind: str, tmp_path: Path) -> None:
        path, chance = tmp_path / "flipped", random.Random(0)
        content = saved(kind, path)
        rejected = 0
        for _ in range(400):
            flipped = bytearray(content)
            for _ in range(chance.choice((1, 2, 4))):
                flipped[chance.randrange(min(len(content), 600))] = chance.randrange(256)
            path.write_bytes(flipped)
            for backend in ("mmap", "pread"):
                message = read_error(path, backend)
                assert "\n" not in message
                rejected += bool(message)
        assert rejected > 100

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\n",
            b"<!DOCTYPE html><html><body>404</body></html>",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            b'{"error": "not found"}',
            b"\x1f\x8b\x08\x00" + bytes(64),
            b"\x89HDF\r\n\x1a\n" + bytes(64),
            b"PK\x03\x04" + bytes(64),
            b"\x80",
            b"\x80\x02.",
            b"\x80\x02N.",
            random.Random(0).randbytes(1000),
            (2**63).to_bytes(8, "little") + b"{}",
            (2).to_bytes(8, "little") + b"{]",
            (2).to_bytes(8, "little") + b"{}",
        ],
        ids=lambda content: repr(content[:12]),
    )
    def test_file_that_is_not_a_checkpoint(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "download.pth"
        path.write_bytes(content)
        check_rejected(path)

    def test_pickle_of_another_protocol_is_not_called_unsafe(self, tmp_path: Path) -> None:
        save_zip(tiny("vit").state_dict(), tmp_path / "four.pth", 4)
        message = read_error(tmp_path / "four.pth")
        assert not message or message.startswith("CheckpointError")
        assert not message or "protocol 4" in message

    def test_zip_that_is_not_a_checkpoint(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "papers.zip", "w") as archive:
            archive.writestr("papers/readme.txt", "hello")
        check_rejected(tmp_path / "papers.zip")

    @pytest.mark.filterwarnings(
        "ignore:'torch.load' received a zip file that looks like a TorchScript archive"
    )
    def test_torchscript(self, tmp_path: Path) -> None:
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
        assert "TorchScript" in check_rejected(tmp_path / "script.pt")

    def test_folder_and_missing_file(self, tmp_path: Path) -> None:
        assert "it has no files" in check_rejected(tmp_path)
        assert "No such file" in check_rejected(tmp_path / "missing.pth")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ([torch.ones(1)], "is a list"),
            (torch.ones(1), "is a Tensor"),
            ({}, "no keys"),
            ({"model": {"conv1.weight": torch.ones(1)}}, "model has conv1.weight"),
            ({"weights": {"class": torch.ones(1)}}, "the file has weights; weights has class"),
            ({1: 2}, "has 1"),
            ({"state_dict": [1]}, "state_dict"),
        ],
    )
    def test_torch_file_without_our_weights(
        self, content: Any, reason: str, tmp_path: Path
    ) -> None:
        torch.save(content, tmp_path / "other.pth")
        assert reason in check_rejected(tmp_path / "other.pth")

    def test_values_that_are_not_tensors_are_listed(self, tmp_path: Path) -> None:
        torch.save({**tiny("vit").state_dict(), "epoch": 3, "note": "x"}, tmp_path / "mixed.pth")
        assert "not weights: epoch is a int, note is a str" in check_rejected(
            tmp_path / "mixed.pth"
        )
