"""What every family's model file needs: checks of its arguments, and its entry in timm's registry."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed, register_notrace_function, to_2tuple
from timm.models import build_model_with_cfg
from torch import nn

from mpvg.models.arguments import note_arguments
from mpvg.models.weights import filter_checkpoint
from mpvg.scheme import Plan, PositionScheme
from mpvg.tables import POS_EMBEDS


def check_arguments(
    scheme: PositionScheme, pos_embed: str, *, class_token: bool | None, global_pool: str | None
) -> None:
    """Refuse arguments of a model that contradict its scheme.

    Args:
        scheme: The model's scheme.
        pos_embed: Kind of table.
        class_token: As given; None for what the scheme says.
        global_pool: As given; None for what the scheme says, "" for no pooling.

    Raises:
        ValueError: An unknown table, or a contradiction.
    """
    if pos_embed not in POS_EMBEDS:
        raise ValueError(
            f"pos_embed={pos_embed!r} is unknown: use one of {', '.join(POS_EMBEDS)}. Relative and rotary positions "
            "are out of scope: a scheme delivers an absolute table."
        )
    if class_token is not None and class_token != scheme.class_token:
        raise ValueError(
            f"class_token={class_token} contradicts scheme {str(scheme)!r}, where it is {scheme.class_token}: "
            "leave class_token out or choose another scheme."
        )
    if global_pool and global_pool != ("token" if scheme.class_token else "avg"):
        raise ValueError(
            f"global_pool={global_pool!r} contradicts scheme {str(scheme)!r}, which reads out "
            f"{'the class token' if scheme.class_token else 'the mean over tokens'}: leave global_pool out."
        )


def check_table(scheme: PositionScheme, plan: Plan, pos_embed: str, width: int) -> None:
    """Refuse a position table that nothing reads, a missing one, and a width that a sinusoid cannot have.

    Args:
        scheme: The model's scheme.
        plan: The scheme for the model's depth.
        pos_embed: Kind of table.
        width: Width D of the table.

    Raises:
        ValueError: The table and the scheme do not go together.
    """
    if (pos_embed != "none") != plan.uses_positions:
        raise ValueError(
            f"pos_embed={pos_embed!r} with scheme {str(scheme)!r}: "
            + (
                "nothing would read the table, use pos_embed='none'."
                if pos_embed != "none"
                else f"there is no table to deliver or join, use pos_embed={POS_EMBEDS[0]!r} or another scheme. Models "
                "whose only positions are relative or rotary are out of scope."
            )
        )
    if pos_embed == "sincos2d" and width % 4:
        raise ValueError(f"embed_dim={width} with pos_embed='sincos2d': use a multiple of 4.")


@torch.fx.wrap
@register_notrace_function
def check_size(size: tuple[int, int], step: tuple[int, int]) -> None:
    """Refuse an image size (H, W) in pixels that is not made of whole patches (H, W), merged ones where there are."""
    if size[0] <= 0 or size[1] <= 0 or size[0] % step[0] != 0 or size[1] % step[1] != 0:
        raise ValueError(
            f"images of {size[0]} x {size[1]} pixels cannot be cut into patches of {step[0]} x {step[1]}: use "
            "multiples of these for img_size."
        )


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Have one model's attention computed as products and a softmax; timm's own switch would be everybody's.

    Args:
        model: Any of timm's kind.
    """
    fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True


class MapEmbed(PatchEmbed):
    """timm's PatchEmbed with another way from images (B, C, H, W) to a map (B, D, H/p, W/p), made by `make_map`.

    Args:
        img_size: Image size in pixels, int or (H, W).
        patch_size: Pixels p a token; a property of the way.
        in_chans: Channels C.
        embed_dim: Width D.
        bias: Only True.
        device: Where the parameters are made.
        dtype: Their type.
        timm_args: Every other keyword of timm's PatchEmbed.

    Raises:
        ValueError: Another patch size, or no bias.
    """

    map_stride = 16

    def __init__(
        self,
        img_size: Any = 224,
        patch_size: Any = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        **timm_args: Any,
    ) -> None:
        super().__init__(img_size, patch_size, in_chans, embed_dim, bias=bias, device=device, dtype=dtype, **timm_args)
        if not bias:
            raise ValueError("pre_norm=True asks for a patch embedding without bias: leave pre_norm out.")
        self._check_patch_size(self.patch_size)
        self.proj = self.make_map(in_chans, embed_dim, device=device, dtype=dtype)

    def make_map(self, in_chans: int, embed_dim: int, **of_type: Any) -> nn.Module:
        raise NotImplementedError

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Expect images of another size (pixels; int or (H, W)); the patch size cannot change."""
        if patch_size is not None:
            self._check_patch_size(to_2tuple(patch_size))
        super().set_input_size(img_size, None)

    def _check_patch_size(self, patch_size: tuple[int, int]) -> None:
        if tuple(patch_size) != (self.map_stride, self.map_stride):
            raise ValueError(
                f"patch_size={patch_size}: this family's tokens are {self.map_stride} pixels, leave it out."
            )


def create(cls: Any, variant: str, *, pretrained: bool, out_indices: Any, **model_args: Any) -> nn.Module:
    """Build a registered model by timm's mechanism.

    Args:
        cls: Model class.
        variant: Registered name.
        pretrained: Load the weights that the model's configuration names.
        out_indices: Which feature maps features_only=True returns unless told.
        model_args: Arguments of the class, and what timm's builder understands.

    Returns:
        The model, or its feature extractor.
    """
    model = build_model_with_cfg(
        cls,
        variant,
        pretrained,
        pretrained_filter_fn=filter_checkpoint,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **model_args,
    )
    note_arguments(model, model_args)
    return model


def cfg(**overrides: Any) -> dict[str, Any]:
    """Return timm's default configuration of a model, for ImageNet unless overridden."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        **overrides,
    }
