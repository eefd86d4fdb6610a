"""A weight file -> a state dict in our names that fits a model. Never runs code from a file.

Tensors are mapped from the file, not copied, wherever the format allows it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from swag_models.atomic import atomic_write
from swag_models.errors import CheckpointError, UnsafeCheckpointError
from swag_models.hub.hf_format import INDEX_FILE, read_index
from swag_models.layouts import (
    find_unknown_keys,
    recognise_layout,
    resize_position_embedding,
    translate_layout,
)
from swag_models.spec import Layout

Backend = Literal["mmap", "pread"]
WRAPPERS = (
    "model_ema",
    "state_dict",
    "model",
    "classy_state_dict",
    "base_model",
    "trunk",
)  # the first one present wins
LEGACY_PICKLES = 5  # one after the other in a file older than torch 1.6
MAX_WRAPPERS = 16  # one inside the other
PREFIXES = re.compile(r"^((module|_orig_mod|model|backbone)\.)+")
BROKEN: tuple[
    type[Exception], ...
] = (  # what torch's unpickler raises on bytes that are not what it expects
    *(
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ),
    *(AssertionError, ImportError, MemoryError, OverflowError, struct.error),
)
PICKLE_SUFFIXES = (".pth", ".pt", ".torch", ".bin")
STEMS = ("patch_embed.proj.weight", "stem.conv.weight")
LISTED = 8  # tensors named in one error

logger = logging.getLogger("swag_models")


def read_state_dict(
    path: str | os.PathLike[str], *, backend: Backend = "mmap"
) -> dict[str, Tensor]:
    """The state dict of a .safetensors or torch file, unwrapped, in the layout it has, on the CPU.

    The index of a sharded model (*.safetensors.index.json) stands for the files it names.
    `backend="mmap"` maps the file; `"pread"` reads it into memory (for network disks and files that may change).
    CheckpointError if the file is no such thing; UnsafeCheckpointError, with nothing run, if it asks for code.
    """
    if backend not in get_args(Backend):
        raise CheckpointError(
            f"unknown backend {backend!r}; allowed: {', '.join(get_args(Backend))}"
        )
    path = Path(path)
    if path.name.endswith(INDEX_FILE):
        return _unwrap(_load_shards(path, backend), path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise CheckpointError(f"cannot read weight file {path}: {error.strerror}") from None
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size:
        return _unwrap(_load_safetensors(path, backend), path)
    if head.startswith(
        (b"PK\x03\x04", b"\x80")
    ):  # a zip archive, which can be mapped, or a bare pickle, which cannot
        return _unwrap(_load_pickle(path, mmap=backend == "mmap" and head.startswith(b"PK")), path)
    raise CheckpointError(
        f"{path} is not a weight file: it starts with {head!r}, neither safetensors nor torch.save"
    )


def write_state_dict(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write .safetensors, or a torch file for .pth .pt .torch .bin; the file appears whole or not at all."""
    path = Path(path)
    write: Callable[[Path], None]
    if path.suffix == ".safetensors":
        write = lambda to: save_file(
            {k: v.contiguous() for k, v in state.items()}, to, {"format": "pt"}
        )  # noqa: E731
    elif path.suffix in PICKLE_SUFFIXES:
        write = lambda to: torch.save(dict(state), to)  # noqa: E731
    else:
        raise CheckpointError(
            f"cannot write {path}: end the name in .safetensors or {', '.join(PICKLE_SUFFIXES)}"
        )
    try:
        with atomic_write(path, unique=True) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
            temporary.chmod(mode)  # safetensors writes files that only their owner can read
    except (
        OSError,
        SafetensorError,
        RuntimeError,
    ) as error:  # RuntimeError is how torch.save reports a failed write
        raise CheckpointError(f"cannot write {path}: {error}") from None


def convert_checkpoint(
    source: str | os.PathLike[str], target: str | os.PathLike[str], layout: Layout
) -> None:
    """Rewrite a weight file in another layout; CheckpointError lists tensors that no table knows."""
    state = read_state_dict(source)
    if unknown := find_unknown_keys(state):
        raise CheckpointError(f"{source}: no layout has {_join_some(unknown)}")
    write_state_dict(translate_layout(state, layout), target)


