"""Files of weights: what is read, and every refusal with its reason and its remedy in one line."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

import mpvg
from helpers import SMALL, perturb
from mpvg.errors import UserError
from mpvg.models import architectures
from mpvg.models.architectures import nearest_architecture
from mpvg.weight_files import read_origin, read_weights

VIT = "vit_tiny_patch16_224"
TINY: dict[str, Any] = {**SMALL, "depth": 3, "in_chans": 3}


def weights(name: str = VIT, **changes: Any) -> dict[str, Tensor]:
    model: Any = perturb(timm.create_model(name, **{**TINY, **changes}))
    return dict(model.state_dict())


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def refused(path: Any, scheme: str = "mpvg", name: str = VIT, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        mpvg.create_model(name, scheme=scheme, pretrained=path, **{**TINY, **changes})
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 900
    assert message.endswith(".") or message.endswith(")")
    return message


@pytest.fixture
def few_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search these only: to build all of timm's takes seconds."""
    names = ["deit_tiny_patch16_224", "deit_small_patch16_224", "vit_small_patch16_224", "swin_tiny_patch4_window7_224"]
    ours = ["mpvg_ceit_tiny_patch16_224", "mpvg_deit_tiny_patch16_224"]
    monkeypatch.setattr(architectures, "all_architectures", lambda: [*names, *ours])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 7, 100, 0.2, 0.5, 0.9, -1])
def test_half_written(suffix: str, kept: float, tmp_path: Path) -> None:
    whole = write(tmp_path / f"whole{suffix}", weights()).read_bytes()
    path = tmp_path / f"half{suffix}"
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else int(kept)])
    message = refused(path)
    assert message.startswith(f"{path} cannot be read as ")
    assert message.endswith("it is half-written, damaged or something else. Copy it again.")


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".tar", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"weights of a model\n" * 50, b"<!DOCTYPE html><html>404</html>", b"\x89PNG\r\n", b"PK"]
)
def test_something_else(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert str(path) in refused(path)


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("touch code_ran",)


@pytest.mark.parametrize(
    "write_it",
    [lambda path: torch.save({"model": Code()}, path), lambda path: path.write_bytes(pickle.dumps({"a": Code()}))],
)
@pytest.mark.filterwarnings("error")
def test_code_is_not_run(write_it: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    write_it(path)
    assert "which could run code, and was not read: use .safetensors" in refused(path)
    assert not (tmp_path / "code_ran").exists()
    pickle.loads(pickle.dumps(Code()))
    assert (tmp_path / "code_ran").exists(), "it would have run"


def test_every_load_reads_weights_only() -> None:
    """torch.load nowhere without; pickle's and numpy's own loading nowhere at all."""
    found = 0
    for file in Path(mpvg.__file__).parent.rglob("*.py"):
        text = file.read_text()
        for call in re.findall(r"torch\.load\(.*", text):
            found += 1
            assert "weights_only=True" in call, file
        assert not re.search(r"pickle\.loads?\(|allow_pickle=True|weights_only=False|import dill|joblib\.load", text), (
            file
        )
    assert found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, and no weights by name"),
        (5, "holds an int, and no weights by name"),
        (torch.ones(2), "holds a Tensor, and no weights by name"),
        ({}, "holds nothing"),
        ({"model": {}}, "holds nothing"),
        ({"epoch": 3}, "holds an int under 'epoch' beside 0 tensors"),
        ({"lr": 0.1, "head.bias": torch.ones(2)}, "holds a float under 'lr' beside 1 tensors"),
        ({1: torch.ones(2)}, "holds a Tensor under 1"),
    ],
)
def test_pickles_that_are_no_weights(content: Any, message: str, tmp_path: Path) -> None:
    assert f"{message}" in refused(write(tmp_path / "w.pth", content))


