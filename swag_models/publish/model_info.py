"""The spec and the state dict of a model about to be published.

Metadata of the original model that may no longer apply is dropped.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from swag_models.architectures import ViTConfig
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, describe, spell_license
from swag_models.hub.hf_format import check_texts
from swag_models.hub.model_size import count_size
from swag_models.model_metadata import check_class_names
from swag_models.models import Backbone, ViT, build
from swag_models.models.arguments import choose_pool
from swag_models.models.conv_net import ConvNet
from swag_models.models.unwrap import unwrap
from swag_models.models.vit_block import count_kept_patches
from swag_models.spec import UNKNOWN, Metrics, ModelSpec, Pool
from swag_models.wrappers import INNER_WRAPPERS

logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class ModelInfo:
    """The specs of a model that is about to be published.

    Attributes:
        spec: spec of the model as it is now, without sources.
        origin: spec of the model that it was made from.
    """

    spec: ModelSpec
    origin: ModelSpec


def describe_model(
    model: object,
    *,
    name: str,
    description: str | None = None,
    classes: str | Sequence[str] | None = None,
    synsets: Sequence[str] | None = None,
    metrics: Metrics | None = None,
    license: str | None = None,
    license_url: str | None = None,
    multi_label: bool | None = None,
) -> ModelInfo:
    """Describe a model as it is now; logs a warning for a missing licence or class names.

    Args:
        model: a model that `load_model` returned, possibly changed.
        name, description, classes, synsets, metrics, license, license_url, multi_label: as for
            `save`.

    Raises:
        ConfigError: the model is not one of this library, or an argument does not fit it.
    """
    model = unwrap(model, "publish")
    origin = model.spec
    if origin is None:
        raise ConfigError(
            "cannot publish a model of unknown origin: make it with load_model, "
            "or set its attribute spec"
        )
    if description is None:
        # "derived from" once, also if a derived model is saved again.
        description = origin.description
        if not description.startswith("derived from "):
            # What follows a semicolon holds for the origin only, as "features only".
            description = f"derived from {origin.name}: {description.split(';')[0]}"
    license, license_url = choose_license(license, license_url, origin, name)
    num_classes = model.num_classes or None
    if multi_label is None:
        multi_label = model.describe().multi_label
    if multi_label and num_classes is None:
        raise ConfigError("multi_label is True, but the model has no classes; leave it out")
    spec = replace(
        origin,
        name=name,
        variant="published",
        description=" ".join(description.split()),
        preprocess=model.describe().preprocess,
        num_classes=num_classes,
        classes=_choose_classes(num_classes, classes, origin, name),
        # With other class names the synsets of the origin no longer apply.
        synsets=_choose_synsets(num_classes, synsets, origin if classes is None else None),
        num_params=sum(parameter.numel() for parameter in model.parameters()),
        metrics=metrics,  # the origin's were measured with other weights
        license=license.lower(),
        license_url=license_url,
        sources=(),
        in_chans=model.in_chans,
        global_pool=_find_pool(model),
        multi_label=multi_label,
        merge_tokens=(model.merge_tokens or None) if isinstance(model, ViT) else None,
    )
    spec.check_classes()
    check_texts(spec, name)  # also rejects what `read_config` would reject
    return ModelInfo(replace(spec, gmacs=count_gmacs(spec)), origin)


def _find_pool(model: Backbone) -> Pool | None:
    """The model's pooling; None for what `build` chooses for the number of classes of the spec."""
    if model.num_classes and not model.global_pool:
        raise ConfigError(
            "cannot publish a model whose head is applied to every token; pool its tokens: "
            'reset_classifier(num_classes, "token")'
        )
    if (
        isinstance(model, ConvNet)
        and choose_pool("regnet", model.num_classes or None, None) == model.global_pool
    ):
        return None
    return cast("Pool", model.global_pool)


def choose_license(
    license: str | None, license_url: str | None, origin: ModelSpec, name: str
) -> tuple[str, str]:
    """Return the licence of a model that is published, and its URL; logs a warning if in doubt.

    Args:
        license, license_url: that the caller passed, or None for those of the origin.
        origin: the model that the weights derive from.
        name: of the model.
    """
    if license is None:
        if origin.license == UNKNOWN:
            logger.warning(
                '%s: no licence is known for these weights; state it with license="..."', name
            )
        return origin.license, license_url or origin.license_url
    if origin.license not in (UNKNOWN, license):
        url = f" ({origin.license_url})" if origin.license_url else ""
        logger.warning(
            "%s: the weights derive from %s, licensed %s, whose terms still apply",
            name,
            origin.name,
            f"{spell_license(origin.license)}{url}",
        )
    return license, license_url or ""


