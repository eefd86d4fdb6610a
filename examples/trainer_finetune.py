"""Fine-tune on a folder of images with the Trainer of transformers, and save the classifier.

python examples/trainer_finetune.py photos/ vit_b16 photo-classifier [EPOCHS]

`photos/` has a sub-folder for each class; a fifth of the images is held out. Options of
TrainingArguments choose precision, gradient accumulation, logging and so on. An image that cannot
be read stops it; `swag-models finetune` leaves such images out.
"""

import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from transformers import Trainer, TrainingArguments

import swag_models
from swag_models import publish
from swag_models.models import group_parameters

BATCH = 32


class ImageClassifier(nn.Module):
    """What Trainer expects: loss and logits of pixel values and labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values, labels=None):
        """Logits (N, C), with the loss if there are labels."""
        logits = self.model(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def collate(samples):
    """A batch from pairs of an image and a class number."""
    images, labels = zip(*samples)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def main(folder: str, name: str, output: str, epochs: str = "20") -> None:
    """Train, measure and save."""
    torch.manual_seed(0)
    images = ImageFolder(folder, swag_models.load_preprocess(name, train=True))
    plain = ImageFolder(folder, swag_models.load_preprocess(name))
    held_out, order = len(images) // 5, torch.randperm(len(images)).tolist()

    model = swag_models.load_model(name, num_classes=len(images.classes))
    rate = 0.1 / model.num_features
    groups = group_parameters(model, lr=rate, weight_decay=0.05, layer_decay=0.75)
    with tempfile.TemporaryDirectory() as folder_of_trainer:
        trainer = Trainer(
            ImageClassifier(model),
            TrainingArguments(
                folder_of_trainer,
                num_train_epochs=int(epochs),
                per_device_train_batch_size=BATCH,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,  # below 1: a share of all steps
                dataloader_pin_memory=torch.cuda.is_available(),
                save_strategy="no",
                report_to="none",
            ),
            data_collator=collate,
            train_dataset=Subset(images, order[held_out:]),
            eval_dataset=Subset(plain, order[:held_out]),
            compute_metrics=lambda output: {
                "top1": 100 * np.mean(output.predictions.argmax(1) == output.label_ids)
            },
            optimizers=(torch.optim.AdamW(groups), None),
        )
        trainer.train()
        print(f"held-out accuracy {trainer.evaluate()['eval_top1']:.1f}%")
    publish.save(model.eval(), output, classes=images.classes)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python examples/trainer_finetune.py FOLDER MODEL OUTPUT [EPOCHS]")
    main(*sys.argv[1:])
