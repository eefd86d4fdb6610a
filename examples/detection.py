"""Train torchvision's Faster R-CNN on a feature pyramid, on one image of three things.

    python examples/detection.py [steps]

To use another model, change NAME; for photographs keep torchvision's default `min_size` and
`max_size`.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou
from torchvision.transforms.v2.functional import pil_to_tensor

import swag_models
from swag_models.models import FeaturePyramid

NAME, SIDE, RATE = "vit_nano_hashtags", 96, 1e-3
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 20

torch.manual_seed(0)
scene = torch.zeros(3, SIDE, SIDE)
corners = ((8, 8), (12, 50), (56, 30))  # left and top of each thing
for thing, (left, top) in zip(("flower", "house", "star"), corners):
    image = Image.open(Path(__file__).parent / "scenes" / f"{thing}.jpg").resize((32, 32))
    scene[:, top : top + 32, left : left + 32] = pil_to_tensor(image) / 255
boxes = torch.tensor([[left, top, left + 32, top + 32] for left, top in corners]).float()
truth = {"boxes": boxes, "labels": torch.arange(1, 4)}  # label 0 is the background

backbone = FeaturePyramid(swag_models.load_model(NAME), out_channels=64)
backbone.freeze()  # only the pyramid and the detector are trained
detector = FasterRCNN(
    backbone, num_classes=4, min_size=SIDE, max_size=SIDE, box_score_thresh=0.5
).train()
optimizer = torch.optim.AdamW(
    [parameter for parameter in detector.parameters() if parameter.requires_grad], lr=RATE
)
for step in range(STEPS):
    loss = sum(detector([scene], [truth]).values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, STEPS - 1):
        print(f"step {step} loss {loss.item():.3f}")

with torch.inference_mode():
    (detections,) = detector.eval()([scene])
same_label = truth["labels"][:, None] == detections["labels"]
hits = (box_iou(boxes, detections["boxes"]) > 0.5) & same_label
count = len(detections["boxes"])
print(f"detected {int(hits.any(dim=1).sum())} of {len(boxes)} things with {count} boxes")
