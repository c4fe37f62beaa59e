"""Sets in COCO's format and with masks: what they hold, and one line for what they should not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocotools")

from pycocotools import mask as rle_of
from pycocotools.coco import COCO

from dense_sets import CATEGORIES, SQUARE, annotation, objects, write_coco, write_masks
from mpvg.data.dense.ade20k import CLASSES
from mpvg.data.dense.coco import Choice, CocoSplit, Part, open_coco
from mpvg.data.dense.masks import open_masks
from mpvg.data.dense.split import DenseData
from mpvg.data.remarks import remarks
from mpvg.errors import UserError

AS_IT_IS = Choice(short=30, long=100)


def opened(root: Path, **choice: Any) -> DenseData:
    return open_coco(str(root), choice=Choice(**{"short": 30, "long": 100, **choice}))


def train(root: Path, **choice: Any) -> CocoSplit:
    split = opened(root, **choice).train
    assert isinstance(split, CocoSplit)
    return split


def test_objects_are_those_that_pycocotools_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path)
    data = opened(tmp_path)
    assert (data.classes, data.category_ids) == (("early", "never", "late"), (2, 5, 9))
    coco, split = COCO(str(tmp_path / "instances.json")), train(tmp_path)
    assert [split.objects(index).image_id for index in range(len(split))] == [10, 20, 30]
    for index in range(len(split)):
        image, found = split.sample(index)
        expected = coco.loadAnns(coco.getAnnIds(found.image_id))
        assert found.size == (image.height, image.width) == (30, 40)
        assert [data.category_ids[label - 1] for label in found.labels] == [one["category_id"] for one in expected]
        assert found.crowds.tolist() == [one["iscrowd"] for one in expected]
        assert found.areas.tolist() == [one["area"] for one in expected]
        np.testing.assert_array_equal(found.masks, [coco.annToMask(one) for one in expected] or np.zeros((0, 30, 40)))
        sides = [[*one["bbox"][:2], *np.add(one["bbox"][:2], one["bbox"][2:])] for one in expected]
        np.testing.assert_array_equal(found.boxes, np.reshape(sides, (-1, 4)))
    assert data.val is None
    assert data.test is data.train
    assert "evaluated on the images of training" in data.note


@pytest.mark.parametrize("year", ["2017", ""])
def test_splits_are_found_by_their_names_or_named(tmp_path: Path, year: str) -> None:
    for name, images in (("train", (10, 30)), ("val", (20,))):
        content = objects(annotations=[annotation(1, images[0], 2)])
        content["images"] = [image for image in content["images"] if image["id"] in images]
        write_coco(tmp_path, content, name=f"annotations/instances_{name}{year}.json", images=f"{name}{year}")
    data = opened(tmp_path)
    assert data.val is data.test
    assert (len(data.train), len(data.test)) == (2, 1)
    part = Part(tmp_path / f"annotations/instances_val{year}.json", tmp_path / f"val{year}")
    assert len(open_coco("unused", train=part, choice=AS_IT_IS).train) == 1
    before = data.fingerprint()
    assert before == opened(tmp_path).fingerprint() != opened(tmp_path, limit=1).fingerprint()
    (part.annotations).write_text(part.annotations.read_text().replace('"late"', '"other"'))
    with pytest.raises(UserError, match=r"val(2017)?\.json lists other categories than .*train"):
        opened(tmp_path)


def test_sets_of_crowds_alone_are_refused(tmp_path: Path) -> None:
    content = objects(annotations=[annotation(1, 10, 2, iscrowd=1)])
    with pytest.raises(UserError, match="no object that is no crowd"):
        opened(write_coco(tmp_path, content))
    (tmp_path / "instances.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"is no JSON"):
        opened(tmp_path)


def test_images_without_objects_are_background(tmp_path: Path) -> None:
    write_coco(tmp_path)
    assert len(train(tmp_path)) == 3
    kept = opened(tmp_path, keeps_empty=False)
    assert (len(kept.train), len(kept.test)) == (2, 3)
    assert remarks(kept) == ["Left out of training: 1 images without objects."]
    assert [train(tmp_path, limit=1).objects(0).image_id, len(train(tmp_path, limit=9))] == [10, 2]


def test_small_objects_are_left_out_of_both_sides_and_counted(tmp_path: Path) -> None:
    write_coco(tmp_path, objects(annotations=[annotation(1, 10, 2), annotation(2, 10, 2, bbox=[0, 0, 9.9, 30])]))
    data, twice = opened(tmp_path, min_side=10), opened(tmp_path, min_side=20, short=60)
    for found, side in ((data, "10 pixels"), (twice, "20 pixels")):
        assert isinstance(found.test, CocoSplit)
        assert len(found.test.objects(0).labels) == len(found.test.too_small(0).labels) == 1
        assert re.search(rf"instances.json: 1 objects with a side below {side}", " ".join(remarks(found)))
    with pytest.raises(UserError, match=r"no object that is no crowd and has sides of 11 pixels: .*lower min_side"):
        opened(tmp_path, min_side=11)


DEGENERATE: dict[str, tuple[dict[str, Any], str]] = {
    "no width": ({"bbox": [4, 6, 0, 10]}, "boxes"),
    "negative height": ({"bbox": [4, 6, 10, -1]}, "boxes"),
    "NaN": ({"bbox": [4, float("nan"), 10, 10]}, "boxes"),
    "infinite": ({"bbox": [4, 6, float("inf"), 10]}, "boxes"),
    "outside": ({"bbox": [40, 6, 10, 10]}, "boxes"),
    "above": ({"bbox": [4, -10, 10, 10]}, "boxes"),
    "three numbers": ({"bbox": [4, 6, 10]}, "boxes"),
    "no box": ({"bbox": None}, "boxes"),
    "two points": ({"segmentation": [[4, 6, 14, 16]]}, "outlines"),
    "a line": ({"segmentation": [[4, 6, 14, 16, 9, 11]]}, "outlines"),
    "an odd number": ({"segmentation": [[4, 6, 14, 6, 14, 16, 4]]}, "outlines"),
    "NaN in a polygon": ({"segmentation": [[4, 6, 14, float("nan"), 14, 16]]}, "outlines"),
    "words in a polygon": ({"segmentation": [["4", "6", "14", "6", "14", "16"]]}, "outlines"),
    "lists in a polygon": ({"segmentation": [[[4, 6], [14, 6], [14, 16], 4, 6, 7]]}, "outlines"),
    "no polygon": ({"segmentation": []}, "outlines"),
    "no outline": ({"segmentation": None}, "outlines"),
    "a polygon beside the image": ({"segmentation": [[50, 6, 60, 6, 60, 16]]}, "outlines"),
    "a number of 400 digits": ({"bbox": [4, 6, 10**400, 10]}, "boxes"),
    "empty run lengths": ({"segmentation": {"size": [30, 40], "counts": [1200]}}, "outlines"),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_objects_are_left_out_and_counted(tmp_path: Path, name: str) -> None:
    changes, what = DEGENERATE[name]
    content = objects()
    content["annotations"] += [annotation(20, 20, 5, **changes), annotation(21, 30, 5, **changes)]
    data = opened(write_coco(tmp_path, content))
    assert len(remarks(data)) == 1
    assert re.match(rf"Left out of instances\.json: 2 degenerate {what} ", remarks(data)[0])
    assert isinstance(data.train, CocoSplit)
    assert [len(data.train.objects(index).labels) for index in range(3)] == [2, 0, 1]


def test_of_several_polygons_the_sound_ones_are_kept(tmp_path: Path) -> None:
    sound, far = objects(), [30, 20, 35, 20, 35, 25]
    sound["annotations"][0]["segmentation"] = [SQUARE, far]
    damaged = objects()
    damaged["annotations"][0]["segmentation"] = [[1, 1, 2, 2], SQUARE, far, [3, 3, 3, 3, 3, 3]]
    found = [train(write_coco(tmp_path / name, content)) for name, content in (("a", sound), ("b", damaged))]
    np.testing.assert_array_equal(found[0].objects(0).masks, found[1].objects(0).masks)
    assert found[0].objects(0).masks[0].sum() > 100


def without(table: str, number: int, key: str) -> dict[str, Any]:
    content = objects()
    del content[table][number][key]
    return content


def with_annotation(*args: Any, **changes: Any) -> dict[str, Any]:
    content = objects()
    content["annotations"].append(annotation(*args, **changes))
    return content


RLE = {"size": [30, 40], "counts": [600, 600]}
REFUSED: dict[str, tuple[Any, str]] = {
    "no table": ({"images": []}, "has no list 'categories'"),
    "a list": ([1, 2], "has no list 'images'"),
    "no images": (objects(images=[]), "lists no images"),
    "no categories": (objects(categories=[]), "lists no categories"),
    "no objects": (objects(annotations=[]), "has no object that can be used"),
    "only degenerate ones": (objects(annotations=[annotation(1, 10, 2, bbox=[1, 1, 0, 0])]), "has no object that can"),
    "an image that is not listed": (
        with_annotation(50, 11, 2),
        r"annotation 50 of .*json is of image 11, which the file does not list: .*--skip-bad-images",
    ),
    "a category's name twice": (
        objects(categories=[{"id": i, "name": "same"} for i in (2, 5, 9)]),
        r"\.json has the category 'same' twice",
    ),
    "an id too large": (objects(images=[{"id": 2**63, "file_name": "a", "width": 4, "height": 4}]), "of 63 bits"),
    "a crowd in words": (with_annotation(50, 10, 2, iscrowd="0"), r"annotation 50 of .*json has the iscrowd '0'"),
    "an unknown category": (with_annotation(50, 10, 1), r"annotation 50 of .*json is of category 1, which the file"),
    "an annotation twice": (with_annotation(7, 10, 2), r"annotation id 7 is twice in .*json"),
    "an image twice": (objects(images=objects()["images"][:1] * 2), "image id 30 is twice"),
    "a category twice": (objects(categories=CATEGORIES[:1] * 2), "category id 9 is twice"),
    "an id that is a word": (with_annotation("x", 10, 2), "annotation number 3 of .* has the id 'x'"),
    "no size": (without("images", 1, "height"), "image 10 of .* has the height None"),
    "no name": (without("images", 1, "file_name"), "image 10 of .* has the file_name None"),
    "no class name": (without("categories", 1, "name"), "category 2 of .* has the name None"),
    "no category": (without("annotations", 0, "category_id"), "annotation 7 of .* has the category_id None"),
    "run lengths of another size": (
        with_annotation(50, 10, 2, segmentation={**RLE, "size": [40, 30]}),
        r"annotation 50 of .* has run lengths of size \[40, 30\], its image is 40 x 30",
    ),
    "run lengths too short": (
        with_annotation(50, 10, 2, segmentation={**RLE, "counts": [600, 6]}),
        "annotation 50 of .* has run lengths of 606 pixels, its image has 1200",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_do_not_hold_together_are_refused(tmp_path: Path, name: str) -> None:
    content, told = REFUSED[name]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=told) as error:
        opened(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "instances.json") in str(error.value)


def test_files_that_are_missing_or_broken_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"instances_train\*\.json .* there is none"):
        opened(tmp_path)
    path = tmp_path / "instances.json"
    with pytest.raises(UserError, match=r"instances\.json cannot be read \(No such file"):
        open_coco("unused", train=Part(path, tmp_path), choice=AS_IT_IS)
    path.write_text('{"images": [')
    with pytest.raises(UserError, match=r"instances\.json is no JSON"):
        opened(tmp_path)
    write_coco(tmp_path)
    (tmp_path / "images/20.png").unlink()
    with pytest.raises(UserError, match=r"images/20\.png is not there, and of 3 images 1 are missing"):
        opened(tmp_path)
    assert len(opened(tmp_path, skip_bad_images=True).train) == 3


def test_objects_of_images_that_are_not_listed_can_be_left_out(tmp_path: Path) -> None:
    data = opened(write_coco(tmp_path, with_annotation(50, 11, 2)), skip_bad_images=True)
    assert remarks(data) == ["Left out of instances.json: 1 objects of images that the file does not list."]


def test_damaged_run_lengths_are_told_as_they_are_read(tmp_path: Path) -> None:
    larger = rle_of.encode(np.asfortranarray(np.eye(50, 60, dtype=np.uint8)))["counts"].decode()
    content = with_annotation(50, 20, 2, segmentation={"size": [30, 40], "counts": larger})
    split = train(write_coco(tmp_path, content))
    with pytest.raises(UserError, match=r"an object of image 20 of .* has run lengths that are damaged"):
        split.objects(1)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("orientation", [3, 6])
def test_images_lie_as_their_annotations_say(tmp_path: Path, orientation: int, turned: bool) -> None:
    """COCO's are of the stored pixels; where only the upright image is of the size they name, it is turned."""
    content = objects()
    for image in content["images"]:
        if turned and orientation == 6:
            image.update(width=30, height=40)
    content["annotations"] = content["annotations"][:1]
    write_coco(tmp_path, content)
    stored = np.zeros((30, 40, 3), np.uint8)
    stored[:10, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "images/10.png", exif=exif)
    image, _ = train(tmp_path).sample(0)
    upright = turned and orientation == 6  # half a turn leaves the size, which then tells nothing
    np.testing.assert_array_equal(np.asarray(image), np.rot90(stored, -1) if upright else stored)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1"])
