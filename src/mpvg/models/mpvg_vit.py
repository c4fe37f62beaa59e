"""DeiT under every position scheme: timm's VisionTransformer with layer-wise blocks.

State-dict names are timm's plus `blocks.<i>.norm_pos.*` and `norm_pos.*` (the one at the Last LN). ViT-Lite, T2T-ViT
and CeiT are this class with another block, patch embedding or read-out.
Sources: DeiT (ICML 2021), MPVG tables 1, 5 and 6.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import Format, PatchDropoutWithIndices, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpvg.blocks import Block, receive
from mpvg.models.arguments import note_arguments
from mpvg.models.common import cfg, check_arguments, check_size, check_table, create
from mpvg.position import Blocks, Layerwise, Positions
from mpvg.scheme import PositionScheme, SchemeLike
from mpvg.tables import make_sinusoid, resize_table, token_rows


class LayerwiseVisionTransformer(Layerwise, VisionTransformer):
    """timm's VisionTransformer told where its tokens are by a position scheme.

    Args:
        scheme: Preset name, text, mapping or PositionScheme. It sets class_token and global_pool.
        pos_embed: "learn", "sincos1d" (T2T-ViT), "sincos2d" (MAE) or "none". Sinusoids are frozen parameters.
        class_token: Only what the scheme says; None follows it.
        global_pool: "token" with a class token, "avg" without; "" for none, to read tokens.
        fc_norm: True normalises after pooling, as timm does by default; the Last LN's position then joins after it, as
            the mean of its rows.
        weight_init: As timm's.
        timm_args: Every other keyword of timm's VisionTransformer (img_size, patch_size, embed_dim, depth, ...).

    Raises:
        ValueError: An argument that contradicts the scheme, or a scheme that means nothing at this depth.
        TypeError: A keyword that timm's VisionTransformer does not know.

    Source:
        MPVG, section 3 and figure 3. Assumption: initialisation as DeiT's official code (class token std 0.02).
    """

    if TYPE_CHECKING:
        pos_embed: nn.Parameter | None
        cls_token: nn.Parameter | None
        reg_token: nn.Parameter | None
        patch_drop: nn.Module
        grad_checkpointing: bool

    block_class = Block
    table_std = 0.02  # of a learned table at the start

    def __init__(
        self,
        *,
        scheme: SchemeLike = "mpvg",
        pos_embed: str = "learn",
        class_token: bool | None = None,
        global_pool: str | None = None,
        fc_norm: bool | None = None,
        weight_init: str = "",
        **timm_args: Any,
    ) -> None:
        scheme = PositionScheme.parse(scheme)
        check_arguments(scheme, pos_embed, class_token=class_token, global_pool=global_pool)
        super().__init__(
            class_token=scheme.class_token,
            global_pool=("token" if scheme.class_token else "avg") if global_pool is None else global_pool,
            pos_embed="none" if pos_embed == "none" else "learn",
            fc_norm=bool(fc_norm),
            weight_init="skip",
            **timm_args,
        )
        if self.pool_include_prefix:
            raise ValueError("pool_include_prefix=True: schemes average patch tokens only, leave it out.")
        self.make_layerwise(scheme, pos_embed)
        check_size(self.patch_embed.img_size, self.patch_step())
        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def make_layerwise(self, scheme: PositionScheme, pos_embed: str, *, gated: bool = False) -> None:
        """Turn a timm instance into ours: give its blocks and its Last LN their position norms.

        Args:
            scheme: The scheme; whether it reads out a class token is settled already.
            pos_embed: Kind of table.
            gated: Whether each block's position starts behind a gate that is shut.
        """
        self.resamples_like_timm = True  # learned tables, with antialiasing
        self.backbone_stride = getattr(self.patch_embed, "feature_ratio", (1, 1))  # of hybrids: patches of its map
        plan = scheme.plan(len(self.blocks))
        check_table(scheme, plan, pos_embed, self.embed_dim)
        norms = [norm for norm in (self.norm, self.fc_norm) if not isinstance(norm, nn.Identity)]
        last_norm = norms[0] if norms else self.blocks[-1].norm1  # without a Last LN, LN' joins x_L itself
        self.follow(scheme, plan, last_norm, pools_first=last_norm is self.fc_norm)
        self.pos_kind = pos_embed
        self.blocks = Blocks(block if isinstance(block, Block) else self.block_class(block) for block in self.blocks)
        for block, source in zip(self.blocks, plan.blocks, strict=True):
            receive(block, source, gated=gated)
        self.patch_drop = PatchDropoutWithIndices(getattr(self.patch_drop, "prob", 0.0), self.num_prefix_tokens)
        self.has_class_row = self.has_class_token and not self.no_embed_class
        self.num_rowless = self.num_prefix_tokens - int(self.has_class_row)  # registers have no row in the table
        if self.pos_embed is not None:
            self._drop_register_rows()
            if pos_embed != "learn":
                self.pos_embed.requires_grad_(False)

    def empty_table(self) -> nn.Parameter:
        """Return a table (1, [1 +] H*W, D) of zeros, for an architecture that has none."""
        rows = self.patch_embed.num_patches + int(self.has_class_token and not self.no_embed_class)
        like: Any = self.blocks[0].norm1.weight
        return nn.Parameter(like.new_zeros(1, rows, self.embed_dim))

    def _drop_register_rows(self) -> None:
        """Add the registers' rows of the table, where it has them, to the registers: they are on no grid."""
        assert self.pos_embed is not None
        first, table = int(self.has_class_row), self.pos_embed.detach()
        rows = table.shape[1] - self.patch_embed.num_patches - first
        if rows:
            assert self.reg_token is not None
            with torch.no_grad():
                self.reg_token.add_(table[:, first : first + rows])
            kept = torch.cat([table[:, :first], table[:, first + rows :]], dim=1)
            self.pos_embed = nn.Parameter(kept, requires_grad=self.pos_embed.requires_grad)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights; what schemes share is drawn first: one seed gives it the same values in all."""
        table, class_token = self.pos_embed, self.cls_token
        self.pos_embed = self.cls_token = None  # their sizes differ between schemes: timm would draw them first
        super().init_weights(mode, needs_reset)
        self.pos_embed, self.cls_token = table, class_token
        with torch.no_grad():
            if table is not None and self.pos_kind == "learn":
                trunc_normal_(table[:, int(self.has_class_row) :], std=self.table_std)
                if self.has_class_row:
                    trunc_normal_(table[:, :1], std=self.table_std)
            elif table is not None:
                sinusoid = make_sinusoid(self.pos_kind, self.patch_embed.grid_size, self.embed_dim, self.has_class_row)
                table.copy_(sinusoid)
            if class_token is not None:
                trunc_normal_(class_token, std=0.02)

    def initial_position(self, grid_size: tuple[int, int] | None = None) -> Tensor | None:
        """Return pos_0 (1, [1 +] H*W, D) for a grid; None for the grid of the table."""
        if self.pos_embed is None or grid_size is None:
            return self.pos_embed
        size = self.patch_embed.grid_size
        return resize_table(
            self.pos_embed, self.pos_kind, grid_size, size, self.has_class_row, self.resamples_like_timm
        )

    def position_parts(self) -> list[Any]:
        """Return what positions depend on, the grid of the table with it."""
        return [*super().position_parts(), self.patch_embed.grid_size]

    def embed(self, x: Tensor) -> tuple[Tensor, Positions, tuple[int, int]]:
        """Turn images (B, C, H, W) into x_0 (B, N, D), the positions of its N tokens and their grid."""
        check_size((x.shape[2], x.shape[3]), self.size_step())
        x = self.patch_embed(x)
        if self.dynamic_img_size:
            grid_size = (x.shape[1], x.shape[2])
            positions = self.positions_for(grid_size)
            x = x.flatten(1, 2)
        else:
            grid_size = self.patch_embed.grid_size
            positions = self.positions_for()
        if self.reg_token is not None:
            x = torch.cat([self.reg_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x.contiguous()  # the patches' convolution left its channels outermost, where each norm would copy them
        initial = positions.initial
        if self.joins_input and initial is not None:
            x = x + token_rows(initial, self.has_class_row, self.num_rowless)
        x, keep = self.patch_drop(self.pos_drop(x))
        return self.norm_pre(x), self._at_tokens(positions, keep), grid_size

    def size_step(self) -> tuple[int, int]:
        """Return the pixels (H, W) of which image sizes must be multiples.

        A timm model may be built for a size that is none, such as SigLIP's 384 pixels in patches of 14: it does not see
        the rest.
        """
        step, size = self.patch_step(), self.patch_embed.img_size
        is_cut = self.patch_embed.strict_img_size and (size[0] % step[0] != 0 or size[1] % step[1] != 0)
        return (1, 1) if is_cut else step

    def patch_step(self) -> tuple[int, int]:
        """Return the pixels (H, W) of which whole patches are made."""
        if self.patch_embed.dynamic_img_pad:
            return (1, 1)
        patch, stride = self.patch_embed.patch_size, self.backbone_stride
        return patch[0] * stride[0], patch[1] * stride[1]

    def largest_attention(self) -> int:
        """Return how many patches attend to each other."""
        return self.patch_embed.num_patches

    def _at_tokens(self, positions: Positions, keep: Tensor | None) -> Positions:
        """Give every token its row; registers and dropped patches are where tokens and table rows differ."""
        if self.num_rowless == 0 and keep is None:
            return positions
        spread: list[Tensor | None] = []
        depth = len(self.blocks)
        for rows in [positions.initial, positions.last] + positions.blocks[:depth]:  # noqa: RUF005 (TorchScript)
            if rows is None:
                spread.append(None)
            else:
                spread.append(token_rows(rows, self.has_class_row, self.num_rowless, keep))
        return Positions(spread[0], spread[2:] + positions.blocks[depth:], spread[1])

    def run_blocks(
        self,
        x: Tensor,
        positions: Positions,
        start: int,
        stop: int,
        attn_mask: Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the tokens (B, N, D) that leave block `stop - 1`, given those that enter block `start`."""
        return self.blocks.run(x, positions.blocks, start, stop, self.grad_checkpointing, attn_mask, grid_size)

    def encode(self, x: Tensor, attn_mask: Tensor | None = None) -> tuple[Tensor, Positions]:
        """Return x_L (B, N, D), the tokens that leave the last block, and the positions."""
        x, positions, grid_size = self.embed(x)
        return self.run_blocks(x, positions, 0, len(self.blocks), attn_mask, grid_size), positions

    def combine(self, outputs: list[Tensor], positions: Positions) -> tuple[Tensor, Positions]:
        """Return what the Last LN reads, given what each block put out, and the positions that go with it."""
        return outputs[-1], positions

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Return y (B, N, D), the tokens after the Last LN and its position."""
        x, positions = self.encode(x, attn_mask)
        return self.last_norm(x, positions)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Return logits (B, num_classes) for images (B, C, H, W)."""
        x, positions = self.encode(x, attn_mask)
        return self.classify(x, positions)

    def classify(self, x: Tensor, positions: Positions) -> Tensor:
        """Return logits (B, num_classes) for the tokens that leave the last block."""
        return self._read_out(self.last_norm(x, positions), positions.last, pre_logits=False)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes), or what the head reads (B, D), for what `forward_features` returns."""
        last: Tensor | None = None
        if self.pools_first:
            if x.shape[1] != self.num_prefix_tokens + self.patch_embed.num_patches:
                raise ValueError(
                    f"{x.shape[1]} tokens: fc_norm's position belongs to the grid, which only the whole model knows. "
                    "Call the model itself, or set_input_size first."
                )
            last = self._at_tokens(self.positions(), None).last
        return self._read_out(x, last, pre_logits=pre_logits)

    def _read_out(self, x: Tensor, last: Tensor | None, pre_logits: bool) -> Tensor:
        x = self.fc_norm(self.pool(x))
        if self.pools_first and last is not None:
            x = x + self._pool_rows(last)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def _pool_rows(self, rows: Tensor) -> Tensor:
        """Return the mean of a position's rows (B, N, D) over the tokens that are pooled; the row of a token read."""
        if self.global_pool == "":
            return rows
        if self.global_pool == "token":
            return rows[:, 0]
        return rows[:, 0 if self.pool_include_prefix else self.num_prefix_tokens :].mean(dim=1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Any]:
        """Return what leaves chosen blocks, and y; arguments and results are those of timm's models."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown: use 'NCHW' or 'NLC'.")
        take, last = feature_take_indices(len(self.blocks), indices)
        x, positions, grid_size = self.embed(x)
        outputs: list[Tensor] = []
        for i in range(last + 1 if stop_early else len(self.blocks)):
            x = self.run_blocks(x, positions, i, i + 1, attn_mask, grid_size)
            outputs.append(x)
        intermediates: list[Tensor] = []
        prefixes: list[Tensor] = []
        for i in sorted(set(take)):
            tokens = self.last_norm(outputs[i], positions) if norm else outputs[i]
            prefixes.append(tokens[:, : self.num_prefix_tokens])
            tokens = tokens[:, self.num_prefix_tokens :]
            if output_fmt == "NCHW":
                tokens = tokens.transpose(1, 2).reshape(x.shape[0], -1, *grid_size).contiguous()
            intermediates.append(tokens)
        with_prefix = return_prefix_tokens and self.num_prefix_tokens > 0
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": intermediates}
            if with_prefix:
                result["image_intermediates_prefix"] = prefixes
            if not intermediates_only:
                result["image_features"] = self.last_norm(*self.combine(outputs, positions))
            return result
        taken: list[Any] = list(zip(intermediates, prefixes, strict=True)) if with_prefix else intermediates
        return taken if intermediates_only else (self.last_norm(*self.combine(outputs, positions)), taken)

    def pooled_constant(self, positions: Positions) -> Tensor | None:
        """Return c (D,), what the Last LN's position adds to the pooled features; None where that is no constant."""
        if positions.last is None or self.global_pool != "avg" or self.pool_include_prefix:
            return None
        return positions.last[0, int(self.has_class_row) :].mean(dim=0)

    def freeze_input_size(self) -> None:
        """Accept only images of the size that the model is built for."""
        self.dynamic_img_size = False
        self.patch_embed.flatten, self.patch_embed.output_fmt = True, Format.NCHW
        self.patch_embed.strict_img_size = True

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen intermediates do not need; see timm."""
        _, last = feature_take_indices(len(self.blocks), indices)
        if prune_norm:
            self.norm_pos = None
        elif self.norm_pos is not None and self.last_source > last:
            raise ValueError(
                f"last_norm={self.last_source}: the Last LN needs the position of block {self.last_source}, and block "
                f"{last} is the last one kept: keep that block or drop the norm."
            )
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def set_input_size(self, img_size: Sequence[int] | None = None, patch_size: Sequence[int] | None = None) -> None:
        """Fit the table and the patch embedding for another image or patch size (pixels; int or (H, W))."""
        if img_size is not None:
            step = self.size_step() if patch_size is None or self.patch_embed.dynamic_img_pad else to_2tuple(patch_size)
            check_size(to_2tuple(img_size), step)
        table, old_size = self.pos_embed, self.patch_embed.grid_size
        self.pos_embed = None  # timm would count a row for every prefix token
        super().set_input_size(img_size, patch_size or self.patch_embed.patch_size)  # timm records what it is given
        note_arguments(self, {"patch_size": self.patch_embed.patch_size})
        if table is not None:
            new_size, like_timm = self.patch_embed.grid_size, self.resamples_like_timm
            resized = resize_table(table, self.pos_kind, new_size, old_size, self.has_class_row, like_timm)
            table = nn.Parameter(resized.detach(), requires_grad=table.requires_grad)
        self.pos_embed = table


def _create(variant: str, *, pretrained: bool, out_indices: int | Sequence[int] = 3, **model_args: Any) -> nn.Module:
    cls = LayerwiseVisionTransformer
    return create(cls, variant, pretrained=pretrained, out_indices=out_indices, **model_args)


default_cfgs = generate_default_cfgs(
    {
        "mpvg_deit_tiny_patch16_224": cfg(),
        "mpvg_deit_small_patch16_224": cfg(),
        "mpvg_deit_base_patch16_224": cfg(),
        "mpvg_vit_nano": cfg(input_size=(3, 32, 32), num_classes=10, crop_pct=1.0),
    }
)


@register_model
def mpvg_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-Ti: 12 blocks of width 192, 3 heads."""
    model_args = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
    return _create("mpvg_deit_tiny_patch16_224", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def mpvg_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-S: 12 blocks of width 384, 6 heads."""
    model_args = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    return _create("mpvg_deit_small_patch16_224", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def mpvg_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """DeiT-B: 12 blocks of width 768, 12 heads."""
    model_args = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
    return _create("mpvg_deit_base_patch16_224", pretrained=pretrained, **{**model_args, **kwargs})


@register_model
def mpvg_vit_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A ViT for images of 8 to 32 pixels on a CPU: patches of 2 pixels up to 16, of 4 pixels above."""
    img_size = kwargs.get("img_size", 32)
    smallest = img_size if isinstance(img_size, int) else min(img_size)
    patch_size = 2 if smallest <= 16 else 4
    model_args = {
        "img_size": img_size,
        "patch_size": patch_size,
        "embed_dim": 48,
        "depth": 6,
        "num_heads": 3,
        "mlp_ratio": 2.0,
    }
    return _create("mpvg_vit_nano", pretrained=pretrained, **{**model_args, **kwargs})
