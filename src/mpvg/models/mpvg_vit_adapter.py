"""ViT-Adapter: any plain ViT of ours, under every position scheme, as a backbone of maps at four strides.

The trunk keeps its names under `trunk.`; positions reach its blocks as in classification, resized first and then passed
through the norms. Detection and segmentation heads are built on it by `mpvg.dense`.
Sources: ViT-Adapter (ICLR 2023); MPVG, tables 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import Attention
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer_sam import window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention

from mpvg.blocks import Block
from mpvg.create import build, check_name
from mpvg.dense.interaction import Geometry, Interaction, SpatialPrior, initialise
from mpvg.models.common import cfg, create
from mpvg.models.mpvg_vit import LayerwiseVisionTransformer
from mpvg.position import Positions
from mpvg.scheme import PositionScheme, SchemeLike

STRIDES = (4, 8, 16, 32)
VIT_MAPS = ("last", "each")


class WindowBlock(Block):
    """A block whose attention stays within windows of the grid, which is cut after positions are added.

    `window_size` is their side in tokens. Where the grid does not fill a window, queries, keys and values of zeros do,
    as in the official code.
    """

    window_size: int

    def forward(
        self,
        x: Tensor,
        pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Run the block; arguments as for `Block`, the grid needed and no mask known."""
        assert grid_size is not None
        assert attn_mask is None
        a = self.norm1(x)
        if pos is not None:
            a = a + pos
        x = x + self.drop_path1(self.ls1(self._attend_within_windows(a, grid_size)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _attend_within_windows(self, a: Tensor, grid_size: tuple[int, int]) -> Tensor:
        attn = self.attn
        windows, padded = window_partition(attn.qkv(a).unflatten(1, grid_size), self.window_size)
        q, k, v = windows.flatten(1, 2).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        rate = attn.attn_drop.p if self.training else 0.0
        found = scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, dropout_p=rate)
        found = found.transpose(1, 2).flatten(2).unflatten(1, windows.shape[1:3])
        found = window_unpartition(found, self.window_size, grid_size, padded).flatten(1, 2)
        return attn.proj_drop(attn.proj(attn.norm(found)))


class ViTAdapter(nn.Module):
    """A plain ViT that gives maps at 1/4, 1/8, 1/16 and 1/32 of an image of any size.

    Args:
        trunk: The ViT, without class token, of patches that divide 32. It loses its head. Where it has a Last LN, that
            and its position are applied to the maps that feed the outputs.
        window_size: Side in tokens of the windows of all blocks but the last of each interaction; None for global
            attention in all.
        vit_maps: Which of the trunk's maps join the outputs: "last" for the last one (detection), "each" for the one
            after each interaction (segmentation).
        interactions: How many; the blocks are dealt out evenly. With "each" it is four.
        deform_heads: Of deformable attention.
        deform_ratio: Width of its values, as a part of the trunk's.
        ffn_ratio: Width inside the ConvFFN, likewise.
        prior_width: Channels of the first convolutions.
        drop_path_rate: Rate at which a ConvFFN is left out.

    Raises:
        ValueError: The trunk cannot be one, or an argument means nothing.

    Source:
        ViT-Adapter, figure 4. Assumption: the paper says nothing of positions here. pos_0 is resized first and then
        passes the norms; a Last LN is an extension of ours.
    """

    def __init__(
        self,
        trunk: LayerwiseVisionTransformer,
        *,
        window_size: int | None = None,
        vit_maps: str = "last",
        interactions: int = 4,
        deform_heads: int = 6,
        deform_ratio: float = 1.0,
        ffn_ratio: float = 0.25,
        prior_width: int = 64,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        _check_trunk(trunk, interactions)
        if vit_maps not in VIT_MAPS:
            raise ValueError(f"vit_maps={vit_maps!r} is unknown: use 'last' (detection) or 'each' (segmentation).")
        if vit_maps == "each" and interactions != len(STRIDES):
            raise ValueError(f"interactions={interactions} with vit_maps='each': each of four maps joins one output.")
        trunk.reset_classifier(0)
        trunk.resamples_like_timm = False
        self.trunk = trunk
        self.scheme = trunk.scheme
        self.vit_maps = vit_maps
        depth, dim = len(trunk.blocks), trunk.embed_dim
        self.num_classes, self.num_features = 0, dim
        ends = [round(depth * (i + 1) / interactions) for i in range(interactions)]
        self.ranges = list(zip([0, *ends], ends, strict=False))
        if window_size is not None:
            _cut_into_windows(trunk, window_size, keep={end - 1 for end in ends})
        self.level_embed = nn.Parameter(torch.empty(3, dim))
        self.spatial_prior = SpatialPrior(dim, in_chans=trunk.in_chans, width=prior_width)
        of_all = {"heads": deform_heads, "ratio": deform_ratio, "ffn_ratio": ffn_ratio, "drop_path": drop_path_rate}
        self.interactions = nn.ModuleList(
            Interaction(dim, extra=2 if i == interactions - 1 else 0, **of_all)  # type: ignore[arg-type]
            for i in range(interactions)
        )
        self.up = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.BatchNorm2d(dim) for _ in STRIDES)
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": f"norm{i}"} for i, stride in enumerate(STRIDES, 1)
        ]
        self.grad_checkpointing = False
        nn.init.normal_(self.level_embed)
        for part in (self.spatial_prior, self.interactions, self.up):
            part.apply(initialise)

    def positions(self, grid_size: tuple[int, int] | None = None) -> Positions:
        """Return the trunk's positions at a grid (H, W) of tokens."""
        return self.trunk.positions(grid_size)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of images.

        Args:
            x: Normalised images (B, C, H, W) of any size; zeros fill them up to multiples of 32 below and on the right.

        Returns:
            (B, D, ceil(H/s), ceil(W/s)) for s of 4, 8, 16 and 32.
        """
        height, width = x.shape[-2:]
        padded = self.padded((height, width))
        home = self.trunk.patch_embed.img_size
        if self.trunk.patch_embed.strict_img_size and padded != home:
            raise ValueError(
                f"images of {height} x {width} pixels: this backbone is folded for {home[0]} x {home[1]}. Resize them, "
                "fold for their size, or use the unfolded one."
            )
        levels, tokens = self._exchange(pad(x, (0, padded[1] - width, 0, padded[0] - height)))
        maps = self._join(levels, tokens)
        return [
            found[:, :, : -(-height // stride), : -(-width // stride)]
            for found, stride in zip(maps, STRIDES, strict=True)
        ]

    def padded(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (H, W) in pixels that the trunk sees of images of a size."""
        largest = STRIDES[-1]
        return size[0] + -size[0] % largest, size[1] + -size[1] % largest

    def _exchange(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the prior's four maps, and of the trunk the map after each interaction or the last one."""
        c1, *coarse = self.spatial_prior(x)
        tokens, positions, grid = self.trunk.embed(x)
        levels = [(level.shape[2], level.shape[3]) for level in coarse]
        where = Geometry.of(grid, levels, tokens)
        rows = [level.flatten(2).transpose(1, 2) + self.level_embed[i] for i, level in enumerate(coarse)]
        prior, maps = torch.cat(rows, dim=1), []
        for interaction, (start, stop) in zip(self.interactions, self.ranges, strict=True):
            tokens = self._remembering_less(interaction.injector, tokens, prior, where)
            tokens = self.trunk.run_blocks(tokens, positions, start, stop, None, grid)
            prior = self._remembering_less(interaction.extract, prior, tokens, where)
            maps.append(tokens)
        if self.vit_maps == "last":
            maps = [tokens]
        if not isinstance(self.trunk.norm, nn.Identity):
            maps = [self.trunk.last_norm(tokens, positions) for tokens in maps]
        parts = prior.transpose(1, 2).split([h * w for h, w in levels], dim=2)
        coarse = [part.unflatten(2, shape) for part, shape in zip(parts, levels, strict=True)]
        return [c1, *coarse], [tokens.transpose(1, 2).unflatten(2, grid) for tokens in maps]

    def _join(self, levels: Sequence[Tensor], tokens: list[Tensor]) -> list[Tensor]:
        c1, c2, c3, c4 = levels
        joined = []
        for level, seen in zip((self.up(c2) + c1, c2, c3, c4), tokens * 4 if len(tokens) == 1 else tokens, strict=True):
            if seen.shape[2:] != level.shape[2:]:
                seen = interpolate(seen, size=level.shape[2:], mode="bilinear", align_corners=False)
            joined.append(level + seen)
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return [norm(one) for norm, one in zip(norms, joined, strict=True)]

    def _remembering_less(self, part: Any, *given: Any) -> Tensor:
        return checkpoint(part, *given) if self.grad_checkpointing and torch.is_grad_enabled() else part(*given)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = True,
    ) -> list[Tensor]:
        """Return chosen maps; arguments are those of timm's models, where `norm` and `stop_early` change nothing."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r}: these are maps, use 'NCHW'.")
        if not intermediates_only:
            raise ValueError("intermediates_only=False: there is nothing beside the maps, leave it out.")
        take, _ = feature_take_indices(len(STRIDES), indices)
        maps = self(x)
        return [maps[i] for i in sorted(set(take))]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Return which maps are asked for; each needs all of the model, so that nothing can be dropped."""
        return sorted(feature_take_indices(len(STRIDES), indices)[0])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again on the way back instead of keeping them, or not."""
        self.grad_checkpointing = enable
        self.trunk.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that decay would hurt, beside norms and biases."""
        return {"level_embed"} | {f"trunk.{name}" for name in self.trunk.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return which parameters are how deep, for timm's decay of rates: the adapter stands above all blocks."""
        return {
            "stem": r"^trunk\.(?:pos_embed|patch_embed)",
            "blocks": [(r"^trunk\.blocks\.(\d+)", None), (r".", (10_000,))],
        }

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_model_args" and "scheme" in value:  # which timm saves as JSON
            value = {**value, "scheme": str(PositionScheme.parse(value["scheme"]))}
        super().__setattr__(name, value)


def _check_trunk(trunk: Any, interactions: int) -> None:
    if not isinstance(trunk, LayerwiseVisionTransformer):
        raise ValueError(
            f"trunk {type(trunk).__name__}: ViT-Adapter stands on a plain ViT of mpvg, create or convert one."
        )
    if trunk.num_prefix_tokens:
        raise ValueError(
            f"the trunk has {trunk.num_prefix_tokens} class or register tokens, which are on no map: create it under a "
            "scheme without class token, such as 'gap' or 'mpvg', and without registers."
        )
    if not trunk.dynamic_img_size:
        raise ValueError("the trunk takes images of one size: create it with dynamic_img_size=True.")
    patch = trunk.patch_embed.patch_size
    if any(STRIDES[-1] % side for side in patch):
        raise ValueError(f"the trunk has patches of {patch[0]} x {patch[1]} pixels: take one whose patches divide 32.")
    if not 1 <= interactions <= len(trunk.blocks):
        raise ValueError(f"interactions={interactions} around {len(trunk.blocks)} blocks: name from 1 to as many.")


def _cut_into_windows(trunk: LayerwiseVisionTransformer, window_size: int, *, keep: set[int]) -> None:
    """Have all blocks attend within windows but those to keep."""
    if window_size < 1:
        raise ValueError(f"window_size={window_size}: name a number of tokens from 1, or None for global attention.")
    block: Any
    for i, block in enumerate(trunk.blocks):
        kinds = type(block), type(block.attn)
        if kinds != (Block, Attention) or getattr(block.attn, "gate", None) is not None:
            raise ValueError(
                f"window_size={window_size}: {kinds[0].__name__} with {kinds[1].__name__} has no windows, leave it out."
            )
        if i not in keep:
            block.__class__ = WindowBlock
            block.window_size = window_size


def dense_scheme(scheme: SchemeLike, *, last_norm: bool) -> PositionScheme:
    """Return what a scheme is in a dense model: without class token, and without a term at a Last LN that is not there.

    Args:
        scheme: As for `mpvg.create_model`.
        last_norm: Whether there is a Last LN.
    """
    parsed = PositionScheme.parse(scheme)
    return replace(parsed, class_token=False, last_norm=parsed.last_norm if last_norm else None)


def _over(
    *,
    trunk: str,
    scheme: SchemeLike = "mpvg",
    last_norm: bool = False,
    preserve: bool = False,
    init_values: float | None = 1.0,
    drop_path_rate: float = 0.1,
    num_classes: int = 0,
    window_size: int | None = None,
    vit_maps: str = "last",
    interactions: int = 4,
    deform_heads: int = 6,
    deform_ratio: float = 1.0,
    ffn_ratio: float = 0.25,
    prior_width: int = 64,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **trunk_args: Any,
) -> ViTAdapter:
    """Build an adapter over a plain ViT by its name.

    Args:
        trunk: The ViT's name, ours or timm's.
        scheme: Position scheme; what needs a class token means what it does without.
        last_norm: Whether the trunk keeps its Last LN, and the scheme its term there.
        preserve: Whether the trunk's positions have gates.
        init_values: Of the trunk's layer scale; None for none.
        drop_path_rate: Of the last block, and of every ConvFFN.
        num_classes: 0, as there is no head.
        window_size: As for `ViTAdapter`.
        vit_maps: Likewise.
        interactions: Likewise.
        deform_heads: Likewise.
        deform_ratio: Likewise.
        ffn_ratio: Likewise.
        prior_width: Likewise.
        device: Where the parameters are made.
        dtype: Their type.
        trunk_args: Every other argument of the trunk (img_size of its table, in_chans, embed_dim, depth, ...).
    """
    if num_classes:
        raise ValueError(
            f"num_classes={num_classes}: ViT-Adapter has no head. Build one on it with mpvg.dense's build_mask_rcnn or "
            "build_upernet."
        )
    if "swin" in check_name(trunk):
        raise ValueError(f"trunk {trunk!r} is no plain ViT: name a DeiT or ViT of ours or of timm's.")
    built = build(
        trunk,
        dense_scheme(scheme, last_norm=last_norm),
        preserve=preserve,
        num_classes=0,
        final_norm=last_norm,
        init_values=init_values,
        drop_path_rate=drop_path_rate,
        dynamic_img_size=True,
        device=device,
        dtype=dtype,
        **trunk_args,
    )
    with torch.device(torch.get_default_device() if device is None else device):
        return ViTAdapter(
            built,
            window_size=window_size,
            vit_maps=vit_maps,
            interactions=interactions,
            deform_heads=deform_heads,
            deform_ratio=deform_ratio,
            ffn_ratio=ffn_ratio,
            prior_width=prior_width,
            drop_path_rate=drop_path_rate,
        ).to(dtype)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **of_variant: Any) -> nn.Module:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    return create(_over, variant, pretrained=pretrained, out_indices=out_indices, **{**of_variant, **kwargs})


_CFG = cfg(
    num_classes=0,
    first_conv=("trunk.patch_embed.proj", "spatial_prior.stem.0"),
    classifier=None,
    fixed_input_size=False,
)
default_cfgs = generate_default_cfgs(
    {f"mpvg_vit_adapter_{size}_patch16": dict(_CFG) for size in ("tiny", "small", "base")}
)


@register_model
def mpvg_vit_adapter_tiny_patch16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-Adapter over DeiT-Ti."""
    return _create("mpvg_vit_adapter_tiny_patch16", pretrained, kwargs, trunk="mpvg_deit_tiny_patch16_224")


@register_model
def mpvg_vit_adapter_small_patch16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-Adapter over DeiT-S."""
    return _create(
        "mpvg_vit_adapter_small_patch16", pretrained, kwargs, trunk="mpvg_deit_small_patch16_224", drop_path_rate=0.2
    )


@register_model
def mpvg_vit_adapter_base_patch16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-Adapter over DeiT-B, with values of half the width."""
    of_base = {"trunk": "mpvg_deit_base_patch16_224", "deform_heads": 12, "deform_ratio": 0.5, "drop_path_rate": 0.3}
    return _create("mpvg_vit_adapter_base_patch16", pretrained, kwargs, **of_base)
