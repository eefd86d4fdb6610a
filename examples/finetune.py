"""Fine-tune a model in your own loop on a few labels: before, after, and the same network from random weights.

The task: which of the eight rarest things does a painted picture show? Put your own pictures and names in their place.
"""

import torch
import torch.nn.functional as F

import swag_models
from studies.scenes.scene import plan_held_out, render
from studies.scenes.things import NAMES
from swag_models.models import group_parameters

NAME, THINGS, LABELS, STEPS, BATCH, RATE = "regnety_nano_hashtags", NAMES[-8:], 20, 80, 32, 2e-3

torch.manual_seed(0)
preprocess = swag_models.load_preprocess(NAME)
scenes = [
    scene
    for scene in (plan_held_out(0, number) for number in range(50 * len(NAMES)))
    if scene.things[0] in THINGS
]
pictures = torch.stack([preprocess(render(scene, 64)) for scene in scenes])  # (N, 3, H, W)
train_x, test_x = pictures.tensor_split([LABELS * len(THINGS)])
train_y, test_y = torch.tensor([THINGS.index(scene.things[0]) for scene in scenes]).tensor_split(
    [LABELS * len(THINGS)]
)

model = swag_models.load_model(NAME)
columns = [swag_models.load_classes(NAME).index(thing) for thing in THINGS]
with torch.inference_mode():
    print(
        f"by its hashtags alone: {(model(test_x)[:, columns].argmax(dim=1) == test_y).float().mean():.1%}"
    )
for begun, pretrained, layer_decay in (
    ("fine-tuned", True, 0.7),
    ("random weights", False, 1),
):  # slower further down, or not
    model = swag_models.load_model(NAME, pretrained=pretrained, num_classes=len(THINGS)).train()
    optimizer = torch.optim.AdamW(
        group_parameters(model, lr=RATE, weight_decay=0.05, layer_decay=layer_decay)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], STEPS
    )
    for _ in range(STEPS):
        chosen = torch.randint(len(train_x), (BATCH,))
        loss = F.cross_entropy(model(train_x[chosen]), train_y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        accuracy = (model.eval()(test_x).argmax(dim=1) == test_y).float().mean()
    print(f"{begun}, {LABELS} labels of each: {accuracy:.1%} of {len(test_x)} other pictures")
