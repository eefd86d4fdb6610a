"""The files of a published model, and conversion between config.json and spec. Imports no torch.

config.json        the spec under `swag_models`, and the entries that timm and transformers read
                   (timm_format.py)
model.safetensors  the weights, with timm's parameter names, which this library uses too; large
                   models instead have model-0000i-of-0000n.safetensors and an index,
                   model.safetensors.index.json, with the file of each tensor and the SHA-256 of
                   each file
README.md          the model card
recipe.json, vocabulary.parquet
                   how a model of the recipe was trained, and its hashtags
model.sig          a signature of all other files (signature.py)

In hub/ and not in publish/, because api, fetch and checkpoint read these files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from swag_models.decoding import parse_json
from swag_models.errors import CheckpointError, ConfigError
from swag_models.formatting import count_noun, describe, describe_error
from swag_models.hub.timm_format import describe_for_timm
from swag_models.hub.timm_reader import is_timm_config, read_timm_config
from swag_models.paths import read_regular
from swag_models.spec import SHA256, ModelSpec, Source

CONFIG_FILE, CARD_FILE, WEIGHTS_FILE = "config.json", "README.md", "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
RECIPE_FILE, VOCABULARY_FILE = "recipe.json", "vocabulary.parquet"
CURVES_FILE, CONFUSION_FILE = "curves.png", "confusion.png"  # figures that a card may show
SIGNATURE_FILE = "model.sig"
SPEC_KEY = "swag_models"  # key of the spec in config.json
# Files in which timm and transformers look for the weights, in this order
FOREIGN_WEIGHTS = (WEIGHTS_FILE, INDEX_FILE, "pytorch_model.bin")
# Key that transformers adds to each config.json that it writes. It keeps the spec of the model that
# was loaded, whose weights and classes may be others than those beside the file.
TRANSFORMERS_KEY = "transformers_version"
# A plain file name: an index from the network must not name a path, a URL or another format.
WEIGHT_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")
MAX_SHARDS = 10_000
MAX_JSON = 2**26  # bytes of a config.json or of an index
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Files of an earlier version, deleted if the new version does not replace them.
REMOVABLE_FILE = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    rf"|{re.escape(RECIPE_FILE)}|{re.escape(VOCABULARY_FILE)}|{re.escape(SIGNATURE_FILE)}"
)


@dataclass(frozen=True)
class Index:
    """The index of a sharded model.

    Attributes:
        tensors: file name of each tensor.
        shards: SHA-256 of each file, None where the index does not state it.
    """

    tensors: Mapping[str, str]
    shards: Mapping[str, str | None]


def make_config(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """The contents of config.json.

    Args:
        spec: the model's spec; its only source is WEIGHTS_FILE or INDEX_FILE.
        dtype: dtype of the weights, for example "float32".
    """
    return {**describe_for_timm(spec), "dtype": dtype, SPEC_KEY: spec.to_dict()}


def read_config(path: Path, base_url: str, content: bytes | None = None) -> ModelSpec:
    """Read the spec in a config.json.

    A file that timm or transformers wrote states no hash of the weights.

    Args:
        path: path of the file.
        base_url: URL of its folder, file:///... or hf://org/repo@commit; the prefix of the
            source's file name.
        content: content of the file if it was read already.

    Raises:
        ConfigError: the file does not describe a model of this library, or its source is not a
            weight file in the same folder with a SHA-256.
    """
    try:
        config = _parse(read_regular(path, MAX_JSON + 1) if content is None else content)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if not isinstance(config, dict) or not (SPEC_KEY in config or is_timm_config(config)):
        raise ConfigError(
            f"{path} does not describe a model of this library: it has no {SPEC_KEY!r}; "
            "publish.save writes such a file"
        )
    spec = None
    if SPEC_KEY in config:
        try:
            spec = ModelSpec.from_dict(config[SPEC_KEY])
            spec.check_classes()
        except ConfigError as error:
            raise ConfigError(
                f"{path}: {error}; a newer version of this library may have written it"
            ) from None
        check_texts(spec, str(path))
    if spec is None or TRANSFORMERS_KEY in config:
        spec = _read_foreign(config, spec, path, base_url)
    else:
        _check_source(spec, path)
    sources = [replace(source, url=f"{base_url}/{source.url}") for source in spec.sources]
    return replace(spec, sources=tuple(sources))


def _read_foreign(
    config: dict[str, Any], origin: ModelSpec | None, path: Path, base_url: str
) -> ModelSpec:
    """The spec of a model that timm or transformers saved; see `read_timm_config`."""
    folder = unquote(base_url).rstrip("/").rsplit("/", 1)[-1].partition("@")[0]
    name = re.sub(r"[^\w.-]+", "-", folder).strip("-.") or "model"
    try:
        spec = read_timm_config(config, name, origin)
        spec.check_classes()
    except ConfigError as error:
        raise ConfigError(f"{path} does not describe a model of this library: {error}") from None
    check_texts(spec, str(path))
    return replace(spec, sources=tuple(Source(file, "timm") for file in FOREIGN_WEIGHTS))


def _check_source(spec: ModelSpec, path: Path) -> None:
    """Raise ConfigError unless the only source is a weight file beside config.json, with a hash."""
    names = [source.url for source in spec.sources]
    # Anything else could make a folder or repository read files elsewhere on this machine.
    if names not in ([WEIGHTS_FILE], [INDEX_FILE]):
        raise ConfigError(
            f"{path}: invalid sources {', '.join(names) or 'none'}; "
            f"expected {WEIGHTS_FILE} or {INDEX_FILE} alone"
        )
    if not SHA256.fullmatch(spec.sources[0].sha256 or ""):
        raise ConfigError(
            f"{path}: invalid SHA-256 {spec.sources[0].sha256!r} of {names[0]}; "
            "expected 64 hex digits"
        )


def check_texts(spec: ModelSpec, origin: str) -> None:
    """Raise ConfigError if a text of the spec has control characters.

    Such texts are printed, and could send escape sequences to the terminal.

    Args:
        spec: to check.
        origin: file or model that it belongs to, for the error message.
    """
    class_names = spec.classes if isinstance(spec.classes, tuple) else ()
    texts = [spec.name, spec.arch, spec.variant, spec.description, spec.license, spec.license_url]
    if spec.metrics:
        texts.append(spec.metrics.dataset)
    check_printable(origin, *texts, *class_names)


def check_printable(origin: object, *texts: str | None) -> None:
    """Raise ConfigError if a text has control characters; see `check_texts`."""
    for text in texts:
        if text and CONTROL_CHARACTERS.search(text):
            raise ConfigError(
                f"{origin}: {text!r} has control characters; use one line of printable text"
            )


def read_folder(folder: Path) -> ModelSpec:
    """The spec of a published model in a folder; its source is the weight file in the folder.

    Raises:
        ConfigError: the folder has no config.json, or one that `read_config` rejects.
    """
    path = folder.absolute() / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not a published model: it has no {CONFIG_FILE}; "
            "to load a bare weight file pass weights="
        )
    spec = read_config(path, path.parent.as_uri())
    # Of the files that another library may have saved, those that exist
    names = [source.url.rsplit("/", 1)[1] for source in spec.sources]
    present = [
        source for name, source in zip(names, spec.sources) if (path.parent / name).is_file()
    ]
    return replace(spec, sources=tuple(present)) if present else spec


def read_index(path: Path) -> Index:
    """Read the index of a sharded model.

    Raises:
        CheckpointError: the file is not such an index, names a tensor twice, or names files
            other than .safetensors files in its folder.
    """
    try:
        data = _parse(read_regular(path, MAX_JSON + 1))
        tensors, hashes = data["weight_map"], data.get("metadata", {}).get("sha256", {})
        names = list(tensors.values())
        suffix = ".bin" if path.name.endswith(".bin.index.json") else ".safetensors"
        invalid = sorted(describe(name) for name in names if not _is_shard_name(name, suffix))
        shards = {} if invalid else {name: hashes.get(name) for name in sorted(set(names))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = describe_error(error)
        raise CheckpointError(f"{path} is not an index of a sharded model: {reason}") from None
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(
            f"{path} names {count_noun(len(shards), 'file')}; allowed: {MAX_SHARDS:,}"
        )
    if not shards or not all(digest is None or type(digest) is str for digest in shards.values()):
        example = f" {invalid[0]}" if invalid else ""
        raise CheckpointError(
            f"{path}: invalid file{example}; an index names {suffix} files beside it, "
            "and their SHA-256 as text"
        )
    return Index(tensors, shards)


def _is_shard_name(name: object, suffix: str) -> bool:
    return (
        type(name) is str
        and name.endswith(suffix)
        and WEIGHT_SHARD_NAME.fullmatch(name) is not None
    )


def _parse(text: bytes) -> Any:
    """Parse JSON of bounded size; raises ValueError."""
    if len(text) > MAX_JSON:
        raise ValueError(f"it has more than {MAX_JSON:,} bytes")
    return parse_json(text.decode(), unique_keys=True)
