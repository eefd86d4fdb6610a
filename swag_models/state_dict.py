"""Fit the state dict of a weight file to a model: names, head, input channels, position embedding.

Axes: D width, h w grid of patches, k kernel size.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swag_models.architectures import Config, RegNetConfig, ViTConfig, keep_few_blocks
from swag_models.checkpoint import read_weights
from swag_models.errors import CheckpointError
from swag_models.formatting import list_names
from swag_models.heads import HEAD_PREFIXES, HEADS, fit_head, take_head
from swag_models.hub.fetch import fetch_weights
from swag_models.layouts import recognise_layout, translate_layout
from swag_models.positions import Grid, choose_grid, move_position
from swag_models.spec import Backend, Layout, ModelSpec, Progress

if TYPE_CHECKING:
    from swag_models.hub.signed_model import SignedModel
    from swag_models.models import RegNet, ResNet, ViT

# Of a ViT, a RegNet and a ResNet
FIRST_CONVOLUTIONS = ("patch_embed.proj.weight", "stem.conv.weight", "conv1.weight")
# A block in timm's names, of a ViT, a RegNet and a ResNet
BLOCK_NAME = re.compile(r"blocks\.\d+(?=\.)|s\d+\.b\d+(?=\.)|layer\d+\.\d+(?=\.)", re.ASCII)
INTEGERS = {torch.int32, torch.int16, torch.int8, torch.uint8}


@dataclass(frozen=True)
class WeightSource:
    """Where weights come from, and how they are read.

    Attributes:
        path: a local file; None for the sources of the spec.
        signed: the verified files of the spec, instead of its sources.
        backend, key: as for `read_state_dict`.
        progress: of a download, as for `load_model`.
    """

    path: Path | None
    signed: "SignedModel | None"
    backend: Backend
    key: str | None
    progress: Progress


def load_weights(
    make: Callable[..., "ViT | RegNet | ResNet"],
    spec: ModelSpec,
    source: WeightSource,
    *,
    fresh_head: bool,
    fixed_size: bool,
) -> "ViT | RegNet | ResNet":
    """Make a model with the weights of a spec, or of a local file.

    Args:
        make: builds the model, possibly for another size or number of classes than the spec's.
        spec: the description of the model.
        source: the weights.
        fresh_head, fixed_size: as for `fit_state_dict`.

    Raises:
        ConfigError: `make` rejects an argument.
        FetchError: no source could be downloaded.
        CheckpointError: the file is damaged or does not fit the model.
    """
    # On the meta device nothing is allocated or initialised that the file's tensors would replace.
    # One block is enough to check the arguments before anything is downloaded; the model is built
    # when the file is known to have as many blocks.
    with torch.device("meta"):
        make(keep_few_blocks(spec.config))
    published = source.path is None
    if source.signed:
        path = source.signed.weights
    else:
        path = source.path or fetch_weights(spec, progress=source.progress)
    origin = f"{spec.name} ({path})" if published else str(path)
    state, names = read_weights(path, backend=source.backend, key=source.key)
    check_blocks(state, spec.config, origin)
    if not published:
        spec = replace(spec, metrics=None, sources=())  # they hold for the published weights only
        if not fresh_head:
            spec = take_head(spec, state, names, origin)
            make = partial(make, num_classes=spec.num_classes)
    with torch.device("meta"):
        model = make(spec.config)
    with torch.device("cpu"):  # whatever default device the caller has set
        state = fit_state_dict(
            state,
            model,
            origin=origin,
            # A backbone's source may be the file of its linear classifier.
            drop_head=published and spec.num_classes is None,
            fresh_head=fresh_head,
            fixed_size=fixed_size,
            published=spec if published else None,
        )
    if source.signed:
        source.signed.folder.check_unchanged()
    model.load_state_dict(state, assign=True)  # no copy: parameters are the mapped tensors
    model.spec = spec
    return model


def check_blocks(state: Mapping[str, Tensor], config: Config, origin: str) -> None:
    """Compare the blocks of a state dict with those of an architecture, before it is built.

    Args:
        state: tensors by name, in any layout.
        config: the architecture.
        origin: what messages call the file.

    Raises:
        CheckpointError: another family, or blocks are missing or unexpected; lists them.
    """
    _check_family(state, config.family, origin)
    if isinstance(config, ViTConfig):
        wanted = {f"blocks.{index}" for index in range(config.depth)}
    else:
        first, form = (1, "s{}.b{}") if isinstance(config, RegNetConfig) else (0, "layer{}.{}")
        wanted = {
            form.format(stage, block)
            for stage, (_, depth) in enumerate(config.stages, start=1)
            for block in range(first, first + depth)
        }
    present = {
        match[0] for match in map(BLOCK_NAME.match, translate_layout(state, "timm")) if match
    }
    problems = [
        f"{kind} {list_names(sorted(names))}"
        for kind, names in (("missing", wanted - present), ("unexpected", present - wanted))
        if names
    ]
    if problems:
        raise CheckpointError(f"{origin} does not fit the model: {'; '.join(problems)}")


def _check_family(state: Mapping[str, Tensor], family: str, origin: str) -> Layout:
    """Return the layout of a state dict; raise CheckpointError for another family."""
    recognised = recognise_layout(state)
    if recognised is None or recognised[0] != family:
        content = "weights in an unknown layout" if recognised is None else f"a {recognised[0]}"
        raise CheckpointError(f"{origin} contains {content}, but the model is a {family}")
    return recognised[1]


def fit_state_dict(
    state: Mapping[str, Tensor],
    model: Any,
    *,
    origin: str,
    drop_head: bool = False,
    fresh_head: bool = True,
    fixed_size: bool = True,
    published: ModelSpec | None = None,
) -> dict[str, Tensor]:
    """Adapt a state dict to a model: names, head, input channels and position embedding.

    A head whose number of classes differs from the model's is replaced by a freshly initialised
    one, with a warning. Everything else must match.

    Args:
        state: tensors by name, in any layout.
        model: the model, which may be on the meta device.
        origin: what messages call the file.
        drop_head: ignore the file's head.
        fresh_head: True if the user chose the number of classes. A head that the file lacks is
            then initialised instead of raising an error, and one that the model does not have is
            dropped without a warning.
        fixed_size: True if the user chose the image size.
        published: the spec of the file, if it is known. Its positions, input channels and classes
            must then be those of the spec. Otherwise an embedding with the model's number of
            positions is used unchanged, and others are taken as square.

    Returns:
        Tensors by native (timm) name, ready for `model.load_state_dict`.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; lists them.
    """
    wanted = model.state_dict()
    model_layout = recognise_layout(wanted)
    assert model_layout is not None
    file_layout = _check_family(state, model_layout[0], origin)
    state = {key: tensor.detach() for key, tensor in translate_layout(state, "timm").items()}
    if published is not None:
        _check_published(state, published, origin)
    state = fit_head(state, model, origin, drop_head, fresh_head)
    for name in FIRST_CONVOLUTIONS:
        if name in state and name in wanted:
            state[name] = _fit_channels(state[name], wanted[name].shape[1])
    if "pos_embed" in state:
        model_grid: Grid = model.grid_size
        if published is None:
            learned_grid = choose_grid(
                state["pos_embed"],
                model_grid,
                patch_size=model.patch_size,
                keeps_grid=file_layout == "timm",
                asked=fixed_size,
                origin=origin,
            )
        else:
            learned_grid = _find_grid(published)
        state["pos_embed"] = move_position(state["pos_embed"], model_grid, learned_grid)
    for name, tensor in wanted.items():
        if name in state and tensor.dtype == torch.int64 and state[name].dtype in INTEGERS:
            state[name] = state[name].long()  # other tools store the counters of batch norms so
        elif name.endswith(".num_batches_tracked") and name not in state:
            state[name] = torch.zeros((), dtype=torch.int64)  # torch before 0.4.1 had no counters
    _check_match(state, wanted, origin)
    return state


def _check_published(state: Mapping[str, Tensor], spec: ModelSpec, origin: str) -> None:
    """Raise CheckpointError if positions, input channels or classes are not those of the spec."""
    # Otherwise tensors of any size would be made to fit the spec, which may come from elsewhere.
    problems = []
    sizes = [
        *((name, 1, spec.in_chans) for name in FIRST_CONVOLUTIONS),
        *((name, 0, spec.num_classes) for name in HEADS),
    ]
    if isinstance(spec.config, ViTConfig):
        sizes.append(("pos_embed", 1, 1 + math.prod(_find_grid(spec))))
    for name, axis, size in sizes:
        shape = tuple(state[name].shape) if name in state else ()
        if size is not None and len(shape) > axis and shape[axis] != size:
            problems.append(f"{name} {shape}, where its description says {size:,}")
    if problems:
        raise CheckpointError(f"{origin} does not fit its description: {'; '.join(problems)}")


def _find_grid(spec: ModelSpec) -> tuple[int, int]:
    """Return the patch grid on which the position embedding in a spec's file was learned."""
    assert isinstance(spec.config, ViTConfig)
    height, width = spec.preprocess.size
    return height // spec.config.patch_size, width // spec.config.patch_size


