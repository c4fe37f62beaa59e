"""Each family learns 64 real images by heart, and takes part in a comparison at its own input size."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from families import CEIT, FAMILIES, SWIN, T2T, VIT, VIT_LITE, Family
from mpvg.cli import main

pytestmark = pytest.mark.slow
STEPS = 80
AT = {  # the architectures as registered, at a size that two cores can bear
    VIT.models[0]: {"img_size": 64},
    VIT_LITE.models[0]: {"img_size": 32},
    T2T.models[0]: {"img_size": 64},
    CEIT.models[0]: {"img_size": 64},
    SWIN.models[0]: {"img_size": 64, "window_size": 2},
}


def digits(side: int) -> tuple[Tensor, Tensor]:
    """64 scanned digits, all ten classes among them, enlarged and normalised."""
    found = load_digits()
    pixels = torch.from_numpy(found.images[:64]).float()[:, None].expand(-1, 3, -1, -1) / 8 - 1
    return F.interpolate(pixels, size=(side, side), mode="bilinear"), torch.from_numpy(found.target[:64]).long()


@pytest.mark.parametrize("scheme", ["default", "mpvg"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
def test_64_images_are_learnt_by_heart(family: Family, scheme: str) -> None:
    name = family.models[0]
    torch.manual_seed(0)
    x, labels = digits(AT[name]["img_size"])
    model: Any = timm.create_model(name, scheme=scheme, num_classes=10, **AT[name])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, step / 10)
        loss = F.cross_entropy(model.train()(x), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 5 == 0:
            with torch.no_grad():
                right = (model.eval()(x).argmax(dim=1) == labels).float().mean().item()
            if right == 1:
                break
    print(f"\n{name} {scheme}: {right:.0%} after {step} steps, loss {loss.item():.4f}")
    assert right == 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])
def test_compare_runs_at_the_familys_own_size(family: Family, tmp_path: Path) -> None:
    found = load_digits()
    pixels = (found.images * 15).astype(np.uint8)
    np.savez(
        tmp_path / "digits.npz",
        train_images=pixels[:60],
        train_labels=found.target[:60, None],
        test_images=pixels[60:100],
        test_labels=found.target[60:100, None],
    )
    name = family.models[0]
    size = timm.create_model(name, device="meta").default_cfg["input_size"][1]
    out = tmp_path / "out"
    options = [
        "--img-size",
        str(size),
        "--schemes",
        "default,mpvg",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--batch-size",
        "8",
    ]
    assert main(["compare", "--data", str(tmp_path / "digits.npz"), "--model", name, "--out", str(out), *options]) == 0
    with (out / "results.csv").open() as file:
        assert {row["scheme"] for row in csv.DictReader(file)} == {"default", "mpvg"}
    assert "mpvg" in (out / "report.html").read_text()
