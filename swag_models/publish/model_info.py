"""What can be said of a model that is to be published: where it came from, what it is now, and what no longer holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from swag_models.errors import ConfigError
from swag_models.hub.hf_format import check_texts
from swag_models.models import Backbone, build
from swag_models.spec import UNKNOWN, Metrics, ModelSpec

UNWRAP = (
    "give the model that load_model returned: of one from torch.compile its _orig_mod, of a PEFT one merge_and_unload(), "
    "of a DistributedDataParallel one its module"
)

logger = logging.getLogger("swag_models")


def describe_model(
    model: nn.Module,
    name: str,
    description: str | None,
    classes: str | Sequence[str] | None,
    synsets: Sequence[str] | None,
    metrics: Metrics | None,
    license: str | None,
    license_url: str | None,
) -> tuple[ModelSpec, ModelSpec]:
    """(the spec of the model as it is now, without sources; that of the model it was made from).

    Nothing is taken over that may have ceased to hold; a notice says what is missing. ConfigError if the model is none of ours,
    or what was said of it does not fit it.
    """
    if not isinstance(model, Backbone):
        raise ConfigError(f"cannot publish a {type(model).__name__}; {UNWRAP}")
    origin = model.spec
    if origin is None:
        raise ConfigError(
            "this model does not say where it came from; make it with load_model, or set its attribute spec"
        )
    if description is None:
        known = origin.description.startswith("derived from ")
        description = (
            origin.description if known else f"derived from {origin.name}: {origin.description}"
        )
    height, width = model.image_size
    size = (
        origin.image_size
        if origin.preprocess.size == (height, width)
        else height
        if height == width
        else (height, width)
    )
    if license is None:
        license, license_url = origin.license, license_url or origin.license_url
        if license == UNKNOWN:
            logger.warning(
                '%s: no licence is known for these weights; say which with license="..."', name
            )
    elif license != origin.license and origin.license != UNKNOWN:
        terms = (
            f"{origin.license.upper()}{f' ({origin.license_url})' if origin.license_url else ''}"
        )
        logger.warning(
            "%s: the weights derive from %s, licensed %s, whose terms go on to hold",
            name,
            origin.name,
            terms,
        )
    spec = replace(
        origin,
        name=name,
        variant="published",
        description=" ".join(description.split()),
        preprocess=replace(origin.preprocess, image_size=size),
        num_classes=model.num_classes or None,
        classes=_choose_classes(model.num_classes or None, classes, origin, name),
        synsets=_choose_synsets(
            model.num_classes or None, synsets, origin if classes is None else None
        ),
        num_params=sum(parameter.numel() for parameter in model.parameters()),
        metrics=metrics,
        license=license.lower(),
        license_url=license_url or "",
        sources=(),
        in_chans=model.in_chans,
        global_pool=getattr(model, "global_pool", None),
    )
    check_texts(spec, name)
    return replace(spec, gmacs=count_gmacs(spec)), origin


def _choose_classes(
    num_classes: int | None, classes: str | Sequence[str] | None, origin: ModelSpec, name: str
) -> str | tuple[str, ...] | None:
    if classes is None:
        if num_classes == origin.num_classes:
            return origin.classes
        if num_classes is not None:
            logger.warning(
                "%s: its %d classes have no names; give them with classes=[...]", name, num_classes
            )
        return None
    if isinstance(classes, str):
        if classes != "imagenet-1k" or num_classes != 1000:
            raise ConfigError(
                f'classes is {classes!r}; give {num_classes or "no"} names, or of 1000 "imagenet-1k"'
            )
        return classes
    if len(classes) != num_classes or not all(isinstance(each, str) for each in classes):
        raise ConfigError(
            f"{len(classes)} class names for {num_classes or 'no'} classes; give one string for each"
        )
    return tuple(classes)


def _choose_synsets(
    num_classes: int | None, synsets: Sequence[str] | None, origin: ModelSpec | None
) -> tuple[str, ...] | None:
    """Those given, or those of a model whose classes are still its own."""
    if synsets is None:
        return origin.synsets if origin and num_classes == origin.num_classes else None
    if len(synsets) != num_classes:
        raise ConfigError(
            f"{len(synsets)} synsets for {num_classes or 'no'} classes; give the WordNet id of each"
        )
    return tuple(synsets)


def count_gmacs(spec: ModelSpec) -> float:
    """10^9 multiply-adds for one image of the spec's size."""
    return round(count_flops(spec) / 2e9, 3)


def count_flops(spec: ModelSpec) -> int:
    """Additions and multiplications for one image of the spec's size; two are one multiply-add."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _build(spec)(torch.empty(1, spec.in_chans, *spec.preprocess.size))
    return counter.get_total_flops()


def _build(spec: ModelSpec) -> nn.Module:
    model = build(
        spec.config,
        num_classes=spec.num_classes,
        image_size=spec.image_size,
        in_chans=spec.in_chans,
        global_pool=spec.global_pool,
    )
    return model.eval()


def collect_state(model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
    """The state dict of a model, or ConfigError if it is not that of one made anew from the spec."""
    state: dict[str, Tensor] = model.state_dict()
    with torch.device("meta"):
        wanted = _build(spec).state_dict()
    shapes, expected = (
        {key: tuple(tensor.shape) for key, tensor in each.items()} for each in (state, wanted)
    )
    if wrong := sorted(
        key for key in shapes.keys() | expected.keys() if shapes.get(key) != expected.get(key)
    ):
        raise ConfigError(
            f"the model's tensors are not those of a {spec.arch} ({', '.join(wrong[:3])}{', ...' if wrong[3:] else ''}); "
            "merge adapters into it, and undo what else changed its layers"
        )
    if odd := sorted(
        key
        for key in wanted
        if not state[key].is_floating_point() and wanted[key].is_floating_point()
    ):
        raise ConfigError(
            f"{odd[0]} is {state[odd[0]].dtype}; publish the model before it is quantised"
        )
    if any(tensor.is_meta for tensor in state.values()):
        raise ConfigError("the model is on the meta device and has no weights; load them first")
    return state
