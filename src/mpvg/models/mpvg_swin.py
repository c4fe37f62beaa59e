"""Swin with an absolute position table, under every position scheme.

The position is a map (1, H, W, D) at each block's resolution, added before the shift and the window partition. Between
stages it goes the way of the tokens, through the next stage's patch merging:

    d_l = LN'_l(merge(d_{l-1}))  where a stage begins       y = LN(x_L) + LN'(merge(merge(merge(pos_0))))

State-dict names are timm's plus `pos_embed`, `layers.<s>.blocks.<i>.norm_pos.*` and `norm_pos.*`.
Sources: Swin Transformer (ICCV 2021); MPVG, table 1. Assumption: neither paper says how a position crosses stages; the
shared merging is the natural way that has the printed parameter counts.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import register_notrace_function, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, SwinTransformerStage
from torch import Tensor, nn

from mpvg.blocks import receive
from mpvg.models.arguments import note_arguments
from mpvg.models.common import cfg, check_arguments, check_size, check_table, create
from mpvg.position import Blocks, Layerwise, Positions, position_modules
from mpvg.scheme import PositionScheme, SchemeLike
from mpvg.tables import make_sinusoid, resize_table


@torch.fx.wrap
@register_notrace_function
def check_windows(size: tuple[int, int], patch: tuple[int, int], windows: list[tuple[int, int]]) -> None:
    """Refuse an image size (H, W) in pixels whose map in some stage is not made of whole windows (H, W) in tokens."""
    merged = 1 << (len(windows) - 1)
    step = (patch[0] * merged, patch[1] * merged)
    check_size(size, step)
    for stage, window in enumerate(windows):
        high, wide = size[0] // patch[0] >> stage, size[1] // patch[1] >> stage
        if high % window[0] != 0 or wide % window[1] != 0:
            raise ValueError(
                f"images of {size[0]} x {size[1]} pixels give stage {stage} a map of {high} x {wide} tokens, which "
                f"windows of {window[0]} x {window[1]} do not divide: use multiples of {step[0] * window[0]} x "
                f"{step[1] * window[1]} pixels, or window_size=({size[0] // step[0]}, {size[1] // step[1]})."
            )


class LayerwiseSwinBlock(SwinTransformerBlock):
    """timm's Swin block that adds the position delivered to it to the input of its attention."""

    if TYPE_CHECKING:
        norm_pos: nn.Module | None
        reads_initial: bool

    def forward(
        self,
        x: Tensor,
        pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Run the block.

        Args:
            x: Tokens (B, H, W, D).
            pos: Delivered position d (1, H, W, D), already past its norm; None for none.
            attn_mask: Only None.
            grid_size: Not needed; the tokens lie on it.

        Returns:
            Tokens (B, H, W, D).
        """
        assert attn_mask is None
        a = self.norm1(x)
        if pos is not None:
            a = a + pos
        if self.dynamic_mask and not self.always_partition:  # a window that covers its whole map is not shifted
            window, shift = self.window_size, self.target_shift_size
            self.shift_size = (0 if x.shape[1] <= window[0] else shift[0], 0 if x.shape[2] <= window[1] else shift[1])
        x = x + self.drop_path1(self._attn(a))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class LayerwiseSwinStage(SwinTransformerStage):
    """timm's Swin stage that merges positions as it merges tokens."""

    if TYPE_CHECKING:
        merges_initial: bool
        merges_previous: bool
        grad_checkpointing: bool

    def forward(self, x: Tensor, delivered: list[Tensor | None]) -> Tensor:
        """Return tokens (B, H, W, D) of this stage, given those of the stage before and the blocks' positions."""
        return self.blocks.run(self.downsample(x), delivered, 0, len(self.blocks), self.grad_checkpointing)


class LayerwiseSwin(Layerwise, SwinTransformer):
    """timm's SwinTransformer with an absolute position table, told where its tokens are by a position scheme.

    Args:
        scheme: Preset name, text, mapping or PositionScheme; "default" means "gap" and "lape" means "lape_gap" here.
        pos_embed: "learn", "sincos1d", "sincos2d" or "none". The relative position bias is kept beside it.
        class_token: Only False or None.
        global_pool: "avg", or "" for none, to read tokens.
        dynamic_img_size: Accept images of every size that the stages and windows divide.
        weight_init: As timm's.
        timm_args: Every other keyword of timm's SwinTransformer (img_size, embed_dim, depths, window_size, ...).

    Raises:
        ValueError: A class token, an argument that contradicts the scheme, or a size that stages or windows cannot
            divide.
        TypeError: A keyword that timm's SwinTransformer does not know.

    Source:
        Swin's `SwinTransformer` with ape=True. Assumption: block 0, which MPVG says takes part here, keeps the joined
        input.
    """

    if TYPE_CHECKING:
        pos_embed: nn.Parameter | None
        layers: Any

    has_class_token = has_class_row = False
    num_prefix_tokens = 0

    def __init__(
        self,
        *,
        scheme: SchemeLike = "mpvg",
        pos_embed: str = "learn",
        class_token: bool | None = None,
        global_pool: str | None = None,
        dynamic_img_size: bool = False,
        weight_init: str = "",
        **timm_args: Any,
    ) -> None:
        scheme = PositionScheme.parse(scheme, class_tokens=False)
        check_arguments(scheme, pos_embed, class_token=class_token, global_pool=global_pool)
        check_size(to_2tuple(timm_args.get("img_size", 224)), (1, 1))
        super().__init__(
            global_pool="avg" if global_pool is None else global_pool,
            strict_img_size=not dynamic_img_size,
            weight_init="skip",
            **timm_args,
        )
        self.pos_embed = None if pos_embed == "none" else self.empty_table(is_learned=pos_embed == "learn")
        self.make_layerwise(scheme, pos_embed)
        self.dynamic_img_size = dynamic_img_size
        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def make_layerwise(self, scheme: PositionScheme, pos_embed: str, *, gated: bool = False) -> None:
        """Turn a timm instance into ours: timm has no hook for its blocks, so stages and blocks change class.

        Args:
            scheme: The scheme.
            pos_embed: Kind of table.
            gated: Whether each block's position starts behind a gate that is shut.
        """
        plan = scheme.plan(sum(stage.depth for stage in self.layers), first_block=True)
        check_table(scheme, plan, pos_embed, self.layers[0].dim)
        self.follow(scheme, plan, self.norm)
        self.pos_kind = pos_embed
        sources = iter(plan.blocks)
        for stage in self.layers:
            stage.__class__ = LayerwiseSwinStage
            for block in stage.blocks:
                block.__class__ = LayerwiseSwinBlock
                receive(block, next(sources), gated=gated)
            stage.blocks = Blocks(stage.blocks)
        self.layers = nn.ModuleList(self.layers)
        self._take_windows()
        first = 0
        for stage in self.layers:  # what no later block reads need not be merged
            to_come, first = plan.blocks[first:], first + stage.depth
            stage.merges_initial, stage.merges_previous = "initial" in to_come, "previous" in to_come

    def empty_table(self, *, is_learned: bool = True) -> nn.Parameter:
        """Return a table (1, H, W, D) of zeros; timm's Swin has none."""
        like: Any = self.norm.weight
        zeros = like.new_zeros(1, *self.patch_embed.grid_size, self.layers[0].dim)
        return nn.Parameter(zeros, requires_grad=is_learned)

    def size_step(self) -> tuple[int, int]:
        """Return the pixels (H, W) whose multiples are image sizes that every stage and window divides."""
        window, patch, merged = self.windows[0], self.patch_embed.patch_size, 1 << (len(self.windows) - 1)
        return window[0] * patch[0] * merged, window[1] * patch[1] * merged

    def largest_attention(self) -> int:
        """Return how many patches attend to each other: those of the largest window."""
        return max(high * wide for high, wide in self.windows)

    def _take_windows(self) -> None:
        self.windows = [stage.blocks[0].window_size for stage in self.layers]
        check_windows(self.patch_embed.img_size, self.patch_embed.patch_size, self.windows)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights; what schemes share is drawn first."""
        super().init_weights(mode, needs_reset)
        table = self.pos_embed
        if table is not None:
            with torch.no_grad():
                if self.pos_kind == "learn":
                    trunc_normal_(table, std=0.02)
                else:
                    sinusoid = make_sinusoid(self.pos_kind, self.patch_embed.grid_size, table.shape[3], False)
                    table.copy_(sinusoid.view(table.shape))

    def initial_position(self, grid_size: tuple[int, int] | None = None) -> Tensor | None:
        """Return pos_0 (1, H, W, D) for a grid; None for the grid of the table."""
        table = self.pos_embed
        if table is None or grid_size is None:
            return table
        rows = resize_table(table.flatten(1, 2), self.pos_kind, grid_size, self.patch_embed.grid_size, False)
        return rows.unflatten(1, grid_size)

    def position_parts(self) -> list[Any]:
        """Return what positions depend on: the grid of the table, and each stage's merging and position norms."""
        parts = [*position_modules(self), self.patch_embed.grid_size]
        for stage in self.layers:
            parts += [stage.merges_initial, stage.merges_previous, stage.downsample, *stage.blocks.position_parts()]
        return parts

    def deliver(self, initial: Tensor | None) -> list[Tensor | None]:
        """Return what each block receives, (1, H, W, D) at its resolution."""
        delivered: list[Tensor | None] = []
        previous = initial
        for stage in self.layers:
            if stage.merges_initial and initial is not None:
                initial = stage.downsample(initial)
            if stage.merges_previous and previous is not None:
                previous = stage.downsample(previous)
            received = stage.blocks.deliver(initial, previous)
            delivered += received
            previous = received[-1] if received[-1] is not None else previous
        return delivered

    def scale(self, delivered: list[Tensor | None]) -> list[Tensor | None]:
        """Return what each block's attention gets of the position delivered to it."""
        scaled: list[Tensor | None] = []
        for stage in self.layers:
            start = len(scaled)
            scaled += stage.blocks.scale(delivered[start : start + len(stage.blocks)])
        return scaled

    def to_last(self, source: Tensor) -> Tensor:
        """Return pos_0 or d_k after the mergings that follow it."""
        start = 0
        for stage in self.layers:
            if start > self.last_source:
                source = stage.downsample(source)
            start += len(stage.blocks)
        return source

    def embed(self, x: Tensor) -> tuple[Tensor, Positions]:
        """Turn images (B, C, H, W) into x_0 (B, H/4, W/4, D) and the positions of its tokens."""
        check_windows((x.shape[2], x.shape[3]), self.patch_embed.patch_size, self.windows)
        x = self.patch_embed(x)
        positions = self.positions_for((x.shape[1], x.shape[2]) if self.dynamic_img_size else None)
        initial = positions.initial
        if self.joins_input and initial is not None:
            x = x + initial
        return x, positions

    def encode(self, x: Tensor) -> tuple[Tensor, Positions]:
        """Return x_L (B, H/32, W/32, D), the tokens that leave the last block, and the positions."""
        x, positions = self.embed(x)
        start = 0
        for stage in self.layers:
            stop = start + len(stage.blocks)
            x = stage(x, positions.blocks[start:stop])
            start = stop
        return x, positions

    def forward_features(self, x: Tensor) -> Tensor:
        """Return y (B, H/32, W/32, D), the tokens after the Last LN and its position."""
        x, positions = self.encode(x)
        return self.last_norm(x, positions)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) for images (B, C, H, W)."""
        x, positions = self.encode(x)
        return self.classify(x, positions)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return what leaves chosen stages, and y; arguments and results are those of timm's models.

        The Last LN, and its position, fit the last stage only: norm=True leaves the others as they are.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown: use 'NCHW' or 'NHWC'.")
        take, last = feature_take_indices(len(self.layers), indices)
        x, positions = self.embed(x)
        intermediates: list[Tensor] = []
        start = 0
        for i, stage in enumerate(self.layers[: last + 1] if stop_early else self.layers):
            stop = start + len(stage.blocks)
            x = stage(x, positions.blocks[start:stop])
            start = stop
            is_whole = stop == len(self.plan.blocks)
            if i in take:
                tokens = self.last_norm(x, positions) if norm and is_whole else x
                intermediates.append(tokens.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else tokens)
        if intermediates_only:
            return intermediates
        return self.last_norm(x, positions) if is_whole else x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen intermediates do not need; see timm."""
        _, last = feature_take_indices(len(self.layers), indices)
        if prune_norm or last < len(self.layers) - 1:
            self.norm_pos = None
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def pooled_constant(self, positions: Positions) -> Tensor | None:
        """Return c (D,), what the Last LN's position adds to the pooled features; None where that is no constant."""
        if positions.last is None or self.global_pool != "avg":
            return None
        return positions.last[0].mean(dim=(0, 1))

    def set_input_size(
        self,
        img_size: Any = None,
        patch_size: Any = None,
        window_size: Any = None,
        window_ratio: Any = None,
        always_partition: bool | None = None,
    ) -> None:
        """Fit table, windows and patch embedding for another image size; arguments are those of timm's Swin."""
        if img_size is not None:
            check_size(to_2tuple(img_size), (1, 1))
        changes: dict[str, Any] = {"window_size": window_size, "always_partition": always_partition}
        if window_ratio is not None:
            changes["window_ratio"] = window_ratio
        trial = copy.deepcopy(self)  # so that a size which does not fit changes nothing
        SwinTransformer.set_input_size(trial, img_size, patch_size, **changes)
        trial._take_windows()
        table, old_size = self.pos_embed, self.patch_embed.grid_size
        super().set_input_size(img_size, patch_size, **changes)
        note_arguments(self, {"patch_size": patch_size, **changes})
        self._take_windows()
        if table is not None:
            new_size = self.patch_embed.grid_size
            rows = resize_table(table.flatten(1, 2), self.pos_kind, new_size, old_size, False).unflatten(1, new_size)
            self.pos_embed = nn.Parameter(rows.detach(), requires_grad=table.requires_grad)

    def freeze_input_size(self) -> None:
        """Accept only images of the size that the model is built for."""
        self.dynamic_img_size, self.patch_embed.strict_img_size = False, True
        for stage in self.layers:
            for block in stage.blocks:
                block.dynamic_mask = False
                block.set_input_size(block.input_resolution, block.window_size)  # the masks of that size

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that go undecayed, beside biases and norms."""
        return {"pos_embed"} | super().no_weight_decay()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group parameters by depth; the table goes with the patch embedding."""
        return {**super().group_matcher(coarse), "stem": r"^pos_embed|^patch_embed"}


