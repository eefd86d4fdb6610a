"""Fine-tune with LoRA (peft): train adapters of the attention and a new head, then merge them.

The task: which of eight things does a generated image show? To use another ViT, change NAME.
"""

import sys
from pathlib import Path

import peft
import torch
import torch.nn.functional as F

import swag_models

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the generated scenes
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
images = torch.stack([preprocess(render(scene, 64)) for scene in scenes])  # (N, 3, H, W)
targets = torch.tensor([THINGS.index(scene.things[0]) for scene in scenes])
train_x, test_x = images.split([len(scenes) * 2 // 3, len(scenes) // 3])
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
    for indices in torch.randperm(len(train_x)).split(BATCH):
        loss = F.cross_entropy(model(train_x[indices]), train_y[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

with torch.inference_mode():
    logits = model.eval()(test_x)
    merged = model.merge_and_unload()  # a plain model again
    print(f"held-out accuracy {(logits.argmax(dim=1) == test_y).float().mean():.2%}")
    difference = (merged(test_x) - logits).abs().max()
    print(f"{type(merged).__name__}, merging changed logits by at most {difference:.1e}")
