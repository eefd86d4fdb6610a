"""Look up models by name; load a model, its preprocessing and its class names.

A name is a catalog name, a folder that `publish.save` wrote, or hf-hub:org/repo[@revision].
Listing models and looking up specs imports no torch.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, get_args

from swag_models.catalog import MODELS
from swag_models.decoding import decode_fields
from swag_models.errors import (
    ConfigError,
    UnknownModelError,
    check_choice,
    check_types,
    suggest_names,
)
from swag_models.formatting import describe
from swag_models.hub.hf_format import read_config, read_folder
from swag_models.hub.huggingface import PREFIX, make_url, parse_name, parse_url
from swag_models.paths import expand_path
from swag_models.spec import UNKNOWN, Backend, ImageSize, ModelSpec, Pool, Progress

if TYPE_CHECKING:
    import torch

    from swag_models.models import RegNet, ViT
    from swag_models.preprocess import Transform

SPECS = {spec.name: spec for spec in MODELS}
Name = str | os.PathLike[str] | ModelSpec
UNTRAINED = "its architecture only, not its weights"
FILTERS = ("arch", "family", "variant", "image_size", "num_classes", "license")


def list_models(pattern: str = "*", **filters: object) -> list[str]:
    """List the matching names of the catalog, in the catalog's order.

    Args:
        pattern: shell-style pattern, for example "vit*".
        **filters: required values of spec fields, for example `variant="in1k"`. Allowed fields:
            arch, family, variant, image_size, num_classes and license.

    Raises:
        ConfigError: a filter is unknown.
    """
    check_types(str, pattern=pattern)
    check_types(str | int | tuple | None, **filters)
    if unknown := sorted(set(filters) - set(FILTERS)):
        raise ConfigError(f"unknown filter {', '.join(unknown)}; allowed: {', '.join(FILTERS)}")
    return [
        spec.name
        for spec in MODELS
        if fnmatch.fnmatchcase(spec.name, pattern)
        and all(getattr(spec, name) == value for name, value in filters.items())
    ]


def get_spec(name: Name) -> ModelSpec:
    """Return the description of a model.

    Args:
        name: a catalog name, a folder that `publish.save` wrote, or hf-hub:org/repo[@revision]. A
            ModelSpec is returned unchanged.

    Returns:
        The spec. A branch of a Hub repository is looked up in every call, and the spec names the
        commit that the branch points to.

    Raises:
        UnknownModelError: the model does not exist; suggests similar names.
        ConfigError: the folder or repository contains no model of this library.
        FetchError: the Hub cannot be reached.
    """
    if isinstance(name, ModelSpec):
        decode_fields(ModelSpec, vars(name), positive=False)  # checks the types of its fields
        return name
    if not isinstance(name, (str, os.PathLike)):
        raise ConfigError(
            f"invalid model {describe(name)}: allowed: a name, a folder or a ModelSpec; for a "
            "loaded model, the folder that publish.save writes"
        )
    path = expand_path(name, "model")
    if isinstance(name, str) and name in SPECS:
        return SPECS[name]
    if isinstance(name, str) and name.startswith(PREFIX):
        return _find_on_hub(name)
    if os.path.isdir(path):
        return read_folder(path)
    if os.path.exists(path):
        raise UnknownModelError(
            f"{path} is a file, not a folder; load a weight file with load_model(name, "
            f"weights={str(path)!r})"
        )
    if not isinstance(name, str) or os.path.dirname(path):
        raise UnknownModelError(
            f"folder {str(path)!r} does not exist; a repository of the Hub is written "
            f"{PREFIX}org/repo"
        )
    raise UnknownModelError(suggest_names("model", name, SPECS))


def _find_on_hub(name: str) -> ModelSpec:
    """Return the spec of a Hub repository: the catalog's, if the repository is a source of it."""
    from swag_models.hub.fetch import fetch_config

    repo, revision = parse_name(name)
    # A trunk and its linear classifier share a file; the classifier comes first, so that asking for
    # the repository returns all that the file contains.
    for spec in sorted(MODELS, key=lambda spec: spec.num_classes is None):
        for source in spec.sources:
            if source.url.startswith(f"hf://{repo}/"):
                url = source.url
                if "@" in name:
                    url = make_url(repo, revision, parse_url(source.url)[2])
                return replace(spec, sources=(replace(source, url=url),))
    # The folder in the client's cache is named after the commit.
    config = fetch_config(repo, revision)
    return read_config(config, make_url(repo, config.parent.name, "").rstrip("/"))


