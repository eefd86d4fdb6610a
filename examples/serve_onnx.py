"""Classify images with an exported model, using onnxruntime, Pillow and numpy only.

swag-models export regnety_nano_hashtags nano.onnx
python examples/serve_onnx.py nano.onnx examples/scenes/*.jpg
"""

import json
import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime would report its use

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) < 3:
    sys.exit("usage: python examples/serve_onnx.py MODEL.onnx IMAGE...")
session = onnxruntime.InferenceSession(sys.argv[1])
metadata = session.get_modelmeta().custom_metadata_map
preprocess, classes = json.loads(metadata["preprocess"]), json.loads(metadata["classes"])
FORMATS = ["JPEG", "PNG", "WEBP"]  # without a list, Pillow would hand EPS files to Ghostscript
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def prepare(path: str) -> np.ndarray:  # (3, H, W)
    """Resize to cover the model's input size, or more, crop the centre, normalise."""
    image = ImageOps.exif_transpose(Image.open(path, formats=FORMATS)).convert("RGB")
    height, width = preprocess["image_size"]
    rows, columns = (int(side / preprocess.get("crop_pct", 1)) for side in (height, width))
    scale = max(rows / image.height, columns / image.width)
    size = max(columns, int(image.width * scale)), max(rows, int(image.height * scale))
    if preprocess.get("crop_mode") == "squash":  # the aspect ratio is not kept
        size = columns, rows
    image = image.resize(size, FILTERS[preprocess["interpolation"]])
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    normalised = (pixels - np.float32(preprocess["mean"])) / np.float32(preprocess["std"])
    return normalised.transpose(2, 0, 1)


images = np.stack([prepare(path) for path in sys.argv[2:]])  # (N, 3, H, W)
(logits,) = session.run([metadata["output"]], {metadata["input"]: images})
for path, index in zip(sys.argv[2:], logits.argmax(axis=1)):
    print(f"{path}\t{classes[index]}")
