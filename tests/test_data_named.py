"""torchvision's sets, each from a tiny copy of its layout: training images of value 10, validation 20, test 30."""

from __future__ import annotations

import bz2
import inspect
import json
import pickle
import struct
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from mpvg.data.named import NAMED
from mpvg.data.sources import load_data
from mpvg.errors import UserError
from test_data import NO_VALIDATION, tree

VALUES = {"train": 10, "val": 20, "test": 30}


def put(path: Path, value: int, *, side: int = 8, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode == "L" else (value,) * 3
    Image.new(mode, (side, side), colour).save(path, "PNG")  # whatever its suffix, so that the value is exact


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def idx(array: Any) -> bytes:
    """The format of MNIST's files."""
    kind = {"uint8": 8, "int32": 12}[str(array.dtype)]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def flat(value: int, count: int, *shape: int) -> Any:
    return np.full((count, *shape), value, np.uint8)


def mnist(root: Path, *, name: str = "MNIST", prefix: tuple[str, str] = ("train", "t10k"), classes: int = 10) -> None:
    for part, value in zip(prefix, (10, 30), strict=True):
        write(root / name / "raw" / f"{part}-images-idx3-ubyte", idx(flat(value, classes, 28, 28)))
        write(root / name / "raw" / f"{part}-labels-idx1-ubyte", idx(np.arange(classes, dtype=np.uint8)))


def fashion_mnist(root: Path) -> None:
    mnist(root, name="FashionMNIST")


def kmnist(root: Path) -> None:
    mnist(root, name="KMNIST")


def emnist(root: Path) -> None:
    mnist(root, name="EMNIST", prefix=("emnist-balanced-train", "emnist-balanced-test"), classes=47)


def qmnist(root: Path) -> None:
    for part, value in (("train", 10), ("test", 30)):
        labels = np.arange(10, dtype=np.int32)[:, None].repeat(8, axis=1)
        write(root / "QMNIST" / "raw" / f"qmnist-{part}-images-idx3-ubyte", idx(flat(value, 10, 28, 28)))
        write(root / "QMNIST" / "raw" / f"qmnist-{part}-labels-idx2-int", idx(labels))


def usps(root: Path) -> None:
    for name, value in (("usps.bz2", 10), ("usps.t.bz2", 30)):
        pixels = " ".join(f"{place}:{(value + 0.5) / 255 * 2 - 1}" for place in range(1, 257))
        lines = "".join(f"{label} {pixels}\n" for label in range(1, 11))
        write(root / name, bz2.compress(lines.encode()))


def cifar10(root: Path) -> None:
    for part in range(1, 7):
        labels = [2 * part - 2, 2 * part - 1] if part < 6 else list(range(10))
        content = {"data": flat(10 if part < 6 else 30, len(labels), 3072), "labels": labels}
        name = f"data_batch_{part}" if part < 6 else "test_batch"
        write(root / "cifar-10-batches-py" / name, pickle.dumps(content))
    write(root / "cifar-10-batches-py" / "batches.meta", pickle.dumps({"label_names": list("abcdefghij")}))


def cifar100(root: Path) -> None:
    for part, value in (("train", 10), ("test", 30)):
        content = {"data": flat(value, 100, 3072), "fine_labels": list(range(100))}
        write(root / "cifar-100-python" / part, pickle.dumps(content))
    names = [f"class {label}" for label in range(100)]
    write(root / "cifar-100-python" / "meta", pickle.dumps({"fine_label_names": names}))


def svhn(root: Path) -> None:
    from scipy.io import savemat

    for part, value in (("train", 10), ("test", 30)):
        labels = np.arange(1, 11, dtype=np.uint8)[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": flat(value, 32, 32, 3, 10), "y": labels})


def stl10(root: Path) -> None:
    for part, value in (("train", 10), ("test", 30)):
        write(root / "stl10_binary" / f"{part}_X.bin", flat(value, 10, 3, 96, 96).tobytes())
        write(root / "stl10_binary" / f"{part}_y.bin", bytes(range(1, 11)))
    write(root / "stl10_binary/unlabeled_X.bin", b"")


def pcam(root: Path) -> None:
    for part, value in (("train", 10), ("valid", 20), ("test", 30)):
        for key, array in (("x", flat(value, 6, 96, 96, 3)), ("y", np.arange(6).reshape(6, 1, 1, 1) % 2)):
            path = root / "pcam" / f"camelyonpatch_level_2_split_{part}_{key}.h5"
            write(path, pickle.dumps({key: array}))


def gtsrb(root: Path) -> None:
    rows = ["Filename;Width;ClassId"]
    for label in range(5):
        put(root / "gtsrb/GTSRB/Training" / f"{label:05}" / "0.ppm", 10)
        put(root / "gtsrb/GTSRB/Final_Test/Images" / f"{label}.ppm", 30)
        rows.append(f"{label}.ppm;8;{label}")
    write(root / "gtsrb/GT-final_test.csv", "\n".join(rows))


def food101(root: Path) -> None:
    for part, value in (("train", 10), ("test", 30)):
        names = [f"{name}/{part}{index}" for name in ("pie", "soup") for index in range(4)]
        for name in names:
            put(root / "food-101/images" / f"{name}.jpg", value)
        listed = {food: [name for name in names if name.startswith(food)] for food in ("pie", "soup")}
        write(root / "food-101/meta" / f"{part}.json", json.dumps(listed))


def flowers102(root: Path) -> None:
    from scipy.io import savemat

    for image in range(1, 307):
        put(root / "flowers-102/jpg" / f"image_{image:05}.jpg", (10, 20, 30)[image % 3])
    numbers = np.arange(1, 307)
    parts = {name: numbers[numbers % 3 == part] for part, name in enumerate(("trnid", "valid", "tstid"))}
    savemat(root / "flowers-102/setid.mat", parts)
    savemat(root / "flowers-102/imagelabels.mat", {"labels": (numbers - 1) // 3 + 1})


def pets(root: Path) -> None:
    for part, value in (("trainval", 10), ("test", 30)):
        names = [f"{breed}_{part}{index}" for breed in ("Abyssinian", "great_pyrenees") for index in range(4)]
        for name in names:
            put(root / "oxford-iiit-pet/images" / f"{name}.jpg", value, mode="RGB")
        lines = "".join(f"{name} {1 + name.startswith('great')} 1 1\n" for name in names)
        write(root / "oxford-iiit-pet/annotations" / f"{part}.txt", lines)


def dtd(root: Path) -> None:
    for part, value in VALUES.items():
        names = [f"{texture}/{texture}_{part}.jpg" for texture in ("banded", "dotted", "woven")]
        for name in names:
            put(root / "dtd/dtd/images" / name, value)
        write(root / "dtd/dtd/labels" / f"{part}1.txt", "\n".join(names))


def aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b/data"
    write(folder / "variants.txt", "707-320\n727-200\n")
    for part, value in VALUES.items():
        for index in range(2):
            put(folder / "images" / f"{value}{index}.jpg", value)
        write(folder / f"images_variant_{part}.txt", f"{value}0 707-320\n{value}1 727-200\n")


def imagenette(root: Path) -> None:
    for part, value in (("train", 10), ("val", 30)):
        for wordnet in ("n01440764", "n02102040"):
            for index in range(4):
                put(root / "imagenette2" / part / wordnet / f"{index}.JPEG", value)


def sst2(root: Path) -> None:
    for part, value in (("train", 10), ("valid", 20), ("test", 30)):
        for name in ("negative", "positive"):
            put(root / "rendered-sst2" / part / name / "0.png", value)


MAKE: dict[str, Callable[[Path], None]] = {
    "MNIST": mnist, "FashionMNIST": fashion_mnist, "KMNIST": kmnist, "QMNIST": qmnist, "EMNIST": emnist, "USPS": usps,
    "CIFAR10": cifar10, "CIFAR100": cifar100, "SVHN": svhn, "STL10": stl10, "PCAM": pcam, "GTSRB": gtsrb,
    "Food101": food101, "Flowers102": flowers102, "OxfordIIITPet": pets, "DTD": dtd, "FGVCAircraft": aircraft,
    "Imagenette": imagenette, "RenderedSST2": sst2,
}  # fmt: skip
CLASSES = {
    "MNIST": "0 - zero", "FashionMNIST": "T-shirt/top", "KMNIST": "o", "QMNIST": "0 - zero", "EMNIST": "0", "USPS": "0",
    "CIFAR10": "a", "CIFAR100": "class 0", "SVHN": "0", "STL10": "0", "PCAM": "0", "GTSRB": "0", "Food101": "pie",
    "Flowers102": getattr(datasets.Flowers102, "classes", "0")[0],  # torchvision 0.21 does not name them
    "OxfordIIITPet": "Abyssinian", "DTD": "banded", "FGVCAircraft": "707-320",
    "Imagenette": "tench", "RenderedSST2": "negative",
}  # fmt: skip


class FakeH5(dict[str, Any]):
    """As much of h5py.File as torchvision uses."""

    def __init__(self, path: Path) -> None:
        super().__init__(pickle.loads(path.read_bytes()))

    def __enter__(self) -> FakeH5:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(autouse=True)
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Skip torchvision's checksums, stand in for h5py, and see that nothing is ever downloaded."""
    for module in ("cifar", "svhn", "stl10", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5: Path(path).is_file())
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=FakeH5))
    asked: list[Any] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **keywords: asked.append(args))
    yield
    assert asked == []


@pytest.mark.parametrize("name", NAMED)
def test_the_table_names_keywords_of_the_constructor(name: str) -> None:
    classes = inspect.getmro(getattr(datasets, name))
    parameters = {key for cls in classes if "__init__" in vars(cls) for key in inspect.signature(cls).parameters}
    for keywords in NAMED[name].splits.values():
        assert {"root", "download", *keywords} <= parameters
    assert list(NAMED[name].splits) in (["train", "test"], ["train", "val", "test"])


@pytest.mark.parametrize("name", NAMED)
def test_each_set(tmp_path: Path, name: str) -> None:
    MAKE[name](tmp_path)
    data = load_data(f"{name.lower()}:{tmp_path}")
    assert data.name == name
    assert np.unique(data.train.images).tolist() == [10]
    assert np.unique(data.test.images).tolist() == [30]
    if "val" in NAMED[name].splits:
        assert data.val is not None
        assert np.unique(data.val.images).tolist() == [20]
        assert data.note.endswith("test is split='test'.")
    else:
        assert data.val is None
        assert data.note.endswith(f"; {NO_VALIDATION}")
    assert data.classes[0] == CLASSES[name]
    assert len(set(data.classes)) == len(data.classes)
    labels = range(len(data.classes))
    assert sorted(set(data.train.labels.tolist())) == sorted(set(data.test.labels.tolist())) == list(labels)
    small = load_data(f"{name}:{tmp_path}", img_size=9)
    assert small.image_size == (9, 9)
    assert "pixels, resized to 9 x 9" in small.note


def test_labels_go_with_their_images(tmp_path: Path) -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    labels = np.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7], np.uint8)
    for part in ("train", "t10k"):
        write(tmp_path / "MNIST/raw" / f"{part}-images-idx3-ubyte", idx(images))
        write(tmp_path / "MNIST/raw" / f"{part}-labels-idx1-ubyte", idx(labels))
    data = load_data(f"MNIST:{tmp_path}")
    assert data.train.images.shape == (10, 28, 28, 1)
    assert data.train.images[:, 5, 5, 0].tolist() == list(range(10))
    assert data.train.labels.tolist() == data.test.labels.tolist() == labels.tolist()
    assert data.note == f"MNIST as torchvision reads it: train is train=True, test is train=False; {NO_VALIDATION}"


