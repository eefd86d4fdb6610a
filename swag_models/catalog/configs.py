"""The architectures of the catalog."""

from swag_models.architectures import RegNetConfig, ResNetConfig, ViTConfig

VIT_B16 = ViTConfig(patch_size=16, depth=12, width=768, num_heads=12, mlp_width=3072)
VIT_L16 = ViTConfig(patch_size=16, depth=24, width=1024, num_heads=16, mlp_width=4096)
VIT_H14 = ViTConfig(patch_size=14, depth=32, width=1280, num_heads=16, mlp_width=5120)
# The number of heads, which no tensor's shape shows, is that of the paper's table of models.
VIT_2B14 = ViTConfig(patch_size=14, depth=24, width=2560, num_heads=32, mlp_width=10_240)
VIT_6_5B14 = ViTConfig(patch_size=14, depth=32, width=4096, num_heads=32, mlp_width=16_384)
VIT_NANO = ViTConfig(patch_size=8, depth=4, width=96, num_heads=3, mlp_width=192)
REGNETY_200MF = RegNetConfig(depth=13, w_0=24, w_a=36.44, w_m=2.49, group_width=8)
REGNETY_NANO = RegNetConfig(depth=4, w_0=48, w_a=48.0, w_m=2.0, group_width=48, stem_width=24)
REGNETY_16GF = RegNetConfig(depth=18, w_0=200, w_a=106.23, w_m=2.48, group_width=112)
REGNETY_32GF = RegNetConfig(depth=20, w_0=232, w_a=115.89, w_m=2.53, group_width=232)
REGNETY_128GF = RegNetConfig(depth=27, w_0=456, w_a=160.83, w_m=2.52, group_width=264)
RESNET18 = ResNetConfig("basic", (2, 2, 2, 2))
RESNET50 = ResNetConfig("bottleneck", (3, 4, 6, 3))
RESNEXT50_32X4D = ResNetConfig("bottleneck", (3, 4, 6, 3), groups=32, group_width=4)
RESNEXT101_32X4D = ResNetConfig("bottleneck", (3, 4, 23, 3), groups=32, group_width=4)
RESNEXT101_32X8D = ResNetConfig("bottleneck", (3, 4, 23, 3), groups=32, group_width=8)
RESNEXT101_32X16D = ResNetConfig("bottleneck", (3, 4, 23, 3), groups=32, group_width=16)
RESNEXT101_32X32D = ResNetConfig("bottleneck", (3, 4, 23, 3), groups=32, group_width=32)
RESNEXT101_32X48D = ResNetConfig("bottleneck", (3, 4, 23, 3), groups=32, group_width=48)
