"""The front door: a name -> a spec, a model, its preprocessing, its class names. Listing imports no torch.

A name is one of the catalog, else a folder that `publish.save` wrote, or hf-hub:org/repo[@revision].
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal

from swag_models.catalog import MODELS
from swag_models.errors import ConfigError, UnknownModelError, suggest_names
from swag_models.hub.hf_format import read_config, read_folder
from swag_models.hub.huggingface import PREFIX, make_url, parse_name, parse_url
from swag_models.spec import UNKNOWN, ImageSize, ModelSpec, Pool, ViTConfig

if TYPE_CHECKING:
    import torch

    from swag_models.models import RegNet, ViT
    from swag_models.preprocess import Transform

SPECS = {spec.name: spec for spec in MODELS}
Name = str | os.PathLike[str] | ModelSpec
SCRATCH = "its architecture only, not its weights"
FILTERS = ("arch", "family", "variant", "image_size", "num_classes", "license")


def list_models(pattern: str = "*", **filters: object) -> list[str]:
    """Names in the catalog that match a shell-style pattern and filters, in the catalog's order.

    Filters compare with the spec: arch, family, variant, image_size, num_classes, license; for example
    `list_models("vit*", variant="in1k")`. ConfigError names an unknown filter.
    """
    if unknown := sorted(set(filters) - set(FILTERS)):
        raise ConfigError(f"unknown filter {', '.join(unknown)}; allowed: {', '.join(FILTERS)}")
    return [
        spec.name
        for spec in MODELS
        if fnmatch.fnmatchcase(spec.name, pattern)
        and all(getattr(spec, name) == value for name, value in filters.items())
    ]


def get_spec(name: Name) -> ModelSpec:
    """All that is known of a model: of the catalog, in a folder that `publish.save` wrote, or hf-hub:org/repo[@revision].

    A spec is given back as it is. A branch of the Hub is looked up in every call; the spec names the commit it stands for.
    UnknownModelError suggests the nearest names, ConfigError says why a folder or repository will not do, FetchError why the
    Hub could not be asked.
    """
    if isinstance(name, ModelSpec):
        return name
    if name in SPECS:
        return SPECS[str(name)]
    if str(name).startswith(PREFIX):
        return _find_on_hub(str(name))
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return read_folder(Path(path))
    if os.path.exists(path):
        raise UnknownModelError(
            f"{path} is a file; a model is a folder, a weight file goes with a name: weights={path!r}"
        )
    if not isinstance(name, str) or os.path.dirname(path):
        raise UnknownModelError(
            f"no folder {path!r}; a repository of the Hub is written {PREFIX}org/repo"
        )
    raise UnknownModelError(suggest_names("model", name, SPECS))


def _find_on_hub(name: str) -> ModelSpec:
    """The spec in a Hub repository at the commit its revision stands for; the catalog's own if this is one of its sources."""
    from swag_models.hub.fetch import fetch_config

    repo, revision = parse_name(name)
    for spec in sorted(
        MODELS, key=lambda spec: spec.num_classes is None
    ):  # of a head and its trunk in one file, the head
        for source in spec.sources:
            if source.url.startswith(f"hf://{repo}/"):
                url = (
                    make_url(repo, revision, parse_url(source.url)[2])
                    if "@" in name
                    else source.url
                )
                return replace(spec, sources=(replace(source, url=url),))
    config = fetch_config(repo, revision)
    return read_config(config, make_url(repo, config.parent.name, "").rstrip("/"))


