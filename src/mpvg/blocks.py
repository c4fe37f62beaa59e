"""The transformer block that receives a position.

    x'      = x + MSA(LN(x) + d)
    x_next  = x' + MLP(LN''(x'))

A family whose block has another second half changes `forward` and keeps `attend`, the half that positions reach.
Sources: LaPE (delivery through an independent LayerNorm); MPVG, figure 3.
"""

import copy
from typing import TYPE_CHECKING, Any

from timm.layers import LayerScale
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from mpvg.scheme import Source


def norm_like(norm: Any) -> nn.Module:
    """Return a fresh norm of the same kind (class, width, eps, affine, device, dtype) as `norm`."""
    fresh = copy.deepcopy(norm)
    fresh.reset_parameters()
    return fresh.requires_grad_(True)


def receive(block: Any, source: Source | None, *, gated: bool = False, norm: Any = None) -> None:
    """Have a block receive a position, and make the norm that it passes through.

    Args:
        block: A block; changed in place. It gets `norm_pos` (LN', None where it receives nothing),
            `reads_initial` (whether LN' reads pos_0 and not the position before it) and `ls_pos`.
        source: What LN' reads; None for no position.
        gated: Whether `ls_pos` scales what LN' puts out, from zero on, on its way to this block's attention only: the
            block then computes what it did without, and the next block's LN' reads a position that is not zero.
        norm: What LN' is made like; None for the block's `norm1`.
    """
    norm = block.norm1 if norm is None and source else norm
    block.norm_pos = norm_like(norm) if source else None
    block.reads_initial = source == "initial"
    block.ls_pos = nn.Identity()
    if source and gated:
        weight = norm.weight
        block.ls_pos = LayerScale(weight.shape[0], init_values=0.0, device=weight.device, dtype=weight.dtype)


class Block(nn.Module):
    """A timm block, keys and all, that adds the position delivered to it to the input of its attention.

    Args:
        block: The timm block whose parts it takes over. What it receives is for `receive` to say.

    Raises:
        ValueError: The block computes something else than timm's Block.
    """

    if TYPE_CHECKING:
        norm_pos: nn.Module | None
        reads_initial: bool
        ls_pos: nn.Module

    def __init__(self, block: TimmBlock) -> None:
        super().__init__()
        if type(block).forward is not TimmBlock.forward:
            raise ValueError(
                f"blocks of {type(block).__name__} have another shape: use timm's Block (the default block_fn)."
            )
        receive(self, None)
        self.norm1, self.attn, self.ls1, self.drop_path1 = block.norm1, block.attn, block.ls1, block.drop_path1
        self.norm2, self.mlp, self.ls2, self.drop_path2 = block.norm2, block.mlp, block.ls2, block.drop_path2

    def attend(self, x: Tensor, pos: Tensor | None, attn_mask: Tensor | None) -> Tensor:
        """Return x' = x + MSA(LN(x) + d)."""
        a = self.norm1(x)
        if pos is not None:
            a = a + pos
        return x + self.drop_path1(self.ls1(self.attn(a, attn_mask=attn_mask)))

    def forward(
        self,
        x: Tensor,
        pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Run the block.

        Args:
            x: Tokens (B, N, D).
            pos: Delivered position d (1 or B, N, D), already past its norm; None for none.
            attn_mask: Mask broadcastable to (B, heads, N, N), as timm's attention takes it.
            grid_size: Token grid (H, W), for blocks that mix neighbours; this one does not.

        Returns:
            Tokens (B, N, D).
        """
        x = self.attend(x, pos, attn_mask)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
