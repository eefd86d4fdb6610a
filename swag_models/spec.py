"""The nouns of the library as frozen values, with JSON both ways. Imports no torch.

Sizes are in pixels, (height, width) where two are given.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from swag_models.errors import ConfigError

if TYPE_CHECKING:
    from tqdm import tqdm

ImageSize = int | tuple[int, int]
Layout = Literal["swag", "torchvision", "timm"]
Pool = Literal["token", "avg"]
Progress = Union[
    bool, "type[tqdm[Any]]"
]  # of a download: whether to draw a bar on a terminal, or a bar to use in any case
UNKNOWN = "unknown"  # the licence of weights of which nobody stated one, in the Hub's word
T = TypeVar("T")


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer (Dosovitskiy et al., arXiv 2010.11929)."""

    family: ClassVar[str] = "vit"
    patch_size: int
    depth: int
    width: int
    num_heads: int
    mlp_width: int


@dataclass(frozen=True)
class RegNetConfig:
    """A RegNetY (Radosavovic et al., arXiv 2003.13678), given by the rule its stage widths come from."""

    family: ClassVar[str] = "regnet"
    depth: int
    w_0: int
    w_a: float
    w_m: float
    group_width: int
    se_ratio: float = 0.25
    stem_width: int = 32

    def __post_init__(self) -> None:
        if self.w_0 < 8 or self.w_a < 0 or self.w_m <= 1:
            raise ConfigError(
                f"{self} has no widths; w_0 must be at least 8, w_a at least 0, w_m above 1"
            )

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """(width, depth) of each stage: block widths w_0 + w_a * j, quantised to w_0 * w_m ** k, in whole groups."""
        widths = []
        for block in range(self.depth):
            power = round(math.log((self.w_0 + self.w_a * block) / self.w_0) / math.log(self.w_m))
            width = round(self.w_0 * self.w_m**power / 8) * 8
            group_width = min(self.group_width, width)
            widths.append(round(width / group_width) * group_width)
        return tuple((width, widths.count(width)) for width in sorted(set(widths)))


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a model's input: resize to cover `image_size`, crop its centre, scale to [0, 1], normalise."""

    image_size: ImageSize
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not min(self.std) > 0:
            raise ConfigError(f"preprocess.std is {self.std}; give positive numbers")

    @property
    def size(self) -> tuple[int, int]:
        """`image_size` as (height, width)."""
        return (
            self.image_size
            if isinstance(self.image_size, tuple)
            else (self.image_size, self.image_size)
        )


@dataclass(frozen=True)
class Source:
    """One place that offers a weight file.

    `url` is https://..., hf://org/repo[@revision]/file, file:///path or package://file (shipped with this library).
    `sha256` is what the publisher states: all 64 hex digits, or the leading ones; None where nothing is stated.
    """

    url: str
    layout: Layout
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """The file's name on disk; with its repository, where every repository has a file of the same name."""
        path = self.url.split("?")[0]
        return (
            path.removeprefix("hf://").replace("/", "--")
            if path.startswith("hf://")
            else path.rsplit("/", 1)[-1]
        )


@dataclass(frozen=True)
class Metrics:
    """Published accuracy, in percent, on the validation or held-out split of `dataset`."""

    dataset: str
    top1: float
    top5: float | None = None


@dataclass(frozen=True)
class ModelSpec:
    """All that is known of one model: enough to fetch, build, feed and cite it.

    `classes` is the name of a public label set ("imagenet-1k") or the class names themselves; None goes with no head.
    `synsets` is the WordNet 3.0 id of each class ("n07739125"), where the classes are hashtags.
    `num_params` counts parameters without buffers; `gmacs` is 10^9 multiply-adds for one image of `image_size`;
    `global_pool` is what `models.build` takes, None for the family's own.
    """

    name: str
    arch: str
    variant: str
    description: str
    config: ViTConfig | RegNetConfig
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

    @property
    def family(self) -> str:
        return self.config.family

    @property
    def image_size(self) -> ImageSize:
        return self.preprocess.image_size

    @property
    def size_mib(self) -> float:
        """Size of the float32 weights in MiB, hence about that of a download."""
        return self.num_params * 4 / 2**20

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-ready values; the configuration carries its `family`."""
        return {**asdict(self), "config": {"family": self.family, **asdict(self.config)}}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, data: Any) -> ModelSpec:
        """The inverse of `to_dict`; ConfigError names a field that is unknown, missing or of another kind."""
        return decode_fields(cls, data, "")

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """The inverse of `to_json`; ConfigError says what is wrong with the text."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"not a model spec: invalid JSON ({error})") from None
        return cls.from_dict(data)


def decode_fields(cls: type[T], data: Any, path: str) -> T:
    """A dataclass from the JSON object of its fields; `path` leads to it in messages."""
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path or 'this'} is not a {cls.__name__}: expected a JSON object, got {data!r}"
        )
    known = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(known)):
        raise ConfigError(
            f"{cls.__name__} has no field {', '.join(unknown)}; fields: {', '.join(known)}"
        )
    hints = get_type_hints(cls)
    try:
        return cls(
            **{
                name: _decode(hints[name], value, f"{path}{name}", known[name])
                for name, value in data.items()
            }
        )
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {str(error).split('() ')[-1]}") from None


def _decode(hint: Any, data: Any, path: str, expected: Any) -> Any:
    """What JSON holds, made into what an annotation says."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for option in options:
        if not _suits(option, data):
            continue
        if is_dataclass(option):
            inner = {name: value for name, value in data.items() if name != "family"}
            return decode_fields(option, inner, f"{path}.")  # type: ignore[arg-type]
        if get_origin(option) is not tuple:
            return data
        parts = get_args(option)
        each = parts[:1] * len(data) if parts[-1] is Ellipsis else parts
        if len(each) == len(data):
            return tuple(
                _decode(kind, item, f"{path}[{i}]", kind)
                for i, (kind, item) in enumerate(zip(each, data))
            )
    families = [option.family for option in options if hasattr(option, "family")]
    if families and isinstance(data, dict):
        raise ConfigError(
            f"{path}.family is {data.get('family')!r}; allowed: {', '.join(families)}"
        )
    limits = ", finite, and positive if whole" if isinstance(data, (int, float)) else ""
    raise ConfigError(
        f"{path} is {data!r}; expected {getattr(expected, '__name__', expected)}{limits}"
    )


def _suits(hint: Any, data: Any) -> bool:
    """Whether JSON data is of the kind an annotation asks for, looking at its outside only."""
    if is_dataclass(hint):
        return isinstance(data, dict) and getattr(hint, "family", None) == data.get("family")
    if get_origin(hint) is Literal:
        return data in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(data, list)
    if hint is int:  # all our whole numbers count something
        return type(data) is int and data > 0
    if hint is float:
        return type(data) in (int, float) and math.isfinite(data)
    return isinstance(data, hint)
