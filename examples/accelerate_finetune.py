"""Fine-tune with Hugging Face Accelerate.

`accelerate launch` runs the same script on several GPUs or in bf16.
The task: which of eight things does a generated image show? To use another model, change NAME.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

import swag_models
from swag_models.models import group_parameters

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the generated scenes
from studies.scenes.scene import plan_held_out, render
from studies.scenes.things import NAMES

NAME, THINGS, EPOCHS, BATCH, RATE = "vit_nano_hashtags", NAMES[:8], 5, 32, 2e-3

set_seed(0)
preprocess = swag_models.load_preprocess(NAME)
scenes = [
    scene
    for scene in (plan_held_out(0, number) for number in range(60 * len(NAMES)))
    if scene.things[0] in THINGS
]
labelled = [(preprocess(render(scene, 64)), THINGS.index(scene.things[0])) for scene in scenes]
train, test = (DataLoader(part, BATCH, shuffle=True) for part in (labelled[:320], labelled[320:]))

accelerator = Accelerator()
model = swag_models.load_model(NAME, num_classes=len(THINGS)).train()
optimizer = torch.optim.AdamW(group_parameters(model, lr=RATE, weight_decay=0.05, layer_decay=0.7))
schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, [group["lr"] for group in optimizer.param_groups], EPOCHS * len(train)
)
model, optimizer, schedule, train, test = accelerator.prepare(
    model, optimizer, schedule, train, test
)
for _ in range(EPOCHS):
    for inputs, targets in train:
        loss = F.cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

model.eval()
with torch.inference_mode():
    hits = [
        accelerator.gather_for_metrics(model(inputs).argmax(dim=1) == targets)
        for inputs, targets in test
    ]
accelerator.print(f"held-out accuracy {torch.cat(hits).float().mean():.2%}")
