"""The front door: a name -> a spec, a model, its preprocessing, its class names. Listing imports no torch."""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal

from swag_models.catalog import MODELS
from swag_models.errors import ConfigError, UnknownModelError
from swag_models.spec import ImageSize, ModelSpec

if TYPE_CHECKING:
    import torch

    from swag_models.models import RegNet, ViT
    from swag_models.preprocess import Transform

SPECS = {spec.name: spec for spec in MODELS}
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
        if fnmatch.fnmatchcase(spec.name, pattern) and all(getattr(spec, name) == value for name, value in filters.items())
    ]


def get_spec(name: str) -> ModelSpec:
    """The catalog's entry for a name; UnknownModelError suggests the nearest ones."""
    if name in SPECS:
        return SPECS[name]
    near = difflib.get_close_matches(str(name), SPECS, n=3, cutoff=0.5)
    raise UnknownModelError(f"unknown model {name!r}; {'did you mean' if near else 'known'}: {', '.join(near or SPECS)}")


def load_model(
    name: str | ModelSpec,
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
    global_pool: Literal["token", "avg"] | None = None,
    backend: Literal["mmap", "pread"] = "mmap",
) -> ViT | RegNet:
    """A ready model in eval mode: images (N, in_chans, H, W) -> logits (N, num_classes), or features without a head.

    Without a head a ViT gives its class token (N, D), a RegNet its feature map (N, D, H/32, W/32).

    name: a catalog name, or a ModelSpec of your own.
    pretrained: False gives a freshly initialised model.
    weights: a local checkpoint (.safetensors or torch file; swag, torchvision or timm layout, recognised) instead of the
        catalog's sources.
    num_classes: default the spec's; None for no head. A head of that size in the file is loaded, another is replaced by a
        fresh one with a notice.
    image_size: pixels, int or (height, width), default the spec's; position embeddings are resized on loading.
    in_chans: input channels; the first convolution's weights are adapted if it is not 3.
    device, dtype: as torch's, or their names; dtype defaults to float32.
    drop_rate, attn_drop_rate, drop_path_rate, global_pool: see `models.build`.
    backend: "mmap" maps the file, which must then not be overwritten in place, as torch.save does, while the model is in use;
        "pread" reads it into memory, for network disks and for saving under the same name.

    Raises UnknownModelError, ConfigError, FetchError or CheckpointError, each with the value and the fix.
    """
    import torch

    from swag_models.models import build

    spec = name if isinstance(name, ModelSpec) else get_spec(name)
    on_device, as_dtype = _check_device(device), check_dtype(dtype)
    classes = spec.num_classes if isinstance(num_classes, EllipsisType) else num_classes
    read = pretrained or weights is not None
    with torch.device("meta" if read else "cpu"):
        model = build(
            spec.config,
            num_classes=classes,
            image_size=spec.image_size if image_size is None else image_size,
            in_chans=in_chans,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            global_pool=global_pool,
        )
    if read:
        from swag_models.checkpoint import fit_state_dict, read_state_dict
        from swag_models.fetch import fetch_weights

        path = fetch_weights(spec, progress=progress) if weights is None else weights
        state = fit_state_dict(
            read_state_dict(path, backend=backend),
            model,
            origin=f"{spec.name} ({path})" if weights is None else str(path),
            drop_head=weights is None and spec.num_classes is None,  # a trunk may come in a file that has some head
            fresh_head=num_classes is not ...,
            square=weights is None,
        )
        model.load_state_dict(state, assign=True)
    return model.to(on_device, as_dtype).eval()


def load_preprocess(name: str | ModelSpec, *, image_size: ImageSize | None = None) -> Transform:
    """The transform that goes with a model: PIL image or uint8 tensor (..., 3, H, W) -> float32 (..., 3, h, w).

    `image_size` replaces the spec's: give what `load_model` was given.
    """
    from swag_models.models import check_image_size
    from swag_models.preprocess import Transform

    spec = name if isinstance(name, ModelSpec) else get_spec(name)
    chosen = spec.preprocess if image_size is None else replace(spec.preprocess, image_size=check_image_size(image_size))
    return Transform(chosen)


def load_classes(name: str | ModelSpec) -> tuple[str, ...]:
    """Class names in the order of the logits; ConfigError if the model has no head."""
    spec = name if isinstance(name, ModelSpec) else get_spec(name)
    match spec.classes:
        case None:
            headed = ", ".join(other.name for other in MODELS if other.arch == spec.arch and other.classes)
            raise ConfigError(f"{spec.name} gives features and has no classes; models with classes: {headed}")
        case "imagenet-1k":
            from torchvision.models import ViT_B_16_Weights

            return tuple(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])
        case str(other):
            raise ConfigError(f"{spec.name}: unknown label set {other!r}; allowed: imagenet-1k, or the names themselves")
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


def _check_device(device: str | torch.device) -> torch.device:
    import torch

    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used here ({reason}); for example: cpu, cuda, cuda:0, mps") from None
    return chosen


def check_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A floating-point dtype for a dtype, its name, or None for float32; or ConfigError."""
    import torch

    chosen = torch.float32 if dtype is None else getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point or chosen.itemsize < 2:
        raise ConfigError(f"dtype {dtype!r} is not allowed; give float32, bfloat16, float16 or float64")
    return chosen
