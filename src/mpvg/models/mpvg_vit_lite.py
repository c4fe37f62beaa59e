"""ViT-Lite under every position scheme: small vision transformers for images of 32 pixels.

A layer is not plain pre-norm; its second LayerNorm replaces the token stream itself:

    a       = LN''(x + MSA(LN(x) + d))
    x_next  = a + MLP(a)

Sources: "Escaping the Big Data Paradigm with Compact Transformers" (arXiv 2104.05704); MPVG, table 2.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import LayerNorm, PatchEmbed
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from mpvg.blocks import Block
from mpvg.models.common import cfg, create
from mpvg.models.mpvg_vit import LayerwiseVisionTransformer


class NormedStreamBlock(Block):
    """A block whose second norm replaces the stream; `norm1` is the official pre_norm, `norm2` the official norm1.

    Assumption: the position joins beside the first norm, as LaPE's formula has it; LaPE's code has no ViT-Lite.
    """

    def forward(
        self,
        x: Tensor,
        pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Run the block; arguments and result are those of `Block`."""
        a = self.norm2(self.attend(x, pos, attn_mask))
        return a + self.drop_path2(self.ls2(self.mlp(a)))


class Tokenizer(PatchEmbed):
    """timm's PatchEmbed with the initialisation of Compact Transformers: kaiming normal."""

    def init_weights(self) -> None:
        nn.init.kaiming_normal_(self.proj.weight)


class LayerwiseViTLite(LayerwiseVisionTransformer):
    """ViT-Lite told where its tokens are by a position scheme; arguments are those of the parent.

    Source:
        Compact Transformers' `ViTLite`, initialisation and weight decay included (the learned table is decayed).
    """

    block_class = NormedStreamBlock
    table_std = 0.2

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise all weights; the class token starts at zero."""
        super().init_weights(mode, needs_reset)
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)

    def no_weight_decay(self) -> set[str]:
        """Return no name: only biases and norms go undecayed, by their shape."""
        return set()


CIFAR100 = {"num_classes": 100, "mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}  # the paper's task
default_cfgs = generate_default_cfgs(
    {f"mpvg_vit_lite_{depth}_4_32": cfg(input_size=(3, 32, 32), crop_pct=1.0, **CIFAR100) for depth in (6, 7, 8)}
)


def _vit_lite(layers: int, *, pretrained: bool, out_indices: int | Sequence[int] = 3, **model_args: Any) -> nn.Module:
    of_family = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 256,
        "depth": layers,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "qkv_bias": False,
        "attn_drop_rate": 0.1,
        "drop_path_rate": 0.1,
        "norm_layer": partial(LayerNorm, eps=1e-5),
        "embed_layer": Tokenizer,
    }
    name = f"mpvg_vit_lite_{layers}_4_32"
    return create(LayerwiseViTLite, name, pretrained=pretrained, out_indices=out_indices, **{**of_family, **model_args})


@register_model
def mpvg_vit_lite_6_4_32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-Lite-6/4: 6 layers of width 256, 4 heads, patches of 4 pixels."""
    return _vit_lite(6, pretrained=pretrained, **kwargs)


@register_model
def mpvg_vit_lite_7_4_32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-Lite-7/4, the one of MPVG's table 2."""
    return _vit_lite(7, pretrained=pretrained, **kwargs)


@register_model
def mpvg_vit_lite_8_4_32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ViT-Lite-8/4: one layer more; not in the official code."""
    return _vit_lite(8, pretrained=pretrained, **kwargs)
