"""Look up models by name; load a model, its preprocessing and its class names.

A name is a catalog name, a folder that `publish.save` wrote, or hf-hub:org/repo[@revision].
Listing models and looking up specs imports no torch.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from swag_models.errors import (
    ConfigError,
    check_choice,
    check_types,
    plain_arguments,
    suggest_names,
)
from swag_models.formatting import describe
from swag_models.model_metadata import load_classes, load_preprocess
from swag_models.registry import FILTERS, SPECS, Name, get_spec, list_models
from swag_models.signatures import LoadOptions, RegNetName, ResNetName, ViTName, Weights
from swag_models.spec import UNKNOWN, Backend, ImageSize, ModelSpec, Pool, Progress
from swag_models.weights_argument import DEFAULT_WEIGHTS, resolve_weights

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from swag_models.hub.signed_model import SignedModel
    from swag_models.models import FeatureNet, RegNet, ResNet, ViT

__all__ = [
    "FILTERS",
    "SPECS",
    "Name",
    "get_spec",
    "list_models",
    "load_classes",
    "load_model",
    "load_preprocess",
]

UNTRAINED = "its architecture only, not its weights"
TIMM_OPTIONS = {"img_size": "image_size", "checkpoint_path": "weights"}


@overload
def load_model(
    name: Name,
    *,
    features_only: Literal[True],
    out_indices: int | Sequence[int] | None = None,
    **options: Unpack[LoadOptions],
) -> FeatureNet: ...


@overload
def load_model(name: ViTName, **options: Unpack[LoadOptions]) -> ViT: ...


@overload
def load_model(name: RegNetName, **options: Unpack[LoadOptions]) -> RegNet: ...


@overload
def load_model(name: ResNetName, **options: Unpack[LoadOptions]) -> ResNet: ...


@overload
def load_model(name: Name, **options: Unpack[LoadOptions]) -> ViT | RegNet | ResNet: ...


@plain_arguments
def load_model(
    name: Name,
    *,
    pretrained: bool = True,
    weights: Weights = ...,
    trusted_key: str | os.PathLike[str] | None = None,
    num_classes: int | EllipsisType | None = ...,
    image_size: ImageSize | None = None,
    in_chans: int = 3,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    progress: Progress = True,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    patch_drop_rate: float = 0.0,
    merge_tokens: int | None = None,
    global_pool: Pool | None = None,
    backend: Backend = "mmap",
    weights_key: str | None = None,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **options: Any,
) -> ViT | RegNet | ResNet | FeatureNet:
    """Load a model in eval mode.

    It maps images (N, in_chans, H, W) to logits (N, num_classes). Without a head a ViT returns its
    class token (N, D), another model its feature map (N, D, H/32, W/32). The model's attribute
    `spec` describes its origin; `publish.save` uses it.

    Args:
        name: a catalog name, a folder that `publish.save` wrote, hf-hub:org/repo[@revision], or
            your own ModelSpec.
        pretrained: False returns a freshly initialised model.
        weights: a local checkpoint (.safetensors or PyTorch file, or a trainer's folder, in the
            swag, torchvision or timm layout, which is recognised) instead of the model's own
            weights. As in torchvision, None returns a freshly initialised model, "DEFAULT" the
            model's own weights; a WeightsEnum or its name must be that of this model.
        trusted_key: PEM file of a public key. The folder or repository must then be signed with
            it (`publish.save(sign=...)`, or the tool model-signing), and is verified before
            anything in it is parsed. The weights are read as with `backend="pread"`.
        num_classes: number of logits; by default the spec's, or with `weights` that of the file.
            None and 0 for no head: a RegNet or ResNet then returns its feature map, or pooled
            features (N, D) as timm's. A head of this size is loaded from the file; a head of
            another size is replaced by a freshly initialised one, with a warning.
        image_size: pixels, int or (height, width); by default the spec's. The position embedding
            is resized on loading.
        in_chans: input channels; 3 means the spec's number. For any other number the weights of
            the first convolution are adapted.
        device: a torch device or its name.
        dtype: a torch dtype or its name; by default float32, whatever dtype the file has.
        progress: show a progress bar while downloading; or the tqdm class to draw it with, for
            example tqdm.notebook.tqdm.
        drop_rate: dropout before the head.
        attn_drop_rate: dropout of attention weights (ViT only).
        drop_path_rate: stochastic depth of the last block; lower in earlier ones.
        patch_drop_rate: share of the patch tokens that is dropped in training (ViT only).
        merge_tokens: number of tokens that each block merges into similar ones (ViT only), which
            makes it faster (arXiv 2210.09461); outputs have all tokens, those merged are equal. By
            default the spec's, which is 0 in the catalog.
        global_pool: "token", "avg" or "", as in `models.build`; by default the spec's.
        backend: "mmap" maps the file. It must then not be overwritten in place, as torch.save does,
            while the model is in use. "pread" reads it into memory, for network disks and for
            saving under the same name. A file that cannot be mapped is read, with a warning.
        weights_key: which state dict of `weights` to load if the file has several, for example
            "teacher"; see `checkpoint.read_state_dict`.
        features_only: return a `FeatureNet` instead, which maps images to feature maps.
        out_indices: maps that it returns: the last n for an int, or positions in `feature_info`; by
            default the last three blocks of a ViT, and all stages of the others.
        **options: timm's names `img_size` and `checkpoint_path`, for `image_size` and `weights`.

    Raises:
        UnknownModelError: the model does not exist.
        ConfigError: an invalid argument.
        SignatureError: not signed with `trusted_key`, or a file differs; names the file.
        FetchError: no source could be downloaded.
        CheckpointError: the file is damaged or does not fit the model.
    """
    check_types(bool, pretrained=pretrained, features_only=features_only)
    check_choice("backend", backend, *get_args(Backend))
    _check_progress(progress)
    if options:
        renamed = _rename_options(options, image_size=image_size, weights=weights)
        image_size, weights = renamed["image_size"], renamed["weights"]
    signed = None
    if trusted_key is not None:
        signed, backend = _open_signed(name, trusted_key, weights, progress), "pread"
    spec = signed.spec if signed else get_spec(name)

    # After the Hub was asked: if it does not answer, nobody waits for these imports.
    import torch

    from swag_models.devices import check_device, check_dtype
    from swag_models.models import FeatureNet, build
    from swag_models.state_dict import WeightSource, load_weights

    path = None
    if weights is None:
        pretrained = False
    elif weights is not ...:
        path, pretrained = resolve_weights(weights, spec), True
    on_device, as_dtype = check_device(device), check_dtype(dtype)
    check_types(str | None, weights_key=weights_key)
    make = partial(
        build,
        # `...` stands for the spec's number, because None means no head.
        num_classes=spec.num_classes if isinstance(num_classes, EllipsisType) else num_classes,
        image_size=spec.image_size if image_size is None else image_size,
        in_chans=spec.in_chans if type(in_chans) is int and in_chans == 3 else in_chans,
        drop_rate=drop_rate,
        attn_drop_rate=attn_drop_rate,
        drop_path_rate=drop_path_rate,
        patch_drop_rate=patch_drop_rate,
        merge_tokens=(spec.merge_tokens or 0) if merge_tokens is None else merge_tokens,
        global_pool=_keep_pool(spec, num_classes) if global_pool is None else global_pool,
    )
    if features_only:
        _check_features_only(num_classes, global_pool)
        make = partial(make, num_classes=None, global_pool=None)
    elif out_indices is not None:
        raise ConfigError("out_indices needs features_only=True")
    if pretrained:
        source = WeightSource(
            path, signed=signed, backend=backend, key=weights_key, progress=progress
        )
        model = load_weights(
            make,
            spec,
            source,
            fresh_head=features_only or num_classes is not ...,
            fixed_size=image_size is not None,
        )
    else:
        with torch.device("cpu"):
            model = make(spec.config)
        model.spec = _describe_untrained(spec)
    _place_model(model, pretrained, on_device, as_dtype)
    return FeatureNet(model, out_indices) if features_only else model


def _open_signed(
    name: Name, trusted_key: str | os.PathLike[str], weights: Weights, progress: Progress
) -> SignedModel:
    """Verify the signature of a model before anything of it is parsed."""
    from swag_models.hub.signed_model import open_signed

    if weights is not ... and weights != DEFAULT_WEIGHTS:
        raise ConfigError("weights= is not signed; leave it or trusted_key= out")
    return open_signed(name, trusted_key, progress=progress)


def _describe_untrained(spec: ModelSpec) -> ModelSpec:
    """Return a spec without the accuracy, licence and sources, which are of published weights."""
    return replace(
        spec,
        metrics=None,
        sources=(),
        description=UNTRAINED,
        license=UNKNOWN,
        license_url="",
        pretraining=None,
    )


def _place_model(
    model: ViT | RegNet | ResNet, pretrained: bool, device: torch.device, dtype: torch.dtype
) -> None:
    """Move a model to a device and dtype, in eval mode."""
    # accelerate.init_empty_weights puts every parameter on the meta device, for others to fill.
    if any(parameter.is_meta for parameter in model.parameters()):
        if pretrained:
            raise ConfigError(
                "the weights were not kept, as inside accelerate.init_empty_weights(); load the "
                "model outside of it, or pass pretrained=False"
            )
        model.to(dtype)
    else:
        model.to(device, dtype)
    model.eval()


def _keep_pool(spec: ModelSpec, num_classes: int | EllipsisType | None) -> Pool | None:
    """Return the pooling of a spec for a number of classes; None for that of `models.build`."""
    if num_classes is ...:
        return spec.global_pool
    # Another head needs pooled features, and what the others pool depends on the head.
    return (spec.global_pool or None) if spec.family == "vit" else None


def _check_features_only(num_classes: int | EllipsisType | None, global_pool: Pool | None) -> None:
    """Raise ConfigError if a head is asked for together with `features_only`."""
    from swag_models.models.arguments import check_num_classes

    has_head = num_classes is not ... and check_num_classes(num_classes) > 0
    if has_head or global_pool:
        raise ConfigError("features_only returns maps: leave num_classes and global_pool out")


def _rename_options(options: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """Return the options of `load_model` that were passed by timm's names, by our names.

    Args:
        options: those that `load_model` does not have.
        **values: what was passed by our names.

    Raises:
        ConfigError: an option is unknown, or was passed by both names.
    """
    for option, value in options.items():
        if option not in TIMM_OPTIONS:
            parameters = inspect.signature(load_model).parameters.values()
            allowed = [item.name for item in parameters if item.kind is item.KEYWORD_ONLY]
            raise ConfigError(suggest_names("option", option, [*allowed, *TIMM_OPTIONS]))
        name = TIMM_OPTIONS[option]
        if values[name] not in (None, ...):
            raise ConfigError(f"pass {name} or {option}, which mean the same, not both")
        if value not in (None, ""):  # timm's defaults
            values[name] = value
    return values


def _check_progress(progress: Progress) -> None:
    """Raise ConfigError unless `progress` is a bool or a tqdm class."""
    if not isinstance(progress, bool):
        from tqdm import tqdm

        if not (isinstance(progress, type) and issubclass(progress, tqdm)):
            raise ConfigError(
                f"invalid progress {describe(progress)}: allowed: True, False or a tqdm class"
            )