def load_model(
    name: Name,
    *,
    pretrained: bool = True,
    weights: str | os.PathLike[str] | None = None,
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
    global_pool: Pool | None = None,
    backend: Backend = "mmap",
    weights_key: str | None = None,
) -> ViT | RegNet:
    """Load a model in eval mode.

    It maps images (N, in_chans, H, W) to logits (N, num_classes). Without a head a ViT returns its
    class token (N, D), a RegNet its feature map (N, D, H/32, W/32). The model's attribute `spec`
    describes its origin; `publish.save` uses it.

    Args:
        name: a catalog name, a folder that `publish.save` wrote, hf-hub:org/repo[@revision], or
            your own ModelSpec.
        pretrained: False returns a freshly initialised model.
        weights: a local checkpoint (.safetensors or PyTorch file, or a trainer's folder, in the
            swag, torchvision or timm layout, which is recognised) instead of the catalog's sources.
        trusted_key: PEM file of a public key. The folder or repository must then be signed with
            it (`publish.save(sign=...)`, or the tool model-signing), and is verified before
            anything in it is parsed. The weights are read as with `backend="pread"`.
        num_classes: number of logits, None for no head; by default the spec's, or with `weights`
            that of the file. A head of this size is loaded from the file; a head of another size
            is replaced by a freshly initialised one, with a warning.
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
        global_pool: "token" or "avg", as in `models.build`; by default the spec's.
        backend: "mmap" maps the file. It must then not be overwritten in place, as torch.save does,
            while the model is in use. "pread" reads it into memory, for network disks and for
            saving under the same name. A file that cannot be mapped is read, with a warning.
        weights_key: which state dict of `weights` to load if the file has several, for example
            "teacher"; see `checkpoint.read_state_dict`.

    Raises:
        UnknownModelError: the model does not exist.
        ConfigError: an invalid argument.
        SignatureError: not signed with `trusted_key`, or a file differs; names the file.
        FetchError: no source could be downloaded.
        CheckpointError: the file is damaged or does not fit the model.
    """
    import torch

    from swag_models.devices import check_device, check_dtype
    from swag_models.models import build
    from swag_models.state_dict import WeightSource, load_weights

    check_types(bool, pretrained=pretrained)
    check_choice("backend", backend, *get_args(Backend))
    _check_progress(progress)
    path = None if weights is None else _check_weights(weights)
    signed = None
    if trusted_key is not None:
        from swag_models.hub.signed_model import open_signed

        if weights is not None:
            raise ConfigError("weights= is not signed; leave it or trusted_key= out")
        signed, backend = open_signed(name, trusted_key, progress=progress), "pread"
    spec = signed.spec if signed else get_spec(name)
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
        global_pool=spec.global_pool if global_pool is None else global_pool,
    )
    reads_weights = pretrained or path is not None
    if reads_weights:
        source = WeightSource(
            path, signed=signed, backend=backend, key=weights_key, progress=progress
        )
        given = {"fresh_head": num_classes is not ..., "fixed_size": image_size is not None}
        model = load_weights(make, spec, source, **given)
    else:
        with torch.device("cpu"):
            model = make(spec.config)
        # The published accuracy and licence hold for the published weights only.
        model.spec = replace(
            spec, metrics=None, sources=(), description=UNTRAINED, license=UNKNOWN, license_url=""
        )
    # accelerate.init_empty_weights puts every parameter on the meta device, for others to fill.
    if any(parameter.is_meta for parameter in model.parameters()):
        if reads_weights:
            raise ConfigError(
                "the weights were not kept, as inside accelerate.init_empty_weights(); load the "
                "model outside of it, or pass pretrained=False"
            )
        return model.to(as_dtype).eval()
    return model.to(on_device, as_dtype).eval()