def fit_state_dict(
    state: Mapping[str, Tensor],
    model: nn.Module,
    *,
    origin: str,
    drop_head: bool = False,
    fresh_head: bool = True,
    grid: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """The state dict in native names, fitted to `model` (which may be on meta): head, input channels, positions.

    A head of another size than the model's is replaced by a fresh one, and so is a missing head if `fresh_head`;
    `drop_head` leaves out the file's own in any case. `grid` is that on which positions were learned, where it is known: it is
    square in the swag and torchvision layouts; else as many positions as the model has are taken as they are.
    Everything else must match: CheckpointError lists what does not. `origin` names the file in messages.
    """
    wanted = model.state_dict()
    expected, found = recognise_layout(wanted), recognise_layout(state)
    assert expected is not None
    if found is None or found[0] != expected[0]:
        holds = "an unknown layout" if found is None else f"a {found[0]}"
        raise CheckpointError(f"{origin} holds {holds}, the model is a {expected[0]}")
    state = {key: tensor.detach() for key, tensor in translate_layout(state, "timm").items()}
    state = _fit_head(state, model, origin, drop_head, fresh_head)
    for stem in STEMS:
        if stem in state and stem in wanted:
            state[stem] = _fit_channels(state[stem], wanted[stem].shape[1])
    if "pos_embed" in state:
        wished: tuple[int, int] = model.grid_size  # type: ignore[assignment]
        learned = (grid or wished) if found[1] == "timm" else None
        state["pos_embed"] = _fit_position(state["pos_embed"], wished, learned)
    _check_match(state, wanted, origin)
    return state


def _fit_head(
    state: dict[str, Tensor], model: Any, origin: str, drop_head: bool, fresh_head: bool
) -> dict[str, Tensor]:
    body = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    rows = sorted(
        {
            tuple(tensor.shape[:1])
            for key, tensor in state.items()
            if key.startswith("head.") and not drop_head
        }
    )
    has = f"a head of {rows[-1][0]} classes" if rows and rows[-1] else "no head"
    keep = f"; to keep it, pass num_classes={rows[-1][0]}" if rows and rows[-1] else ""
    if model.num_classes is None:
        if rows and not fresh_head:
            logger.warning("%s has %s, which is left out%s", origin, has, keep)
        return body
    if rows == [(model.num_classes,)] or (not rows and not fresh_head and not drop_head):
        return state
    logger.warning(
        "%s has %s: the head of %d classes is freshly initialised%s",
        origin,
        has,
        model.num_classes,
        keep,
    )
    model.reset_classifier(model.num_classes)
    fresh = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("head.")}
    return {**body, **fresh}


def _fit_channels(weight: Tensor, in_chans: int) -> Tensor:
    """First convolution (out, 3, k, k) -> (out, in_chans, k, k), responses kept in scale: summed for 1, else repeated."""
    if weight.ndim != 4 or weight.shape[1] != 3 or in_chans == 3:
        return weight
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, math.ceil(in_chans / 3), 1, 1)[:, :in_chans]
    return repeated * (3 / in_chans)


def _fit_position(
    position: Tensor, grid: tuple[int, int], learned: tuple[int, int] | None
) -> Tensor:
    """Position embedding (1, 1 + h w, D) resized to `grid`, from the grid it was learned on if that has as many, else a square.

    One that fits neither is left as it is.
    """
    if position.ndim != 3 or position.shape[0] != 1 or position.shape[1] < 2:
        return position
    tokens = position.shape[1] - 1
    side = math.isqrt(tokens)
    old = learned if learned and tokens == math.prod(learned) else (side, side)
    return (
        position
        if tokens != math.prod(old) or old == grid
        else resize_position_embedding(position, old, grid)
    )


