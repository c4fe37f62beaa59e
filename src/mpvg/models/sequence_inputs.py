"""What a model of sequences takes: token ids or series, embedded as tokens, and one line on what it does not take."""

from typing import Any

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn
from torch.nn.functional import pad


class TokenEmbed(nn.Module):
    """Token ids (B, T) as tokens (B, T, D).

    Args:
        vocab_size: Number of ids V.
        embed_dim: Width D.
        of_type: Device and type of the weights.
    """

    def __init__(self, vocab_size: int, embed_dim: int, **of_type: Any) -> None:
        super().__init__()
        self.vocab_size, self.patch_size, self.in_chans = vocab_size, 1, 0
        self.proj = nn.Embedding(vocab_size, embed_dim, **of_type)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return tokens (B, T, D) for ids (B, T) and a mask (B, T), True at real ones."""
        return self.proj(x if mask is None else x.masked_fill(~mask, 0))


class SeriesEmbed(nn.Module):
    """Series (B, T, C) as tokens (B, N, D), each of p steps; steps that the last one lacks are zeros.

    Args:
        in_chans: Channels C.
        patch_size: Steps p a token.
        embed_dim: Width D.
        of_type: Device and type of the weights.

    Source:
        PatchTST (ICLR 2023), here over all channels together.
    """

    def __init__(self, in_chans: int, patch_size: int, embed_dim: int, **of_type: Any) -> None:
        super().__init__()
        self.vocab_size, self.patch_size, self.in_chans = 0, patch_size, in_chans
        self.proj = nn.Linear(patch_size * in_chans, embed_dim, **of_type)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return tokens (B, N, D) for series (B, T, C) and a mask (B, T), True at real steps."""
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(2), 0.0)
        x = pad(x, (0, 0, 0, -x.shape[1] % self.patch_size))
        return self.proj(x.reshape(x.shape[0], x.shape[1] // self.patch_size, self.patch_size * self.in_chans))


@torch.fx.wrap
@register_notrace_function
def check_sequences(x: Tensor, mask: Tensor | None, vocab_size: int, in_chans: int, max_length: int) -> None:
    """Refuse what is no batch of sequences that the model takes; values are looked at where that waits for nothing.

    Args:
        x: Token ids (B, T) or series (B, T, C).
        mask: True at real places (B, T).
        vocab_size: Number of ids; 0 for series.
        in_chans: Channels; 0 for ids.
        max_length: Longest sequence of the table.

    Raises:
        ValueError: It is none.
    """
    shape = list(x.shape)
    wanted = "token ids [B, T]" if vocab_size else f"series [B, T, {in_chans}]"
    fits = len(shape) == (2 if vocab_size else 3) and (vocab_size > 0 or shape[-1] == in_chans)
    is_integer = x.dtype == torch.int64 or x.dtype == torch.int32
    if not fits or (not is_integer if vocab_size else not x.is_floating_point()):
        raise ValueError(f"x of shape {shape} and {x.dtype}: this model takes {wanted}.")
    if shape[1] < 1:
        raise ValueError(f"x of shape {shape}: sequences of no step, give one or more.")
    if shape[1] > max_length:
        raise ValueError(
            f"sequences of {shape[1]} steps: this model's position table is for 1 to {max_length}. Cut them, or call "
            f"set_input_size({shape[1]}), which resamples a learned table."
        )
    if mask is not None and (mask.dtype != torch.bool or list(mask.shape) != shape[:2]):
        raise ValueError(
            f"mask of shape {list(mask.shape)} and {mask.dtype} for x of {shape}: use a bool for each of "
            f"{shape[:2]}, True at real places."
        )
    if not torch.jit.is_scripting():
        _check_values(x, mask, vocab_size)


def _check_values(x: Tensor, mask: Tensor | None, vocab_size: int) -> None:
    if x.device.type != "cpu" or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return
    if mask is not None and not bool(mask.any(dim=1).all()):
        empty = int((~mask.any(dim=1)).nonzero()[0, 0])
        raise ValueError(f"mask: sequence {empty} of the batch has no real place. Leave it out.")
    real = x if mask is None else x[mask]
    if vocab_size and real.numel():
        least, most = int(real.min()), int(real.max())
        if least < 0 or most >= vocab_size:
            worst = least if least < 0 else most
            raise ValueError(f"token id {worst}: this model knows 0 to {vocab_size - 1}, by vocab_size={vocab_size}.")


def check_sizes(*, max_length: int, vocab_size: int | None = None, in_chans: int = 1, patch_size: int = 1) -> None:
    """Refuse sizes that are none, or that contradict each other; arguments are those of the model.

    Raises:
        ValueError: They are.
    """
    sizes = {"vocab_size": vocab_size, "in_chans": in_chans, "max_length": max_length, "patch_size": patch_size}
    for name, size in sizes.items():
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"{name}={size!r}: use a whole number from 1.")
    if vocab_size is not None and (in_chans, patch_size) != (1, 1):
        raise ValueError(
            f"vocab_size={vocab_size} with in_chans={in_chans} and patch_size={patch_size}: token ids have neither "
            "channels nor patches, series have no vocabulary. Leave one out."
        )
