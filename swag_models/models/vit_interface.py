"""What timm's Vision Transformers have beside their forward methods.

Axes: N batch, S tokens, D width, C channels, H W pixels, h w grid of patches.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Optional, overload

import torch
from torch import Tensor, nn

from swag_models.errors import ConfigError, check_choice, check_types, plain
from swag_models.formatting import describe
from swag_models.layouts import resize_position_embedding
from swag_models.models.arguments import (
    POOLS,
    Levels,
    ViTMapOptions,
    check_grid,
    check_image_size,
    check_mask,
    choose_levels,
    has_free_size,
    is_scripting,
    is_symbolic,
)
from swag_models.models.backbone import Backbone
from swag_models.models.timm_interface import FeatureInfo
from swag_models.spec import ImageSize

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ViTInterface(Backbone):
    """Base of `ViT`: pooling, earlier layers, and changes of a built model.

    Attributes:
        embed_dim: dimension of a token.
        num_prefix_tokens: number of tokens before those of the patches; the class token.
        patch_size: side of a patch in pixels. `patch_embed.patch_size` is a pair, as in timm.
        grid_size: (rows, columns) of patches in an image of `image_size`.
        merge_tokens: number of tokens that each block merges; see `models.token_merging`.
    """

    output_formats = ("NCHW", "NLC")
    default_maps = 3
    num_prefix_tokens = 1
    num_reg_tokens = 0
    has_class_token = True
    embed_dim: int
    num_heads: int
    merge_tokens: int
    patch_size: int
    grid_size: tuple[int, int]
    pos_embed: nn.Parameter
    if TYPE_CHECKING:  # TorchScript would take these for their types
        patch_embed: Any
        blocks: Any
        norm: nn.Module

    def pool(self, x: Tensor, pool_type: Optional[str] = None) -> Tensor:  # noqa: UP045 TorchScript
        """Pool tokens (N, S, D) to features (N, D).

        Args:
            x: tokens after the last norm.
            pool_type: "token", "avg" or "", which returns all tokens; by default `global_pool`.
        """
        pool_type = self.global_pool if pool_type is None else pool_type
        if not is_scripting():
            pool_type = plain(pool_type)
            check_choice("pool_type", pool_type, *POOLS)
            self._check_features(x, "tokens (N, S, D)", 3)
        if pool_type == "token":
            # Not x[:, 0], from which the exporter of torch 2.6 derives an upper bound of the batch.
            return x.select(1, 0)
        return x[:, 1:].mean(dim=1) if pool_type == "avg" else x

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Levels = None,
        *,
        intermediates_only: Literal[True],
        return_prefix_tokens: Literal[False] = False,
        output_dict: Literal[False] = False,
        **options: "Unpack[ViTMapOptions]",
    ) -> list[Tensor]: ...

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Levels = None,
        *,
        intermediates_only: Literal[True],
        return_prefix_tokens: Literal[True],
        output_dict: Literal[False] = False,
        **options: "Unpack[ViTMapOptions]",
    ) -> list[tuple[Tensor, Tensor]]: ...

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Levels = None,
        *,
        intermediates_only: Literal[False] = False,
        return_prefix_tokens: Literal[False] = False,
        output_dict: Literal[False] = False,
        **options: "Unpack[ViTMapOptions]",
    ) -> tuple[Tensor, list[Tensor]]: ...

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Levels = None,
        *,
        intermediates_only: Literal[False] = False,
        return_prefix_tokens: Literal[True],
        output_dict: Literal[False] = False,
        **options: "Unpack[ViTMapOptions]",
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]: ...

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Levels = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
    ) -> Any: ...

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
    ) -> Any:
        """Return all tokens after the last norm (N, S, D), and the patch tokens after blocks.

        Other arguments as in `Backbone.forward_intermediates`.

        Args:
            output_fmt: "NCHW" for maps (N, D, h, w), "NLC" for tokens (N, h w, D).
            norm: apply the last norm to the patch tokens.
            return_prefix_tokens: return pairs of patch tokens and class token (N, 1, D); with
                `output_dict` the class tokens are `image_intermediates_prefix`.
            attn_mask: as in `forward_features`.
        """
        check_types(bool, norm=norm, stop_early=stop_early, intermediates_only=intermediates_only)
        check_types(bool, return_prefix_tokens=return_prefix_tokens, output_dict=output_dict)
        check_choice("output_fmt", output_fmt, *self.output_formats, subject=" for a ViT")
        chosen = choose_levels(indices, len(self.blocks))
        grid = self._grid(*self._check_input(x))
        maps: list[Tensor] = []
        prefixes: list[Tensor] = []
        x = self._embed(x)
        check_mask(attn_mask, x, self.num_heads, self.merge_tokens)
        state = self.blocks.start(x)
        for index, block in enumerate(self.blocks):
            if stop_early and index > chosen[-1]:
                break
            state = self.blocks.advance(block, state, attn_mask)
            if index in chosen:
                tokens = self.blocks.restore(self.norm(state[0]) if norm else state[0], state)
                token, patches = tokens[:, :1], tokens[:, 1:]  # (N, 1, D), (N, h w, D)
                if output_fmt == "NCHW":  # (N, D, h, w)
                    patches = patches.unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
                maps.append(patches)
                prefixes.append(token)
        if output_dict:
            output: dict[str, Any] = {"image_intermediates": maps}
            if return_prefix_tokens:
                output["image_intermediates_prefix"] = prefixes
            if not intermediates_only:
                output["image_features"] = self.blocks.restore(self.norm(state[0]), state)
            return output
        result = list(zip(maps, prefixes)) if return_prefix_tokens else maps
        if intermediates_only:
            return result
        return self.blocks.restore(self.norm(state[0]), state), result

    def forward_attention(
        self, x: Tensor, indices: int | Sequence[int] | None = None
    ) -> list[Tensor]:
        """Return the attention maps (N, heads, S, S) of blocks, without attention dropout.

        Row i sums to 1: it holds the weights of all tokens in the output of token i. Token 0 is the
        class token; the patches follow row by row.

        Args:
            x: images (N, C, H, W).
            indices: which blocks, as in `forward_intermediates`.
        """
        chosen = choose_levels(indices, len(self.blocks))
        maps: list[Tensor] = []
        state = self.blocks.start(self._embed(x))
        for index, block in enumerate(self.blocks):
            if index in chosen:
                maps.append(self.blocks.weigh(block, state))
            if index == chosen[-1]:
                break
            state = self.blocks.advance(block, state)
        return maps

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool | None = None,
        attn_mask: Tensor | None = None,
        *,
        return_class_token: bool = False,
    ) -> Any:
        """Return the patch tokens (N, h w, D) of blocks, as timm's or DINOv2's method.

        Args:
            x: images (N, C, H, W).
            n: which blocks, as in `forward_intermediates`.
            reshape: return maps (N, D, h, w).
            return_prefix_tokens: as in timm, return pairs of them and class token (N, 1, D).
            norm: apply the last norm; by default as in timm, False, or with `return_class_token`
                as in DINOv2, True.
            attn_mask: as in `forward_features`.
            return_class_token: as in DINOv2, return pairs of them and class token (N, D).
        """
        check_types(bool, reshape=reshape, return_class_token=return_class_token)
        check_types(bool, return_prefix_tokens=return_prefix_tokens)
        check_types(bool | None, norm=norm)
        maps: Any = self.forward_intermediates(
            x,
            n,
            return_prefix_tokens=return_prefix_tokens or return_class_token,
            norm=return_class_token if norm is None else norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
            attn_mask=attn_mask,
        )
        if return_class_token:
            return tuple((patches, token.squeeze(1)) for patches, token in maps)
        return maps

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        check_types(bool, prune_norm=prune_norm, prune_head=prune_head)
        chosen = choose_levels(indices, len(self.blocks))
        count = chosen[-1] + 1
        del self.blocks[count:]
        self.feature_info = FeatureInfo(self.feature_info[:count])
        if count < len(self.layers) - 1:
            stem, *blocks = self.layers[: count + 1]
            self.layers = (stem, *blocks[:-1], (*blocks[-1][:1], "norm"))
            kept = {part for layer in self.layers for part in layer}
            self.frozen = tuple(part for part in self.frozen if part in kept | {"blocks"})
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return chosen

    def set_input_size(
        self, img_size: ImageSize | None = None, patch_size: ImageSize | None = None
    ) -> None:
        if patch_size is not None and check_image_size(patch_size) != (self.patch_size,) * 2:
            raise ConfigError(
                f"patch_size is {describe(patch_size)}; the model's patches have "
                f"{self.patch_size} pixels, which cannot be changed"
            )
        if img_size is None:
            return
        size = check_image_size(img_size)
        grid = self._grid(*size)
        if grid != self.grid_size:
            position = self.pos_embed
            with torch.no_grad():
                resized = resize_position_embedding(position, self.grid_size, grid)
            self.pos_embed = nn.Parameter(resized, requires_grad=position.requires_grad)
        self.image_size, self.grid_size = size, grid
        self._describe_patches()
        self.update_pretrained_cfg()

    def _embed(self, x: Tensor) -> Tensor:
        """Convert images (N, C, H, W) to tokens with positions (N, S, D)."""
        raise NotImplementedError

    def _describe_patches(self) -> None:
        """Tell the patch embedding the sizes that timm's has."""
        patches = self.patch_embed
        patches.patch_size = (self.patch_size, self.patch_size)
        patches.img_size, patches.grid_size = self.image_size, self.grid_size
        patches.num_patches = math.prod(self.grid_size)

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the number of patches along height and width, or raise ConfigError."""
        patch = self.patch_size
        if is_symbolic(height):
            return height // patch, width // patch
        if height < patch or width < patch or height % patch or width % patch:
            nearest = [max(patch, round(side / patch) * patch) for side in (height, width)]
            raise ConfigError(
                f"image size {height}x{width} is not a multiple of the patch size {patch}; "
                f"nearest: {nearest[0]}x{nearest[1]}"
            )
        if has_free_size((height, width)):
            # Rounded up: an exported graph checks no size, and in one that is not a multiple the
            # positions must not fit the patches, which would otherwise be those of a cropped image.
            return (height + patch - 1) // patch, (width + patch - 1) // patch
        return check_grid((height // patch, width // patch), patch)
