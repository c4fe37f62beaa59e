"""CeiT under every position scheme: a convolutional stem, feed-forward that mixes neighbours, attention over layers.

    x_{l+1} = x'_l + LeFF(LN''_l(x'_l))                 LeFF: 1x1, depthwise 3x3 and 1x1 convolutions on the token map
    y       = LN(LCA(t_0, ..., t_{L-1})) + LN'(pos_0)   t_l: the class token after block l, or the mean of its tokens

LCA is one more layer-wise block: its tokens are the layers, its table has a row for each, only the last one is read.
Sources: CeiT (ICCV 2021); MPVG, table 1.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import Mlp, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from mpvg.blocks import Block, receive
from mpvg.models.common import MapEmbed, cfg, create
from mpvg.models.mpvg_vit import LayerwiseVisionTransformer
from mpvg.position import Positions, position_modules
from mpvg.scheme import PositionScheme


class ImageToTokens(MapEmbed):
    """timm's PatchEmbed with CeiT's stem for its convolution: 7x7, batch norm, max-pooling, then 4x4."""

    def make_map(self, in_chans: int, embed_dim: int, **of_type: Any) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(in_chans, 64, kernel_size=7, stride=2, padding=3, bias=False, **of_type),
                bn=nn.BatchNorm2d(64, **of_type),
                maxpool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                proj=nn.Conv2d(64, embed_dim, kernel_size=4, stride=4, **of_type),
            )
        )


class LeFF(nn.Module):
    """Locally-enhanced feed-forward: patch tokens mix with their eight neighbours, prefix tokens pass unchanged.

    Args:
        in_features: Width D.
        hidden_features: Width between the convolutions.
        act_layer: Activation.
        norm_layer: Only None; timm's scale_mlp_norm has no meaning here.
        bias: Whether the convolutions have biases.
        drop: Only 0; the official code has no dropout here.
        device: Where the parameters are made.
        dtype: Their type.

    Raises:
        ValueError: A dropout rate or a norm.

    Source:
        CeiT, section 3.2 and its official code (batch norm after each convolution, no activation after the last).
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: Any = None,
        bias: bool = True,
        drop: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if drop or norm_layer:
            raise ValueError(
                f"proj_drop_rate={drop}, scale_mlp_norm={bool(norm_layer)}: LeFF has neither, leave them out."
            )
        of_type = {"device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(in_features, hidden_features, kernel_size=1, bias=bias, **of_type)
        self.bn1 = nn.BatchNorm2d(hidden_features, **of_type)
        self.conv2 = nn.Conv2d(
            hidden_features, hidden_features, kernel_size=3, padding=1, groups=hidden_features, bias=bias, **of_type
        )
        self.bn2 = nn.BatchNorm2d(hidden_features, **of_type)
        self.conv3 = nn.Conv2d(hidden_features, in_features, kernel_size=1, bias=bias, **of_type)
        self.bn3 = nn.BatchNorm2d(in_features, **of_type)
        self.act = act_layer()

    def forward(self, x: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Return tokens (B, N, D) for tokens (B, N, D), of which the last H*W lie on the grid (H, W)."""
        num_prefix = x.shape[1] - grid_size[0] * grid_size[1]
        patches = x[:, num_prefix:].transpose(1, 2).reshape(x.shape[0], -1, grid_size[0], grid_size[1])
        patches = self.act(self.bn1(self.conv1(patches)))
        patches = self.act(self.bn2(self.conv2(patches)))
        patches = self.bn3(self.conv3(patches)).flatten(2).transpose(1, 2)
        return torch.cat([x[:, :num_prefix], patches], dim=1)


class LeFFBlock(Block):
    """A block whose second half is LeFF on the token grid."""

    def forward(
        self,
        x: Tensor,
        pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Run the block; arguments and result are those of `Block`, and the grid is needed."""
        assert grid_size is not None
        x = self.attend(x, pos, attn_mask)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x), grid_size)))


