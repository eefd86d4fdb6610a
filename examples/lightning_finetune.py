"""Fine-tune on a folder of images with Lightning, and save the classifier.

python examples/lightning_finetune.py photos/ vit_b16 photo-classifier [EPOCHS]

`photos/` has a sub-folder for each class; a fifth of the images is held out. The Trainer moves
the work to a GPU, to several of them, or to bf16 by its options. An image that cannot be read stops
it; `swag-models finetune` leaves such images out.
"""

import sys

import lightning
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

import swag_models
from swag_models import publish
from swag_models.models import group_parameters

BATCH = 32


class ImageClassifier(lightning.LightningModule):
    """A model of this library with a new head."""

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        self.model = swag_models.load_model(name, num_classes=num_classes).train()

    def training_step(self, batch, _):
        """Cross-entropy of a batch."""
        inputs, targets = batch
        loss = F.cross_entropy(self.model(inputs), targets)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _):
        """Accuracy of a batch."""
        inputs, targets = batch
        hits = (self.model(inputs).argmax(dim=1) == targets).float()
        self.log("top1", 100 * hits.mean(), batch_size=len(targets))

    def configure_optimizers(self):
        """AdamW with layer decay; the module itself can be grouped."""
        rate = 0.1 / self.model.num_features
        groups = group_parameters(self, lr=rate, weight_decay=0.05, layer_decay=0.75)
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in groups],
            int(self.trainer.estimated_stepping_batches),
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def main(folder: str, name: str, output: str, epochs: str = "20") -> None:
    """Train, measure and save."""
    lightning.seed_everything(0, verbose=False)
    images = ImageFolder(folder, swag_models.load_preprocess(name, train=True))
    plain = ImageFolder(folder, swag_models.load_preprocess(name))
    held_out, order = len(images) // 5, torch.randperm(len(images)).tolist()
    train = DataLoader(Subset(images, order[held_out:]), BATCH, shuffle=True)
    test = DataLoader(Subset(plain, order[:held_out]), BATCH)

    module = ImageClassifier(name, len(images.classes))
    trainer = lightning.Trainer(max_epochs=int(epochs), logger=False, enable_checkpointing=False)
    trainer.fit(module, train)
    (result,) = trainer.validate(module, test, verbose=False)
    print(f"held-out accuracy {result['top1']:.1f}%")
    publish.save(module.model, output, classes=images.classes)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python examples/lightning_finetune.py FOLDER MODEL OUTPUT [EPOCHS]")
    main(*sys.argv[1:])
