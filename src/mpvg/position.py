"""How positions travel: from the initial table through each block's LN' to the Last LN.

    d_l = LN'_l(d_{l-1})  (hierarchical, d before the first receiver := pos_0)   or   d_l = LN'_l(pos_0)  (flat)
    y   = LN(x_L) + LN'(pos_0 or d_k)

The position path never sees the image.
Sources: MPVG, figure 3; LaPE (hierarchical delivery).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.models import checkpoint
from torch import Tensor, nn

from mpvg.scheme import Plan


class Positions(NamedTuple):
    """The positions of one model at one grid; every table is (1, N, D), the class token's row first.

    initial: pos_0, or None without a table.
    blocks: d_l for each block, None where a block receives nothing.
    last: the term that joins the Last LN, already past its norm; None for no term.
    """

    initial: Tensor | None
    blocks: list[Tensor | None]
    last: Tensor | None


class Layerwise:
    """What a model needs to deliver positions by a plan; a mixin of timm model classes.

    The model brings `blocks` (each with `norm_pos` and `forward(x, pos, attn_mask)`), `norm` (the Last LN), `norm_pos`
    (the LN' at the Last LN) and `initial_position`; forward passes, analysis and folding all use `positions`.
    """

    if TYPE_CHECKING:  # no class annotations at run time: TorchScript would try to read them
        blocks: Any  # nn.ModuleList of blocks
        norm: nn.Module
        norm_pos: nn.Module | None
        grad_checkpointing: bool

        def initial_position(self, grid_size: tuple[int, int] | None = None) -> Tensor | None: ...

    def follow(self, plan: Plan) -> None:
        """Take over a plan, as plain attributes because TorchScript does not read a NamedTuple's fields."""
        self.plan = plan
        self.joins_input = plan.join_input
        self.reads_initial = [source == "initial" for source in plan.blocks]
        self.last_source: Any = plan.last

    def positions(self, grid_size: tuple[int, int] | None = None) -> Positions:
        """Return every position of the model; no image is needed.

        Args:
            grid_size: Token grid (H, W); None for the grid the model was built for.

        Returns:
            pos_0, what each block receives and what joins the Last LN, each (1, N, D).
        """
        initial = self.initial_position(grid_size)
        blocks: list[Tensor | None] = []
        pos = initial
        for i, block in enumerate(self.blocks):
            if block.norm_pos is None:
                blocks.append(None)
            else:
                source = initial if self.reads_initial[i] else pos
                assert source is not None  # a model that delivers has a table
                pos = block.norm_pos(source)
                blocks.append(pos)
        last: Tensor | None = None
        if self.norm_pos is not None:
            source = initial if self.last_source == 0 else blocks[self.last_source]
            assert source is not None
            last = self.norm_pos(source)
        return Positions(initial, blocks, last)

    def run_blocks(
        self, x: Tensor, positions: Positions, start: int, stop: int, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Run blocks start <= l < stop, each with its position.

        Args:
            x: Tokens (B, N, D) entering block `start`.
            positions: Positions of the N tokens.
            start: First block.
            stop: Block before which to stop.
            attn_mask: Mask for every attention, as timm takes it.

        Returns:
            Tokens (B, N, D) leaving block `stop - 1`.
        """
        for i, block in enumerate(self.blocks):
            if start <= i and i < stop:
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(block, x, positions.blocks[i], attn_mask)
                else:
                    x = block(x, positions.blocks[i], attn_mask)
        return x

    def last_norm(self, x: Tensor, positions: Positions) -> Tensor:
        """Return y = LN(x_L) [+ LN'(s)] for tokens (B, N, D)."""
        y, last = self.norm(x), positions.last
        return y if last is None else y + last
