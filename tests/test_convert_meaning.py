"""What timm's options mean stays so under mpvg: each kind against its formula, which must also be able to fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from conversion import build, converted, inputs, known, mpvg_logits
from helpers import perturb, relative
from reference import Switches
from reference_families import swin

ALWAYS = ("flat", "no last term", "not joined", "before the norm")
WRONG: dict[str, tuple[str, ...]] = {
    "vit_base_patch16_gap_224": (),
    "vit_base_patch16_clip_224": ("joined after pre-norm", "another row dropped"),
    "deit3_small_patch16_224": ("no layer scale",),
    "qk_norm": ("another row dropped",),
    "aimv2_large_patch14_224": (),
    "vit_so150m_patch16_reg4_gap_256": ("register rows forgotten", "registers last"),
    "test_vit4": ("register rows forgotten", "term on the other side of pooling"),
    "vit_medium_patch16_reg4_gap_256": ("registers last", "term on the other side of pooling"),
    "vit_base_patch14_reg4_dinov2": ("registers last", "no layer scale"),
    "vitamin_xlarge_256": ("term on the other side of pooling",),
    "no table, class token": (),
    "eva_large_patch14_196": ("class row forgotten", "term on the other side of pooling"),
    "beit3_base_patch16_224": ("class row forgotten", "term on the other side of pooling"),
    "vit_base_patch16_siglip_224": ("term on the other side of pooling",),
    "test_vit3": ("register rows forgotten", "term on the other side of pooling"),
    "vit_base_patch16_radio_v3": ("registers last",),
    "vit_intern300m_patch14_448": ("another row dropped",),
    "vit_tiny_r_s16_p8_224": ("another row dropped",),
    "vit_giant_patch14_dinov2": ("another row dropped",),
    "vit_dwee_patch16_reg1_gap_256": ("registers last",),
    "everything": ("register rows forgotten", "joined after pre-norm", "no layer scale", "registers last"),
}


def pair(name: str) -> tuple[Any, Any, torch.Tensor]:
    """Return a source in float64, what it is converted to with everything perturbed, and images."""
    source = build(name).double()
    ours = converted(source, "mpvg", preserve=False)
    new = [parameter for key, parameter in ours.named_parameters() if "norm_pos" in key]
    if getattr(source, "pos_embed", None) is None:
        new.append(ours.pos_embed)
    perturb(torch.nn.ParameterList(new), seed=1)
    return source, ours, inputs(source, dtype=torch.float64)


@pytest.mark.parametrize("name", [name for name in known() if name in WRONG])
def test_a_converted_vit_computes_the_formula(name: str) -> None:
    source, ours, x = pair(name)
    with torch.no_grad():
        logits = ours(x)
        assert relative(logits, mpvg_logits(source, ours, x)) < 1e-9
        for wrong in (*ALWAYS, *WRONG[name]):
            assert relative(logits, mpvg_logits(source, ours, x, wrong=wrong)) > 1e-4, wrong


@pytest.mark.parametrize("wrong", [{}, {"hierarchical": False}, {"last_norm": None}, {"first_block": False}])
def test_a_converted_swin_computes_the_formula(wrong: dict[str, Any]) -> None:
    source, ours, x = pair("swin_tiny_patch4_window7_224")
    switches: dict[str, Any] = {"class_token": False, "join_input": True, "layerwise": True, "hierarchical": True,
                                "first_block": True, "last_norm": 0}  # fmt: skip
    with torch.no_grad():
        sizes: dict[str, Any] = {"depths": (1, 2, 1, 1), "heads": (2, 2, 4, 4), "window": 2}
        expected = swin(ours.state_dict(), x, Switches(**{**switches, **wrong}), **sizes)["logits"]
        apart = relative(ours(x), expected)
    assert apart > 1e-4 if wrong else apart < 1e-9
    for name, weights in source.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weights)
