"""The files of a published model, and conversion between config.json and spec. Imports no torch.

config.json        the spec under `swag_models`, and the entries that timm reads
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

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swag_models.decoding import parse_json
from swag_models.errors import CheckpointError, ConfigError
from swag_models.formatting import describe, describe_error
from swag_models.paths import read_regular
from swag_models.spec import ModelSpec, RegNetConfig, ViTConfig

CONFIG_FILE, CARD_FILE, WEIGHTS_FILE = "config.json", "README.md", "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
RECIPE_FILE, VOCABULARY_FILE = "recipe.json", "vocabulary.parquet"
SIGNATURE_FILE = "model.sig"
SPEC_KEY = "swag_models"  # key of the spec in config.json
# A plain file name: an index from the network must not name a path, a URL or another format.
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}\.safetensors")
MAX_SHARDS = 10_000
MAX_JSON = 2**26  # bytes of a config.json or of an index
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Files of an earlier version, deleted if the new version does not replace them.
REMOVABLE_FILE = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    rf"|{re.escape(RECIPE_FILE)}|{re.escape(VOCABULARY_FILE)}|{re.escape(SIGNATURE_FILE)}"
)

# Architecture names of timm by width. timm takes all other numbers from `model_args`.
TIMM_VITS = {
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
}
# RegNetY configurations of Radosavovic et al. (arXiv 2003.13678) and SWAG, with timm's names.
TIMM_REGNETS = {
    RegNetConfig(depth=13, w_0=24, w_a=36.44, w_m=2.49, group_width=8): "regnety_002",
    RegNetConfig(depth=16, w_0=48, w_a=27.89, w_m=2.09, group_width=8): "regnety_004",
    RegNetConfig(depth=15, w_0=48, w_a=32.54, w_m=2.32, group_width=16): "regnety_006",
    RegNetConfig(depth=27, w_0=48, w_a=20.71, w_m=2.65, group_width=24): "regnety_016",
    RegNetConfig(depth=21, w_0=80, w_a=42.63, w_m=2.66, group_width=24): "regnety_032",
    RegNetConfig(depth=22, w_0=96, w_a=31.41, w_m=2.24, group_width=64): "regnety_040",
    RegNetConfig(depth=17, w_0=192, w_a=76.82, w_m=2.19, group_width=56): "regnety_080",
    RegNetConfig(depth=18, w_0=200, w_a=106.23, w_m=2.48, group_width=112): "regnety_160",
    RegNetConfig(depth=20, w_0=232, w_a=115.89, w_m=2.53, group_width=232): "regnety_320",
    RegNetConfig(depth=27, w_0=456, w_a=160.83, w_m=2.52, group_width=264): "regnety_1280",
}


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
    return {**_describe_for_timm(spec), "dtype": dtype, SPEC_KEY: spec.to_dict()}


def read_config(path: Path, base_url: str, content: bytes | None = None) -> ModelSpec:
    """Read the spec in a config.json.

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
    if not isinstance(config, dict) or SPEC_KEY not in config:
        raise ConfigError(
            f"{path} does not describe a model of this library: it has no {SPEC_KEY!r}; "
            "publish.save writes such a file"
        )
    try:
        spec = ModelSpec.from_dict(config[SPEC_KEY])
        spec.check_classes()
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error}; a newer version of this library may have written it"
        ) from None
    names = [source.url for source in spec.sources]
    # Anything else could make a folder or repository read files elsewhere on this machine.
    if names not in ([WEIGHTS_FILE], [INDEX_FILE]):
        raise ConfigError(
            f"{path}: invalid sources {', '.join(names) or 'none'}; "
            f"expected {WEIGHTS_FILE} or {INDEX_FILE} alone"
        )
    if not re.fullmatch("[0-9a-f]{64}", spec.sources[0].sha256 or ""):
        raise ConfigError(
            f"{path}: invalid SHA-256 {spec.sources[0].sha256!r} of {names[0]}; "
            "expected 64 hex digits"
        )
    check_texts(spec, str(path))
    sources = [replace(source, url=f"{base_url}/{source.url}") for source in spec.sources]
    return replace(spec, sources=tuple(sources))


