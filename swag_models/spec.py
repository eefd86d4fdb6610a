"""Frozen dataclasses that describe a model, and their JSON form. Imports no torch.

Sizes are in pixels, pairs of them as (height, width).
"""

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Union

from swag_models.architectures import Config, ViTConfig
from swag_models.decoding import decode_fields, parse_json
from swag_models.errors import ConfigError, check_choice, check_types, plain
from swag_models.formatting import MAX_VALUE, count_noun, describe, escape_unprintable
from swag_models.model_limits import check_numbers

if TYPE_CHECKING:
    from tqdm import tqdm

ImageSize = int | tuple[int, int]
Backend = Literal["mmap", "pread"]  # how a weight file is read
Layout = Literal["swag", "torchvision", "timm"]
Pool = Literal["token", "avg", ""]  # "" for none
Pretraining = Literal["swag", "wsl", "swsl", "maws", "drawings", "scenes"]
# Progress of a download: True shows a bar on a terminal or in a notebook; a tqdm class is used.
Progress = Union[bool, "type[tqdm[Any]]"]
LABEL_SETS = {"imagenet-1k": 1000}  # number of classes of each public label set
SHA256 = re.compile(r"[0-9a-f]{64}")  # a complete one, hexadecimal
LISTED_CLASSES = 100  # class names that `info` prints
UNKNOWN = "unknown"  # the Hub's licence identifier for weights without a stated licence


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing: resize, crop the centre to `image_size`, scale to [0, 1], normalise.

    Args:
        image_size: pixels, int or (height, width).
        interpolation: filter for resizing.
        crop_pct: side of the crop as a share of that of the resized image, as timm's.
        crop_mode: "center" keeps the aspect ratio of an image, whose shorter side is resized;
            "squash" resizes both sides.
        mean: subtracted per channel (R, G, B), for values in [0, 1]; by default ImageNet's.
        std: divided by per channel, likewise.
    """

    image_size: ImageSize
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_pct: float = 1.0
    crop_mode: Literal["center", "squash"] = "center"

    def __post_init__(self) -> None:
        check_numbers(self)
        check_choice("crop_mode", self.crop_mode, "center", "squash")

    @property
    def size(self) -> tuple[int, int]:
        """`image_size` as (height, width)."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) that a resized image covers, or has if it is squashed."""
        height, width = (math.floor(side / self.crop_pct) for side in self.size)
        return height, width

    def describe_resizing(self) -> str:
        """Return filter and crop in words, for example "bilinear, crop of 256x256"."""
        parts: list[str] = [self.interpolation]
        if self.crop_mode == "squash":
            parts.append("both sides resized")
        if self.crop_pct != 1:
            parts.append(f"centre of {'x'.join(map(str, self.resized))}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Source:
    """One place to get a weight file from.

    Args:
        url: https://..., hf://org/repo[@revision]/file, file:///path or package://file (shipped
            with this library).
        layout: naming scheme of the tensors in the file.
        sha256: the published hash, all 64 hex digits or the leading ones; None if none is
            published.
    """

    url: str
    layout: Layout
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """The file's name in the cache."""
        path = self.url.split("?")[0]
        if path.startswith("hf://"):  # repositories share file names: include the repository name
            return path.removeprefix("hf://").replace("/", "--")
        return path.rsplit("/", 1)[-1]

    def describe(self) -> str:
        """Return its address, layout and hash in words."""
        digest = "no published hash"
        if self.sha256:  # some publishers state only the first digits
            digest = f"SHA-256 {self.sha256}{'...' if len(self.sha256) < 64 else ''}"
        return f"{self.url} ({self.layout} layout, {digest})"


@dataclass(frozen=True)
class Metrics:
    """Published accuracy.

    Args:
        dataset: name; its validation or held-out split was used.
        top1: top-1 accuracy in percent.
        top5: top-5 accuracy in percent, if published.
    """

    dataset: str
    top1: float
    top5: float | None = None

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True, repr=False)
class ModelSpec:
    """Description of one model: how to download, build, use and cite it.

    Args:
        name: identifier, unique in the catalog.
        arch: architecture, shared by the variants of a model.
        variant: how the weights were trained, for example "in1k".
        description: the same in words.
        config: the architecture's dimensions.
        preprocess: the preprocessing that the weights expect.
        num_classes: number of logits; None without a head.
        classes: a public label set ("imagenet-1k") or the class names; None without a head or if
            the classes have no names.
        num_params: number of parameters, without buffers.
        gmacs: 10^9 multiply-adds for one image of `preprocess.image_size`.
        metrics: published accuracy, if any.
        license: SPDX or Hub identifier of the weights' licence.
        license_url: link to the text of the licence.
        sources: where to get the weights, tried in order.
        in_chans: input channels.
        global_pool: as for `models.build`; None for its default.
        synsets: WordNet 3.0 id of each class ("n07739125"), if the classes are hashtags.
        multi_label: whether an image can have any number of the classes: the probability of a
            class is then the sigmoid of its logit, otherwise the softmax of all.
        merge_tokens: number of tokens that each block of a ViT merges, as for `models.build`; None
            for none. `gmacs` is the cost with merging.
        pretraining: the work that the weights derive from: "swag" (arXiv 2201.08371), "wsl"
            (1805.00932), "swsl" (1905.00546), "maws" (2303.13496), "drawings" (clip art
            and emoji) or "scenes" (generated images of this library); None for others.
    """

    name: str
    arch: str
    variant: str
    description: str
    config: Config
    preprocess: Preprocess
    num_classes: int | None
    classes: str | tuple[str, ...] | None
    num_params: int
    gmacs: float
    metrics: Metrics | None
    license: str
    license_url: str
    sources: tuple[Source, ...]
    in_chans: int = 3
    global_pool: Pool | None = None
    synsets: tuple[str, ...] | None = None
    multi_label: bool = False
    merge_tokens: int | None = None
    pretraining: Pretraining | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.merge_tokens and not isinstance(self.config, ViTConfig):
            kind = type(self.config).__name__.removesuffix("Config")
            raise ConfigError(
                f"merge_tokens is {self.merge_tokens}; a {kind} has no tokens, leave it out"
            )

    @property
    def family(self) -> str:
        """Family of the architecture: "vit", "regnet" or "resnet"."""
        return self.config.family

    @property
    def image_size(self) -> ImageSize:
        """Default input size in pixels."""
        return self.preprocess.image_size

    @property
    def size_mib(self) -> float:
        """Size of the float32 weights in MiB, about the size of the download."""
        return self.num_params * 4 / 2**20

    def __repr__(self) -> str:
        size = "x".join(map(str, self.preprocess.size))
        output = count_noun(self.num_classes, "class") if self.num_classes else "features"
        facts = (
            escape_unprintable(f"{self.name}: {self.description}", 2 * MAX_VALUE),
            f"{self.num_params / 1e6:.1f}M parameters",
            f"{size} px",
            output,
            escape_unprintable(self.license, MAX_VALUE),
        )
        return f"ModelSpec({', '.join(facts)})"

    def __str__(self) -> str:
        """Everything about the model, in lines, as `swag-models info` prints it."""
        return "\n".join(
            f"{name:<16} {escape_unprintable(text)}" for name, text in self.list_facts()
        )

    def list_facts(self) -> list[tuple[str, str]]:
        """Return everything about the model as pairs of a heading and text, one for each line."""
        size = "x".join(map(str, self.preprocess.size))
        classes, accuracy = "none (features)", "-"
        if self.num_classes is not None:
            names = (self.classes,) if isinstance(self.classes, str) else self.classes
            shown = [*(names or ("without names",))[:LISTED_CLASSES]]
            if names and len(names) > len(shown):
                shown.append(f"and {len(names) - len(shown):,} more: --json lists all")
            classes = f"{self.num_classes} ({', '.join(shown)})"
        if self.metrics:
            top5 = "" if self.metrics.top5 is None else f", top-5 {self.metrics.top5}%"
            accuracy = f"top-1 {self.metrics.top1}%{top5} on {self.metrics.dataset}"
        return [
            ("name", self.name),
            ("architecture", f"{self.arch}: {self.config}"),
            ("weights", self.description),
            ("parameters", f"{self.num_params:,} ({self.size_mib:,.1f} MiB)"),
            ("pre-training", self.pretraining or "-"),
            ("image size", f"{size}, {self.preprocess.describe_resizing()}"),
            ("normalisation", f"mean {self.preprocess.mean}, std {self.preprocess.std}"),
            ("compute", f"{self.gmacs} GMACs per image"),
            *(
                [("token merging", f"each block merges {count_noun(self.merge_tokens, 'token')}")]
                if self.merge_tokens
                else []
            ),
            ("classes", classes),
            ("accuracy", accuracy),
            ("license", f"{self.license}, {self.license_url}".removesuffix(", ")),
            *(("source", source.describe()) for source in self.sources),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON values; `config` includes its `family`."""
        # `asdict` leaves out `family`, a class variable, which selects the class on decoding.
        return {**asdict(self), "config": {"family": self.family, **asdict(self.config)}}

    def to_json(self) -> str:
        """Return the spec as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, data: Any) -> "ModelSpec":
        """Return the spec that `to_dict` converted.

        Raises:
            ConfigError: a field is unknown, missing, of another type or out of range.
        """
        return decode_fields(cls, plain(data), "")

    def check_classes(self) -> None:
        """Raise ConfigError unless there are as many class names and synsets as classes."""
        counts = {"class name": self.classes, "synset": self.synsets}
        for kind, names in counts.items():
            if isinstance(names, str) and names not in LABEL_SETS:
                raise ConfigError(
                    f"classes is {describe(names)}; allowed: {', '.join(LABEL_SETS)}, or a list"
                )
            count = LABEL_SETS[names] if isinstance(names, str) else len(names or ())
            if names is not None and count != self.num_classes:
                raise ConfigError(
                    f"the model has {count_noun(count, kind)} for "
                    f"{count_noun(self.num_classes or None, 'class')}; "
                    "allowed: one for each class"
                )

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Return the spec that `to_json` converted.

        Raises:
            ConfigError: invalid JSON, or a field is unknown, missing or of another type.
        """
        text = plain(text)
        check_types(str, text=text)
        try:
            data = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"not a model spec: invalid JSON ({error})") from None
        return cls.from_dict(data)