SIZES = {  # width, depths, heads, drop path
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
}
default_cfgs = generate_default_cfgs(
    {f"mpvg_swin_{size}_patch4_window7_224": cfg(classifier="head.fc", pool_size=(7, 7)) for size in SIZES}
)


def _swin(
    size: str, *, pretrained: bool, out_indices: int | Sequence[int] | None = None, **model_args: Any
) -> nn.Module:
    embed_dim, depths, num_heads, drop_path_rate = SIZES[size]
    of_family = {
        "patch_size": 4,
        "window_size": 7,
        "embed_dim": embed_dim,
        "depths": depths,
        "num_heads": num_heads,
        "drop_path_rate": drop_path_rate,
    }
    args = {**of_family, **model_args}
    out_indices = tuple(range(len(args["depths"]))) if out_indices is None else out_indices
    name = f"mpvg_swin_{size}_patch4_window7_224"
    return create(LayerwiseSwin, name, pretrained=pretrained, out_indices=out_indices, **args)


@register_model
def mpvg_swin_tiny_patch4_window7_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-Ti with an absolute table, the one of MPVG's table 1."""
    return _swin("tiny", pretrained=pretrained, **kwargs)


@register_model
def mpvg_swin_small_patch4_window7_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-S with an absolute table: 18 blocks in the third stage."""
    return _swin("small", pretrained=pretrained, **kwargs)


@register_model
def mpvg_swin_base_patch4_window7_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-B with an absolute table: width 128."""
    return _swin("base", pretrained=pretrained, **kwargs)
