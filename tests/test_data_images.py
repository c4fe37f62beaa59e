"""Reading image files: what training and prediction see of each kind, and what is refused."""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpvg.data.images import BadImageError, find_images, read_header, read_image, resizing_in_words, to_pixels
from mpvg.errors import UserError

UPRIGHT: dict[int, Any] = {  # by EXIF orientation
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).T,
    8: np.rot90,
}


def ramp(height: int = 4, width: int = 6) -> Any:
    return (np.arange(height * width, dtype=np.uint8) * 7).reshape(height, width)


def palette(*, transparent: bool) -> Image.Image:
    image = Image.new("P", (6, 4), 3)
    image.putpalette([0, 0, 0] * 3 + [200, 10, 0])
    if transparent:
        image.info["transparency"] = b"\xff\x80\xff\x00"  # more than one transparent colour, of which Pillow warns
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "grey", "colour"),
    [
        (Image.new("1", (6, 4), 1), ".png", 255, (255, 255, 255)),
        (Image.new("L", (6, 4), 100), ".png", 100, (100, 100, 100)),
        (Image.new("LA", (6, 4), (100, 0)), ".png", 100, (100, 100, 100)),
        (Image.new("RGB", (6, 4), (200, 10, 0)), ".webp", 66, (200, 10, 0)),
        (Image.new("RGBA", (6, 4), (200, 10, 0, 0)), ".png", 66, (200, 10, 0)),
        (palette(transparent=False), ".gif", 66, (200, 10, 0)),
        (palette(transparent=True), ".png", 66, (200, 10, 0)),
        (Image.new("CMYK", (6, 4), (0, 255, 255, 0)), ".tif", 76, (255, 0, 0)),
        (Image.fromarray(np.full((4, 6), 257 * 100, np.uint16)), ".png", 100, (100, 100, 100)),
        (Image.fromarray(np.full((4, 6), 300, np.uint16)), ".tif", 1, (1, 1, 1)),  # dark, and it stays dark
        (Image.new("I", (6, 4), 257 * 100), ".tif", 100, (100, 100, 100)),
    ],
)
@pytest.mark.filterwarnings("error")
def test_modes(tmp_path: Path, image: Image.Image, suffix: str, grey: int, colour: tuple[int, ...]) -> None:
    path = tmp_path / f"image{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    image.save(path, **options)
    for channels, expected in ((1, (grey,)), (3, colour)):
        pixels = read_image(path, size=None, channels=channels)
        assert pixels.shape == (4, 6, channels)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, np.broadcast_to(expected, (4, 6, channels)))
    assert read_header(path) == ((4, 6), image.mode in ("1", "L", "LA", "I", "I;16"))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".png", {}), (".tif", {}), (".tiff", {"compression": "tiff_lzw"}), (".webp", {"lossless": True}), (".jpg", {})],
)
def test_images_are_turned_upright(tmp_path: Path, suffix: str, options: dict[str, Any], orientation: int) -> None:
    path = tmp_path / f"image{suffix}"
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(ramp()).save(path, exif=exif, **options)
    expected = UPRIGHT[orientation](ramp())
    pixels = read_image(path, size=None, channels=1)[..., 0]
    assert read_header(path).size == pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= (10 if suffix == ".jpg" else 0)
    resized = read_image(path, size=(6, 4), channels=1)[..., 0]
    if expected.shape == (6, 4):  # turned before it is resized
        np.testing.assert_array_equal(resized, pixels)


