"""Students of timm: construction, checks of what the architecture can do, publication for timm."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swag_models.atomic import atomic_write, write_text
from swag_models.checkpoint import write_state_dict
from swag_models.errors import ConfigError, suggest_names
from swag_models.formatting import describe_error
from swag_models.hub.hf_format import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from swag_models.models.layers import keep_buffers
from swag_models.publish.model_card import make_timm_card
from swag_models.publish.model_info import choose_license
from swag_models.publish.save import choose_name
from swag_models.recipe.config import Run
from swag_models.recipe.training.classes import Classes
from swag_models.recipe.training.memory import TIMM_PREFIX, find_arch
from swag_models.runtime import import_extra
from swag_models.spec import UNKNOWN, ModelSpec, Preprocess

# What a model of timm raises for a size, an option or a setting that it does not support
FOREIGN_ERRORS = (
    *(AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError),
)
# What timm's configuration says of an architecture. Everything else, such as a licence, a paper or
# the image size of a test, is about weights of timm's, which a student does not have.
ARCHITECTURE_KEYS = ("architecture", "first_conv", "classifier", "fixed_input_size")


def make_timm_student(run: Run, classes: Classes) -> tuple[nn.Module, ModelSpec]:
    """Build a timm model with random weights at the image size of a run.

    Args:
        run: the settings.
        classes: of the teacher, if logits are compared.

    Returns:
        The model, and a spec with what training and publication need of it: name, classes,
        preprocessing and licence. The architecture is timm's.

    Raises:
        ConfigError: the settings do not fit the architecture.
    """
    if run.init is not None:
        raise ConfigError(f"init is {run.init}; allowed for {run.arch}: none")
    if run.merge_tokens:
        raise ConfigError(f"merge_tokens is {run.merge_tokens}; allowed for {run.arch}: 0")
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
        except FOREIGN_ERRORS as error:
            reason = describe_error(error)
            raise ConfigError(
                f"image_size is {run.image_size}, which {run.arch} rejects: {reason}"
            ) from None
    if run.engine.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except FOREIGN_ERRORS:
            raise ConfigError(
                f"engine.grad_checkpointing is true, which {run.arch} does not support; set it to "
                "false, and engine.micro_batch to save memory"
            ) from None
    spec = replace(
        find_arch("vit_nano"),
        name=run.arch,
        arch=run.arch,
        description=run.arch,
        # evaluation resizes as training did
        preprocess=replace(
            preprocess, image_size=run.image_size, interpolation=run.augment.interpolation
        ),
        num_classes=len(classes) or None,
        classes=classes.names,
        synsets=classes.synsets,
        metrics=None,
        license=UNKNOWN,
        license_url="",
        sources=(),
    )
    return model, spec


def update_statistics_once(model: nn.Module) -> None:
    """Keep norms from updating running statistics again when timm computes a block a second time.

    Blocks of this library do so themselves, see `keep_statistics`.

    Args:
        model: with gradient checkpointing; after its norms have been synchronised.
    """
    for norm in model.modules():
        if any(name.startswith("running_") for name, _ in norm.named_buffers(recurse=False)):
            context = ExitStack()
            norm.register_forward_pre_hook(partial(_set_aside, context))
            # also after an exception, by which torch ends a second computation early
            norm.register_forward_hook(partial(_put_back, context), always_call=True)


def _set_aside(context: ExitStack, norm: nn.Module, inputs: object) -> None:
    # the compiler runs no update twice; with -1, this is no backward pass
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        context.enter_context(keep_buffers([norm]))


def _put_back(context: ExitStack, norm: nn.Module, inputs: object, output: object) -> None:
    context.close()


def save_timm_student(
    run: Run,
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    name: str | None,
    description: str,
    license: str | None,
    license_url: str | None,
    training: str,
    datasets: Any = (),
) -> None:
    """Write a timm student as a folder for `timm.create_model("local-dir:FOLDER")`.

    Files are replaced atomically and config.json last, as by `publish.save`.

    Args:
        run: the settings.
        spec: from `make_timm_student`, with the licence that applies by default.
        weights: state dict on the CPU.
        folder: created if missing.
        name: of the model; as are the others, see `publish.save`.
        description: of the model, for the card.
        license: of the weights.
        license_url: of the licence's text.
        training: how it was trained, as Markdown, for the card.
        datasets: ids on the Hub, for the card.

    Raises:
        CheckpointError: the weights cannot be written.
    """
    name = choose_name(name, folder)
    license, license_url = choose_license(license, license_url, spec, name)
    spec = replace(
        spec, name=name, description=description, license=license.lower(), license_url=license_url
    )
    hub = import_extra("timm.models._hub", "timm", f"the student {run.arch}")
    names = {"label_names": list(spec.classes)} if isinstance(spec.classes, tuple) else {}
    model, _ = make_timm_student(run, Classes(spec.num_classes or 0))
    model.load_state_dict(weights)  # an error before files are written
    size = read_timm_preprocess(model).size
    before: Any = model.pretrained_cfg
    model.pretrained_cfg = {  # type: ignore[assignment]
        **{key: before[key] for key in ARCHITECTURE_KEYS if key in before},
        # of the features before the pooling, at timm's image size
        **({"pool_size": before.get("pool_size")} if size == spec.preprocess.size else {}),
        "input_size": (3, *spec.preprocess.size),
        "mean": spec.preprocess.mean,
        "std": spec.preprocess.std,
        "interpolation": spec.preprocess.interpolation,
        "crop_pct": 1.0,  # as students are trained
        "crop_mode": "center",
        "num_classes": spec.num_classes or 0,
        "license": spec.license,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)  # it must not be beside other weights
    write_state_dict(weights, folder / WEIGHTS_FILE)
    card = make_timm_card(spec, training=training, datasets=datasets)
    write_text(folder / CARD_FILE, card)
    with atomic_write(folder / CONFIG_FILE) as temporary:
        hub.save_config_for_hf(model, temporary, model_config=names)


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
    except FOREIGN_ERRORS as error:
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
