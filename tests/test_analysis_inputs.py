"""What can be analysed, and on which images: checkpoints, folders, names; sets, folders, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers import perturb
from mpvg.analysis.pictures import load_pictures, spread
from mpvg.analysis.printed import FIGURE_2, printed_at_last_norm, printed_correlations
from mpvg.analysis.subjects import load_subjects
from mpvg.checkpoint import Card, save_safetensors
from mpvg.data.preprocessing import Preprocessing
from mpvg.errors import UserError
from mpvg.fold import Folded

GREY = Preprocessing((8, 8), 1, (0.5,), (0.25,))


def checkpoint(path: Path, *, scheme: str = "mpvg", seed: int = 0, source: str = "digits") -> Path:
    card = Card(
        model="mpvg_vit_nano",
        scheme=scheme,
        arguments={"img_size": (8, 8), "in_chans": 1, "num_classes": 10},
        preprocessing=GREY,
        classes=tuple("0123456789"),
        data={"source": source, "img_size": None, "skip_bad_images": False, "seed": seed},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_safetensors(path, card, perturb(card.build(), seed=seed))
    return path


def labels(names: list[str], **options: Any) -> list[str]:
    return [one.label for one in load_subjects(names, **options)]


def test_a_checkpoint_brings_its_model_and_preprocessing(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.safetensors", scheme="lape")
    (found,) = load_subjects([str(path)])
    assert (found.label, found.scheme, found.preprocessing, found.note) == ("lape", "lape", GREY, "")
    assert not found.model.training
    weights = load_file(path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.model.state_dict().items())


def test_a_folder_of_a_comparison_brings_all_its_runs_seeds_together(tmp_path: Path) -> None:
    for scheme in ("mpvg", "gap"):
        for seed in (10, 9):
            checkpoint(tmp_path / "runs" / f"{scheme}-seed{seed}.safetensors", scheme=scheme, seed=seed)
    found = load_subjects([str(tmp_path)])
    assert [one.label for one in found] == ["gap, seed 9", "gap, seed 10", "mpvg, seed 9", "mpvg, seed 10"]
    assert [one.series for one in found] == ["gap", "gap", "mpvg", "mpvg"]


def test_a_folder_of_a_training_brings_its_best(tmp_path: Path) -> None:
    checkpoint(tmp_path / "best.safetensors", seed=3)
    assert [Path(one.name).name for one in load_subjects([str(tmp_path)])] == ["best.safetensors"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_subjects([str(tmp_path / "empty")])


def test_labels_tell_models_apart() -> None:
    assert labels(["mpvg_vit_nano:gap", "mpvg_vit_nano:mpvg:last_norm=3"]) == ["gap", "mpvg:last_norm=3"]
    assert labels(["mpvg_vit_nano", "deit_tiny_patch16_224"], scheme="pvg") == ["pvg vit_nano", "deit_tiny_patch16_224"]


def test_copies_of_a_run_are_no_seeds(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"{name}.safetensors", seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    found = load_subjects([str(path) for path in paths])
    assert [one.series for one in found] == ["mpvg", "mpvg (2)", "mpvg"]
    assert [one.label for one in found] == ["mpvg, seed 0", "mpvg (2)", "mpvg, seed 1"]


def test_runs_on_other_images_are_no_seeds(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / "a.safetensors"), checkpoint(tmp_path / "b.safetensors", seed=1, source="other")]
    assert [one.series for one in load_subjects([str(path) for path in paths])] == ["mpvg", "mpvg (2)"]


def test_a_folder_does_not_hide_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mpvg_vit_nano").mkdir()
    assert labels(["mpvg_vit_nano"]) == ["mpvg"]


def test_models_of_one_scheme_but_of_other_images_are_no_seeds_of_each_other() -> None:
    small, large = load_subjects(["mpvg_vit_nano"], img_size=8), load_subjects(["mpvg_vit_nano"], img_size=16)
    assert small[0].series == large[0].series == "mpvg"
    found = load_subjects(["mpvg_vit_nano", "mpvg_vit_nano"])
    assert [one.series for one in found] == [one.label for one in found] == ["mpvg", "mpvg (2)"]


def test_models_that_are_named_are_created_at_a_size() -> None:
    (own,) = load_subjects(["mpvg_vit_nano"])
    assert own.preprocessing.size == (32, 32)
    assert "has not been trained" in own.note
    (resized, folded) = load_subjects(["mpvg_vit_nano", "mpvg_vit_nano:gap_last"], img_size=16, folded=True)
    assert resized.preprocessing.size == (16, 16)
    assert resized.folded
    assert isinstance(folded.model, Folded)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is no checkpoint"),
        ("x" * 300, "is no checkpoint"),
        ("mpvg_deit_tny_patch16_224", "did you mean 'mpvg_deit_tiny_patch16_224'"),
        ("nowhere.safetensors", "is no file"),
        ("mpvg_vit_nano:mpgv", "mpgv"),
        ("mpvg_swin_tiny_patch4_window7_224:pvg_cls", "class token"),
        ("deit_tiny_patch16_224:mpvg", "has no scheme"),
        ("resnet18", "no plain vision transformer"),
    ],
)
def test_models_that_there_are_not(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_subjects([name])


def test_sizes_that_do_not_fit_are_refused_in_words() -> None:
    with pytest.raises(UserError, match="225"):
        load_subjects(["mpvg_swin_tiny_patch4_window7_224"], img_size=225)


def test_images_of_a_set_are_spread_over_its_test_split() -> None:
    pictures = load_pictures("digits", count=6, img_size=None, like=GREY, skip_bad=False)
    every = load_pictures("digits", count=1000, img_size=None, like=GREY, skip_bad=False)
    assert (pictures.count, every.count) == (6, 360)
    assert "6 of 360 test images of digits" in pictures.note
    assert "All 360 test images" in every.note
    for at, row in enumerate(spread(360, 6)):
        assert np.array_equal(pictures.pixels(at, GREY), every.pixels(row, GREY))
        assert pictures.name(at) == every.name(row)
    batches = list(pictures.batches(GREY, size=4))
    assert [tuple(images.shape) for (images,), _ in batches] == [(4, 1, 8, 8), (2, 1, 8, 8)]
    assert pictures.labels is not None
    assert [label for _, found in batches if found is not None for label in found.tolist()] == pictures.labels.tolist()


def test_each_model_sees_images_at_its_own_size_and_in_its_colours() -> None:
    pictures = load_pictures("digits", count=3, img_size=None, like=GREY, skip_bad=False)
    colour = Preprocessing((32, 24), 3, (0.5,) * 3, (0.25,) * 3)
    (((images,), _),) = pictures.batches(colour, size=8)
    assert tuple(images.shape) == (3, 3, 32, 24)


def test_image_files_need_no_labels(tmp_path: Path) -> None:
    for shade in range(5):
        Image.new("RGB", (20 + shade, 10), (40 * shade,) * 3).save(tmp_path / f"{shade}.png")
    pictures = load_pictures(str(tmp_path), count=3, img_size=None, like=GREY, skip_bad=False)
    assert (pictures.count, pictures.labels, pictures.name(0)) == (3, None, "")
    assert [int(pictures.pixels(image, GREY).max()) for image in range(3)] == [0, 80, 160]
    one = load_pictures(str(tmp_path / "2.png"), count=9, img_size=None, like=GREY, skip_bad=False)
    assert one.count == 1


def test_no_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        load_pictures(str(tmp_path), count=3, img_size=None, like=GREY, skip_bad=False)
    with pytest.raises(UserError, match="nowhere"):
        load_pictures(str(tmp_path / "nowhere"), count=3, img_size=None, like=GREY, skip_bad=False)
    (tmp_path / "bad.png").write_bytes(b"no image")
    pictures = load_pictures(str(tmp_path / "bad.png"), count=3, img_size=None, like=GREY, skip_bad=False)
    with pytest.raises(UserError, match=r"bad\.png cannot be read.*--skip-bad-images"):
        pictures.pixels(0, GREY)
    with pytest.raises(UserError, match="none of its images can be read"):
        load_pictures(str(tmp_path), count=3, img_size=None, like=GREY, skip_bad=True)
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    assert load_pictures(str(tmp_path), count=3, img_size=None, like=GREY, skip_bad=True).count == 1


def test_the_papers_values_stand_beside_the_model_that_it_draws_only() -> None:
    names = ["mpvg_deit_tiny_patch16_224:mpvg", "mpvg_deit_small_patch16_224", "mpvg_deit_tiny_patch16_224:pvg_cls"]
    deit, small, with_token = (one.model for one in load_subjects(names))
    assert printed_correlations("mpvg_deit_tiny_patch16_224", deit) == FIGURE_2
    assert printed_at_last_norm("mpvg_deit_tiny_patch16_224", "mpvg", deit) == {"var_beta": 0.0193}
    assert printed_at_last_norm("mpvg_deit_tiny_patch16_224", "gap", deit) == {}
    assert printed_correlations("mpvg_deit_small_patch16_224", small) == {}
    assert printed_correlations("mpvg_deit_tiny_patch16_224", with_token) == {}
