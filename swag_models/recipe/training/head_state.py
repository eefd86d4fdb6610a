"""Training of a linear head on stored embeddings, without images and without its backbone.

Axes: N samples of a micro batch, D features, C classes.
"""

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from swag_models.errors import ConfigError
from swag_models.inference import Embedder
from swag_models.inference.embed_job import hash_weights
from swag_models.models import Backbone
from swag_models.preprocess import Transform
from swag_models.recipe.augmentation import Augment
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import iterate_fields
from swag_models.recipe.data.embeddings import StoredEmbeddings
from swag_models.recipe.presets import PRESETS
from swag_models.recipe.training.classes import Classes, weigh_classes
from swag_models.recipe.training.distributed import DistContext
from swag_models.recipe.training.model import make_model
from swag_models.recipe.training.train_state import TrainState, assemble_state

# Settings that a head on embeddings does not use: of images, of the backbone, of shards
UNUSED_SETTINGS = (
    *("augment", "drop_path_rate", "patch_drop_rate", "optimizer.layer_decay"),
    *("engine.grad_checkpointing", "engine.lanes", "engine.buffer"),
)
NO_AUGMENT = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)

logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class HeadState(TrainState):
    """The state of a head's training: the loader sends features instead of pixels."""

    def count_flops(self) -> int:
        weights = sum(weight.numel() for weight in select_head(self.model).parameters())
        return 3 * 2 * weights  # forward and twice that backward, of two operations each

    def prepare_inputs(self, pixels: Tensor) -> Tensor:
        return pixels  # features (N, D)

    def order_channels(self, images: Tensor) -> Tensor:
        return images


def select_head(model: nn.Module) -> nn.Module:
    """Return the head of a model, which takes features (N, D)."""
    assert isinstance(model, Backbone)
    return model.get_classifier()


def make_head_state(run: Run, classes: Classes, dist: DistContext) -> HeadState:
    """Build the model of a run whose data are embeddings; only its head is distributed.

    Raises:
        ConfigError: the settings do not fit the architecture or the initial weights.
    """
    torch.manual_seed(run.seed)  # the same initial weights on all ranks
    model, spec = make_model(run, classes)
    class_weights = weigh_classes(run.objective, classes)
    return assemble_state(
        *(HeadState, run, dist, model, spec),
        select_trained=select_head,
        class_weights=class_weights,
    )


def check_embeddings(run: Run, stored: StoredEmbeddings) -> None:
    """Check that embeddings are those of a run's backbone, and that its settings apply.

    Raises:
        ConfigError: they are of another model, size or preprocessing, or a setting has no effect.
    """
    if run.trainable != "head" or run.init is None:
        raise ConfigError(
            f"embeddings train a head on a frozen backbone, but trainable is {run.trainable} and "
            f"init {run.init}; set trainable=head and init to the model that computed them"
        )
    if run.objective.mixup:
        raise ConfigError(
            f"objective.mixup is {run.objective.mixup:g}, but embeddings are of images that are "
            "not mixed; set it to 0, or train on images"
        )
    _check_unused(run)
    metadata = stored.metadata
    if "vectorised" in metadata["preprocess"]:
        raise ConfigError(
            f"{stored.path} was computed with fast, which changes features slightly; embed "
            "without it to train a head"
        )
    if (merged := metadata.get("merge_tokens", 0)) != run.merge_tokens:
        raise ConfigError(
            f"{stored.path} was computed with merge_tokens {merged}, but the run has merge_tokens "
            f"{run.merge_tokens}; set merge_tokens={merged}, or embed the images again"
        )
    embedder = Embedder(
        run.init,
        device="cpu",
        dtype=metadata["dtype"],
        image_size=run.image_size,
        merge_tokens=run.merge_tokens,
    )
    if metadata["weights_sha256"] != hash_weights(embedder.model):
        raise ConfigError(
            f"{stored.path} has embeddings of {metadata['model']}, whose weights are not those of "
            f"init {run.init} at {run.image_size} pixels in {metadata['dtype']}; give embeddings "
            "of this model, or set init and image_size"
        )
    preprocess = embedder.preprocess.preprocess
    # a size can be written as a number or as a pair
    sizes = (run.image_size, (run.image_size, run.image_size))
    allowed = [repr(Transform(replace(preprocess, image_size=size))) for size in sizes]
    # `embed` decodes JPEGs at a fraction of their size, which changes features far less than fast
    if metadata["preprocess"].replace(", scaled=True", "") not in allowed:
        raise ConfigError(
            f"{stored.path} was computed with {metadata['preprocess']}, but the run has "
            f"{allowed[0]}; set image_size, or embed the images again"
        )
    logger.info("the head learns from embeddings of whole images; augment has no effect")


def _check_unused(run: Run) -> None:
    """Raise ConfigError for a setting without effect that someone must have set.

    Defaults, the values of presets, and no augmentation at all are allowed.
    """
    plain = Run(run.arch, image_size=1, batch_size=1, steps=1)
    presets = [preset.run for preset in PRESETS if preset.run.arch == run.arch]
    presets = [preset for preset in presets if preset.trainable == "head"]
    runs = plain, replace(plain, augment=NO_AUGMENT), *presets
    allowed = [dict(iterate_fields(each)) for each in runs]
    for name, value in iterate_fields(run):
        if name.startswith(UNUSED_SETTINGS) and all(value != each[name] for each in allowed):
            raise ConfigError(
                f"{name} is {value}, and has no effect on a head that is trained on embeddings; "
                f"leave it at {allowed[0][name]}, or train on images"
            )