def check_texts(spec: ModelSpec, origin: str) -> None:
    """Raise ConfigError if a text of the spec has control characters.

    Such texts are printed, and could send escape sequences to the terminal.

    Args:
        spec: to check.
        origin: file or model that it belongs to, for the error message.
    """
    class_names = spec.classes if isinstance(spec.classes, tuple) else ()
    texts = [spec.name, spec.arch, spec.variant, spec.description, spec.license, spec.license_url]
    for text in (*texts, *class_names):
        if CONTROL_CHARACTERS.search(text):
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
    return read_config(path, path.parent.as_uri())


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
        invalid = sorted(describe(name) for name in names if not _is_shard_name(name))
        shards = {} if invalid else {name: hashes.get(name) for name in sorted(set(names))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = describe_error(error)
        raise CheckpointError(f"{path} is not an index of a sharded model: {reason}") from None
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{path} names {len(shards):,} files; allowed: {MAX_SHARDS:,}")
    if not shards or not all(digest is None or type(digest) is str for digest in shards.values()):
        example = f" {invalid[0]}" if invalid else ""
        raise CheckpointError(
            f"{path}: invalid file{example}; an index names .safetensors files beside it, "
            "and their SHA-256 as text"
        )
    return Index(tensors, shards)


def _is_shard_name(name: object) -> bool:
    return type(name) is str and SHARD_NAME.fullmatch(name) is not None


def _parse(text: bytes) -> Any:
    """Parse JSON of bounded size; raises ValueError."""
    if len(text) > MAX_JSON:
        raise ValueError(f"it has more than {MAX_JSON:,} bytes")
    return parse_json(text.decode(), unique_keys=True)


def is_known_to_timm(spec: ModelSpec) -> bool:
    """Whether timm has the architecture, so that its `create_model` reads the folder."""
    return isinstance(spec.config, ViTConfig) or spec.config in TIMM_REGNETS


def _describe_for_timm(spec: ModelSpec) -> dict[str, Any]:
    """The entries of config.json that timm reads.

    Format: `timm/models/_hub.py`, `save_config_for_hf`. `architecture` is left out if timm does not
    have it.
    """
    preprocess, num_classes = spec.preprocess, spec.num_classes or 0
    model_args: dict[str, Any] = {} if spec.in_chans == 3 else {"in_chans": spec.in_chans}
    if isinstance(spec.config, ViTConfig):
        architecture = TIMM_VITS.get(spec.config.width, TIMM_VITS[768])
        first_conv, classifier, num_features = "patch_embed.proj", "head", spec.config.width
        pool = spec.global_pool or "token"
        model_args |= _make_vit_args(spec.config, preprocess.size)
        if pool == "avg":  # by default timm would then move the norm behind the pooling
            model_args |= {"global_pool": pool, "fc_norm": False}
    else:
        architecture = TIMM_REGNETS.get(spec.config, "")
        first_conv, classifier = "stem.conv", "head.fc"
        num_features = spec.config.stages[-1][0]
        pool = spec.global_pool or "avg"
    pretrained_cfg: dict[str, Any] = {
        "input_size": [spec.in_chans, *preprocess.size],
        "fixed_input_size": isinstance(spec.config, ViTConfig),
        "interpolation": preprocess.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "num_classes": num_classes,
        "pool_size": None,
        # timm before 1.0.31 would adapt this convolution from 3 channels, whatever the file has
        "first_conv": first_conv if spec.in_chans == 3 else None,
        "classifier": classifier,
        "license": spec.license,
    }
    if isinstance(spec.classes, tuple):
        pretrained_cfg["label_names"] = list(spec.classes)
    return {
        **({"architecture": architecture} if architecture else {}),
        "num_classes": num_classes,
        "num_features": num_features,
        "global_pool": pool,
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
    }


def _make_vit_args(config: ViTConfig, image_size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer."""
    ratio = config.mlp_width / config.width
    if int(config.width * ratio) != config.mlp_width:  # timm truncates the product
        ratio = math.nextafter(ratio, math.inf)
    return {
        "img_size": list(image_size),
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": ratio,
    }
