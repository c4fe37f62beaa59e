"""Encoders of transformers whose layers receive positions: `mpvg.convert` makes them, `mpvg.fold` folds them.

Their norms come after each half of a layer, so that tokens enter it normed:

    x_0 = LN(words + pos_0)                          pos_0 = table[ids], left out where the scheme does not join it
    x'  = LN(x_l + MSA(x_l + g_l * d_l))             d_l = LN'_l(d_{l-1}) or LN'_l(pos_0)
    x_{l+1} = LN''(x' + FFN(x'))                     the last layer's: + LN'(pos_0 or d_k)

Positions are computed once a pass and handed down as arguments, nothing is kept in between: a layer that a checkpoint
computes again gets what it got.
Sources: MPVG and LaPE for the schemes; where they go in a post-norm layer is ours.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpvg.position import Blocks, Positions
from mpvg.scheme import Plan, PositionScheme


class Derived:
    """A mixin of a class of transformers, put together at run time: copies and pickles name its parts."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty, type(self).__bases__, self.__dict__


@functools.cache
def derived(bases: tuple[Any, ...]) -> Any:
    """Return the class of mixins and, last, the class of transformers that they change.

    Its qualified name is the latter's: transformers finds by `str(class)` which outputs a model can record.
    """
    origin = bases[-1]
    names = {"__module__": origin.__module__, "__qualname__": origin.__qualname__}
    prefix = "Folded" if bases[0] is FoldedEncoder else "Layerwise"
    return type(f"{prefix}{origin.__name__}", bases, names)


def _empty(*bases: Any) -> Any:
    cls = derived(bases)
    return cls.__new__(cls)


class PositionedAttention(Derived):
    """A self-attention whose q, k and v read x + position; the residual, which joins its output, stays x."""

    def forward(self, hidden_states: Tensor, *args: Any, position: Tensor | None = None, **kwargs: Any) -> Any:
        """Run it on tokens (B, N, D) with a position (1 or B, N, D); the rest is transformers'."""
        if position is not None:
            hidden_states = hidden_states + position
        return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]


class PositionedLayer(Derived):
    """A layer that hands its own position to its attention; the last one adds the Last LN's to what it puts out."""

    if TYPE_CHECKING:
        place: int
        is_last: bool

    def __call__(
        self, hidden_states: Tensor, attention_mask: Any = None, *args: Any, positions: Positions, **kwargs: Any
    ) -> Any:
        # by place, not by name: only so does a reentrant checkpoint see inputs that have gradients
        position, last = positions.blocks[self.place], positions.last if self.is_last else None
        return super().__call__(hidden_states, attention_mask, position, last, *args, **kwargs)  # type: ignore[misc]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        position: Tensor | None,
        last: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run it on tokens (B, N, D) with positions (1 or B, N, D); the rest is transformers'."""
        x = super().forward(hidden_states, attention_mask, *args, position=position, **kwargs)  # type: ignore[misc]
        return x if last is None else x + last


class ApartTable(nn.Embedding):
    """A position table that does not join the input: the embeddings, which add what it returns, get zeros."""

    def forward(self, input: Tensor) -> Tensor:
        """Return zeros (..., D) for ids (...)."""
        return self.weight.new_zeros(*input.shape, self.embedding_dim)


