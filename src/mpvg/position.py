"""How positions travel: from the initial table through each block's LN' to the Last LN.

    d_l = LN'_l(d_{l-1})  (hierarchical, d before the first receiver := pos_0)   or   d_l = LN'_l(pos_0)  (flat)
    y   = LN(x_L) + LN'(pos_0 or d_k)

The position path never sees the image.
Sources: MPVG, figure 3; LaPE (hierarchical delivery).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.layers import to_2tuple
from timm.models import checkpoint
from torch import Tensor, nn

from mpvg.blocks import norm_like
from mpvg.remembered import forget, recall
from mpvg.scheme import Plan, PositionScheme


class Positions(NamedTuple):
    """The positions of one model at one grid: tables (1, N, D) with the class token's row first, in Swin (1, H, W, D).

    initial: pos_0, or None without a table.
    blocks: d_l for each block, None where a block receives nothing.
    last: the term that joins the Last LN, already past its norm; None for no term.
    """

    initial: Tensor | None
    blocks: list[Tensor | None]
    last: Tensor | None


def position_modules(receiver: Any) -> list[nn.Module | None]:
    """Return the modules of a block, or of a model for its Last LN, that a position passes; None for one it has not."""
    return [receiver._modules.get(name) for name in ("norm_pos", "ls_pos")]


class Blocks(nn.ModuleList):
    """Blocks of one resolution, each made to `receive` and with `forward(x, pos, attn_mask, grid_size)`."""

    def deliver(self, initial: Tensor | None, previous: Tensor | None) -> list[Tensor | None]:
        """Return d_l for each block, None where it receives nothing.

        Args:
            initial: pos_0.
            previous: The position delivered before these blocks; pos_0 for the first.
        """
        delivered: list[Tensor | None] = []
        for block in self:
            if block.norm_pos is None:
                delivered.append(None)
            else:
                source = initial if block.reads_initial else previous
                assert source is not None  # a model that delivers has a table
                previous = block.norm_pos(source)  # type: ignore[operator]
                delivered.append(previous)
        return delivered

    def position_parts(self) -> list[Any]:
        """Return what `deliver` computes with: for each block its source and the modules that its position passes."""
        return [part for block in self for part in (block.reads_initial, *position_modules(block))]

    def scale(self, delivered: list[Tensor | None]) -> list[Tensor | None]:
        """Return what the blocks' attention gets of d_l: all of it, unless a block has a gate."""
        scaled: list[Tensor | None] = []
        for i, block in enumerate(self):
            position = delivered[i]
            scaled.append(None if position is None else block.ls_pos(position))  # type: ignore[operator]
        return scaled

    def run(
        self,
        x: Tensor,
        delivered: list[Tensor | None],
        start: int,
        stop: int,
        checkpointing: bool,
        attn_mask: Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Run blocks start <= l < stop, each with its position.

        Args:
            x: Tokens entering block `start`.
            delivered: One position a block, as many rows as x has tokens.
            start: First block.
            stop: Block before which to stop.
            checkpointing: Compute activations again on the way back instead of keeping them.
            attn_mask: Mask for every attention, as timm takes it.
            grid_size: Token grid (H, W).

        Returns:
            Tokens leaving block `stop - 1`.
        """
        for i, block in enumerate(self):
            if start <= i and i < stop:
                if checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(block, x, delivered[i], attn_mask, grid_size)
                else:
                    x = block(x, delivered[i], attn_mask, grid_size)
        return x


class Layerwise:
    """What a model needs to deliver positions by a plan; a mixin of timm model classes.

    The model brings `blocks` (or stages of them), `norm` (the Last LN), `norm_pos` (the LN' at the Last LN) and
    `initial_position`; forward passes, analysis and folding all use `positions`.
    """

    if TYPE_CHECKING:  # no class annotations at run time: TorchScript would try to read them
        blocks: Any  # Blocks
        patch_embed: Any
        norm: nn.Module
        norm_pos: nn.Module | None

        def initial_position(self, grid_size: tuple[int, int] | None = None) -> Tensor | None: ...
        def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]: ...
        def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor: ...

    def follow(self, scheme: PositionScheme, plan: Plan, last_norm: nn.Module, *, pools_first: bool = False) -> None:
        """Take over a scheme and its plan, and make the Last LN's LN'.

        Args:
            scheme: The scheme, to be told and saved.
            plan: The scheme for this model's depth.
            last_norm: The Last LN.
            pools_first: Whether it comes after pooling, and its position with it.
        """
        # TorchScript does not read a NamedTuple's fields: what it needs of them is a plain attribute
        self.scheme, self.plan = scheme, plan
        self.joins_input = plan.join_input
        self.delivers = any(plan.blocks) or plan.last is not None
        self.last_source: Any = plan.last
        self.norm_pos = None if plan.last is None else norm_like(last_norm)
        self.pools_first = pools_first

    def positions(self, grid_size: tuple[int, int] | None = None) -> Positions:
        """Return every position of the model; no image is needed.

        Args:
            grid_size: Token grid (H, W); None for the grid the model was built for.

        Returns:
            pos_0, what each block receives and what joins the Last LN, each (1, N, D) (Swin: (1, H, W, D)).
        """
        initial = self.initial_position(grid_size)
        delivered = self.deliver(initial)
        last: Tensor | None = None
        if self.norm_pos is not None:
            source = initial if self.last_source == 0 else delivered[self.last_source]
            assert source is not None
            last = self.norm_pos(self.to_last(source))
        return Positions(initial, self.scale(delivered), last)

    def positions_for(self, grid_size: tuple[int, int] | None = None) -> Positions:
        """Return `positions(grid_size)` for a forward pass; in eval mode without gradients, computed once a size."""
        if torch.jit.is_scripting() or (grid_size is None and not self.delivers):  # the table as it lies there
            return self.positions(grid_size)
        else:  # which TorchScript leaves out, as it would not what follows a return
            return recall(self, grid_size)

    def position_parts(self) -> list[Any]:
        """Return what positions depend on, beside the tensors, numbers and texts that the model itself holds.

        Returns:
            Modules with all their parts, tensors, and values to compare. A model whose positions pass through more than
            position norms adds that, or `positions_for` would not see it change.
        """
        return [*self.blocks.position_parts(), *position_modules(self)]

    def train(self, mode: bool = True) -> Any:
        """Set training mode, or eval mode; remembered positions are forgotten."""
        forget(self)
        return super().train(mode)  # type: ignore[misc]

    def deliver(self, initial: Tensor | None) -> list[Tensor | None]:
        """Return what each block receives; a model of several resolutions merges positions between its stages."""
        return self.blocks.deliver(initial, initial)

    def scale(self, delivered: list[Tensor | None]) -> list[Tensor | None]:
        """Return what each block's attention gets of the position delivered to it."""
        return self.blocks.scale(delivered)

    def to_last(self, source: Tensor) -> Tensor:
        """Return the position s that the Last LN's LN' reads, at the resolution of the last block."""
        return source

    def all_blocks(self) -> list[Any]:
        """Return the blocks, in the order of `positions().blocks`; CeiT's LCA, the entry after the last, is none."""
        return [block for part in self.modules() if isinstance(part, Blocks) for block in part]

    def last_norm(self, x: Tensor, positions: Positions) -> Tensor:
        """Return y = LN(x_L) [+ LN'(s)] for the tokens that leave the last block; after pooling, both come there."""
        y, last = self.norm(x), positions.last
        return y if last is None or self.pools_first else y + last

    def classify(self, x: Tensor, positions: Positions) -> Tensor:
        """Return logits (B, num_classes) for the tokens that leave the last block."""
        return self.forward_head(self.last_norm(x, positions))

    def pooled_constant(self, positions: Positions) -> Tensor | None:
        """Return c (D,), what the Last LN's position adds to pooled features; None where that is no constant."""
        return None

    def is_built_for(self, img_size: Any) -> bool:
        """Return whether the table is made for an image size in pixels, int or (H, W)."""
        return to_2tuple(img_size) == self.patch_embed.img_size

    def freeze_input_size(self) -> None:
        """Accept only images of the size that the model is built for."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_model_args":  # what timm's create_model records, and saves as JSON, to build the model again
            value = {**value, "scheme": str(self.scheme)}
        super().__setattr__(name, value)
