"""Save a model as a folder: weights, config.json and a model card. Imports torch only to save."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swag_models.atomic import write_json, write_text
from swag_models.decoding import decode_fields
from swag_models.errors import (
    CheckpointError,
    ConfigError,
    PublishError,
    check_minimum,
    check_types,
    plain_arguments,
)
from swag_models.formatting import describe, describe_error
from swag_models.hub.download import hash_file
from swag_models.hub.hf_format import (
    CARD_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    RECIPE_FILE,
    REMOVABLE_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    make_config,
)
from swag_models.hub.hub_names import parse_url
from swag_models.paths import expand_path
from swag_models.publish.model_card import CardDetails, make_card
from swag_models.publish.pretraining import find_work
from swag_models.publish.signing import load_private_key, write_signature
from swag_models.spec import Metrics, ModelSpec, Source

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_SHARD_SIZE = 5_000_000_000  # bytes; the default of transformers and huggingface_hub


@plain_arguments
def save(
    model: "nn.Module",
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    description: str | None = None,
    classes: str | Sequence[str] | None = None,
    synsets: Sequence[str] | None = None,
    metrics: Metrics | Mapping[str, Any] | None = None,
    license: str | None = None,
    license_url: str | None = None,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    tags: Sequence[str] = (),
    training: str | None = None,
    multi_label: bool | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    sign: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a model as a folder that `load_model` accepts: weights, config.json and a model card.

    Files of the same names are replaced, each atomically and config.json last, so that a folder
    whose save was interrupted fails to load instead of loading other weights. The recipe and the
    vocabulary of an earlier model are deleted first. `folder` may be the one that the model was
    loaded from.

    Args:
        model: a model that `load_model` returned, possibly trained further, compiled or wrapped
            for parallel training. The weights keep their dtype; `load_model` converts them to
            float32 by default.
        folder: created if missing.
        name: name of the model; by default the folder's name.
        description: description of the weights, for the card; by default what they are derived
            from.
        classes: class names in the order of the logits, or "imagenet-1k"; by default those of the
            model that it was made from, if the number of classes is still the same.
        synsets: WordNet 3.0 id of each class, for classes that are hashtags; default as for
            `classes`.
        metrics: measured with these weights: a `spec.Metrics`, or a dict with its fields, for
            example {"dataset": "flowers", "top1": 91.5}. By default none. `dataset` may be left out
            if `datasets` has one.
        license: SPDX-like id in lower case; by default that of the weights that the model was
            loaded with, "unknown" if it was loaded without.
        license_url: URL of the licence's text; default as for `license`.
        datasets: ids on the Hub, for the card.
        base_model: repository on the Hub, for the card; by default the one it was loaded from.
        tags: tags for the card.
        training: how the model was trained, as Markdown, for the card.
        multi_label: whether an image can have any number of the classes, each with the sigmoid of
            its logit as probability, here and in transformers; default as for `classes`.
        max_shard_size: bytes; larger weights are split over several files.
        sign: PEM file of the private key to sign all files of the folder with, see
            `signing.sign_folder`; by default the folder is not signed.

    Returns:
        The folder.

    Raises:
        ConfigError: the model is not one of this library, was changed in a way that config.json
            cannot describe, or an argument does not fit it; or the key cannot be used.
        PublishError: the folder cannot be written.
    """
    from swag_models.models.unwrap import unwrap
    from swag_models.publish.model_info import collect_state, describe_model

    folder = expand_path(folder, "folder")
    check_types(
        str | None,
        name=name,
        description=description,
        license=license,
        license_url=license_url,
        base_model=base_model,
        training=training,
    )
    check_types(bool | None, multi_label=multi_label)
    check_types(int, max_shard_size=max_shard_size)
    check_minimum(1, max_shard_size=max_shard_size)
    _check_texts(datasets=datasets, tags=tags, synsets=() if synsets is None else synsets)
    info = describe_model(
        model,
        name=choose_name(name, folder),
        description=description,
        classes=classes,
        synsets=synsets,
        metrics=_read_metrics(metrics, datasets),
        license=license,
        license_url=license_url,
        multi_label=multi_label,
    )
    state = collect_state(unwrap(model, "publish"), info.spec)
    key = None if sign is None else load_private_key(sign)  # an error before files are written
    with _publish_errors(f"create the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    # Removed before weights are written, since they must not be beside weights of another model.
    for file in (RECIPE_FILE, VOCABULARY_FILE):
        with _publish_errors(f"remove {folder / file}"):
            (folder / file).unlink(missing_ok=True)
    digests = _write_weights(state, folder, max_shard_size)
    files = list(digests)
    source = Source(files[-1], "timm", digests[files[-1]])
    spec = replace(info.spec, sources=(source,))
    details = CardDetails(
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        sharded=files != [WEIGHTS_FILE],
        pretraining=find_work(info.origin),
        datasets=datasets,
        base_model=base_model or _find_repo(info.origin),
        tags=tags,
        training=training,
    )
    with _publish_errors(f"write {folder / CARD_FILE}"):
        write_text(folder / CARD_FILE, make_card(spec, details), unique=True)
    # Written last: it contains the hash of the weights, so an unfinished folder does not load.
    with _publish_errors(f"write {folder / CONFIG_FILE}"):
        write_json(folder / CONFIG_FILE, make_config(spec, details.dtype), unique=True)
    _remove_old_weights(folder, files)
    if key is not None:
        write_signature(folder, key, digests)
    return folder


def _remove_old_weights(folder: Path, files: Sequence[str]) -> None:
    """Remove the weights of an earlier model, whose files have other names than those written."""
    for path in folder.iterdir():
        if REMOVABLE_FILE.fullmatch(path.name) and path.name not in files:
            with contextlib.suppress(OSError):  # it may stay: nothing refers to it
                path.unlink()


def _check_texts(**options: Sequence[str]) -> None:
    """Raise ConfigError unless every option is a list or tuple of texts."""
    for option, texts in options.items():
        check_types(list | tuple, **{option: texts})
        check_types(str, **{f"{option}[{index}]": text for index, text in enumerate(texts)})


def _read_metrics(metrics: object, datasets: Sequence[str]) -> Metrics | None:
    """The accuracy that the caller passed; raise ConfigError for anything else."""
    if metrics is None or isinstance(metrics, Metrics):
        return metrics
    if not isinstance(metrics, Mapping):
        raise ConfigError(
            f"invalid metrics {describe(metrics)}: allowed: a dict such as "
            '{"dataset": "flowers", "top1": 91.5}, a swag_models.spec.Metrics, or None'
        )
    values = {"dataset": datasets[0], **metrics} if len(datasets) == 1 else dict(metrics)
    if "dataset" not in values:
        raise ConfigError(
            'metrics has no dataset; name the one that they were measured on: {"dataset": ...}'
        )
    for key, value in values.items():  # numbers of NumPy and of torch, as measuring code has them
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            values[key] = value.item()
    return decode_fields(Metrics, values, "metrics.")


def choose_name(name: str | None, folder: Path) -> str:
    """Return the name of a model; by default that of the folder, without characters not allowed.

    Raises:
        ConfigError: the name is not allowed.
    """
    if name is None:
        name = re.sub(r"[^\w.-]+", "-", folder.absolute().name).strip("-")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"invalid name {describe(name)}: allowed: letters, digits and . _ -")
    return name