class LayerwiseEncoder(Derived):
    """What a converted encoder has beside transformers' own: its scheme, its plan, and its positions."""

    if TYPE_CHECKING:
        scheme: PositionScheme
        plan: Plan
        norm_pos: nn.Module | None  # the Last LN's LN'
        embeddings: Any
        eval: Any

    @property
    def blocks(self) -> Blocks:
        """The layers."""
        raise NotImplementedError

    def positions(self, length: int | None = None) -> Positions:
        """Return every position of the model; no text is needed.

        Args:
            length: For the ids 0 to length - 1; None for all rows of the table.

        Returns:
            pos_0, what each layer receives (behind its gate) and what joins the Last LN, each (1, length, D).

        Raises:
            ValueError: The table has not that many rows.
        """
        return self.deliver(self.rows(length))

    def rows(self, length: int | None = None) -> Tensor:
        """Return the first rows of the position table (1, length, D)."""
        table: Tensor = self.embeddings.position_embeddings.weight
        if length is not None and not 1 <= length <= len(table):
            raise ValueError(f"length={length}: the position table has {len(table)} rows; use 1 to {len(table)}.")
        return table[None, :length]

    def deliver(self, initial: Tensor) -> Positions:
        """Return the positions that follow from pos_0 (1, N, D)."""
        delivered = self.blocks.deliver(initial, initial)
        last = None
        if self.norm_pos is not None:
            last = self.norm_pos(delivered[self.plan.last] if self.plan.last else initial)
        return Positions(initial, self.blocks.scale(delivered), last)

    def positions_at(self, ids: Tensor) -> Positions:
        """Return the positions for a forward pass with position ids (1 or B, N), each (1 or B, N, D)."""
        if ids.shape[0] == 1:  # fewer rows than the table has
            return self.deliver(self.look_up(self.rows(), ids))
        return self.gather(self.positions(), ids)

    def gather(self, positions: Positions, ids: Tensor) -> Positions:
        """Return the rows of positions of the whole table (1, rows, D) at ids (1 or B, N)."""
        blocks = [None if table is None else self.look_up(table, ids) for table in positions.blocks]
        last = None if positions.last is None else self.look_up(positions.last, ids)
        return Positions(positions.initial, blocks, last)

    def look_up(self, table: Tensor, ids: Tensor) -> Tensor:
        """Return the rows (1 or B, N, D) of a table (1, rows, D); a padding row gets no gradient, as in the input."""
        return F.embedding(ids, table[0], padding_idx=self.embeddings.position_embeddings.padding_idx)

    def ids_used(self, input_ids: Tensor | None, position_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return the position ids (1 or B, N) that the embeddings use for these arguments."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError(f"{type(self).__name__} needs either input_ids or inputs_embeds, not both and not none.")
        rows = self.embeddings
        if position_ids is not None:
            return position_ids
        if not hasattr(rows, "create_position_ids_from_input_ids"):
            return rows.position_ids[:, : given.shape[1]]
        if inputs_embeds is None:  # RoBERTa counts tokens that are no padding, from its padding row on
            return rows.create_position_ids_from_input_ids(input_ids, rows.padding_idx)
        return rows.create_position_ids_from_inputs_embeds(inputs_embeds, rows.padding_idx)

    def store_positions(self) -> None:
        """Fold this model in place: each position norm and gate gives way to its table (rows, D), found by id."""
        with torch.no_grad():
            positions = self.positions()
        for block, table in zip(self.blocks, positions.blocks, strict=True):
            block.norm_pos, block.ls_pos = None, nn.Identity()  # type: ignore[assignment]
            block.register_buffer("pos_table", None if table is None else table[0].clone())
        module: Any = self
        module.norm_pos = None
        module.register_buffer("last_table", None if positions.last is None else positions.last[0].clone())
        module.__class__ = derived((FoldedEncoder, *type(self).__bases__))
        module.eval()


class BertLike(LayerwiseEncoder):
    """BertModel, RobertaModel, ElectraModel and their like."""

    @property
    def blocks(self) -> Blocks:
        """The layers."""
        return self.encoder.layer  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run transformers' forward; its further arguments go down to each layer, and `positions` among them."""
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            positions=self.positions_at(self.ids_used(input_ids, position_ids, inputs_embeds)),
            **kwargs,
        )


class DistilBertLike(LayerwiseEncoder):
    """DistilBertModel, which has no types of tokens, and another order of arguments."""

    @property
    def blocks(self) -> Blocks:
        """The layers."""
        return self.transformer.layer  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run transformers' forward; its further arguments go down to each layer, and `positions` among them."""
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            positions=self.positions_at(self.ids_used(input_ids, position_ids, inputs_embeds)),
            **kwargs,
        )


class FoldedEncoder(LayerwiseEncoder):
    """An encoder whose positions are stored tables, one row for each position id."""

    if TYPE_CHECKING:
        last_table: Tensor | None

    def positions(self, length: int | None = None) -> Positions:
        """Return the stored positions, each (1, length, D); see `LayerwiseEncoder.positions`."""
        initial, tables, last = self.rows(length), [block.pos_table for block in self.blocks], self.last_table
        stored: list[Tensor | None] = [None if table is None else table[None, :length] for table in tables]  # type: ignore[index]
        return Positions(initial, stored, None if last is None else last[None, :length])

    def positions_at(self, ids: Tensor) -> Positions:
        """Return the stored positions at position ids (1 or B, N)."""
        return self.gather(self.positions(), ids)

    def store_positions(self) -> None:
        """They are stored already."""
        self.eval()
