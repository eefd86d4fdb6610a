"""Fine-tune a model on a folder of images: `finetune` makes a classifier in one call."""

from swag_models.finetuning.finetune import FineTuned, finetune

__all__ = ["FineTuned", "finetune"]


def __dir__() -> list[str]:
    return sorted(__all__)