def _fit_channels(weight: Tensor, in_chans: int) -> Tensor:
    """Adapt the first convolution (out, 3, k, k) -> (out, in_chans, k, k).

    For one channel the weights are summed, which gives the response to three equal channels. For
    other numbers they are repeated and scaled, so that responses keep their magnitude.
    """
    if weight.ndim != 4 or weight.shape[1] != 3 or in_chans == 3:
        return weight
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, math.ceil(in_chans / 3), 1, 1)[:, :in_chans]
    return repeated * (3 / in_chans)


def _check_match(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], origin: str) -> None:
    """Raise a CheckpointError that lists every difference in names, shapes and kinds of tensors."""
    problems = []
    if missing := [key for key in wanted if key not in state]:
        problems.append(f"missing {list_names(missing)}")
    if extra := [key for key in state if key not in wanted]:
        problems.append(f"unexpected {list_names(extra)}")
    if wrong_shapes := [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]:
        problems.append(f"wrong shapes {list_names(wrong_shapes)}")
    if wrong_kinds := [  # integers in place of floating-point numbers, as in a quantised file
        f"{key} {state[key].dtype}"
        for key, tensor in wanted.items()
        if key in state and state[key].is_floating_point() != tensor.is_floating_point()
    ]:
        problems.append(f"wrong kinds {list_names(wrong_kinds)}")
    if problems:
        hint = ""
        if missing and all(key.startswith(HEAD_PREFIXES) for key in missing):
            hint = "; for a model without this head pass num_classes=None"
        elif any(text.startswith("pos_embed ") for text in wrong_shapes):
            hint = "; if it was trained on rectangular images, pass image_size=(height, width)"
        raise CheckpointError(f"{origin} does not fit the model: {'; '.join(problems)}{hint}")