def test_images_of_all_colours_become_rgb(tmp_path: Path, mode: str) -> None:
    content, suffix = objects(), "jpg" if mode == "CMYK" else "png"
    content["images"][1]["file_name"] = f"10.{suffix}"
    write_coco(tmp_path, content)
    file = tmp_path / f"images/10.{suffix}"
    Image.open(file).convert(mode).save(file)
    image, _ = train(tmp_path).sample(0)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert np.asarray(image).std() > 20


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path)
    Image.new("RGB", (41, 30)).save(tmp_path / "images/10.png")
    with pytest.raises(UserError, match=r"images/10\.png has 41 x 30 pixels, .*instances\.json says 40 x 30"):
        train(tmp_path).sample(0)


def masks(root: Path, **options: Any) -> Any:
    return open_masks(str(root), **{"choice": AS_IT_IS, **options})


def test_masks_are_read_with_their_classes(tmp_path: Path) -> None:
    write_masks(tmp_path)
    write_masks(tmp_path, images="val/images", masks="val/masks", count=2)
    (tmp_path / "classes.txt").write_text("sky\nsea\nland\n")
    data = masks(tmp_path)
    assert (data.classes, data.category_ids, len(data.train), len(data.val)) == (
        ("sky", "sea", "land"),
        (0, 1, 2),
        3,
        2,
    )
    image, labels = data.train.sample(1)
    np.testing.assert_array_equal(labels, Image.open(tmp_path / "train/masks/1.png"))
    assert (image.height, image.width) == labels.shape == (21, 30)
    (tmp_path / "classes.txt").write_text("2: land\n0: sky\n")
    data = masks(tmp_path, ignored=[1])
    ids, labels = np.asarray(Image.open(tmp_path / "train/masks/1.png")), data.train.sample(1)[1]
    assert (data.classes, data.category_ids) == (("sky", "land"), (0, 2))
    np.testing.assert_array_equal(labels, np.select([ids == 0, ids == 2], [0, 1], 255))
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "classes.json").write_text('{"0": "sky", "2": "land"}')
    assert masks(tmp_path, ignored=[1]).classes == ("sky", "land")
    assert masks(tmp_path, ignored=[1]).fingerprint() == data.fingerprint()