def _choose_classes(
    num_classes: int | None, classes: str | Sequence[str] | None, origin: ModelSpec, name: str
) -> str | tuple[str, ...] | None:
    """The class names that the caller passed, or the origin's if it has as many classes."""
    if classes is None:
        # A head with the same number of outputs is assumed to have the origin's classes.
        if num_classes == origin.num_classes:
            return origin.classes
        if num_classes is not None:
            logger.warning(
                "%s: no names for its %s; pass them as classes=[...]",
                name,
                count_noun(num_classes, "class"),
            )
        return None
    if isinstance(classes, str):  # the only label set that `load_classes` knows by name
        if classes != "imagenet-1k" or num_classes != 1000:
            raise ConfigError(
                f"invalid classes {describe(classes)}: pass "
                f"{count_noun(num_classes or None, 'name')}, "
                'or "imagenet-1k" for a model of 1000 classes'
            )
        return classes
    return check_class_names(classes, num_classes)


def _choose_synsets(
    num_classes: int | None, synsets: Sequence[str] | None, origin: ModelSpec | None
) -> tuple[str, ...] | None:
    """The synsets that the caller passed, or the origin's if it has as many classes."""
    if synsets is None:
        return origin.synsets if origin and num_classes == origin.num_classes else None
    if len(synsets) != num_classes:
        raise ConfigError(
            f"{count_noun(len(synsets), 'synset')} for {count_noun(num_classes or None, 'class')}; "
            "pass one WordNet id each"
        )
    return tuple(synsets)


def count_gmacs(spec: ModelSpec) -> float:
    """10^9 multiply-adds for one image of the spec's size."""
    return round(count_flops(spec) / 2e9, 3)


def count_flops(spec: ModelSpec, *, patch_drop_rate: float = 0.0) -> int:
    """Additions and multiplications for one image of the spec's size; a multiply-add is two.

    Args:
        spec: of the model.
        patch_drop_rate: share of the patches that a ViT leaves out.
    """
    config, (height, width) = spec.config, spec.preprocess.size
    kept_patches = None
    if isinstance(config, ViTConfig):
        patches = (height // config.patch_size) * (width // config.patch_size)
        kept_patches = count_kept_patches(patches, patch_drop_rate)
    _, macs = count_size(
        config,
        (height, width),
        in_chans=spec.in_chans,
        num_classes=spec.num_classes,
        kept_patches=kept_patches,
        merge_tokens=spec.merge_tokens or 0,
    )
    return 2 * macs


def collect_state(model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
    """The state dict of a model, checked against a new model of the same spec.

    Raises:
        ConfigError: tensors are missing or unexpected, have another shape, are quantised or have no
            data.
    """
    # `load_model` builds the model from the spec, so other tensors could not be loaded.
    # Layers can be wrapped one by one, for example by torch.compile.
    state = {INNER_WRAPPERS.sub("", key): value for key, value in model.state_dict().items()}
    with torch.device("meta"):
        expected = build(
            spec.config,
            num_classes=spec.num_classes,
            image_size=spec.image_size,
            in_chans=spec.in_chans,
            merge_tokens=spec.merge_tokens or 0,
            global_pool=spec.global_pool,
        ).state_dict()
    differing = [
        key
        for key in sorted(state.keys() | expected.keys())
        if key not in state or key not in expected or state[key].shape != expected[key].shape
    ]
    if differing:
        names = ", ".join(differing[:3]) + (", ..." if differing[3:] else "")
        raise ConfigError(
            f"the model's tensors differ from those of a {spec.arch} ({names}); "
            "merge adapters into it, and undo other changes of its layers"
        )
    for key in sorted(expected):
        if expected[key].is_floating_point() and not state[key].is_floating_point():
            raise ConfigError(f"{key} is {state[key].dtype}; publish the model before quantising")
    if any(tensor.is_meta for tensor in state.values()):
        raise ConfigError("the model is on the meta device and has no weights; load them first")
    return state
