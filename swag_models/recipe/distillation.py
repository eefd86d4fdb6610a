"""Settings of distillation. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from swag_models.errors import ConfigError
from swag_models.recipe.limits import check_fields


@dataclass(frozen=True)
class Distillation:
    """Learning from the outputs of a frozen teacher, without labels.

    Args:
        teacher: a catalog name, a folder, hf-hub:org/repo, or a file of `swag-models embed`.
        feature_weight: of the loss that compares features, mapped linearly to the teacher's width.
        feature_loss: "cosine", or "l2", to the teacher's features of mean 0 and variance 1.
        logit_weight: of the loss that compares softened probabilities; if it is not 0, the student
            gets the classes of the teacher.
        temperature: that the logits of both are divided by.
    """

    teacher: str | None = None
    feature_weight: float = 1.0
    feature_loss: Literal["cosine", "l2"] = "cosine"
    logit_weight: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            feature_weight=(lambda weight: weight >= 0, "0 or more"),
            logit_weight=(lambda weight: weight >= 0, "0 or more"),
            temperature=(lambda temperature: temperature > 0, "a positive number"),
        )
        if not (self.feature_weight or self.logit_weight):
            raise ConfigError("feature_weight and logit_weight are 0; give one of them a weight")
