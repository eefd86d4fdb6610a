"""What timm's models have beside their forward methods: their origin, and a list of their maps."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from swag_models.architectures import Config
from swag_models.hub.timm_format import describe_for_timm
from swag_models.spec import UNKNOWN, ModelSpec, Preprocess


class FeatureInfo(list[dict[str, Any]]):
    """The maps of `forward_intermediates`, with the methods of timm's class of this name.

    Args:
        maps: channels (`num_chs`), pixels per cell (`reduction`) and module of each.
        out_indices: the maps that methods without `idx` are about; by default all.
    """

    def __init__(
        self, maps: Iterable[dict[str, Any]] = (), out_indices: Sequence[int] | None = None
    ) -> None:
        super().__init__(maps)
        self._out_indices = None if out_indices is None else tuple(out_indices)

    @property
    def out_indices(self) -> tuple[int, ...]:
        """The chosen maps."""
        return tuple(range(len(self))) if self._out_indices is None else self._out_indices

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return a value of one map for an int, or of the maps `idx`, by default the chosen ones.

        Args:
            key: name of the value.
            idx: position, or positions.
        """
        if isinstance(idx, int):
            return self[idx][key]
        return [self[index][key] for index in (self.out_indices if idx is None else idx)]

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> Any:
        """Return the values `keys` of one map for an int, or of the maps `idx`, as in `get`.

        Args:
            keys: names of the values; by default all.
            idx: position, or positions.
        """
        if isinstance(idx, int):
            return {key: self[idx][key] for key in (self[idx] if keys is None else keys)}
        return [self.get_dicts(keys, index) for index in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the number of channels of maps, as in `get`."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the pixels per cell of maps, as in `get`."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the modules that compute maps, as in `get`."""
        return self.get("module", idx)


class TimmMetadata(nn.Module):
    """A model's origin and preprocessing, in this library's form and in timm's.

    Attributes:
        pretrained_cfg: preprocessing, input size and classes as timm describes them, for
            `timm.data.resolve_model_data_config` and `create_transform`. A new dict whenever `spec`
            or the image size changes.
        default_cfg: the same dict.
    """

    # Not compiled by torch.jit.script
    __jit_unused_properties__: ClassVar = ["spec"]
    image_size: tuple[int, int]
    in_chans: int
    num_classes: int
    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]
    _config: Config
    _spec: ModelSpec | None = None

    @property
    def spec(self) -> ModelSpec | None:
        """The description of the model, if `load_model` made it; otherwise None."""
        return self._spec

    @spec.setter
    def spec(self, spec: ModelSpec | None) -> None:
        self._spec = spec
        self.update_pretrained_cfg()

    def describe(self) -> ModelSpec:
        """Return the description of the model as it is now.

        It is that of the origin, with the image size, channels and classes of the model. A head
        with the origin's number of classes is taken to have the origin's classes; the classes of
        any other head have no names.
        """
        spec, count = self._describe_origin(), self.num_classes or None
        if count == spec.num_classes:
            return spec
        return replace(
            spec, num_classes=count, classes=None, synsets=None, metrics=None, multi_label=False
        )

    def update_pretrained_cfg(self) -> None:
        """Describe the model again for timm, after its image size has changed."""
        spec = self._describe_origin()
        entries = describe_for_timm(spec)
        config = {**entries["pretrained_cfg"], "tag": spec.variant}
        config |= {key: entries[key] for key in ("architecture", "label_names") if key in entries}
        self.pretrained_cfg = self.default_cfg = {
            key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
        }
        # With these, `timm.models.save_for_hf` writes a folder from which timm makes the model.
        if not hasattr(self, "_traits"):  # otherwise timm made it, and has recorded its own
            self._model_args = entries["model_args"]

    def _describe_origin(self) -> ModelSpec:
        """Return the description of the origin, for the model's image size and channels."""
        spec = self._spec or ModelSpec(
            name=self._config.family,
            arch=self._config.family,
            variant="",
            description="",
            config=self._config,
            preprocess=Preprocess(self.image_size),
            num_classes=self.num_classes or None,
            classes=None,
            num_params=0,
            gmacs=0,
            metrics=None,
            license=UNKNOWN,
            license_url="",
            sources=(),
        )
        # 224 and (224, 224) are equal sizes, but different JSON: keep the origin's form.
        if spec.preprocess.size != self.image_size:
            height, width = self.image_size
            size = height if height == width else (height, width)
            spec = replace(spec, preprocess=replace(spec.preprocess, image_size=size))
        return replace(spec, in_chans=self.in_chans)
