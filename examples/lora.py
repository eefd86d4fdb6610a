"""Adapt a model with LoRA (peft): train low-rank additions to the attention and a fresh head, then fold them into the weights.

The task: is a handwritten digit even? Another ViT needs nothing but its name in NAME.
"""

import peft
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import swag_models

NAME, EPOCHS, BATCH, RATE = "vit_nano_digits", 3, 32, 5e-3

torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
parts = train_test_split(pixels, digits % 2, train_size=400, test_size=0.25, random_state=0, stratify=digits)
preprocess = swag_models.load_preprocess(NAME)
train_x, test_x = (
    torch.stack([preprocess(Image.fromarray((row.reshape(8, 8) * 255 / 16).astype("uint8"))) for row in rows])
    for rows in parts[:2]
)
train_y, test_y = (torch.from_numpy(labels) for labels in parts[2:])

adapters = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["attn.qkv", "attn.proj"], modules_to_save=["head"])
model = peft.get_peft_model(swag_models.load_model(NAME, num_classes=2), adapters).train()
model.print_trainable_parameters()
optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=RATE)
for _ in range(EPOCHS):
    for chosen in torch.randperm(len(train_x)).split(BATCH):
        loss = F.cross_entropy(model(train_x[chosen]), train_y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

with torch.inference_mode():
    logits = model.eval()(test_x)
    merged = model.merge_and_unload()  # a plain model again
    print(f"held-out accuracy {(logits.argmax(dim=1) == test_y).float().mean():.2%}")
    print(f"{type(merged).__name__}, merging changed logits by at most {(merged(test_x) - logits).abs().max():.1e}")
