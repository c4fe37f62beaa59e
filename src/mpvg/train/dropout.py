"""Dropout whose masks a processor draws cheaply: PyTorch's own took a tenth of a ViT-Lite step, compiled two fifths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_BITS = 16  # of a random number that decide on one value


class CheapDropout(nn.Dropout):
    """Dropout by masks of 16 random bits a value, so that p is met to within 1 in 131,072; the scale is exact for that.

    Uncompiled, four values share one draw of PyTorch's generator. Compiled, bits are a hash of the value's place and
    two numbers drawn for each call, which the compiler fuses with what stands around it; its own generator computes ten
    rounds a value.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with values dropped, in training."""
        dropped = round(self.p * 2**_BITS)
        if not self.training or dropped == 0:
            return input
        bits = _hashed(input) if torch.compiler.is_compiling() else _drawn(input)
        scale = 2**_BITS / (2**_BITS - dropped) if dropped < 2**_BITS else 0.0
        return torch.where(bits >= dropped - 2 ** (_BITS - 1), input * scale, 0.0)


def _drawn(like: Tensor) -> Tensor:
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    bits = words.random_(-(2**63), None).view(torch.int16)  # type: ignore[arg-type]  # None: all 64 bits
    return bits[: like.numel()].view(like.shape)


def _hashed(like: Tensor) -> Tensor:
    first, second = torch.randint(2**31 - 1, (2, 1), dtype=torch.int32, device=like.device)
    place = torch.arange(like.numel(), dtype=torch.int32, device=like.device).view(like.shape)
    mixed = (place ^ first) * -1640531527
    mixed = (mixed ^ ((mixed >> 15) & 0x1FFFF) ^ second) * -2048144777
    mixed = (mixed ^ ((mixed >> 13) & 0x7FFFF)) * -1028477379
    return mixed >> _BITS


def cheapen_dropout(model: nn.Module) -> None:
    """Give a model that a processor trains such masks; on a GPU PyTorch's own are best.

    Attention that drops weights is computed as products and a softmax, as PyTorch does too, with less around it.

    Args:
        model: The model, changed in place; what it computes in eval mode stays, and so do its state dict's names.
    """
    modules: list[Any] = list(model.modules())
    for module in modules:
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p > 0:
                setattr(module, name, CheapDropout(child.p).train(child.training))
                if name == "attn_drop" and hasattr(module, "fused_attn"):
                    module.fused_attn = False