def load_preprocess(name: Name, *, image_size: ImageSize | None = None) -> Transform:
    """Return the preprocessing of a model, for PIL images and uint8 tensors (..., 3, H, W).

    Args:
        name: as for `load_model`.
        image_size: pixels, int or (height, width); by default the spec's. Pass the size that was
            passed to `load_model`.
    """
    from swag_models.models.arguments import check_image_size
    from swag_models.preprocess import Transform

    spec = get_spec(name)
    preprocess = spec.preprocess
    if image_size is not None:
        preprocess = replace(preprocess, image_size=check_image_size(image_size))
    return Transform(preprocess)


def load_classes(name: Name) -> tuple[str, ...]:
    """Return a model's class names, in the order of its logits.

    Args:
        name: as for `load_model`.

    Raises:
        ConfigError: the model has no head, or its classes have no names.
    """
    spec = get_spec(name)
    match spec.classes:
        case None if spec.num_classes is not None:
            raise ConfigError(
                f"{spec.name} has {spec.num_classes} classes without names; "
                "save it again with classes=[...]"
            )
        case None:
            classifiers = [
                model.name for model in MODELS if model.arch == spec.arch and model.classes
            ]
            hint = f"; models with classes: {', '.join(classifiers)}" if classifiers else ""
            raise ConfigError(f"{spec.name} gives features and has no classes{hint}")
        case "imagenet-1k":
            # torchvision's metadata contain the class names; importing it takes seconds.
            from torchvision.models import ViT_B_16_Weights

            return tuple(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])
        case str(label_set):
            raise ConfigError(
                f"{spec.name}: unknown label set {label_set!r}; "
                "allowed: imagenet-1k, or the names themselves"
            )
        case names:
            return names


def hub_entries() -> Mapping[str, Callable[..., ViT | RegNet]]:
    """Return a function per catalog name, with the signature of the original torch.hub entries."""
    return {spec.name: _make_entry(spec) for spec in MODELS}


def _make_entry(spec: ModelSpec) -> Callable[..., ViT | RegNet]:
    def entry(pretrained: bool = True, progress: Progress = True, **kwargs: Any) -> ViT | RegNet:
        return load_model(spec.name, pretrained=pretrained, progress=progress, **kwargs)

    entry.__name__ = entry.__qualname__ = spec.name
    entry.__doc__ = (
        f"{spec.arch}, {spec.description}. Weights: {spec.license}.\n\n"
        "Args:\n"
        "    pretrained: load the weights.\n"
        "    progress: show a progress bar while downloading.\n"
        "    **kwargs: any other option of `load_model`."
    )
    return entry


def _check_weights(weights: str | os.PathLike[str]) -> Path:
    """Return the path of a local checkpoint; raise ConfigError for anything else."""
    if not isinstance(weights, (str, os.PathLike)):
        raise ConfigError(
            f"invalid weights {describe(weights)}: allowed: the path of a file; load a state dict "
            "with model.load_state_dict"
        )
    if isinstance(weights, str) and "://" in weights:
        raise ConfigError(
            f"invalid weights {describe(weights)}: allowed: the path of a local file; "
            "download it first"
        )
    return expand_path(weights, "weights")


def _check_progress(progress: Progress) -> None:
    """Raise ConfigError unless `progress` is a bool or a tqdm class."""
    if not isinstance(progress, bool):
        from tqdm import tqdm

        if not (isinstance(progress, type) and issubclass(progress, tqdm)):
            raise ConfigError(
                f"invalid progress {describe(progress)}: allowed: True, False or a tqdm class"
            )
