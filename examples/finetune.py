"""Fine-tune in your own loop on a few labels; compare with training from random weights.

The task: which of the eight rarest things does a generated image show?
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import swag_models
from swag_models.models import group_parameters

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the generated scenes
from studies.scenes.scene import plan_held_out, render
from studies.scenes.things import NAMES

NAME, THINGS, LABELS, STEPS, BATCH, RATE = "regnety_nano_hashtags", NAMES[-8:], 20, 80, 32, 2e-3

torch.manual_seed(0)
preprocess = swag_models.load_preprocess(NAME)
scenes = [
    scene
    for scene in (plan_held_out(0, number) for number in range(50 * len(NAMES)))
    if scene.things[0] in THINGS
]
images = torch.stack([preprocess(render(scene, 64)) for scene in scenes])  # (N, 3, H, W)
train_x, test_x = images.tensor_split([LABELS * len(THINGS)])
train_y, test_y = torch.tensor([THINGS.index(scene.things[0]) for scene in scenes]).tensor_split(
    [LABELS * len(THINGS)]
)

model = swag_models.load_model(NAME)
columns = [swag_models.load_classes(NAME).index(thing) for thing in THINGS]
with torch.inference_mode():
    accuracy = (model(test_x)[:, columns].argmax(dim=1) == test_y).float().mean()
    print(f"hashtags alone: {accuracy:.1%}")
for title, pretrained, layer_decay in (
    ("fine-tuned", True, 0.7),  # lower layers learn more slowly
    ("random weights", False, 1),
):
    model = swag_models.load_model(NAME, pretrained=pretrained, num_classes=len(THINGS)).train()
    optimizer = torch.optim.AdamW(
        group_parameters(model, lr=RATE, weight_decay=0.05, layer_decay=layer_decay)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], STEPS
    )
    for _ in range(STEPS):
        indices = torch.randint(len(train_x), (BATCH,))
        loss = F.cross_entropy(model(train_x[indices]), train_y[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        accuracy = (model.eval()(test_x).argmax(dim=1) == test_y).float().mean()
    print(f"{title}, {LABELS} labels per class: {accuracy:.1%} of {len(test_x)} test images")
