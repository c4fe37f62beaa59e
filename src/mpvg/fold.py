"""Folding: since no position depends on the image, a trained model's positions can be stored and their norms dropped.

Each LN'_l is evaluated once into its table d_l. Where tokens are averaged the Last-LN term is a constant c,
mean_n(LN(x)_n + LN'(s)_n) = mean_n(LN(x)_n + c), and disappears into the Last LN's bias. In sequences c depends on
which tokens are real: there LN'(s) stays a table, of which the mean over these tokens is taken.
"""

import copy
import functools
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from mpvg.encoder import FoldedEncoder, LayerwiseEncoder
from mpvg.position import Layerwise, Positions

Model = TypeVar("Model", bound=nn.Module)


class Table(nn.Module):
    """A stored position (1, N, D), or none."""

    table: Tensor | None

    def __init__(self, table: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self) -> Tensor | None:
        return self.table


class Folded:
    """A model whose positions are stored tables: the methods that forward, features and analysis ask are replaced."""

    if TYPE_CHECKING:
        tables: Any  # nn.ModuleList of Table, one for each block
        last_table: Tensor | None
        pooled_norm: Any  # the Last LN with c in its bias, for tokens to be averaged
        patch_embed: Any
        initial_position: Any
        last_norm: Any
        forward_head: Any

    def positions(self, grid_size: tuple[int, int] | None = None) -> Positions:
        """Return the stored positions, each (1, N, D); `grid_size` can only be the one that was folded."""
        if grid_size is not None and grid_size != self.patch_embed.grid_size:
            raise ValueError(f"grid_size={grid_size}: a folded model has one grid. Ask or fold the unfolded model.")
        tables: list[Tensor | None] = []
        for table in self.tables:
            tables.append(table())
        return Positions(self.initial_position(), tables, self.last_table)

    def positions_for(self, grid_size: tuple[int, int] | None = None) -> Positions:
        """Return the stored positions for a forward pass."""
        return self.positions(grid_size)

    def classify(self, x: Tensor, positions: Positions) -> Tensor:
        """Return logits (B, num_classes); features that are read as tokens keep the table, these need only its mean."""
        if self.pooled_norm is None:
            return self.forward_head(self.last_norm(x, positions))
        return self.forward_head(self.pooled_norm(x))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a new head; with another way of pooling, the constant returns to the table."""
        if global_pool is not None:
            self.pooled_norm = None
        super().reset_classifier(num_classes, global_pool)  # type: ignore[misc]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen intermediates do not need; see timm."""
        if prune_norm:
            self.last_table = self.pooled_norm = None
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)  # type: ignore[misc]

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Refuse: the tables belong to one size."""
        raise ValueError(f"img_size={img_size}: a folded model has one size. Resize the unfolded model, then fold it.")

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty_folded, (type(self).__bases__[1],), self.__dict__  # its class is made at run time


def fold(model: Model, img_size: Any = None) -> Model:
    """Return an eval-mode copy of `model` without position norms that computes the same outputs at one image size.

    Where tokens are averaged after a norm with a bias, the Last-LN term moves into that bias. `forward_features` and
    intermediates, which are read as tokens, keep it as a table.

    Args:
        model: A model of this library, or one that holds it (features_only=True, ViT-Adapter, a detector), or a
            converted encoder of transformers, which keeps its range of lengths. A folded one is returned as it is.
        img_size: Image size in pixels, int or (H, W), to resize positions to; of `mpvg_sequence` the longest sequence
            in steps. None for the size the model is built for.

    Returns:
        The folded model. It accepts only images of that size, even if `model` is of dynamic size, and sequences up to
        that length.

    Raises:
        ValueError: The model is not one of this library's, or cannot have that size.

    Source:
        Not in the papers: it follows from MPVG's equations, because the position path never sees the image.
    """
    folded: Any = model
    if isinstance(model, Folded):
        if img_size is not None and not folded.is_built_for(img_size):
            folded.set_input_size(img_size)  # which says why not
        return model
    if not isinstance(model, Layerwise):
        return _fold_inside(model, img_size)
    folded = copy.deepcopy(model)
    if img_size is not None:
        folded.set_input_size(img_size)
    with torch.no_grad():
        positions = folded.positions()
        constant, pooled_norm = folded.pooled_constant(positions), None
        if constant is not None and getattr(folded.norm, "bias", None) is not None:
            pooled_norm = copy.deepcopy(folded.norm)
            pooled_norm.bias.add_(constant)
    for module in folded.modules():
        if getattr(module, "norm_pos", None) is not None:
            module.norm_pos = None
        if hasattr(module, "ls_pos"):
            module.ls_pos = nn.Identity()
    folded.tables = nn.ModuleList(Table(table) for table in positions.blocks)
    folded.register_buffer("last_table", positions.last)
    folded.pooled_norm = pooled_norm
    folded.freeze_input_size()
    cls: Any = type(model)
    folded.__class__ = _folded_class(cls)
    return folded.eval()


def _fold_inside(model: Any, img_size: Any) -> Any:
    """Fold the models of ours within another: in timm's features_only, the trunk of ViT-Adapter, a detector."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, (Layerwise, LayerwiseEncoder))}
    if not parts:
        raise ValueError(
            f"fold needs a model of mpvg, got {type(model).__name__}: create it by one of timm's 'mpvg_*' names. "
            "Models whose only positions are relative or rotary are out of scope."
        )
    is_folded = all(isinstance(part, (Folded, FoldedEncoder)) for part in parts.values())
    whole = model if is_folded else copy.deepcopy(model).eval()
    for name in parts:
        part: Any = whole.get_submodule(name)
        if isinstance(part, LayerwiseEncoder):
            if img_size is not None:
                raise ValueError(f"img_size={img_size}: {type(part).__name__} reads text; leave img_size out.")
            part.store_positions()  # in place: a head may share its weights
            continue
        holder, _, own = name.rpartition(".")
        parent = whole.get_submodule(holder)
        pads = img_size is not None and hasattr(parent, "padded")
        size = parent.padded(to_2tuple(img_size)) if pads else img_size
        setattr(parent, own, fold(getattr(parent, own), size))
    return whole


@functools.cache
def _folded_class(cls: Any) -> Any:
    return type(f"Folded{cls.__name__}", (Folded, cls), {"__module__": cls.__module__})


def _empty_folded(cls: Any) -> Any:
    folded = _folded_class(cls)
    return folded.__new__(folded)
