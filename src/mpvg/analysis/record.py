"""Recording a model's tokens where positions meet them: one pass, the model's own delivery, memory that does not grow.

Hooks on each block's first norm see LN_l(x_l), one on the Last LN sees x_L and LN(x_L). Sums over the images are kept
in float64, and a hundred more under random weights, from which the bands over images come. Sequences are recorded where
they are real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mpvg.analysis.map_statistics import MapStatistics, Statistics
from mpvg.analysis.sequence_statistics import Reach, SequenceStatistics
from mpvg.errors import RunError
from mpvg.models.mpvg_sequence import LayerwiseSequence
from mpvg.models.sequence_inputs import check_sequences
from mpvg.position import Layerwise, Positions

REPLICATES = 100
_SEED = 0  # of the bootstrap's weights


class NonFiniteActivationsError(RunError):
    """A model computes NaN or infinite numbers."""


@dataclass(frozen=True)
class Place:
    """A block: the norm whose output its position joins, and that position.

    Args:
        block: Its number l.
        name: What to call it.
        norm: LN_l.
        prefix: How many of its rows are no patches.
        position: d_l (N, D) without the class token's row; None where nothing is delivered.
    """

    block: int
    name: str
    norm: nn.Module
    prefix: int
    position: Tensor | None


def places(model: Any, positions: Positions | None) -> list[Place]:
    """Return where tokens may meet a position: every block, and CeiT's attention over layers behind them.

    Args:
        model: A layer-wise model, or a plain vision transformer of timm.
        positions: The model's own; None where it has none to deliver.
    """
    if positions is None:
        return [Place(i, str(i), block.norm1, model.num_prefix_tokens, None) for i, block in enumerate(model.blocks)]
    class_rows = int(model.has_class_row)
    found = [
        Place(i, str(i), block.norm1, model.num_prefix_tokens, patch_rows(positions.blocks[i], class_rows))
        for i, block in enumerate(model.all_blocks())
    ]
    lca = getattr(model, "lca", None)
    if lca is not None:
        found.append(Place(len(found), "LCA", lca.norm1, 0, patch_rows(positions.blocks[-1], 0)))
    return found


def patch_rows(table: Tensor | None, class_rows: int) -> Tensor | None:
    """Return a table (1, N, D) or (1, H, W, D) as a map (N, D) in float64, without the class token's row."""
    return None if table is None else table.detach().double().flatten(0, -2)[class_rows:]