def test_programs_are_no_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    assert "holds a TorchScript program, no weights: save its state_dict()." in refused(tmp_path / "w.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_lost(value: float, suffix: str, tmp_path: Path) -> None:
    broken = weights()
    broken["blocks.1.norm1.bias"][3] = value
    message = refused(write(tmp_path / f"w{suffix}", broken))
    assert "NaN or infinite, in 1 of 44 tensors (blocks.1.norm1.bias is the first)" in message


def test_places_without_weights(tmp_path: Path) -> None:
    assert "none.pth is no file: name a file of weights (" in refused(tmp_path / "none.pth")
    (tmp_path / "folder").mkdir()
    assert "folder is a folder without weights: it should hold one of model.safetensors" in refused(tmp_path / "folder")
    (tmp_path / "x.pth").mkdir()
    assert "x.pth is a folder without weights" in refused(tmp_path / "x.pth")
    (tmp_path / "weights.txt").write_text("1 2 3")
    assert "weights.txt is no file of weights by its ending" in refused(tmp_path / "weights.txt")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", weights())
    path.chmod(0)
    with pytest.raises(OSError, match=r"w\.pth"):
        mpvg.create_model(VIT, pretrained=path, **TINY)


@pytest.mark.usefixtures("few_architectures")
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"depth": 4},
            [r"12 missing \(blocks\.3\.norm1\.weight, blocks\.3\.norm1\.bias, blocks\.3\.attn\.qkv\.weight\)"],
        ),
        ({"depth": 2}, [r"12 unexpected \(blocks\.2\."]),
        ({"embed_dim": 48}, [r"of another shape \(pos_embed \(1, 17, 24\) for \(1, 16, 48\), "]),
        (
            {"name": "swin_tiny_patch4_window7_224", "img_size": 32, "window_size": 2, "depths": (1, 1), "depth": None,
             "num_heads": (1, 2)},
            [r"missing \(patch_embed\.norm\.weight", r"unexpected \(", r"of another shape \("],
        ),
    ],
)  # fmt: skip
def test_another_width_depth_or_family(changes: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", weights())
    message = refused(path, **changes)
    assert message.startswith(f"{path} does not fit {changes.get('name', VIT)}")
    assert "under scheme 'mpvg': " in message
    for part in parts:
        assert re.search(part, message), message


def test_other_patches_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", weights())
    with pytest.warns(UserWarning, match="the patch embedding is resampled from 4 x 4 to 8 x 8 pixels"):
        mpvg.create_model(VIT, pretrained=path, **{**TINY, "patch_size": 8})


@pytest.mark.usefixtures("few_architectures")
def test_the_nearest_architecture_is_named(tmp_path: Path) -> None:
    deit = dict(timm.create_model("deit_small_patch16_224", num_classes=5).state_dict())
    path = write(tmp_path / "w.safetensors", deit)
    assert refused(path).endswith("150 of its 152 tensors fit vit_small_patch16_224.")
    ceit = dict(timm.create_model("mpvg_ceit_tiny_patch16_224", scheme="gap").state_dict())
    assert "tensors fit mpvg_ceit_tiny_patch16_224." in refused(write(path, ceit))
    resnet = dict(timm.create_model("resnet18").state_dict())
    message = refused(write(path, resnet))
    assert "missing (pos_embed, patch_embed.proj.weight, patch_embed.proj.bias); 122 unexpected (" in message
    assert " fit " not in message.partition(": ")[2]


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "mpvg_t2t_vit_7"])
def test_all_architectures_are_searched(name: str) -> None:
    own = timm.create_model(name, device="meta").state_dict()
    assert nearest_architecture(own) == (name, len(own))


SCHEMES_OF_FILES = [("mpvg", "pvg"), ("mpvg", "gap"), ("mpvg", "default"), ("pvg", "mpvg"), ("lape", "mpvg"),
                    ("lape_gap", "pvg"), ("pvg_cls", "lape"), ("gap_last", "gap")]  # fmt: skip


@pytest.mark.parametrize(("saved", "asked"), SCHEMES_OF_FILES)
def test_the_scheme_of_a_file_is_named(saved: str, asked: str, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", weights("mpvg_deit_tiny_patch16_224", scheme=saved))
    for name in (VIT, "mpvg_deit_tiny_patch16_224"):
        message = refused(path, asked, name)
        assert f"under scheme '{asked}'" in message
        assert f"They are weights of another scheme: use scheme='{saved}'" in message
        assert "norm_pos" in message
    mpvg.create_model(VIT, scheme=saved, pretrained=path, **TINY)


def test_the_size_of_the_images_that_were_seen(tmp_path: Path) -> None:
    model = timm.create_model("mpvg_vit_nano", img_size=(8, 12))
    mpvg.save(model, tmp_path / "saved")
    assert read_origin(tmp_path / "saved").image_size == (8, 12)
    assert read_origin(tmp_path / "saved" / "model.safetensors").image_size == (8, 12)
    assert read_weights(tmp_path / "saved").keys() == model.state_dict().keys()