def _find_repo(origin: ModelSpec) -> str | None:
    """The Hub repository that weights came from, if one is among their sources."""
    urls = [source.url for source in origin.sources]
    return next((parse_url(url)[0] for url in urls if url.startswith("hf://")), None)


def _write_weights(state: "dict[str, Tensor]", folder: Path, max_shard_size: int) -> dict[str, str]:
    """Write the weights in one file, or in shards with an index.

    Returns:
        SHA-256 of each file by name; the last one is the file to load: the weights, or the index.
    """
    from swag_models.checkpoint import write_state_dict

    shards: list[dict[str, Tensor]] = [{}]
    free_bytes = max_shard_size
    for key, tensor in state.items():
        if tensor.nbytes > free_bytes and shards[-1]:
            shards.append({})
            free_bytes = max_shard_size
        shards[-1][key] = tensor
        free_bytes -= tensor.nbytes
    files = [WEIGHTS_FILE]
    if len(shards) > 1:
        numbers = range(1, len(shards) + 1)
        files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in numbers]
    for file, shard in zip(files, shards):
        try:
            write_state_dict(shard, folder / file)
        except CheckpointError as error:
            raise PublishError(str(error)) from None
    digests = {file: hash_file(folder / file) for file in files}
    if len(shards) == 1:
        return digests
    # The format of transformers and huggingface_hub; `sha256` is an addition of this library.
    index = {
        "metadata": {
            "total_size": sum(tensor.nbytes for tensor in state.values()),
            "sha256": digests,
        },
        "weight_map": {key: file for file, shard in zip(files, shards) for key in shard},
    }
    with _publish_errors(f"write {folder / INDEX_FILE}"):
        write_json(folder / INDEX_FILE, index, unique=True)
    return digests | {INDEX_FILE: hash_file(folder / INDEX_FILE)}


@contextlib.contextmanager
def _publish_errors(action: str) -> Iterator[None]:
    """Turn an OSError of the `with` block into a PublishError: cannot `action`, and why."""
    try:
        yield
    except OSError as error:
        raise PublishError(f"cannot {action}: {describe_error(error)}") from None
