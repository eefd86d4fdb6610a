"""The catalog's models in timm: `import swag_models.timm; timm.create_model("swag_vit_b16_in1k")`.

Each name of the catalog is registered with the prefix `swag_`. Pretrained weights are downloaded
and verified by this library. A folder of `publish.save` with a RegNet that timm does not have loads
as well.

`python -m swag_models.timm train.py ...` runs a script, as timm's own, with these models.
"""

import os
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from swag_models.api import load_model
from swag_models.architectures import RegNetConfig, ViTConfig
from swag_models.catalog import MODELS
from swag_models.catalog.configs import REGNETY_NANO
from swag_models.errors import ConfigError
from swag_models.formatting import escape_unprintable, list_names
from swag_models.hub.timm_format import OWN_REGNET, OWN_TIMM_PREFIX, describe_for_timm
from swag_models.hub.timm_reader import change_regnet
from swag_models.runtime import import_extra
from swag_models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from swag_models.models import RegNet, ResNet, ViT

_MODULE = "swag_models.timm"  # also if this file is run as a program
_models = import_extra("timm.models", "timm", _MODULE)
# Of a PretrainedCfg, what says where weights are.
_LOCATION = ("url", "file", "hf_hub_id", "state_dict", "source")
_OPTIONS = (
    "in_chans", "drop_rate", "attn_drop_rate", "drop_path_rate", "patch_drop_rate",
    "merge_tokens", "global_pool", "device", "dtype",
)  # fmt: skip

TIMM_SPECS = {f"{OWN_TIMM_PREFIX}{spec.name}": spec for spec in MODELS}
TIMM_SPECS[OWN_REGNET] = replace(
    next(spec for spec in MODELS if spec.config == REGNETY_NANO), sources=(), classes=None
)


def describe_weights(spec: ModelSpec) -> dict[str, Any]:
    """The fields of timm's PretrainedCfg for a model of the catalog."""
    values = describe_for_timm(spec)["pretrained_cfg"]
    if spec.sources:
        values |= {"url": spec.sources[0].url, "description": spec.description}
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }


default_cfgs = _models.generate_default_cfgs(
    {name: describe_weights(spec) for name, spec in TIMM_SPECS.items()}
)  # timm's name, where `register_model` looks for it


def checkpoint_filter_fn(state_dict: Mapping[str, "Tensor"], model: "nn.Module") -> dict[str, Any]:
    """Fit a state dict in any layout to a model; for `timm.models.load_checkpoint(filter_fn=)`."""
    from swag_models.state_dict import fit_state_dict

    return fit_state_dict(state_dict, model, origin="the checkpoint")


def _create(name: str, pretrained: bool = False, **options: Any) -> "nn.Module":
    """Make a model as `timm.create_model` does.

    Args:
        name: registered name.
        pretrained: load weights.
        options: of `timm.create_model`.
    """
    spec = TIMM_SPECS[name]
    cfg = _models.resolve_pretrained_cfg(
        name, options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None)
    )
    published = default_cfgs[name].default
    # Other weights, which the caller named or which are in a folder, are loaded by timm.
    own = bool(published.has_weights) and all(
        getattr(cfg, key) == getattr(published, key) for key in _LOCATION
    )
    if own and pretrained and options.get("cache_dir") is not None:
        raise ConfigError("cache_dir is not used for these weights; set SWAG_MODELS_CACHE instead")
    is_vit = spec.family == "vit"
    features = {"feature_cls": "getter", "out_indices": 3} if is_vit else {}
    levels = 0 if isinstance(spec.config, ViTConfig) else 1 + len(spec.config.stages)
    return _models.build_model_with_cfg(
        partial(_build, spec, pretrained and own),
        name,
        pretrained and not own,
        pretrained_cfg=cfg.to_dict(),
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=features or {"out_indices": tuple(range(levels))},
        **options,
    )


def _build(
    spec: ModelSpec,
    pretrained: bool,
    *,
    num_classes: int,
    img_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> "ViT | RegNet | ResNet":
    """Make a model with timm's names of options, in training mode as timm does."""
    if not spec.sources:
        assert isinstance(spec.config, RegNetConfig)
        spec = replace(spec, config=change_regnet(spec.config, options))
    if unknown := sorted(options.keys() - set(_OPTIONS)):
        raise ConfigError(
            f"{spec.name} has no option {list_names(unknown)}; "
            f"allowed: num_classes, img_size, {', '.join(_OPTIONS)}"
        )
    model = load_model(
        spec, pretrained=pretrained, num_classes=num_classes, image_size=img_size, **options
    )
    del model._model_args  # timm records the options of its own function
    return model.train()


def _make_entrypoint(name: str) -> Callable[..., "nn.Module"]:
    entrypoint: Any = partial(_create, name)

    def create(pretrained: bool = False, **options: Any) -> "nn.Module":
        return entrypoint(pretrained, **options)

    create.__name__ = create.__qualname__ = name
    create.__module__ = _MODULE
    create.__doc__ = f"{TIMM_SPECS[name].arch}: {TIMM_SPECS[name].description}."
    return create


def run_script() -> None:
    """Run the script that is the first argument, as `python SCRIPT ...` does."""
    if len(sys.argv) < 2:
        _exit(f"usage: python -m {_MODULE} SCRIPT [ARGUMENTS]")
    script = os.path.abspath(sys.argv[1])
    if not os.path.isfile(script):
        _exit(f"{script}: no such file; give the path of a script, such as timm's train.py")
    del sys.argv[0]
    sys.path[0] = os.path.dirname(script)  # as Python does for modules beside a script
    runpy.run_path(sys.argv[0], run_name="__main__")


def _exit(message: str) -> NoReturn:
    print(escape_unprintable(message), file=sys.stderr)
    raise SystemExit(2)


if __name__ == _MODULE:
    for _name in TIMM_SPECS:
        globals()[_name] = _models.register_model(_make_entrypoint(_name))
elif __name__ == "__main__":
    import swag_models.timm  # registers the models under the module's own name

    swag_models.timm.run_script()