class Recorder:
    """Hooks in a model, and what they have seen; a context manager.

    Args:
        model: A layer-wise model, folded or not, or a plain vision transformer of timm; in eval mode.
        replicates: Bootstrap replicates for the bands over images or sequences; 0 for none.
        shown: Numbers of the images whose token norms are kept, ascending; none of sequences.
    """

    def __init__(self, model: Any, *, replicates: int = REPLICATES, shown: Sequence[int] = ()) -> None:
        self.model = model
        self.positions: Positions | None = model.positions() if isinstance(model, Layerwise) else None
        self.places = places(model, self.positions)
        self.last = None if self.positions is None else last_position(model, self.positions)
        self.reach: Reach | None = None
        if isinstance(model, LayerwiseSequence):
            self.reach = Reach(model.patch_embed.num_patches, replicates=replicates)
        self.blocks = [self._statistics(place.position, replicates) for place in self.places]
        self.before, self.after = self._statistics(None), self._statistics(None)
        self.prefix_before, self.prefix_after = MapStatistics(None), MapStatistics(None)
        self.shown = tuple(shown)
        self.norms: list[tuple[Tensor, Tensor]] = []  # of each shown image, the tokens' norms around the Last LN
        self.images = 0
        self.replicates = replicates
        self._random = torch.Generator().manual_seed(_SEED)
        self._hooks: list[Any] = []
        self._sizes: list[tuple[str, Tensor]] = []  # finite where the activations of the batch are

    def __enter__(self) -> Recorder:
        _check_positions(self.places, self.last)
        add = self._hooks.append
        for place, statistics in zip(self.places, self.blocks, strict=True):
            add(place.norm.register_forward_hook(self._see_block(place, statistics)))
        for i, block in enumerate(self.model.all_blocks() if self.positions else self.model.blocks):
            add(block.register_forward_hook(self._see_output(f"block {i}")))
        if not isinstance(self.model.norm, nn.Identity):
            add(self.model.norm.register_forward_hook(self._see_last))
        if getattr(self.model, "pooled_norm", None) is not None:  # a folded classifier's, with a constant in its bias
            add(self.model.pooled_norm.register_forward_pre_hook(self._run_last))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @torch.inference_mode()
    def run(self, batch: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the model on images or sequences and take in what it does.

        Args:
            batch: Images (B, C, H, W), preprocessed; or token ids (B, T), or series (B, T, C).
            mask: Of sequences, True at real places (B, T); None for no padding.

        Returns:
            The model's output.

        Raises:
            NonFiniteActivationsError: An activation is NaN or infinite; the error names the block.
            ValueError: The images are not of the model's size, or no sequences that the model takes.
        """
        drawn = torch.poisson(torch.ones(len(batch), self.replicates), generator=self._random)  # image by image
        self._weights = drawn.T.to(batch.device)
        self._sizes.clear()
        if self.reach is not None:
            embed = self.model.patch_embed
            check_sequences(batch, mask, embed.vocab_size, embed.in_chans, self.model.max_length)
            real = torch.ones(batch.shape[:2], dtype=torch.bool, device=batch.device) if mask is None else mask
            self.reach.see(self.model.token_mask(real)[:, self.model.num_prefix_tokens :], self._weights)
        output: Tensor = self.model(batch) if mask is None else self.model(batch, mask)
        self._sizes.append(("the head", output.sum()))
        self._check_finite(batch if mask is None else batch[mask], len(batch))
        self.images += len(batch)
        return output

    def reached(self, table: Tensor) -> Tensor:
        """Return the rows of a table (N, D) that the statistics use: all, or those that enough sequences reach."""
        return table if self.reach is None else table[self.reach.used]

    def read_out(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Return what is read out before and after the Last LN, and what its position adds to it, vectors (D,).

        None where that is the mean over the rows of the maps: images without a class token that is read out.
        Assumption: of sequences, the mean over all of them of each one's mean over its own tokens.
        """
        constant = None
        if self.prefix_after.images and getattr(self.model, "global_pool", "") == "token":
            if self.last is not None:
                assert self.positions is not None
                constant = torch.zeros_like(self.last[0])
                if self.model.has_class_row:
                    constant = self.positions.last[0, 0].detach().double()  # type: ignore[index]
            return self.prefix_before.mean[0], self.prefix_after.mean[0], constant
        if self.reach is None:
            return None
        assert isinstance(self.before, SequenceStatistics)
        assert isinstance(self.after, SequenceStatistics)
        if self.last is not None:
            constant = self.reach.shares @ self.last
        return self.before.read_out, self.after.read_out, constant

    def _statistics(self, position: Tensor | None, replicates: int = 0) -> Statistics:
        if self.reach is None:
            return MapStatistics(position, replicates=replicates)
        return SequenceStatistics(position, self.reach)

    def _see_block(self, place: Place, statistics: Statistics) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            if place.block == 0:
                self._sizes.append(("the patch embedding", args[0].sum()))
            statistics.add(output[:, place.prefix :] if output.dim() == 3 else output, self._weights)

        return hook

    def _see_output(self, name: str) -> Any:
        return lambda module, args, output: self._sizes.append((name, output.sum()))

    def _run_last(self, module: Any, args: Any) -> None:
        self.model.norm(*args)

    def _see_last(self, module: Any, args: Any, output: Tensor) -> None:
        before: Tensor = args[0]
        prefix = self.model.num_prefix_tokens if before.dim() == 3 and before.shape[1] > 1 else 0
        if prefix:
            self.prefix_before.add(before[:, :prefix], self._weights)
            self.prefix_after.add(output[:, :prefix], self._weights)
        self.before.add(before[:, prefix:] if prefix else before, self._weights)
        self.after.add(output[:, prefix:] if prefix else output, self._weights)
        self._sizes.append(("the Last LN", output.sum()))
        for image in self.shown:
            if self.images <= image < self.images + len(before):
                tokens, read = (_rows(maps[image - self.images], prefix) for maps in (before, output))
                if self.last is not None:
                    read = read + self.last
                self.norms.append((tokens.norm(dim=1).cpu(), read.norm(dim=1).cpu()))

    def _check_finite(self, given: Tensor, count: int) -> None:
        finite = torch.stack([size for _, size in self._sizes]).isfinite().tolist()
        if not all(finite):
            name = self._sizes[finite.index(False)][0]
            what = "images" if self.reach is None else "sequences"
            cause = (
                f"the {what} themselves are not finite" if not given.isfinite().all() else "its weights are at fault"
            )
            raise NonFiniteActivationsError(
                f"{name} puts out NaN or infinite numbers on {what} {self.images} to {self.images + count - 1}: "
                f"{cause}, so nothing after it can be analysed."
            )


def last_position(model: Any, positions: Positions) -> Tensor | None:
    """Return what is added to the patch tokens after the Last LN (N, D), in float64; None for nothing.

    Args:
        model: A layer-wise model.
        positions: Its own. CeiT sums the last one up for the one token that its Last LN reads.
    """
    last = positions.last
    if last is not None and getattr(model, "lca", None) is not None:
        return patch_rows(model.summary(last), 0)
    return patch_rows(last, int(model.has_class_row))


def check_plain(model: Any) -> None:
    """Refuse a model that is neither ours nor a plain vision transformer of timm.

    Raises:
        ValueError: It is something else.
    """
    plain = isinstance(model, VisionTransformer) and all(
        isinstance(getattr(block, "norm1", None), nn.Module) and type(block).__name__ == "Block"
        for block in model.blocks
    )
    if not (isinstance(model, Layerwise) or plain):
        raise ValueError(
            f"{type(model).__name__} is no model of mpvg and no plain vision transformer of timm, whose blocks "
            "normalise their input: name an mpvg_* model, a checkpoint, or one such as deit_tiny_patch16_224."
        )


def correlation_by_block(model: Any, batch: Tensor, mask: Tensor | None = None) -> dict[int, float | None]:
    """Return the correlation of normalised tokens and delivered position at each block that receives one.

    Args:
        model: A layer-wise model, in eval mode.
        batch: Images (B, C, H, W) it has not been trained on; or token ids (B, T), or series (B, T, C).
        mask: Of sequences, True at real places (B, T); None for no padding.

    Returns:
        Pearson's correlation of mean_B LN_l(x_l) and d_l over patch tokens by block number l; empty where the scheme
        delivers nothing.

    Source:
        MPVG, figure 4. Assumption: of sequences, row n of the mean is over those with a token n, and only rows that at
        least half of the batch reaches are used.
    """
    with Recorder(model, replicates=0) as recorder:
        recorder.run(batch, mask)
    depth = len(model.all_blocks())
    return {
        place.block: statistics.correlation().value
        for place, statistics in zip(recorder.places[:depth], recorder.blocks[:depth], strict=True)
        if place.position is not None
    }


def _check_positions(places: Sequence[Place], last: Tensor | None) -> None:
    for name, position in [*((f"block {place.name}", place.position) for place in places), ("the Last LN", last)]:
        if position is not None and not position.isfinite().all():
            raise NonFiniteActivationsError(
                f"the position delivered to {name} holds NaN or infinite numbers: the position norms up to there, or "
                "the table, are at fault."
            )


def _rows(tokens: Tensor, prefix: int) -> Tensor:
    """Return the patch tokens of one image, (N, D) or (H, W, D), as rows in float64."""
    return tokens.double().flatten(0, -2)[prefix:]