@pytest.mark.parametrize("name", NAMED)
def test_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"torchvision cannot read {name} in {tmp_path} \(.+\): download") as caught:
        load_data(f"{name}:{tmp_path}")
    assert "\n" not in str(caught.value)
    command = str(caught.value).partition('python -c "')[2].removesuffix('".')
    called: list[Any] = []
    statement = command.partition("; ")[2]
    eval(statement, {name: lambda *args, **keywords: called.append((args, keywords))})
    assert called == [((str(tmp_path),), {**NAMED[name].splits["train"], "download": True})]
    assert command.startswith(f"from torchvision.datasets import {name}; ")


@pytest.mark.parametrize(("name", "package"), [("PCAM", "h5py"), ("SVHN", "scipy.io")])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    MAKE[name](tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"cannot read {name} in .*{package}.*: install what it asks for\.$"):
        load_data(f"{name}:{tmp_path}")


def test_unknown_names() -> None:
    with pytest.raises(
        UserError, match=r"no set is called 'FashonMNIST' \(did you mean 'FashionMNIST'\?\): use MNIST,"
    ):
        load_data("FashonMNIST:/data")
    with pytest.raises(UserError, match=r"no set is called 'cifar1000' \(did you mean 'cifar100'\?\)"):
        load_data("cifar1000:/data")
    with pytest.raises(UserError, match=r"'cifr10' is no path .*did you mean 'cifar10'"):
        load_data("cifr10")


