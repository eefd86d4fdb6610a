"""The classification head of a state dict: its number and names of classes, kept or replaced."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from swag_models.formatting import count_noun
from swag_models.layouts import translate_layout
from swag_models.spec import ModelSpec

# Of a ViT, a RegNet and a ResNet
HEADS = ("head.weight", "head.fc.weight", "fc.weight")
HEAD_PREFIXES = ("head.", "fc.")

logger = logging.getLogger("swag_models")


def take_head(
    spec: ModelSpec, state: Mapping[str, Tensor], names: list[tuple[str, ...]], origin: str
) -> ModelSpec:
    """Return a spec with the number and the names of the classes of a user's file.

    Args:
        spec: spec of the model.
        state: tensors by name, in any layout.
        names: lists of class names that are stored in the file.
        origin: what messages call the file.
    """
    translated = translate_layout(state, "timm")
    weight = next((translated[name] for name in HEADS if name in translated), None)
    if weight is None or not weight.ndim or not len(weight):  # `fit_state_dict` reports it
        return spec
    num_classes = len(weight)
    classes = next((found for found in names if len(found) == num_classes), None)
    if num_classes != spec.num_classes:
        logger.warning(
            "%s has a head of %s, which is kept (%s: %s); for another pass num_classes=",
            origin,
            count_noun(num_classes, "class"),
            spec.name,
            spec.num_classes or "no head",
        )
        return replace(spec, num_classes=num_classes, classes=classes, synsets=None)
    if classes not in (None, spec.classes):
        return replace(spec, classes=classes, synsets=None)
    return spec


def fit_head(
    state: dict[str, Tensor], model: Any, origin: str, drop_head: bool, fresh_head: bool
) -> dict[str, Tensor]:
    """Keep, drop or replace the head of a state dict with native names.

    Args:
        state: tensors by native (timm) name.
        model: the model. A head that is replaced is initialised there.
        origin: what messages call the file.
        drop_head, fresh_head: as for `state_dict.fit_state_dict`.

    Returns:
        The state dict with the head that the model needs, if there is one.
    """
    backbone = {key: tensor for key, tensor in state.items() if not key.startswith(HEAD_PREFIXES)}
    # First dimension of the weight and the bias; both equal the number of classes.
    sizes = sorted(
        {
            tuple(tensor.shape[:1])
            for key, tensor in state.items()
            if key.startswith(HEAD_PREFIXES) and not drop_head
        }
    )
    has = f"a head of {count_noun(sizes[-1][0], 'class')}" if sizes and sizes[-1] else "no head"
    keep = f"; to keep it, pass num_classes={sizes[-1][0]}" if sizes and sizes[-1] else ""
    if not model.num_classes:
        return backbone
    # A missing head that the user did not ask for is left to `fit_state_dict`, which reports it.
    if sizes == [(model.num_classes,)] or (not sizes and not fresh_head and not drop_head):
        return state
    logger.warning(
        "%s has %s: the head of %s is freshly initialised%s",
        origin,
        has,
        count_noun(model.num_classes, "class"),
        keep,
    )
    model.reset_classifier(model.num_classes)
    fresh = {
        key: tensor for key, tensor in model.state_dict().items() if key.startswith(HEAD_PREFIXES)
    }
    return {**backbone, **fresh}