def test_masks_of_16_bits_and_of_palettes_are_ids(tmp_path: Path) -> None:
    write_masks(tmp_path)
    (tmp_path / "classes.txt").write_text("0: a\n1: b\n2: c\n3000: d\n")
    ids = np.array(Image.open(tmp_path / "train/masks/0.png"))
    palette = Image.fromarray(ids, "P")
    palette.putpalette([255 - value // 3 for value in range(768)])
    palette.save(tmp_path / "train/masks/0.png")
    deep = np.array(Image.open(tmp_path / "train/masks/1.png")).astype(np.uint16)
    deep[5] = 3000
    Image.fromarray(deep).save(tmp_path / "train/masks/1.png")
    split = masks(tmp_path).train
    np.testing.assert_array_equal(split.sample(0)[1], ids)
    np.testing.assert_array_equal(split.sample(1)[1], np.where(deep == 3000, 3, deep))


def test_ade20k_has_150_classes_from_1(tmp_path: Path) -> None:
    for name in ("training", "validation"):
        write_masks(tmp_path, images=f"images/{name}", masks=f"annotations/{name}")
    data = masks(tmp_path)
    assert (len(data.classes), len(set(CLASSES)), CLASSES[0], CLASSES[12], CLASSES[149]) == (
        150, 150, "wall", "person", "flag",
    )  # fmt: skip
    assert (data.category_ids[:2], data.val is data.test) == ((1, 2), True)
    ids = np.asarray(Image.open(tmp_path / "annotations/validation/0.png"))
    np.testing.assert_array_equal(data.val.sample(0)[1], np.select([ids == 1, ids == 2], [0, 1], 255))


def broken(root: Path, name: str) -> Path:
    """Write a set of masks with one thing wrong."""
    write_masks(root)
    (root / "classes.txt").write_text("a\nb\nc\n")
    mask, image = root / "train/masks/1.png", root / "train/images/1.png"
    if name == "id":
        ids = np.array(Image.open(mask))
        ids[3, :4] = 77
        Image.fromarray(ids).save(mask)
    elif name == "size":
        Image.new("L", (30, 22)).save(mask)
    elif name == "colours":
        Image.new("RGB", (30, 21)).save(mask)
    elif name == "no mask":
        mask.unlink()
    elif name == "no image":
        image.unlink()
    elif name == "truncated":
        mask.write_bytes(mask.read_bytes()[:60])
    elif name == "two images":
        Image.new("RGB", (30, 21)).save(image.with_suffix(".jpg"))
    elif name == "no masks":
        for file in (root / "train/masks").iterdir():
            file.unlink()
        for file in (root / "train/images").iterdir():
            file.unlink()
    elif name == "no list":
        (root / "classes.txt").unlink()
    else:
        (root / "classes.txt").write_text(
            {"empty list": "\n", "name twice": "a\na\n", "id twice": "1: a\n1: b\n", "too large": "70000: a"}[name]
        )
    return root


BROKEN = {
    "id": r"masks/1\.png has the id 77 at 4 pixels, which is no class of the list .*--data\.ignored 77",
    "size": r"images/1\.png has 30 x 21 pixels, its mask .*masks/1\.png says 30 x 22",
    "colours": r"masks/1\.png is of mode RGB: a mask has one channel",
    "no mask": r"images/1\.png has no mask in .*masks \(1 of 3",
    "no image": r"masks/1\.png has no image in .*images \(1 of 3",
    "truncated": r"masks/1\.png cannot be read as an image .*--skip-bad-images",
    "two images": r"images/1\.png and .*images/1\.jpg have the same name",
    "no masks": r"train/images has no images",
    "no list": r"has no classes\.txt",
    "empty list": r"classes\.txt names no class",
    "name twice": r"classes\.txt names the class 'a' twice",
    "id twice": r"classes\.txt cannot be read \(an id is there twice\)",
    "too large": r"the id 70000 is none that a mask can have",
}


@pytest.mark.parametrize("name", BROKEN)
def test_masks_that_do_not_fit_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=BROKEN[name]) as error:  # some are seen as they are opened
        masks(broken(tmp_path, name)).train.sample(1)
    assert "\n" not in str(error.value)


def test_sets_of_another_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no train/images and train/masks, no images/training, and no annotations"):
        masks(tmp_path)
    write_masks(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match=r"--data\.background is for outlines"):
        masks(tmp_path, background=True)
    with pytest.raises(UserError, match=r"--data\.min_side and --data\.limit are for outlines"):
        masks(tmp_path, choice=Choice(short=1, long=1, limit=2))


def test_outlines_are_filled_smaller_ones_on_top(tmp_path: Path) -> None:
    content = objects()
    large = annotation(50, 10, 2, bbox=[0, 0, 20, 20], area=400, segmentation=[[0, 0, 20, 0, 20, 20, 0, 20]])
    tiny = annotation(51, 10, 5, bbox=[1, 1, 2, 2], area=4, segmentation=[[1, 1, 3, 1, 3, 3, 1, 3]])
    content["annotations"] = [content["annotations"][0], large, tiny]
    write_coco(tmp_path, content)
    choice = Choice(short=30, long=100, min_side=3)
    expected = np.full((30, 40), 255)
    expected[:20, :20] = 0  # early
    expected[6:16, 4:14] = 2  # late
    expected[1:3, 1:3] = 255  # too small
    found = masks(tmp_path, choice=choice)
    np.testing.assert_array_equal(found.train.sample(0)[1], expected)
    assert found.classes == ("early", "never", "late")
    assert len(remarks(found)) == 1
    whole = masks(tmp_path, background=True)
    assert whole.classes == ("background", "early", "never", "late")
    expected[1:3, 1:3] = 1  # never
    np.testing.assert_array_equal(whole.train.sample(0)[1], np.where(expected == 255, 0, expected + 1))
