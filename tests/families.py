"""The model families as the tests see them: shrunken, perturbed, and each beside its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor
from torch.fx.proxy import TraceError

from helpers import SMALL, images, perturb
from mpvg import SCHEMES
from mpvg.scheme import SchemeLike
from reference import run
from reference_families import ceit, swin, t2t_vit, vit_lite


@dataclass(frozen=True)
class Family:
    """A family's registered models, how to shrink them, their reference, and what they cannot do."""

    models: tuple[str, ...]
    shrunken: Mapping[str, Any]
    reference: Callable[..., Mapping[str, Any]]  # of weights, image and switches
    wide: tuple[int, int]  # another image size, not square
    class_tokens: bool = True
    first_block: bool = False  # the family's default
    undecayed: frozenset[str] = frozenset({"pos_embed", "cls_token"})
    resize: Mapping[str, Any] = field(default_factory=dict)  # beside img_size, to keep all else in set_input_size
    no_gradient: Callable[[str, Any], bool] = lambda name, model: False  # parameters that rightly have none
    cannot: Mapping[str, type[Exception]] = field(default_factory=dict)  # check without test_ -> the error that says so

    @property
    def depth(self) -> int:
        return int(sum(self.shrunken["depths"]) if "depths" in self.shrunken else self.shrunken["depth"])

    @property
    def schemes(self) -> list[str]:
        return [name for name in SCHEMES if self.class_tokens or name != "pvg_cls"]


def build(family: Family, scheme: SchemeLike, name: str | None = None, **changes: Any) -> Any:
    """Return a shrunken, perturbed model in eval mode."""
    torch.manual_seed(0)
    model = timm.create_model(name or family.models[0], scheme=scheme, **{**family.shrunken, **changes})
    return tame(perturb(model)).eval()


def tame(model: Any) -> Any:
    """Make a Performer's features numbers of an ordinary size, where its division would else be by almost nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".kqv." in name:
                parameter.mul_(0.1 if "attention1" in name else 0.02)
    return model


def inputs(
    family: Family, *, batch: int = 2, size: tuple[int, int] | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    side = family.shrunken["img_size"]
    return images(batch, family.shrunken["in_chans"], *(size or (side, side)), dtype=dtype)


VIT = Family(
    models=(
        "mpvg_deit_tiny_patch16_224",
        "mpvg_deit_small_patch16_224",
        "mpvg_deit_base_patch16_224",
        "mpvg_vit_nano",
    ),
    shrunken=SMALL,
    reference=lambda *args: run(*args, depth=4, heads=3, patch=4),
    wide=(24, 12),
)
VIT_LITE = Family(
    models=("mpvg_vit_lite_7_4_32", "mpvg_vit_lite_6_4_32", "mpvg_vit_lite_8_4_32"),
    shrunken={**SMALL, "attn_drop_rate": 0.0, "drop_path_rate": 0.0},
    reference=lambda *args: vit_lite(*args, depth=4, heads=3),
    wide=(24, 12),
    undecayed=frozenset(),
)
T2T = Family(
    models=("mpvg_t2t_vit_7", "mpvg_t2t_vit_10", "mpvg_t2t_vit_12", "mpvg_t2t_vit_14"),
    shrunken={"img_size": 32, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 7, "in_chans": 2},
    reference=lambda *args: t2t_vit(*args, depth=4, heads=3),
    wide=(48, 32),
    undecayed=frozenset({"cls_token"}),
)
CEIT = Family(
    models=("mpvg_ceit_tiny_patch16_224", "mpvg_ceit_small_patch16_224", "mpvg_ceit_base_patch16_224"),
    shrunken={"img_size": 32, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 7, "in_chans": 2},
    reference=lambda *args: ceit(*args, depth=4, heads=3),
    wide=(48, 32),
    # a constant before a batch norm vanishes; no class token sees the patches that leave the last block
    no_gradient=lambda name, model: (
        name.endswith(("conv1.bias", "conv2.bias", "conv3.bias"))
        or (model.has_class_token and name.startswith("blocks.3.mlp."))
    ),
)
DEPTHS = (2, 1, 2)
SWIN = Family(
    models=(
        "mpvg_swin_tiny_patch4_window7_224",
        "mpvg_swin_small_patch4_window7_224",
        "mpvg_swin_base_patch4_window7_224",
    ),
    shrunken={
        "img_size": 64,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": 12,
        "depths": DEPTHS,
        "num_heads": (2, 2, 4),
        "num_classes": 7,
        "in_chans": 2,
        "drop_path_rate": 0.0,
    },
    reference=lambda *args: swin(*args, depths=DEPTHS, heads=(2, 2, 4), window=4),
    wide=(64, 128),
    class_tokens=False,
    first_block=True,
    undecayed=frozenset(
        ["pos_embed"]
        + [
            f"layers.{stage}.blocks.{block}.attn.relative_position_bias_table"
            for stage, depth in enumerate(DEPTHS)
            for block in range(depth)
        ]
    ),
    resize={"window_size": 4},
    cannot={
        "prefix_tokens_stand_beside_the_maps": TypeError,  # it has maps only
        "fx_with_dynamic_sizes": TraceError,  # masks and shifts depend on the size, in timm's code too
    },
)
FAMILIES = (VIT, VIT_LITE, T2T, CEIT, SWIN)
ADAPTERS = tuple(f"mpvg_vit_adapter_{size}_patch16" for size in ("tiny", "small", "base"))  # backbones of maps
