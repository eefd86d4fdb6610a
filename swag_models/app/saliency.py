"""Saliency maps: attention of a ViT's class token, Grad-CAM of the others; drawn over an image.

Axes: K maps, N batch, S tokens, C channels, H W pixels, h w grid of a map.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from swag_models.architectures import Config, ViTConfig
from swag_models.models import RegNet, ResNet, ViT
from swag_models.preprocess import resized_size
from swag_models.spec import Preprocess

SaliencyMap = NDArray[np.float32]

# RGB from the lowest to the highest value
COLOUR_MAP = np.array(
    [(22, 20, 58), (88, 36, 124), (184, 54, 110), (242, 120, 74), (254, 226, 140)],
    dtype=np.float32,
)
MIN_DISPLAY_SIDE = 512  # pixels; smaller images are enlarged, so that details of a map are visible


def count_layers(config: Config) -> int:
    """Number of layers that have a saliency map: blocks of a ViT, stages of a RegNet or ResNet."""
    return config.depth if isinstance(config, ViTConfig) else len(config.stages)


def compute_saliency(model: ViT | RegNet | ResNet, x: Tensor, layer: int) -> SaliencyMap:
    """Compute the saliency maps of one layer.

    Args:
        model: in eval mode.
        x: one normalised image (1, C, H, W).
        layer: index from 0; see `count_layers`.

    Returns:
        (K, h, w): one map for each head of a ViT, a single map for the others.
    """
    if isinstance(model, ViT):
        maps = _read_attention(model, x, layer)
    else:
        maps = _compute_grad_cam(model, x, layer)
    return maps.float().cpu().numpy()


def crop_to_input(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Crop an image to the part that the model sees, as preprocessing does.

    Args:
        image: the whole image.
        preprocess: of the model.

    Returns:
        The cropped image, with the aspect ratio of the model's input and a longer side of at least
        512 pixels.
    """
    height, width = preprocess.size
    cover_height, cover_width = resized_size(preprocess, image.height, image.width)
    # from pixels of the resized image to pixels of the original one
    scale_y, scale_x = image.height / cover_height, image.width / cover_width
    top, left = (cover_height - height) / 2 * scale_y, (cover_width - width) / 2 * scale_x
    enlarge = max(1.0, MIN_DISPLAY_SIDE / max(height, width))
    return image.resize(
        (round(width * enlarge), round(height * enlarge)),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width * scale_x, top + height * scale_y),
    )


def overlay_saliency(image: Image.Image, saliency: SaliencyMap, opacity: float) -> Image.Image:
    """Draw a saliency map over an image.

    Args:
        image: the result of `crop_to_input`.
        saliency: (h, w); stretched to the whole range of colours.
        opacity: from 0 (only the image) to 1 (only the map).

    Returns:
        An image of the same size.
    """
    low, high = float(saliency.min()), float(saliency.max())
    level = (saliency - low) / (high - low) if high > low else np.zeros_like(saliency)
    enlarged = Image.fromarray(level.astype(np.float32)).resize(
        image.size, Image.Resampling.BILINEAR
    )
    return Image.blend(image, _apply_colours(np.asarray(enlarged)), opacity)


def _apply_colours(level: SaliencyMap) -> Image.Image:
    """Values (H, W) from 0 to 1 as an RGB image."""
    stops = np.linspace(0, 1, len(COLOUR_MAP))
    channels = [np.interp(level, stops, COLOUR_MAP[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))  # (H, W, 3)


def _read_attention(model: ViT, x: Tensor, block: int) -> Tensor:
    """Attention of the class token to each patch, for every head: (1, C, H, W) -> (heads, h, w)."""
    with torch.inference_mode():
        (attention,) = model.forward_attention(x, indices=[block])  # (1, heads, S, S)
    height, width = (side // model.patch_size for side in x.shape[-2:])
    # row 0 is the query of the class token, column 0 its attention to itself
    return attention[0, :, 0, 1:].reshape(-1, height, width)


def _compute_grad_cam(model: RegNet | ResNet, x: Tensor, stage: int) -> Tensor:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391) of the best class: (1, C, H, W) -> (1, h, w).

    The target is the logit's difference to the mean of all, because a softmax does not depend on
    what all logits have in common, which may be so negative that nothing is left of a map. For a
    model without classes, the target is the norm of its pooled features.
    """
    activations: list[Tensor] = []

    def replace_output(module: object, inputs: object, output: Tensor) -> Tensor:
        # a leaf, because the weights do not require gradients
        activations.append(output.detach().requires_grad_())
        return activations[0]

    module = model.get_submodule(model.feature_info[1 + stage]["module"])  # 0 is the stem
    handle = module.register_forward_hook(replace_output)
    try:
        with torch.enable_grad():
            count = model.num_classes
            last = model.forward_features(x)
            output = model.forward_head(last, pre_logits=not count)  # (1, classes or C)
            if count > 1:
                target = output.max() - output.mean()
            else:
                target = output.max() if count else output.norm()
            (gradient,) = torch.autograd.grad(target, activations)  # (1, C, h, w)
    finally:
        handle.remove()
    weight = gradient.mean(dim=(2, 3), keepdim=True)  # (1, C, 1, 1)
    return (weight * activations[0].detach()).sum(dim=1).relu()  # (1, h, w)