def test_orientation_behind_the_pixels(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(ramp()).save(path, exif=exif)
    content = path.read_bytes()
    start, end = content.index(b"eXIf") - 4, content.index(b"IDAT") - 4
    tail = content.index(b"IEND") - 4
    path.write_bytes(content[:start] + content[end:tail] + content[start:end] + content[tail:])
    np.testing.assert_array_equal(read_image(path, size=None, channels=1)[..., 0], np.rot90(ramp(), -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", {0x112: 9}])
def test_damaged_exif_does_no_harm(tmp_path: Path, exif: Any) -> None:
    if isinstance(exif, dict):  # no such orientation
        content = Image.Exif()
        content.update(exif)
        exif = content
    Image.fromarray(ramp()).save(tmp_path / "image.png", exif=exif)
    assert read_header(tmp_path / "image.png").size == (4, 6)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", size=None, channels=1)[..., 0], ramp())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (32, 20), (512, 512)])
def test_resizing_is_bicubic(tmp_path: Path, size: tuple[int, int], channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    picture = Image.fromarray(image).convert("L" if channels == 1 else "RGB")
    expected = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC)).reshape(*size, channels)
    pixels = read_image(tmp_path / "image.png", size=size, channels=channels)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.flags.writeable  # which PyTorch wants


@pytest.mark.parametrize("kind", ["array", "column", "picture", "turned"])
def test_images_in_memory_are_read_as_files_are(tmp_path: Path, kind: str) -> None:
    grey = kind != "turned"
    image: Any = ramp() if grey else np.repeat(ramp()[..., None], 3, axis=2)
    Image.fromarray(image).save(tmp_path / "image.png")
    if kind == "column":
        image = image[..., None]
    elif kind != "array":
        exif = Image.Exif()
        exif[0x112] = 8 if kind == "turned" else 1
        Image.fromarray(image).save(tmp_path / "image.png", exif=exif)
        image = Image.open(tmp_path / "image.png")
    for channels in (1, 3):
        for size in (None, (5, 3)):
            expected = read_image(tmp_path / "image.png", size=size, channels=channels)
            np.testing.assert_array_equal(to_pixels(image, size=size, channels=channels), expected)
    if isinstance(image, Image.Image):
        assert image.size == (6, 4)  # the caller's is left as it was


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 6)), r"float64 \(4, 6\)"),
        (np.zeros((4, 6, 4), np.uint8), r"uint8 \(4, 6, 4\)"),
        (np.zeros((4, 0), np.uint8), r"uint8 \(4, 0\)"),
        (np.zeros(4, np.uint8), r"uint8 \(4,\)"),
        (np.zeros((1, 4, 6, 3), np.uint8), r"uint8 \(1, 4, 6, 3\)"),
        (Image.new("F", (6, 4)), r"mode F cannot be read \(floating-point pixels"),
    ],
)
def test_images_in_memory_of_another_kind(image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_pixels(image, size=None, channels=3)
    with pytest.raises(UserError, match="channels 4: images are read with 1"):
        to_pixels(ramp(), size=None, channels=4)


def bad_image(folder: Path, kind: str) -> Path:
    """Write an image file that cannot be used; those named "late" have a header that can be read."""
    path = folder / f"{kind}.png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no image")
    elif kind == "float":
        Image.new("F", (50, 50)).save(path, "TIFF")
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        noise.save(path)
        header = b"IHDR" + struct.pack(">II", 30000, 30000) + path.read_bytes()[24:29]
        path.write_bytes(
            path.read_bytes()[:12] + header + struct.pack(">I", zlib.crc32(header)) + path.read_bytes()[33:]
        )
    elif kind.startswith("late"):
        noise.save(path, kind.split("-")[1])
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    else:
        assert kind == "missing"
    return path


BAD = {
    "empty": "empty, or no image of a known format",
    "text": "empty, or no image of a known format",
    "float": "floating-point pixels",
    "folder": "Is a directory",
    "missing": "No such file",
    "bomb": "exceeds limit of",
    "late-PNG": "truncated",
    "late-JPEG": "truncated",
    "late-BMP": "truncated",
    "late-TIFF": "",
    "late-PPM": "",
}


@pytest.mark.parametrize(("kind", "reason"), BAD.items())
def test_bad_files(tmp_path: Path, kind: str, reason: str) -> None:
    path = bad_image(tmp_path, kind)
    with pytest.raises(BadImageError, match=rf"{kind}\.png cannot be read as an image \(.*{reason}.*repair") as caught:
        read_image(path, size=(8, 8), channels=3)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    if kind.startswith("late") and kind != "late-TIFF":
        assert read_header(path).size == (50, 50)
    else:
        with pytest.raises(BadImageError):
            read_header(path)


def test_truncated_image_in_memory(tmp_path: Path) -> None:
    with (
        Image.open(bad_image(tmp_path, "late-PNG")) as image,
        pytest.raises(UserError, match=r"mode RGB cannot be read \(.*truncated"),
    ):
        to_pixels(image, size=None, channels=3)


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c/d.tiff", "c/a.gif", "notes.txt", ".hidden.png", ".copies/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    expected = [tmp_path / name for name in ("a.jpg", "b.PNG", "c/a.gif", "c/d.tiff")]
    assert find_images(tmp_path) == expected
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # whoever names a file means it


@pytest.mark.parametrize("name", ["missing", "nul\0byte", "x" * 5000])
def test_find_images_in_what_does_not_exist(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read .*name an image or a folder of images"):
        find_images(tmp_path / name)


def test_find_images_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds no images \(\.bmp, .*\.webp\)"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("found", "size", "words"),
    [
        ([(8, 8)], (8, 8), ""),
        ([(28, 28)], (32, 32), "images of 28 x 28 pixels, resized to 32 x 32"),
        (
            [(480, 640), (31, 20), (50, 50)],
            (32, 40),
            "images of 3 sizes, 20 x 31 to 640 x 480 pixels, resized to 40 x 32",
        ),
    ],
)
def test_resizing_in_words(found: list[tuple[int, int]], size: tuple[int, int], words: str) -> None:
    assert resizing_in_words(found, size) == words