class LayerAttention(Block):
    """CeiT's LCA: a block over one token a layer, of which the last layer's is read.

    Args:
        block: A timm block of the model, for the shape of the parts.
        layers: Number of layers L.

    Source:
        CeiT, section 3.3. Assumption: under layer-wise schemes LCA has a LN' for its table; MPVG's counts ask for one.
    """

    def __init__(self, block: Any, layers: int) -> None:
        plain = copy.deepcopy(block)
        weight = block.mlp.conv1.weight
        plain.mlp = Mlp(
            weight.shape[1], weight.shape[0], act_layer=type(block.mlp.act), device=weight.device, dtype=weight.dtype
        )
        plain.drop_path1 = plain.drop_path2 = nn.Identity()
        super().__init__(plain)
        self.layers = layers
        self.pos_embed: nn.Parameter | None = None

    def follow(self, *, joins: bool, layerwise: bool, gated: bool) -> None:
        """Take over what the model's scheme says of LCA.

        Args:
            joins: Whether the table is added to the tokens.
            layerwise: Whether LN'(table) is added to the input of the attention.
            gated: Whether that starts behind a gate that is shut.
        """
        receive(self, "initial" if layerwise else None, gated=gated)
        self.joins = joins
        if not joins and not layerwise:
            self.pos_embed = None
        elif self.pos_embed is None:
            weight = self.norm1.weight
            self.pos_embed = nn.Parameter(weight.new_zeros(1, self.layers, len(weight)))
        if gated and layerwise and not joins:
            assert self.pos_embed is not None
            with torch.no_grad():  # of zeros, behind a shut gate, nothing would have a gradient
                drawn = trunc_normal_(torch.empty_like(self.pos_embed), std=0.02)
                self.pos_embed.copy_(torch.where(self.pos_embed.any(), self.pos_embed, drawn))

    def init_weights(self) -> None:
        """Start from a table of zeros."""
        if self.pos_embed is not None:
            nn.init.zeros_(self.pos_embed)

    def position(self) -> Tensor | None:
        """Return LN'(table) (1, L, D), or None where nothing is delivered."""
        return None if self.norm_pos is None else self.norm_pos(self.pos_embed)

    def forward(
        self,
        x: Tensor,
        pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the last layer's token.

        Args:
            x: One token a layer (B, l, D), of the first l <= L layers.
            pos: LN'(table) (1, L, D); None for none.
            attn_mask: Only None.
            grid_size: Not needed.

        Returns:
            The token (B, 1, D) that the last LN reads.
        """
        layers = x.shape[1]
        table = self.pos_embed
        if self.joins and table is not None:
            x = x + table[:, :layers]
        x = self.attend(x, None if pos is None else pos[:, :layers], attn_mask)[:, -1:]
        return x + self.ls2(self.mlp(self.norm2(x)))


class LayerwiseCeiT(LayerwiseVisionTransformer):
    """CeiT told where its tokens are by a position scheme; arguments are those of the parent.

    `positions().blocks` has one entry more than there are blocks: what LCA receives, (1, L, D). Features are one token.
    Gradient checkpointing runs blocks twice, and so moves their batch norms' statistics twice a step.

    Raises:
        ValueError: Registers or patch dropout, which LeFF and LCA have no place for.

    Source:
        CeiT's `CeIT`. Assumption: without a class token LCA reads the mean over each block's tokens.
    """

    block_class = LeFFBlock
    if TYPE_CHECKING:
        lca: LayerAttention | None

    def make_layerwise(self, scheme: PositionScheme, pos_embed: str, *, gated: bool = False) -> None:
        """Turn a timm instance into ours, LCA with it; arguments are those of the parent."""
        dropped = getattr(self.patch_drop, "prob", 0.0)
        if self.num_reg_tokens or dropped:
            raise ValueError(
                f"reg_tokens={self.num_reg_tokens}, patch_drop_rate={dropped}: CeiT needs the whole grid of patches "
                "and nothing beside it, leave them out."
            )
        lca = getattr(self, "lca", None) or LayerAttention(self.blocks[-1], len(self.blocks))
        super().make_layerwise(scheme, pos_embed, gated=gated)
        lca.follow(joins=self.joins_input, layerwise=any(self.plan.blocks), gated=gated)
        self.lca = lca

    def deliver(self, initial: Tensor | None) -> list[Tensor | None]:
        """Return what each block and, last, LCA receives."""
        delivered = self.blocks.deliver(initial, initial)
        delivered.append(None if self.lca is None else self.lca.position())
        return delivered

    def position_parts(self) -> list[Any]:
        """Return what positions depend on, LCA's table and its norm with it."""
        lca = [] if self.lca is None else [self.lca.pos_embed, *position_modules(self.lca)]
        return [*super().position_parts(), *lca]

    def scale(self, delivered: list[Tensor | None]) -> list[Tensor | None]:
        """Return what the attention of each block and, last, of LCA gets of the position delivered to it."""
        scaled, of_lca = self.blocks.scale(delivered), delivered[-1]
        scaled.append(None if self.lca is None or of_lca is None else self.lca.ls_pos(of_lca))
        return scaled

    def summary(self, rows: Tensor) -> Tensor:
        """Return the class token (B, 1, D) of tokens (B, N, D), or the mean over them."""
        return rows[:, :1] if self.has_class_token else rows.mean(dim=1, keepdim=True)

    def encode(self, x: Tensor, attn_mask: Tensor | None = None) -> tuple[Tensor, Positions]:
        """Return what LCA reads out of all blocks (B, 1, D), and the positions."""
        x, positions, grid_size = self.embed(x)
        summaries: list[Tensor] = []  # of which a summary is the same again
        for i in range(len(self.blocks)):
            x = self.run_blocks(x, positions, i, i + 1, attn_mask, grid_size)
            summaries.append(self.summary(x))
        return (x, positions) if self.lca is None else self.combine(summaries, positions)

    def combine(self, outputs: list[Tensor], positions: Positions) -> tuple[Tensor, Positions]:
        """Return LCA's token (B, 1, D), and the positions with what the Last LN adds to that token."""
        if self.lca is None:
            return outputs[-1], positions
        summaries = torch.cat([self.summary(x) for x in outputs], dim=1)
        last = positions.last
        last = None if last is None else self.summary(last)
        return self.lca(summaries, positions.blocks[-1]), Positions(positions.initial, positions.blocks, last)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen intermediates do not need, LCA with the norm; see timm."""
        if prune_norm:
            self.lca = None
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth; LCA goes with the last norm."""
        matcher = super().group_matcher(coarse)
        return {**matcher, "blocks": [*matcher["blocks"], (r"^lca", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that go undecayed, beside biases and norms; LCA's table is decayed."""
        return {"pos_embed", "cls_token"}


SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # width, heads
default_cfgs = generate_default_cfgs(
    {f"mpvg_ceit_{size}_patch16_224": cfg(first_conv="patch_embed.proj.conv") for size in SIZES}
)


def _ceit(size: str, *, pretrained: bool, out_indices: int | Sequence[int] = 3, **model_args: Any) -> nn.Module:
    embed_dim, num_heads = SIZES[size]
    of_family = {
        "patch_size": 16,
        "embed_dim": embed_dim,
        "depth": 12,
        "num_heads": num_heads,
        "embed_layer": ImageToTokens,
        "mlp_layer": LeFF,
    }
    name = f"mpvg_ceit_{size}_patch16_224"
    return create(LayerwiseCeiT, name, pretrained=pretrained, out_indices=out_indices, **{**of_family, **model_args})


@register_model
def mpvg_ceit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CeiT-Ti, the one of MPVG's table 1: 12 blocks of width 192, 3 heads."""
    return _ceit("tiny", pretrained=pretrained, **kwargs)


@register_model
def mpvg_ceit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CeiT-S: 12 blocks of width 384, 6 heads."""
    return _ceit("small", pretrained=pretrained, **kwargs)


@register_model
def mpvg_ceit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CeiT-B: 12 blocks of width 768, 12 heads."""
    return _ceit("base", pretrained=pretrained, **kwargs)
