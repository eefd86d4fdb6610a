"""Fine-tune a model on a task of your own in your own loop: fresh head, frozen lower layers, slower learning further down.

The task: is a handwritten digit even? Another model needs nothing but its name in NAME.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import swag_models
from swag_models.models import group_parameters

NAME, EPOCHS, BATCH, RATE = "vit_nano_digits", 3, 32, 2e-3

torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
parts = train_test_split(pixels, digits % 2, train_size=400, test_size=0.25, random_state=0, stratify=digits)
preprocess = swag_models.load_preprocess(NAME)
train_x, test_x = (
    torch.stack([preprocess(Image.fromarray((row.reshape(8, 8) * 255 / 16).astype("uint8"))) for row in rows])
    for rows in parts[:2]
)
train_y, test_y = (torch.from_numpy(labels) for labels in parts[2:])

model = swag_models.load_model(NAME, num_classes=2)
model.freeze(up_to="blocks.0")  # a RegNet's: "s1"
optimizer = torch.optim.AdamW(group_parameters(model, lr=RATE, weight_decay=0.05, layer_decay=0.7))
model.train()
for epoch in range(EPOCHS):
    for chosen in torch.randperm(len(train_x)).split(BATCH):
        loss = F.cross_entropy(model(train_x[chosen]), train_y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch} loss {loss.item():.3f}")

with torch.inference_mode():
    guesses = model.eval()(test_x).argmax(dim=1)
print(f"held-out accuracy {(guesses == test_y).float().mean():.2%}")
