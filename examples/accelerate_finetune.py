"""Fine-tune with Hugging Face accelerate: `accelerate launch` runs the same script on several GPUs or in bf16.

The task: is a handwritten digit even? Another model needs nothing but its name in NAME.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

import swag_models
from swag_models.models import group_parameters

NAME, EPOCHS, BATCH, RATE = "vit_nano_digits", 3, 32, 2e-3

set_seed(0)
preprocess = swag_models.load_preprocess(NAME)
pixels, digits = load_digits(return_X_y=True)
pictures = torch.stack([preprocess(Image.fromarray((row.reshape(8, 8) * 255 / 16).astype("uint8"))) for row in pixels])
even = torch.from_numpy(1 - digits % 2)
parts = train_test_split(range(len(digits)), train_size=400, test_size=0.25, random_state=0, stratify=digits)
train, test = (DataLoader(TensorDataset(pictures[part], even[part]), BATCH, shuffle=True) for part in parts)

accelerator = Accelerator()
model = swag_models.load_model(NAME, num_classes=2).train()
optimizer = torch.optim.AdamW(group_parameters(model, lr=RATE, weight_decay=0.05, layer_decay=0.7))
schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, [group["lr"] for group in optimizer.param_groups], EPOCHS * len(train)
)
model, optimizer, schedule, train, test = accelerator.prepare(model, optimizer, schedule, train, test)
for _ in range(EPOCHS):
    for inputs, targets in train:
        loss = F.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

model.eval()
with torch.inference_mode():
    right = [accelerator.gather_for_metrics(model(inputs).argmax(dim=1) == targets) for inputs, targets in test]
accelerator.print(f"held-out accuracy {torch.cat(right).float().mean():.2%}")
