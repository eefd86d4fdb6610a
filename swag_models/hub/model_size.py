"""Parameters and multiply-adds of an architecture, by formula. Imports no torch.

Tests compare them with those of the models.

Symbols: S tokens, D width, M width of the MLP, H W pixels.
"""

from swag_models.architectures import STEM_WIDTH, Config, RegNetConfig, ResNetConfig, ViTConfig


def count_size(
    config: Config,
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
        count = _count_regnet if isinstance(config, RegNetConfig) else _count_resnet
        params, macs = count(config, size, in_chans)  # type: ignore[arg-type]
        width = config.stages[-1][0]
    head = width * (num_classes or 0)
    return params + head + (num_classes or 0), macs + head


def count_activations(config: Config, size: tuple[int, int]) -> int:
    """Return a lower bound of the values that are in memory at once in a forward pass of one image.

    These are the input and the output of a single layer: the first linear layer of an MLP, the
    first convolution after the stem of a RegNet, or the pooling after that of a ResNet.

    Args:
        config: the architecture.
        size: (height, width) of the image in pixels.
    """
    height, width = size
    if isinstance(config, ViTConfig):
        tokens = 1 + (height // config.patch_size) * (width // config.patch_size)
        return tokens * (config.width + config.mlp_width)
    if isinstance(config, ResNetConfig):
        return (height // 2) * (width // 2) * STEM_WIDTH * 5 // 4
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


class _Counter:
    """Parameters and multiply-adds of convolutions with norms, at a current size.

    Args:
        size: (height, width) of the image in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.height, self.width = size
        self.params = self.macs = 0

    def halve(self) -> None:
        """Apply a stride of 2, with padding: sides are rounded up."""
        self.height, self.width = -(-self.height // 2), -(-self.width // 2)

    def add(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> None:
        """Count a convolution and its norm."""
        weights = inputs // groups * outputs * kernel**2
        self.params += weights + 2 * outputs
        self.macs += weights * self.height * self.width


def _count_regnet(config: RegNetConfig, size: tuple[int, int], in_chans: int) -> tuple[int, int]:
    count = _Counter(size)
    count.halve()
    count.add(in_chans, config.stem_width, kernel=3)
    inputs = config.stem_width
    for outputs, depth in config.stages:
        for block in range(depth):
            count.add(inputs, outputs)
            if block == 0:
                count.halve()
                count.add(inputs, outputs)  # the projection of the shortcut
            groups = outputs // min(config.group_width, outputs)
            count.add(outputs, outputs, kernel=3, groups=groups)
            squeezed = round(config.se_ratio * inputs)
            count.params += 2 * outputs * squeezed + squeezed + outputs
            count.macs += 2 * outputs * squeezed
            count.add(outputs, outputs)
            inputs = outputs
    return count.params, count.macs


def _count_resnet(config: ResNetConfig, size: tuple[int, int], in_chans: int) -> tuple[int, int]:
    count = _Counter(size)
    count.halve()
    count.add(in_chans, STEM_WIDTH, kernel=7)
    count.halve()  # pooling
    inputs = STEM_WIDTH
    for stage, ((outputs, depth), inner) in enumerate(zip(config.stages, config.inner_widths)):
        for block in range(depth):
            if config.block == "bottleneck":
                count.add(inputs, inner)
            if block == 0 and stage:
                count.halve()
            if inputs != outputs or (block == 0 and stage):
                count.add(inputs, outputs)  # the projection of the shortcut
            if config.block == "bottleneck":
                count.add(inner, inner, kernel=3, groups=config.groups)
                count.add(inner, outputs)
            else:
                count.add(inputs, outputs, kernel=3)
                count.add(outputs, outputs, kernel=3)
            inputs = outputs
    return count.params, count.macs
