"""Parameters and multiply-adds of an architecture, by formula. Imports no torch.

Tests compare them with those of the models.

Symbols: S tokens, D width, M width of the MLP, H W pixels.
"""

from swag_models.spec import RegNetConfig, ViTConfig


def count_size(
    config: ViTConfig | RegNetConfig,
    size: tuple[int, int],
    *,
    in_chans: int,
    num_classes: int | None,
    kept_patches: int | None = None,
    merge_tokens: int = 0,
) -> tuple[int, int]:
    """Return the number of parameters, without buffers, and of multiply-adds for one image.

    As torch's FlopCounterMode, it counts those of convolutions and matrix products only.

    Args:
        config: the architecture.
        size: (height, width) of the image in pixels.
        in_chans: input channels.
        num_classes: size of the head; None for no head.
        kept_patches: patches that the blocks of a ViT compute, if others are dropped before.
        merge_tokens: number of tokens that each block of a ViT merges.
    """
    if isinstance(config, ViTConfig):
        params, macs = _count_vit(config, size, in_chans, kept_patches, merge_tokens)
        width = config.width
    else:
        params, macs = _count_regnet(config, size, in_chans)
        width = config.stages[-1][0]
    head = width * (num_classes or 0)
    return params + head + (num_classes or 0), macs + head


def count_activations(config: ViTConfig | RegNetConfig, size: tuple[int, int]) -> int:
    """Return a lower bound of the values that are in memory at once in a forward pass of one image.

    These are the input and the output of a single layer: the first linear layer of an MLP, or the
    first convolution after the stem of a RegNet.

    Args:
        config: the architecture.
        size: (height, width) of the image in pixels.
    """
    height, width = size
    if isinstance(config, ViTConfig):
        tokens = 1 + (height // config.patch_size) * (width // config.patch_size)
        return tokens * (config.width + config.mlp_width)
    return -(-height // 2) * -(-width // 2) * (config.stem_width + config.stages[0][0])


def _count_vit(
    config: ViTConfig,
    size: tuple[int, int],
    in_chans: int,
    kept_patches: int | None,
    merge_tokens: int,
) -> tuple[int, int]:
    height, width = size
    patches = (height // config.patch_size) * (width // config.patch_size)
    dim, mlp = config.width, config.mlp_width
    embed = in_chans * config.patch_size**2 * dim
    weights = 4 * dim**2 + 2 * dim * mlp  # qkv, proj, fc1, fc2
    block = weights + 5 * dim + mlp + 4 * dim  # their biases, two norms
    params = embed + dim + dim + (1 + patches) * dim + config.depth * block + 2 * dim
    macs = patches * embed
    tokens = 1 + (patches if kept_patches is None else kept_patches)
    for _ in range(config.depth):
        macs += 4 * tokens * dim**2 + 2 * tokens**2 * dim  # qkv, proj, scores, weighted sums
        if merge_tokens:  # similarities of every other token with the others, by mean keys
            macs += ((tokens - 1) // 2) * (tokens // 2) * (dim // config.num_heads)
            tokens -= min(merge_tokens, (tokens - 1) // 2)
        macs += 2 * tokens * dim * mlp
    return params, macs


def _count_regnet(config: RegNetConfig, size: tuple[int, int], in_chans: int) -> tuple[int, int]:
    params = macs = 0
    height, width = size

    def count_convolution(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> None:
        """Add a convolution and its norm, at the current size."""
        nonlocal params, macs
        weights = inputs // groups * outputs * kernel**2
        params += weights + 2 * outputs
        macs += weights * height * width

    height, width = -(-height // 2), -(-width // 2)  # stride 2, padded: rounded up
    count_convolution(in_chans, config.stem_width, kernel=3)
    inputs = config.stem_width
    for outputs, depth in config.stages:
        for block in range(depth):
            count_convolution(inputs, outputs)
            if block == 0:
                height, width = -(-height // 2), -(-width // 2)
                count_convolution(inputs, outputs)  # the projection of the shortcut
            groups = outputs // min(config.group_width, outputs)
            count_convolution(outputs, outputs, kernel=3, groups=groups)
            squeezed = round(config.se_ratio * inputs)
            params += 2 * outputs * squeezed + squeezed + outputs
            macs += 2 * outputs * squeezed
            count_convolution(outputs, outputs)
            inputs = outputs
    return params, macs
