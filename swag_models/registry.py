"""Find models by name. Imports no torch.

A name is a catalog name, a folder that `publish.save` wrote, or hf-hub:org/repo[@revision].
"""

import fnmatch
import os
from collections.abc import Collection
from dataclasses import replace

from swag_models.catalog import MODELS
from swag_models.decoding import decode_fields
from swag_models.errors import (
    ConfigError,
    UnknownModelError,
    check_types,
    plain_arguments,
    suggest_names,
)
from swag_models.formatting import describe
from swag_models.hub.hf_format import read_config, read_folder
from swag_models.hub.hub_names import PREFIX, make_url, parse_name, parse_url
from swag_models.paths import expand_path
from swag_models.spec import ModelSpec

SPECS = {spec.name: spec for spec in MODELS}
Name = str | os.PathLike[str] | ModelSpec
FILTERS = ("arch", "family", "variant", "image_size", "num_classes", "license")


@plain_arguments
def list_models(
    pattern: str = "*",
    *,
    include: str | Collection[str] | None = None,
    exclude: str | Collection[str] | None = None,
    **filters: object,
) -> list[str]:
    """List the matching names of the catalog, in the catalog's order.

    Args:
        pattern: shell-style pattern, for example "vit*".
        include, exclude: further patterns, as torchvision's: names that match any of `include` and
            none of `exclude` are listed.
        **filters: required values of spec fields, for example `variant="in1k"`. Allowed fields:
            arch, family, variant, image_size, num_classes and license. `family` is that of the
            pre-training ("swag", "wsl", "swsl") or that of the architecture ("vit", "regnet",
            "resnet").

    Raises:
        ConfigError: a filter is unknown, or no model has its value; the message suggests others.
    """
    check_types(str, pattern=pattern)
    check_types(str | list | tuple | set | None, include=include, exclude=exclude)
    wanted = [include] if isinstance(include, str) else list(include or "*")
    unwanted = [exclude] if isinstance(exclude, str) else list(exclude or ())
    for item in (*wanted, *unwanted):
        check_types(str, pattern=item)
    if unknown := sorted(set(filters) - set(FILTERS)):
        raise ConfigError(f"unknown filter {', '.join(unknown)}; allowed: {', '.join(FILTERS)}")
    check_types(str | int | tuple | None, **filters)
    for name, value in filters.items():
        _check_filter(name, value)
    return [
        spec.name
        for spec in MODELS
        if fnmatch.fnmatchcase(spec.name, pattern)
        and any(fnmatch.fnmatchcase(spec.name, item) for item in wanted)
        and not any(fnmatch.fnmatchcase(spec.name, item) for item in unwanted)
        and all(value in list_values(spec, name) for name, value in filters.items())
    ]


def list_values(spec: ModelSpec, name: str) -> tuple[object, ...]:
    """Return the values of a filter for which a model is listed.

    Args:
        spec: the model.
        name: one of FILTERS.
    """
    if name == "family":
        return spec.pretraining, spec.family
    return (getattr(spec, name),)


def _check_filter(name: str, value: object) -> None:
    """Raise ConfigError if no model of the catalog has this value of a field."""
    values = dict.fromkeys(value for spec in MODELS for value in list_values(spec, name))
    if value in values:
        return
    names = [value for value in values if isinstance(value, str)]
    if names and isinstance(value, str):
        raise ConfigError(suggest_names(name, value, names))
    raise ConfigError(f"unknown {name} {describe(value)}; allowed: {', '.join(map(str, values))}")


@plain_arguments
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
    # A backbone and its linear classifier share a file; the classifier is first, so that asking for
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
