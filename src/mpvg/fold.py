"""Folding: since no position depends on the image, a trained model's positions can be stored and their norms dropped.

Each LN'_l is evaluated once into its table d_l. For a classifier with average pooling the Last-LN term is a constant,
mean_n(LN(x)_n + LN'(s)_n) = mean_n LN(x)_n + c, and disappears into the head: W (m + c) + b = W m + (W c + b).
"""

import copy
import functools
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from mpvg.position import Layerwise, Positions

Model = TypeVar("Model", bound=nn.Module)


class Folded:
    """A model whose positions are stored tables: the one method that forward, features and analysis ask is replaced."""

    if TYPE_CHECKING:
        blocks: Any  # nn.ModuleList of blocks
        pos_embed: nn.Parameter | None
        last_table: Tensor | None

    def positions(self, grid_size: tuple[int, int] | None = None) -> Positions:
        """Return the stored positions, each (1, N, D), of the grid that the model was folded at."""
        tables: list[Tensor | None] = []
        for block in self.blocks:
            tables.append(block.table)
        return Positions(self.pos_embed, tables, self.last_table)

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Refuse: the tables belong to one size."""
        raise ValueError(f"img_size={img_size}: a folded model has one size. Resize the unfolded model, then fold it.")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty_folded, (type(self).__bases__[1],), self.__dict__  # its class is made at run time


def fold(model: Model) -> Model:
    """Return an eval-mode copy of `model` without position norms that computes the same outputs at its image size.

    The Last-LN term of an average-pooled classifier moves into the head's bias (without a head, into the Last LN's), so
    forward_features of a folded classifier lacks it; where tokens are read out (global_pool="") it stays a table.

    Args:
        model: A model of this library. A folded one is returned as it is.

    Returns:
        The folded model. A model of dynamic size accepts only the size it was built for from then on.

    Raises:
        ValueError: The model is not one of this library's.

    Source:
        Not in the papers: it follows from MPVG's equations, because the position path never sees the image.
    """
    if isinstance(model, Folded):
        return model
    if not isinstance(model, Layerwise):
        raise ValueError(
            f"fold needs a model of mpvg, got {type(model).__name__}: create it with timm's 'mpvg_*' names."
        )
    folded: Any = copy.deepcopy(model).eval()
    with torch.no_grad():
        positions = folded.positions()
    for block, table in zip(folded.blocks, positions.blocks, strict=True):
        block.norm_pos = None
        block.register_buffer("table", table)
    folded.norm_pos = None
    constant = folded.pooled_constant(positions)
    if constant is not None:
        _absorb(constant, folded)
    folded.register_buffer("last_table", positions.last if constant is None else None)
    folded.freeze_input_size()
    cls: Any = type(model)
    folded.__class__ = _folded_class(cls)
    return folded


def _absorb(constant: Tensor, model: Any) -> None:
    """Add c (D,), a constant of the pooled features, to the biases of the model."""
    head = model.get_classifier()
    with torch.no_grad():
        if isinstance(head, nn.Linear) and head.bias is not None:
            head.bias.add_(head.weight.double() @ constant.double())
        else:
            model.norm.bias.add_(constant)


@functools.cache
def _folded_class(cls: Any) -> Any:
    return type(f"Folded{cls.__name__}", (Folded, cls), {"__module__": cls.__module__})


def _empty_folded(cls: Any) -> Any:
    folded = _folded_class(cls)
    return folded.__new__(folded)