@pytest.mark.parametrize("place", [".", "data"])
@pytest.mark.parametrize("source", ["MNIST", "mnist", "MNIST:"])
def test_a_bare_name_looks_here_and_in_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"cannot read MNIST in \. \(.*\) or data \(.*\): download"):
        load_data(source)
    mnist(tmp_path / place)
    assert load_data(source).name == "MNIST"


def test_a_folder_of_ones_own_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mnist(tmp_path / "data")
    tree(tmp_path / "mnist")
    assert load_data("mnist").classes == ("cat", "dog")
    assert load_data("MNIST").name == "MNIST"


def test_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    gtsrb(tmp_path / "sets")
    assert load_data("GTSRB:~/sets").name == "GTSRB"


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST", "QMNIST", "CIFAR10", "CIFAR100"])
def test_a_folder_with_one_set_is_recognised(tmp_path: Path, name: str) -> None:
    MAKE[name](tmp_path)
    (tmp_path / "other").mkdir()
    assert load_data(str(tmp_path)).name == name
    second = "KMNIST" if name != "KMNIST" else "MNIST"
    MAKE[second](tmp_path)
    with pytest.raises(UserError, match=rf"holds \w+ and \w+: name one, as in --data \w+:{tmp_path}"):
        load_data(str(tmp_path))
    assert load_data(f"{second}:{tmp_path}").name == second


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"", r"cannot read MNIST in .*download"),
        ("train-images-idx3-ubyte", idx(flat(1, 10, 28, 28))[:500], r"cannot read MNIST in .*download"),
        ("train-labels-idx1-ubyte", idx(np.arange(9, dtype=np.uint8)), "10 images and 9 labels in train"),
        ("t10k-labels-idx1-ubyte", idx(np.arange(12, dtype=np.uint8)), "10 images and 12 labels in test"),
        ("t10k-labels-idx1-ubyte", idx(np.arange(1, 11, dtype=np.uint8)), "test has a label 10, of 10 classes from 0"),
        ("train-labels-idx1-ubyte", idx(flat(3, 10)), "train has no image of class 0"),
    ],
)
def test_damaged_files(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    mnist(tmp_path)
    write(tmp_path / "MNIST/raw" / file, content)
    with pytest.raises(UserError, match=message):
        load_data(f"MNIST:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("GTSRB", "gtsrb/GTSRB/Training/00001/1.ppm"),
        ("Imagenette", "imagenette2/train/n02102040/7.JPEG"),
        ("OxfordIIITPet", "oxford-iiit-pet/images/Abyssinian_test2.jpg"),
        ("Food101", "food-101/images/soup/train1.jpg"),
    ],
)
def test_bad_image_files(tmp_path: Path, name: str, file: str) -> None:
    MAKE[name](tmp_path)
    write(tmp_path / file, b"no image")
    with pytest.raises(UserError, match=rf"{Path(file).name} cannot be read as an image .*--skip-bad-images"):
        load_data(f"{name}:{tmp_path}")
    data = load_data(f"{name}:{tmp_path}", skip_bad_images=True)
    assert data.skipped == (f"{tmp_path / file}: empty, or no image of a known format",)
    assert np.unique(data.train.images).tolist() == [10]
    assert len(data.train.images) == len(data.train.labels)


