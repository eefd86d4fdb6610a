"""Show where a model looks with Grad-CAM (the package grad-cam), as an overlay on the image.

    python examples/gradcam.py [image] [overlay.png]

As a check, the hottest and the coldest quarter of the image are covered in turn.
To use another model that has classes, change NAME.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image

import swag_models
from swag_models.image_decoding import read_image
from swag_models.models import ViT

NAME = "vit_nano_hashtags"
path = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "scenes" / "flower.jpg"

model = swag_models.load_model(NAME)
inputs = swag_models.load_preprocess(NAME)(read_image(path))[None]  # (1, 3, H, W)


def make_map(tokens):  # (N, 1 + h w, D) -> (N, D, h, w)
    return tokens[:, 1:].unflatten(1, model.grid_size).permute(0, 3, 1, 2)


last = model.get_submodule(model.feature_info[-1]["module"])  # block of a ViT, stage of a RegNet
layers = [last.norm1] if isinstance(model, ViT) else [last]
with GradCAM(model, layers, make_map if isinstance(model, ViT) else None) as explain:
    (heat,) = explain(inputs, targets=None)  # (H, W), 0 to 1, for the most probable class
low, high = inputs.amin(), inputs.amax()
image = ((inputs[0] - low) / (high - low)).permute(1, 2, 0).numpy()
Image.fromarray(show_cam_on_image(image, heat, use_rgb=True)).save(
    sys.argv[2] if len(sys.argv) > 2 else "overlay.png"
)

with torch.inference_mode():
    top_class = model(inputs).argmax()
    for part, covered in (
        ("hottest", heat > np.quantile(heat, 0.75)),
        ("coldest", heat < np.quantile(heat, 0.25)),
    ):
        logits = model(torch.where(torch.from_numpy(covered), low, inputs))
        probability = logits.softmax(dim=1)[0, top_class]
        print(f"{top_class}: probability {probability:.2f} with the {part} quarter covered")
