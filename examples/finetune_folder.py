"""Fine-tune on a folder of images in a plain PyTorch loop, and save the classifier.

python examples/finetune_folder.py photos/ vit_b16 photo-classifier [EPOCHS]

`photos/` has a sub-folder for each class, as torchvision's ImageFolder reads it; a fifth of the
images is held out. An image that cannot be read stops it: `swag-models finetune` leaves such images
out, and does all of this, and more, in one line.
"""

import sys

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

import swag_models
from swag_models import publish
from swag_models.models import group_parameters

BATCH = 32


def main(folder: str, name: str, output: str, epochs: str = "20") -> None:
    """Train, measure and save."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = ImageFolder(folder, swag_models.load_preprocess(name, train=True))
    plain = ImageFolder(folder, swag_models.load_preprocess(name))
    held_out, order = len(images) // 5, torch.randperm(len(images)).tolist()
    train = DataLoader(Subset(images, order[held_out:]), BATCH, shuffle=True)
    test = DataLoader(Subset(plain, order[:held_out]), BATCH)

    model = swag_models.load_model(name, num_classes=len(images.classes), device=device).train()
    # the wider a model, the smaller its steps; lower layers learn more slowly
    rate = 0.1 / model.num_features
    optimizer = torch.optim.AdamW(
        group_parameters(model, lr=rate, weight_decay=0.05, layer_decay=0.75)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], int(epochs) * len(train)
    )
    for epoch in range(int(epochs)):
        for inputs, targets in train:
            loss = F.cross_entropy(model(inputs.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    model.eval()
    with torch.inference_mode():
        hits = [(model(x.to(device)).argmax(1).cpu() == y).float() for x, y in test]
    top1 = 100 * torch.cat(hits).mean().item()
    print(f"held-out accuracy {top1:.1f}%")
    publish.save(
        model, output, classes=images.classes, metrics={"dataset": "held-out images", "top1": top1}
    )


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python examples/finetune_folder.py FOLDER MODEL OUTPUT [EPOCHS]")
    main(*sys.argv[1:])
