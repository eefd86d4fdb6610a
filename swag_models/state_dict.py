"""Fit the state dict of a weight file to a model: names, head, input channels, position embedding.

Axes: D width, h w grid of patches, k kernel size.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swag_models.checkpoint import read_state_dict
from swag_models.errors import CheckpointError
from swag_models.formatting import list_names
from swag_models.hub.fetch import fetch_weights
from swag_models.layouts import recognise_layout, resize_position_embedding, translate_layout
from swag_models.spec import Backend, ModelSpec, Progress, ViTConfig

if TYPE_CHECKING:
    from swag_models.hub.signed_model import SignedModel
    from swag_models.models import RegNet, ViT

FIRST_CONVOLUTIONS = ("patch_embed.proj.weight", "stem.conv.weight")  # of a ViT, of a RegNet

logger = logging.getLogger("swag_models")


def fit_state_dict(
    state: Mapping[str, Tensor],
    model: nn.Module,
    *,
    origin: str,
    drop_head: bool = False,
    fresh_head: bool = True,
    grid: tuple[int, int] | None = None,
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
        grid: (rows, columns) of patches on which the position embedding was learned, if known.
            Only timm's layout needs it: in the others the grid is square. By default, an embedding
            with the model's number of positions is used unchanged.

    Returns:
        Tensors by native (timm) name, ready for `model.load_state_dict`.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; lists them.
    """
    wanted = model.state_dict()
    model_layout, file_layout = recognise_layout(wanted), recognise_layout(state)
    assert model_layout is not None
    if file_layout is None or file_layout[0] != model_layout[0]:
        content = "weights in an unknown layout" if file_layout is None else f"a {file_layout[0]}"
        raise CheckpointError(f"{origin} holds {content}, the model is a {model_layout[0]}")
    state = {key: tensor.detach() for key, tensor in translate_layout(state, "timm").items()}
    state = _fit_head(state, model, origin, drop_head, fresh_head)
    for name in FIRST_CONVOLUTIONS:
        if name in state and name in wanted:
            state[name] = _fit_channels(state[name], wanted[name].shape[1])
    if "pos_embed" in state:
        model_grid: tuple[int, int] = model.grid_size  # type: ignore[assignment]
        learned_grid = (grid or model_grid) if file_layout[1] == "timm" else None
        state["pos_embed"] = _fit_position(state["pos_embed"], model_grid, learned_grid)
    _check_match(state, wanted, origin)
    return state


def _fit_head(
    state: dict[str, Tensor], model: Any, origin: str, drop_head: bool, fresh_head: bool
) -> dict[str, Tensor]:
    """Keep, drop or replace the head of a state dict with native names."""
    trunk = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    # First dimension of the weight and the bias; both equal the number of classes.
    sizes = sorted(
        {
            tuple(tensor.shape[:1])
            for key, tensor in state.items()
            if key.startswith("head.") and not drop_head
        }
    )
    has = f"a head of {sizes[-1][0]} classes" if sizes and sizes[-1] else "no head"
    keep = f"; to keep it, pass num_classes={sizes[-1][0]}" if sizes and sizes[-1] else ""
    if model.num_classes is None:
        if sizes and not fresh_head:
            logger.warning("%s has %s, which is left out%s", origin, has, keep)
        return trunk
    # A missing head that the user did not ask for is left to `_check_match`, which reports it.
    if sizes == [(model.num_classes,)] or (not sizes and not fresh_head and not drop_head):
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
    return {**trunk, **fresh}


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


def _fit_position(
    position: Tensor, grid: tuple[int, int], learned_grid: tuple[int, int] | None
) -> Tensor:
    """Resize a position embedding (1, 1 + h w, D) to `grid`.

    It was learned on `learned_grid` if the number of positions agrees, otherwise on a square grid.
    An embedding that fits neither is returned unchanged, for `_check_match` to report.
    """
    if position.ndim != 3 or position.shape[0] != 1 or position.shape[1] < 2:
        return position
    tokens = position.shape[1] - 1  # without the class token
    side = math.isqrt(tokens)
    old_grid = (side, side)
    if learned_grid and tokens == math.prod(learned_grid):
        old_grid = learned_grid
    if tokens != math.prod(old_grid) or old_grid == grid:
        return position
    return resize_position_embedding(position, old_grid, grid)


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
        hint = (
            "; for a model without this head pass num_classes=None"
            if missing and all(key.startswith("head.") for key in missing)
            else ""
        )
        raise CheckpointError(f"{origin} does not fit the model: {'; '.join(problems)}{hint}")


def load_weights(
    model: "ViT | RegNet",
    spec: ModelSpec,
    path: Path | None,
    *,
    signed: "SignedModel | None" = None,
    progress: Progress,
    backend: Backend,
    fresh_head: bool,
) -> None:
    """Load the weights of a spec, or of a local file, into a model on the meta device.

    Args:
        model: built from the spec, possibly for another size or number of classes.
        spec: its sources are tried in order.
        path: a local file instead of the spec's sources.
        signed: the verified files of the spec, instead of its sources.
        progress: of a download, as for `load_model`.
        backend: how the file is read, as for `load_model`.
        fresh_head: as for `fit_state_dict`.
    """
    is_local = path is not None
    if path is None:
        path = signed.weights if signed else fetch_weights(spec, progress=progress)
    with torch.device("cpu"):  # whatever default device the caller has set
        state = fit_state_dict(
            read_state_dict(path, backend=backend),
            model,
            origin=str(path) if is_local else f"{spec.name} ({path})",
            # A trunk's source may be the file of its linear classifier.
            drop_head=not is_local and spec.num_classes is None,
            fresh_head=fresh_head,
            grid=None if is_local else _find_grid(spec),
        )
    if signed:
        signed.folder.check_unchanged()
    model.load_state_dict(state, assign=True)  # no copy: parameters are the mapped tensors


def _find_grid(spec: ModelSpec) -> tuple[int, int] | None:
    """Return the patch grid on which the position embedding in a spec's file was learned."""
    if not isinstance(spec.config, ViTConfig):
        return None
    height, width = spec.preprocess.size
    return height // spec.config.patch_size, width // spec.config.patch_size