def test_damaged_files_that_are_noticed_late(tmp_path: Path) -> None:
    pcam(tmp_path)
    file = tmp_path / "pcam" / "camelyonpatch_level_2_split_valid_y.h5"
    write(file, pickle.dumps({"y": np.zeros((4, 1, 1, 1), int)}))
    with pytest.raises(
        UserError, match=r"PCAM in .*: val: image 4 cannot be read \(.*out of bounds.*download it again"
    ):
        load_data(f"PCAM:{tmp_path}")


def test_image_files_of_several_sizes(tmp_path: Path) -> None:
    gtsrb(tmp_path)
    put(tmp_path / "gtsrb/GTSRB/Training/00001/1.ppm", 10, side=15)
    with pytest.raises(UserError, match=r"GTSRB in .*: images of 2 sizes \(mostly 8 x 8\)"):
        load_data(f"GTSRB:{tmp_path}")
    data = load_data(f"GTSRB:{tmp_path}", mixed_size=(12, 10))
    assert data.train.images.shape == (6, 12, 10, 1)
    assert "; images of 2 sizes, 8 x 8 to 15 x 15 pixels, resized to 10 x 12;" in data.note
    assert data.class_counts == (1, 2, 1, 1, 1)


def test_a_class_of_which_no_image_file_can_be_read(tmp_path: Path) -> None:
    gtsrb(tmp_path)
    write(tmp_path / "gtsrb/GTSRB/Training/00003/0.ppm", b"no image")
    with pytest.raises(UserError, match=r"GTSRB in .*: class '3' has no image in train that can be read \(1 cannot, "):
        load_data(f"GTSRB:{tmp_path}", skip_bad_images=True)
