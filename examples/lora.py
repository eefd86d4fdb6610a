"""Adapt a model with LoRA (peft): train low-rank additions to the attention and a fresh head, then fold them into the weights.

The task: which of eight things does a painted picture show? Another ViT needs nothing but its name in NAME.
"""

import peft
import torch
import torch.nn.functional as F

import swag_models
from studies.scenes.scene import plan_held_out, render
from studies.scenes.things import NAMES

NAME, THINGS, EPOCHS, BATCH, RATE = "vit_nano_hashtags", NAMES[:8], 5, 32, 5e-3

torch.manual_seed(0)
preprocess = swag_models.load_preprocess(NAME)
scenes = [
    scene
    for scene in (plan_held_out(0, number) for number in range(60 * len(NAMES)))
    if scene.things[0] in THINGS
]
pictures = torch.stack([preprocess(render(scene, 64)) for scene in scenes])  # (N, 3, H, W)
targets = torch.tensor([THINGS.index(scene.things[0]) for scene in scenes])
train_x, test_x = pictures.split([len(scenes) * 2 // 3, len(scenes) // 3])
train_y, test_y = targets.split([len(scenes) * 2 // 3, len(scenes) // 3])

adapters = peft.LoraConfig(
    r=4, lora_alpha=8, target_modules=["attn.qkv", "attn.proj"], modules_to_save=["head"]
)
model = peft.get_peft_model(swag_models.load_model(NAME, num_classes=len(THINGS)), adapters).train()
model.print_trainable_parameters()
optimizer = torch.optim.AdamW(
    [parameter for parameter in model.parameters() if parameter.requires_grad], lr=RATE
)
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
    print(
        f"{type(merged).__name__}, merging changed logits by at most {(merged(test_x) - logits).abs().max():.1e}"
    )
