"""Faster R-CNN from torchvision on a feature pyramid of a model: training steps on one scene of digits, then a prediction.

    python examples/detection.py [steps]

Another model needs nothing but its name in NAME; for photographs leave `min_size` and `max_size` at torchvision's defaults.
"""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

import swag_models
from swag_models.models import FeaturePyramid

NAME, SIDE, RATE = "vit_nano_digits", 96, 1e-3
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 20

torch.manual_seed(0)
digits = load_digits()
scene, corners = torch.zeros(3, SIDE, SIDE), ((8, 8), (12, 50), (56, 30))  # left and top of digits 0, 1 and 2
for pixels, (left, top) in zip(digits.images, corners):
    scene[:, top : top + 32, left : left + 32] = torch.from_numpy(np.kron(pixels / 16, np.ones((4, 4))))
boxes = torch.tensor([[left, top, left + 32, top + 32] for left, top in corners]).float()
truth = {"boxes": boxes, "labels": torch.arange(1, 4)}  # label 0 is the background

backbone = FeaturePyramid(swag_models.load_model(NAME), out_channels=64)
backbone.trunk.freeze()  # only what is on top of it learns
detector = FasterRCNN(backbone, num_classes=4, min_size=SIDE, max_size=SIDE, box_score_thresh=0.5).train()
optimizer = torch.optim.AdamW([parameter for parameter in detector.parameters() if parameter.requires_grad], lr=RATE)
for step in range(STEPS):
    loss = sum(detector([scene], [truth]).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, STEPS - 1):
        print(f"step {step} loss {loss.item():.3f}")

with torch.inference_mode():
    (found,) = detector.eval()([scene])
right = (box_iou(boxes, found["boxes"]) > 0.5) & (truth["labels"][:, None] == found["labels"])
print(f"found {int(right.any(dim=1).sum())} of {len(boxes)} digits with {len(found['boxes'])} boxes")
