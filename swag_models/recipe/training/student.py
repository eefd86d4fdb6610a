"""Students of a distillation: of the catalog or of timm, with a projection to the teacher's width.

Axes: N samples, D features, C classes, S pixels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from swag_models.atomic import atomic_write
from swag_models.errors import ConfigError, suggest_names
from swag_models.formatting import describe_error
from swag_models.recipe.config import Run
from swag_models.recipe.training.classes import Classes
from swag_models.recipe.training.memory import find_arch
from swag_models.recipe.training.model import make_model
from swag_models.runtime import import_extra
from swag_models.spec import UNKNOWN, ModelSpec, Preprocess

TIMM_PREFIX = "timm:"


class StudentOutputs(NamedTuple):
    """Features (N, D) in the teacher's width, and logits (N, C); None if they are not compared."""

    features: Tensor | None
    logits: Tensor | None


class Student(nn.Module):
    """A backbone, and a linear projection of its features that is not published.

    Args:
        backbone: of this library or of timm; has a head if its logits are compared.
        width: of the teacher's features; None if features are not compared.
    """

    def __init__(self, backbone: nn.Module, width: int | None) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.projection = None if width is None else nn.Linear(count_features(backbone), width)

    def forward(self, images: Tensor) -> StudentOutputs:
        """Run the backbone, its head and the projection on images (N, 3, S, S)."""
        hidden = self.backbone.forward_features(images)
        features = None
        if self.projection is not None:
            features = self.projection(self.backbone.forward_head(hidden, pre_logits=True))
        logits = self.backbone.forward_head(hidden) if self.backbone.num_classes else None
        return StudentOutputs(features, logits)


def count_features(backbone: Any) -> int:
    """Channels of the features before the head, by timm's names."""
    return int(backbone.head_hidden_size or backbone.num_features)


def make_student(run: Run, classes: Classes) -> tuple[nn.Module, ModelSpec]:
    """Build the backbone of a student with random weights, or those of `run.init`.

    Args:
        run: the settings.
        classes: of the teacher, if logits are compared.

    Returns:
        The backbone and its spec; that of a timm model only has a name and preprocessing.

    Raises:
        ConfigError: the settings do not fit the architecture.
    """
    if not run.arch.startswith(TIMM_PREFIX):
        return make_model(run, classes)
    if run.init is not None:
        raise ConfigError(f"init is {run.init}; allowed for {run.arch}: none")
    model: Any = create_timm_model(
        run.arch,
        len(classes),
        drop_path_rate=run.drop_path_rate,
        patch_drop_rate=run.patch_drop_rate,
    )
    preprocess = read_timm_preprocess(model)
    if run.image_size != preprocess.size[0] and hasattr(model, "set_input_size"):
        try:
            model.set_input_size(img_size=run.image_size)
        except (AssertionError, ValueError) as error:
            reason = describe_error(error)
            raise ConfigError(
                f"image_size is {run.image_size}, which {run.arch} rejects: {reason}"
            ) from None
    # only what training and publication need of it; the architecture is timm's
    spec = replace(
        find_arch("vit_nano"),
        name=run.arch,
        preprocess=replace(preprocess, image_size=run.image_size),
        num_classes=len(classes) or None,
        license=UNKNOWN,
    )
    return model, spec


def save_timm_student(
    run: Run, classes: Classes, weights: Any, folder: Path, description: str, training: str
) -> None:
    """Write a timm student as a folder for `timm.create_model("local-dir:FOLDER")`.

    Args:
        run: the settings.
        classes: of the teacher, if there are any.
        weights: state dict on the CPU.
        folder: created if missing.
        description: of the model, for the card.
        training: how it was trained, as Markdown, for the card.
    """
    model, spec = make_student(run, classes)
    model.load_state_dict(weights)
    hub = import_extra("timm.models._hub", "timm", f"the student {run.arch}")
    preprocess = spec.preprocess
    cfg: dict[str, Any] = {
        **model.pretrained_cfg,  # type: ignore[dict-item]
        "input_size": (3, *preprocess.size),
        "mean": preprocess.mean,
        "std": preprocess.std,
        "interpolation": preprocess.interpolation,
        "crop_pct": 1.0,  # as students are trained
        "num_classes": len(classes),
        "url": "",
        "hf_hub_id": None,
        "tag": "",
    }
    model.pretrained_cfg = cfg  # type: ignore[assignment]
    names = {"label_names": list(classes.names)} if classes.names else {}
    folder.mkdir(parents=True, exist_ok=True)
    hub.save_for_hf(model, folder, model_config=names, safe_serialization=True)
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(f"# {description}\n\n{training}\n", "utf-8")


def create_timm_model(arch: str, num_classes: int, **rates: float) -> Any:
    """Make a timm model with random weights.

    Args:
        arch: "timm:" and its name.
        num_classes: 0 for no head.
        **rates: timm's options; those that are 0 are not passed, as not every model has them.

    Raises:
        ConfigError: timm has no such architecture, or it lacks an option.
    """
    timm = import_extra("timm", "timm", "a timm: student")
    name, architectures = arch.removeprefix(TIMM_PREFIX), timm.list_models()
    if name.partition(".")[0] not in architectures:
        raise ConfigError(suggest_names("timm architecture", name, architectures))
    options = {name: rate for name, rate in rates.items() if rate}
    try:
        model = timm.create_model(name, pretrained=False, num_classes=num_classes, **options)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"timm cannot make {arch}: {describe_error(error)}") from None
    if not (hasattr(model, "forward_head") and hasattr(model, "forward_features")):
        raise ConfigError(f"{arch} has no features before a head; choose another architecture")
    return model


def read_timm_preprocess(model: Any) -> Preprocess:
    """Return the preprocessing that a timm architecture is made for."""
    cfg = model.pretrained_cfg
    bilinear = cfg.get("interpolation") == "bilinear"
    return Preprocess(
        image_size=cfg["input_size"][-1],
        interpolation="bilinear" if bilinear else "bicubic",
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )
