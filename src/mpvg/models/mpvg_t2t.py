"""T2T-ViT under every position scheme: tokens made by soft splits and two Performer layers, and a frozen sinusoid.

    tokens = Linear(split3(Performer(split3(Performer(split7(image))))))    split_k: overlapping k x k neighbourhoods

With phi(z) = exp(w z - |z|^2 / 2) / sqrt(m), w frozen, a Performer layer attends in time linear in its tokens:

    y_t = sum_s (phi(q_t) . phi(k_s)) v_s / sum_s (phi(q_t) . phi(k_s))

Sources: T2T-ViT (ICCV 2021); Performer (ICLR 2021); MPVG, tables 1 and 2.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm, register_notrace_function
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from mpvg.models.common import MapEmbed, cfg, create
from mpvg.models.mpvg_vit import LayerwiseVisionTransformer


def features(z: Tensor, w: Tensor) -> Tensor:
    """Return phi(z) (B, N, m) for z (B, N, E) and w (m, E)."""
    half_norm = z.square().sum(dim=-1, keepdim=True) / 2
    return torch.exp(z @ w.transpose(0, 1) - half_norm) / math.sqrt(w.shape[0])


def attention(k: Tensor, q: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Return y (B, N, E) for k, q, v (B, N, E) and w (m, E)."""
    k, q = features(k, w), features(q, w)
    total = q @ k.sum(dim=1).unsqueeze(-1)
    # above / (total + 1e-8), written so that no exporter takes the constant for a zero
    above = q @ (k.transpose(1, 2) @ v)
    return 1e8 * above / (1e8 * total + 1)


@torch.fx.wrap
@register_notrace_function
def full_attention(k: Tensor, q: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Return `attention`, computed in float32 at least: exp of a large sum leaves nothing of half precision.

    A scripted model cannot switch autocast off, so under autocast its products are of half precision.
    """
    dtype = v.dtype
    if dtype == torch.float16 or dtype == torch.bfloat16:
        k, q, v = k.float(), q.float(), v.float()
    w = w.to(v.dtype)
    if not torch.jit.is_scripting():  # alone, so that TorchScript leaves out what it cannot read
        device = v.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return attention(k, q, v, w).to(dtype)
    return attention(k, q, v, w).to(dtype)


class Performer(nn.Module):
    """A transformer layer of one head and linear attention, from width D to width E; its skip is v, as widths differ.

    Args:
        dim: Width D of the tokens.
        out_dim: Width E of the result.
        drop: Dropout rate of both branches.
        device: Where the parameters are made.
        dtype: Their type.

    Source:
        T2T-ViT's `Token_performer` (m = E / 2 random features). At half precision the features are computed in float32.
    """

    def __init__(self, dim: int, out_dim: int, drop: float = 0.1, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        of_type = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, **of_type)
        self.kqv = nn.Linear(dim, 3 * out_dim, **of_type)
        self.w = nn.Parameter(torch.empty(out_dim // 2, out_dim, **of_type), requires_grad=False)
        self.proj = nn.Linear(out_dim, out_dim, **of_type)
        self.dp = nn.Dropout(drop)
        self.norm2 = nn.LayerNorm(out_dim, **of_type)
        self.mlp = nn.Sequential(
            nn.Linear(out_dim, out_dim, **of_type), nn.GELU(), nn.Linear(out_dim, out_dim, **of_type), nn.Dropout(drop)
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Draw w: orthogonal rows of length sqrt(m)."""
        nn.init.orthogonal_(self.w, gain=math.sqrt(self.w.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, E) for tokens (B, N, D)."""
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        x = v + self.dp(self.proj(full_attention(k, q, v, self.w)))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Images (B, C, H, W) to a map (B, D, H/16, W/16) by three soft splits with a Performer layer between each two.

    Args:
        in_chans: Channels C.
        embed_dim: Width D.
        token_dim: Width of the tokens between the splits.
        device: Where the parameters are made.
        dtype: Their type.
    """

    def __init__(
        self, in_chans: int, embed_dim: int, token_dim: int = 64, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.attention1 = Performer(in_chans * 7 * 7, token_dim, device=device, dtype=dtype)
        self.attention2 = Performer(token_dim * 3 * 3, token_dim, device=device, dtype=dtype)
        self.project = nn.Linear(token_dim * 3 * 3, embed_dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map."""
        height, width = x.shape[2] // 4, x.shape[3] // 4
        x = F.unfold(x, kernel_size=7, stride=4, padding=2).transpose(1, 2)
        x = self.attention1(x).transpose(1, 2).unflatten(2, (height, width))
        x = F.unfold(x, kernel_size=3, stride=2, padding=1).transpose(1, 2)
        x = self.attention2(x).transpose(1, 2).unflatten(2, (height // 2, width // 2))
        x = F.unfold(x, kernel_size=3, stride=2, padding=1).transpose(1, 2)
        return self.project(x).transpose(1, 2).unflatten(2, (height // 4, width // 4))


class TokensToTokenEmbed(MapEmbed):
    """timm's PatchEmbed with `TokensToToken` for its convolution."""

    def make_map(self, in_chans: int, embed_dim: int, **of_type: Any) -> nn.Module:
        return TokensToToken(in_chans, embed_dim, **of_type)


class LayerwiseT2T(LayerwiseVisionTransformer):
    """T2T-ViT told where its tokens are by a position scheme; arguments are those of the parent.

    Source:
        T2T-ViT's `T2T_ViT` with Performer layers. Assumption: without a class token the sinusoid is made from row 0 on.
    """

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that go undecayed, beside biases and norms."""
        return {"cls_token"}


SIZES = {7: (256, 4, 2.0), 10: (256, 4, 2.0), 12: (256, 4, 2.0), 14: (384, 6, 3.0)}  # depth: width, heads, MLP ratio
default_cfgs = generate_default_cfgs({f"mpvg_t2t_vit_{depth}": cfg(first_conv=(), crop_pct=0.9) for depth in SIZES})


def _t2t_vit(layers: int, *, pretrained: bool, out_indices: int | Sequence[int] = 3, **model_args: Any) -> nn.Module:
    embed_dim, num_heads, mlp_ratio = SIZES[layers]
    of_family = {
        "patch_size": 16,
        "embed_dim": embed_dim,
        "depth": layers,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
        "qkv_bias": False,
        "norm_layer": partial(LayerNorm, eps=1e-5),
        "embed_layer": TokensToTokenEmbed,
        "pos_embed": "sincos1d",
    }
    name = f"mpvg_t2t_vit_{layers}"
    return create(LayerwiseT2T, name, pretrained=pretrained, out_indices=out_indices, **{**of_family, **model_args})


@register_model
def mpvg_t2t_vit_7(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-7, the one of MPVG's tables: 7 blocks of width 256, 4 heads."""
    return _t2t_vit(7, pretrained=pretrained, **kwargs)


@register_model
def mpvg_t2t_vit_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-10: 10 blocks of width 256, 4 heads."""
    return _t2t_vit(10, pretrained=pretrained, **kwargs)


@register_model
def mpvg_t2t_vit_12(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-12: 12 blocks of width 256, 4 heads."""
    return _t2t_vit(12, pretrained=pretrained, **kwargs)


@register_model
def mpvg_t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """T2T-ViT-14: 14 blocks of width 384, 6 heads."""
    return _t2t_vit(14, pretrained=pretrained, **kwargs)