def _check_match(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str) -> None:
    problems = []
    if missing := [key for key in wanted if key not in state]:
        problems.append(f"missing {_join_some(missing)}")
    if extra := [key for key in state if key not in wanted]:
        problems.append(f"unexpected {_join_some(extra)}")
    if misshapen := [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]:
        problems.append(f"misshapen {_join_some(misshapen)}")
    if foreign := [
        f"{key} {state[key].dtype}"
        for key, tensor in wanted.items()
        if key in state and state[key].is_floating_point() != tensor.is_floating_point()
    ]:
        problems.append(f"of another kind {_join_some(foreign)}")
    if problems:
        hint = (
            "; for a model without this head pass num_classes=None"
            if missing and all(key.startswith("head.") for key in missing)
            else ""
        )
        raise CheckpointError(f"{origin} does not fit the model: {'; '.join(problems)}{hint}")


def _load_safetensors(path: Path, backend: Backend) -> dict[str, Tensor]:
    try:
        return load_file(path, backend=backend)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is broken or cut short: {error}") from None


def _load_shards(path: Path, backend: Backend) -> dict[str, Tensor]:
    index = read_index(path)
    state: dict[str, Tensor] = {}
    for name in index.shards:
        shard = path.parent / name
        if not shard.is_file():
            raise CheckpointError(f"{path} names {name}, which is not beside it")
        part = _load_safetensors(shard, backend)
        promised = {key for key, file in index.tensors.items() if file == name}
        if wrong := sorted(promised ^ set(part)):
            raise CheckpointError(
                f"{shard} does not hold what {path.name} says; they differ in {_join_some(wrong)}"
            )
        state |= part
    return state


def _load_pickle(path: Path, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except BROKEN as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):
            if names := _read_imports(path):
                raise UnsafeCheckpointError(
                    f"{path} was refused, nothing in it ran: besides tensors it asks for {_join_some(names)}. "
                    "Only state dicts are loaded: save model.state_dict() alone, or safetensors"
                ) from None
            if "Unsupported operand" in str(error):
                reason = "unless it is broken, it is a pickle of protocol 4 or newer; save it with torch.save's default"
        raise CheckpointError(f"{path} is broken, cut short or of another kind: {reason}") from None


def _read_imports(path: Path) -> list[str]:
    """What a pickle would import beyond tensors and dicts, read off its opcodes without running any."""
    names: dict[str, None] = {}
    with contextlib.suppress(*BROKEN, zipfile.BadZipFile), contextlib.ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        if zipfile.is_zipfile(file):
            archive = stack.enter_context(zipfile.ZipFile(file))
            file = stack.enter_context(
                archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl")))
            )
        else:
            file.seek(0)
        for _ in range(LEGACY_PICKLES):
            strings = [""]
            for opcode, argument, _position in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names[str(argument).replace(" ", ".")] = None
                elif opcode.name == "STACK_GLOBAL":
                    names[".".join(strings[-2:])] = None
                elif isinstance(argument, str):
                    strings.append(argument)
    return [
        name.removeprefix("__builtin__.")
        for name in names
        if not name.startswith(("torch.", "collections."))
    ]


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside the wrappers that training code puts around it."""
    inside = "the file"
    for _ in range(MAX_WRAPPERS):
        if not isinstance(loaded, Mapping):
            break
        state = {
            PREFIXES.sub("", str(key)): value
            for key, value in loaded.items()
            if key != "n_averaged"
        }
        if recognise_layout(state) is not None:
            if others := [key for key, value in state.items() if not isinstance(value, Tensor)]:
                raise CheckpointError(f"{path}: not tensors: {_join_some(others)}")
            return state
        present = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not present:
            keys = ", ".join(map(str, list(loaded)[:5])) or "no keys"
            raise CheckpointError(
                f"{path} holds no ViT or RegNet in the swag, torchvision or timm layout: {inside} has {keys}"
            )
        if len(present) > 1:
            logger.warning("%s holds %s: %s is taken", path, " and ".join(present), present[0])
        inside, loaded = present[0], loaded[present[0]]
    raise CheckpointError(f"{path} holds no state dict: {inside} is a {type(loaded).__name__}")


def _join_some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
