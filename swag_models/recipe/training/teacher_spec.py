"""The teacher of a distillation before its weights are loaded: its spec, and what it costs."""

from dataclasses import replace

import torch

from swag_models.api import get_spec
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.inference.embeddings_file import read_embeddings_metadata
from swag_models.models import build
from swag_models.paths import expand_path
from swag_models.publish.model_info import count_flops
from swag_models.recipe.data.embeddings import is_embeddings_file
from swag_models.recipe.distillation import Distillation
from swag_models.recipe.training.memory import TeacherCost
from swag_models.spec import ModelSpec


def find_teacher(distill: Distillation) -> ModelSpec | None:
    """Find the spec of a teacher, without its weights; None if it is a file of embeddings.

    Raises:
        ConfigError: it has no classes although its logits are needed, or takes images that are not
            square or have other channels than red, green and blue.
    """
    name, has_head = distill.teacher, distill.logit_weight > 0
    assert name is not None
    if is_embeddings_file(name):
        if has_head:
            raise ConfigError(
                f"distill.logit_weight is {distill.logit_weight:g}, but {name} has embeddings and "
                "no logits; set it to 0, or give a model as distill.teacher"
            )
        return None
    spec = get_spec(name)
    if has_head and not spec.num_classes:
        raise ConfigError(
            f"distill.logit_weight is {distill.logit_weight:g}, but {name} has no classes; set it "
            "to 0, or give a teacher with classes"
        )
    height, width = spec.preprocess.size
    if height != width:
        raise ConfigError(
            f"teacher {name} takes images of {height}x{width} pixels; allowed: a square size, as "
            "crops have"
        )
    if spec.in_chans != 3:
        raise ConfigError(
            f"teacher {name} takes {count_noun(spec.in_chans, 'channel')}; allowed: 3"
        )
    return spec


def price_teacher(distill: Distillation) -> TeacherCost:
    """Find out what the teacher of a run costs, from its spec; without its weights.

    Raises:
        ConfigError: as for `find_teacher`, or a file of embeddings cannot be read.
    """
    if distill.teacher is None:
        return TeacherCost(text="not given, not counted: add --set distill.teacher=MODEL")
    spec = find_teacher(distill)
    if spec is None:
        width = read_embeddings_metadata(expand_path(distill.teacher, "distill.teacher"))["width"]
        return TeacherCost(width=width, text=f"stored embeddings of {width} numbers, not computed")
    if not distill.logit_weight:  # it is loaded without its head
        spec = replace(spec, num_classes=None, classes=None, synsets=None)
    with torch.device("meta"):
        model = build(spec.config, num_classes=spec.num_classes, image_size=spec.image_size)
    parameters = sum(weight.numel() for weight in model.parameters())
    flops = count_flops(spec)
    text = f"{spec.name}, {parameters:,} parameters, a forward pass of {flops:.3g} per sample"
    return TeacherCost(flops, parameters, spec, model.num_features, text)
