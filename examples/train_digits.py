"""Train `vit_nano_digits`, the model that ships: a ViT of 0.5 MB on scikit-learn's handwritten digits.

    python examples/train_digits.py weights.safetensors [folder for some held-out pictures]

A quarter of the 1,797 pictures is held out; its accuracy is printed. A few minutes on two cores.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.transforms import v2

import swag_models

STEPS, BATCH, RATE = 1200, 128, 2e-3

torch.manual_seed(0)
digits = load_digits()
pixels = (digits.images * 255 / 16).round().astype("uint8")
split = train_test_split(pixels, digits.target, test_size=0.25, random_state=0, stratify=digits.target)
train_x, test_x, train_y, test_y = split
preprocess = swag_models.load_preprocess("vit_nano_digits")


def prepare(pictures):  # (N, 8, 8) grey -> (N, 3, 32, 32), as the shipped preprocessing does it
    return torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures])


augment = v2.RandomAffine(degrees=12, translate=(0.1, 0.1), scale=(0.85, 1.15), fill=prepare([pixels[0] * 0]).min().item())
model = swag_models.load_model("vit_nano_digits", pretrained=False, drop_path_rate=0.1).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
inputs, targets = prepare(train_x), torch.from_numpy(train_y)
for step in range(STEPS):
    chosen = torch.randint(len(inputs), (BATCH,))
    loss = F.cross_entropy(model(augment(inputs[chosen])), targets[chosen], label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 250 == 0:
        print(f"step {step} loss {loss.item():.3f}", flush=True)

model.eval()
with torch.inference_mode():
    guesses = model(prepare(test_x)).argmax(dim=1)
print(f"held-out accuracy {(guesses == torch.from_numpy(test_y)).float().mean():.2%} on {len(test_y)} pictures")
save_file(model.state_dict(), sys.argv[1], {"format": "pt"})

if len(sys.argv) > 2:
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for digit in range(10):
        picture = test_x[(test_y == digit).argmax()]
        Image.fromarray(picture).save(folder / f"digit_{digit}.png")
