"""The nouns of the library as frozen values, with JSON both ways. Imports no torch.

Sizes are in pixels, (height, width) where two are given.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
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
                f"w_0 is {self.w_0}, w_a {self.w_a} and w_m {self.w_m}; "
                "allowed: w_0 at least 8, w_a at least 0, w_m above 1"
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
            raise ConfigError(f"std is {self.std}; give positive numbers")

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


def decode_fields(
    cls: type[T], data: Any, path: str = "", *, name: str | None = None, positive: bool = True
) -> T:
    """Make a dataclass from the JSON object of its fields, checking every type.

    Args:
        cls: the dataclass. Its fields may be int, float, bool, str, None, Literal, tuples,
            dataclasses, and unions of these; of several dataclasses the one whose `family` is that
            of the object.
        data: from JSON; tuples and dataclasses are accepted as well as lists and objects.
        path: prefix of field names in messages, with a final dot.
        name: what messages call the whole; by default the name of the class.
        positive: allow only positive whole numbers, since all of a spec count something.

    Raises:
        ConfigError: a field is unknown, missing, of another type or out of range.
    """
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    whole = path.rstrip(".") or name or cls.__name__
    if not isinstance(data, dict):
        raise ConfigError(f"{whole} is {data!r}; allowed: its fields ({', '.join(names)})")
    if unknown := sorted(set(data) - set(names)):
        raise ConfigError(f"{whole} has no field {', '.join(unknown)}; fields: {', '.join(names)}")
    values = {
        field: decode_value(hints[field], value, f"{path}{field}", positive=positive)
        for field, value in data.items()
    }
    try:
        return cls(**values)
    except TypeError as error:  # missing arguments: "f() missing 1 required ..."
        raise ConfigError(f"{whole}: {str(error).split('() ')[-1]}") from None
    except ConfigError as error:  # of __post_init__, which does not know the path
        raise ConfigError(f"{path}{error}") from None


def decode_value(hint: Any, value: Any, path: str, *, positive: bool = True) -> Any:
    """Convert a JSON value to the type of an annotation; see `decode_fields`.

    Args:
        hint: the annotation, resolved by `get_type_hints`.
        value: from JSON.
        path: what messages call the value.
        positive: allow only positive whole numbers.
    """
    options = list_options(hint)
    for option in options:
        if is_dataclass(option):
            if isinstance(value, option):  # type: ignore[arg-type]
                return value
            family = getattr(option, "family", None)
            if isinstance(value, dict) and (family is None or value.get("family") == family):
                values = {key: item for key, item in value.items() if key != "family"}
                inner = value if family is None else values
                return decode_fields(option, inner, f"{path}.", positive=positive)  # type: ignore[arg-type]
        elif get_origin(option) is tuple and isinstance(value, (list, tuple)):
            kinds = get_args(option)
            if kinds[-1] is Ellipsis:
                kinds = kinds[:1] * len(value)
            if len(kinds) == len(value):
                return tuple(
                    decode_value(kind, item, f"{path}[{index}]", positive=positive)
                    for index, (kind, item) in enumerate(zip(kinds, value))
                )
        elif _fits(option, value, positive):
            # 1 and 1.0 are equal, but JSON writes them differently
            return float(value) if option is float else value
    families = [option.family for option in options if hasattr(option, "family")]
    if families and isinstance(value, dict):
        raise ConfigError(
            f"{path}.family is {value.get('family')!r}; allowed: {', '.join(families)}"
        )
    allowed = " or ".join(_describe(option, positive) for option in options)
    raise ConfigError(f"{path} is {value!r}; allowed: {allowed}")


def list_options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of another annotation, itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(option: Any, value: Any, positive: bool) -> bool:
    """Whether a value is of a simple type."""
    if get_origin(option) is Literal:
        return value in get_args(option)
    if option is float:
        return type(value) in (int, float) and math.isfinite(value)
    if option is int:  # not bool, which is a subclass of int
        return type(value) is int and (value > 0 or not positive)
    return type(value) is option


def _describe(option: Any, positive: bool) -> str:
    """What users call a type."""
    if get_origin(option) is Literal:
        return ", ".join(get_args(option))
    if get_origin(option) is tuple:
        kinds = get_args(option)
        if kinds[-1] is Ellipsis:
            return f"a list, each {_describe(kinds[0], positive)}"
        return f"{len(kinds)} numbers with commas between"
    if is_dataclass(option):
        names = ", ".join(field.name for field in fields(option))
        return f"its fields ({names})"
    return {
        int: "a positive whole number" if positive else "a whole number",
        float: "a finite number",
        bool: "true, false",
        str: "a text",
        NoneType: "none",
    }[option]