def load_model(
    name: Name,
    *,
    pretrained: bool = True,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | EllipsisType | None = ...,
    image_size: ImageSize | None = None,
    in_chans: int = 3,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    progress: bool = True,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: Pool | None = None,
    backend: Literal["mmap", "pread"] = "mmap",
) -> ViT | RegNet:
    """A ready model in eval mode: images (N, in_chans, H, W) -> logits (N, num_classes), or features without a head.

    Without a head a ViT gives its class token (N, D), a RegNet its feature map (N, D, H/32, W/32).

    name: a catalog name, a folder that `publish.save` wrote, hf-hub:org/repo[@revision], or a ModelSpec of your own.
    pretrained: False gives a freshly initialised model.
    weights: a local checkpoint (.safetensors or torch file; swag, torchvision or timm layout, recognised) instead of the
        catalog's sources.
    num_classes: default the spec's; None for no head. A head of that size in the file is loaded, another is replaced by a
        fresh one with a notice.
    image_size: pixels, int or (height, width), default the spec's; position embeddings are resized on loading.
    in_chans: input channels; 3 stands for the spec's own number, for another the first convolution's weights are adapted.
    device, dtype: as torch's, or their names; dtype defaults to float32, whatever the file has.
    drop_rate, attn_drop_rate, drop_path_rate: see `models.build`, and global_pool, whose default is the spec's.
    backend: "mmap" maps the file, which must then not be overwritten in place, as torch.save does, while the model is in use;
        "pread" reads it into memory, for network disks and for saving under the same name.

    The model's attribute `spec` says where it came from: `publish.save` goes by it.

    Raises UnknownModelError, ConfigError, FetchError or CheckpointError, each with the value and the fix.
    """
    import torch

    from swag_models.models import build

    spec = get_spec(name)
    on_device, as_dtype = check_device(device), check_dtype(dtype)
    classes = spec.num_classes if isinstance(num_classes, EllipsisType) else num_classes
    read = pretrained or weights is not None
    with torch.device("meta" if read else "cpu"):
        model = build(
            spec.config,
            num_classes=classes,
            image_size=spec.image_size if image_size is None else image_size,
            in_chans=spec.in_chans if in_chans == 3 else in_chans,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            global_pool=global_pool or spec.global_pool,
        )
    model.spec = spec
    if weights is not None:
        model.spec = replace(spec, metrics=None, sources=())
    elif not pretrained:
        model.spec = replace(
            spec, metrics=None, sources=(), description=SCRATCH, license=UNKNOWN, license_url=""
        )
    if read:
        from swag_models.checkpoint import fit_state_dict, read_state_dict
        from swag_models.hub.fetch import fetch_weights

        path = fetch_weights(spec, progress=progress) if weights is None else weights
        state = fit_state_dict(
            read_state_dict(path, backend=backend),
            model,
            origin=f"{spec.name} ({path})" if weights is None else str(path),
            drop_head=weights is None
            and spec.num_classes is None,  # a trunk may come in a file that has some head
            fresh_head=num_classes is not ...,
            grid=_find_grid(spec) if weights is None else None,
        )
        model.load_state_dict(state, assign=True)
    return model.to(on_device, as_dtype).eval()


def load_preprocess(name: Name, *, image_size: ImageSize | None = None) -> Transform:
    """The transform that goes with a model: PIL image or uint8 tensor (..., 3, H, W) -> float32 (..., 3, h, w).

    `image_size` replaces the spec's: give what `load_model` was given.
    """
    from swag_models.models import check_image_size
    from swag_models.preprocess import Transform

    spec = get_spec(name)
    chosen = (
        spec.preprocess
        if image_size is None
        else replace(spec.preprocess, image_size=check_image_size(image_size))
    )
    return Transform(chosen)


def load_classes(name: Name) -> tuple[str, ...]:
    """Class names in the order of the logits; ConfigError if the model has no head, or nobody named its classes."""
    spec = get_spec(name)
    match spec.classes:
        case None if spec.num_classes is not None:
            raise ConfigError(
                f"{spec.name} has {spec.num_classes} classes without names; save it again with classes=[...]"
            )
        case None:
            headed = ", ".join(
                other.name for other in MODELS if other.arch == spec.arch and other.classes
            )
            with_classes = f"; models with classes: {headed}" if headed else ""
            raise ConfigError(f"{spec.name} gives features and has no classes{with_classes}")
        case "imagenet-1k":
            from torchvision.models import ViT_B_16_Weights

            return tuple(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])
        case str(other):
            raise ConfigError(
                f"{spec.name}: unknown label set {other!r}; allowed: imagenet-1k, or the names themselves"
            )
        case names:
            return names


def hub_entries() -> Mapping[str, Callable[..., ViT | RegNet]]:
    """One function per catalog name, with the call signature of the original's torch.hub entry points."""
    return {spec.name: _make_entry(spec) for spec in MODELS}


def _make_entry(spec: ModelSpec) -> Callable[..., ViT | RegNet]:
    def entry(pretrained: bool = True, progress: bool = True, **kwargs: Any) -> ViT | RegNet:
        return load_model(spec.name, pretrained=pretrained, progress=progress, **kwargs)

    entry.__name__ = entry.__qualname__ = spec.name
    entry.__doc__ = (
        f"{spec.arch}, {spec.description}. Weights: {spec.license}.\n\n"
        f"pretrained: load the weights; progress: show a bar while downloading; any option of `load_model`."
    )
    return entry


def _find_grid(spec: ModelSpec) -> tuple[int, int] | None:
    """The grid on which the positions in a spec's own file were learned."""
    if not isinstance(spec.config, ViTConfig):
        return None
    height, width = spec.preprocess.size
    return height // spec.config.patch_size, width // spec.config.patch_size


def check_device(device: str | torch.device) -> torch.device:
    """A device that this machine has, or ConfigError."""
    import torch

    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {device!r} cannot be used here ({reason}); for example: cpu, cuda, cuda:0, mps"
        ) from None
    return chosen


def check_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A floating-point dtype for a dtype, its name, or None for float32; or ConfigError."""
    import torch

    chosen = (
        torch.float32
        if dtype is None
        else getattr(torch, dtype, None)
        if isinstance(dtype, str)
        else dtype
    )
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point or chosen.itemsize < 2:
        raise ConfigError(
            f"dtype {dtype!r} is not allowed; give float32, bfloat16, float16 or float64"
        )
    return chosen
