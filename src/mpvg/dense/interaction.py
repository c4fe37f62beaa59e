"""The parts of a ViT-Adapter: a spatial prior from convolutions, and its exchange with the tokens of a plain ViT.

    tokens = tokens + gamma * MSDA(LN(tokens), LN(prior))      injector, before some blocks
    prior  = prior + MSDA(LN(prior), LN(tokens))               extractor, after them
    prior  = prior + ConvFFN(LN(prior))

The prior is a row of tokens: the maps at 1/8, 1/16 and 1/32 of the image, one after the other.
Source: ViT-Adapter (ICLR 2023), section 3; initialisation as in its official code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from mpvg.dense.deformable import MultiScaleDeformableAttention, cell_centres

Shape = tuple[int, int]


class Geometry(NamedTuple):
    """Where tokens lie.

    grid: (H, W) of the trunk's tokens.
    levels: (H, W) of the prior's maps.
    at_tokens: Centres of the trunk's tokens (N, 2), as parts of the image.
    at_prior: Likewise of the prior's.
    """

    grid: Shape
    levels: list[Shape]
    at_tokens: Tensor
    at_prior: Tensor

    @classmethod
    def of(cls, grid: Shape, levels: list[Shape], like: Tensor) -> Geometry:
        """Return the geometry of an image, its places in single precision at least."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        centres = [cell_centres(shapes, device=like.device, dtype=dtype) for shapes in ([grid], levels)]
        return cls(grid, levels, *centres)


def _convolved(inside: int, outside: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inside, outside, kernel_size=3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outside), nn.ReLU()]


class SpatialPrior(nn.Module):
    """Convolutions that see the image finely: maps at 1/4, 1/8, 1/16 and 1/32 of it, all of the trunk's width.

    Args:
        dim: Width D.
        in_chans: Channels of images.
        width: Channels of the first convolutions.
    """

    def __init__(self, dim: int, *, in_chans: int = 3, width: int = 64) -> None:
        super().__init__()
        stem = _convolved(in_chans, width, 2) + _convolved(width, width, 1) + _convolved(width, width, 1)
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        self.conv2 = nn.Sequential(*_convolved(width, 2 * width, 2))
        self.conv3 = nn.Sequential(*_convolved(2 * width, 4 * width, 2))
        self.conv4 = nn.Sequential(*_convolved(4 * width, 4 * width, 2))
        self.fc1 = nn.Conv2d(width, dim, kernel_size=1)
        self.fc2 = nn.Conv2d(2 * width, dim, kernel_size=1)
        self.fc3 = nn.Conv2d(4 * width, dim, kernel_size=1)
        self.fc4 = nn.Conv2d(4 * width, dim, kernel_size=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the maps (B, D, H/s, W/s) for s of 4, 8, 16 and 32."""
        c1 = self.stem(x)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)


class ConvFFN(nn.Module):
    """Two linear layers around a depth-wise convolution of each of the prior's maps, with the same weights.

    Args:
        dim: Width D.
        hidden: Width inside.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, levels: Sequence[Shape]) -> Tensor:
        """Return (B, N, D) for the prior's tokens (B, N, D)."""
        rows = self.fc1(x).transpose(1, 2).split([h * w for h, w in levels], dim=2)
        maps = [self.conv(row.unflatten(2, shape)) for row, shape in zip(rows, levels, strict=True)]
        return self.fc2(self.act(torch.cat([one.flatten(2) for one in maps], dim=2).transpose(1, 2)))


class Injector(nn.Module):
    """What tokens take from the prior, behind a gate that is shut at the start.

    Args:
        dim: Width D.
        heads: Of the deformable attention.
        ratio: Width of its values.
    """

    def __init__(self, dim: int, *, heads: int, ratio: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MultiScaleDeformableAttention(dim, num_heads=heads, num_levels=3, ratio=ratio)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor, prior: Tensor, where: Geometry) -> Tensor:
        """Return the tokens (B, N, D)."""
        found = self.attn(self.query_norm(tokens), where.at_tokens, self.feat_norm(prior), where.levels)
        return tokens + self.gamma * found


class Extractor(nn.Module):
    """What the prior takes from tokens.

    Args:
        dim: Width D.
        heads: Of the deformable attention.
        ratio: Width of its values.
        ffn_ratio: Width inside the ConvFFN, as a part of D.
        drop_path: Rate at which the ConvFFN is left out.
    """

    def __init__(self, dim: int, *, heads: int, ratio: float, ffn_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MultiScaleDeformableAttention(dim, num_heads=heads, ratio=ratio)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = ConvFFN(dim, int(dim * ffn_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, prior: Tensor, tokens: Tensor, where: Geometry) -> Tensor:
        """Return the prior's tokens (B, N', D)."""
        prior = prior + self.attn(self.query_norm(prior), where.at_prior, self.feat_norm(tokens), [where.grid])
        return prior + self.drop_path(self.ffn(self.ffn_norm(prior), where.levels))


class Interaction(nn.Module):
    """What stands around some blocks of the trunk: an injector before, one or more extractors after.

    Args:
        dim: Width D.
        heads: Of deformable attention.
        ratio: Width of its values.
        ffn_ratio: Width inside the ConvFFN, as a part of D.
        drop_path: Rate at which a ConvFFN is left out.
        extra: Further extractors.
    """

    def __init__(
        self, dim: int, *, heads: int, ratio: float, ffn_ratio: float, drop_path: float, extra: int = 0
    ) -> None:
        super().__init__()

        def extractor() -> Extractor:
            return Extractor(dim, heads=heads, ratio=ratio, ffn_ratio=ffn_ratio, drop_path=drop_path)

        self.injector = Injector(dim, heads=heads, ratio=ratio)
        self.extractor = extractor()
        self.extra_extractors = nn.ModuleList(extractor() for _ in range(extra))

    def extract(self, prior: Tensor, tokens: Tensor, where: Geometry) -> Tensor:
        """Return the prior's tokens (B, N', D) after all extractors."""
        for extractor in (self.extractor, *self.extra_extractors):
            prior = extractor(prior, tokens, where)
        return prior


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Give the adapter's parts, and all below them, the initial values of the official code; for `Module.apply`.

    Deformable attention keeps its own where it is visited last, as `apply` visits what stands above.
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        nn.init.normal_(module.weight, std=math.sqrt(2.0 * module.groups / (kernel * module.out_channels)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, MultiScaleDeformableAttention):
        module.reset_parameters()
