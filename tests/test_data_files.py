"""Data from files: idx, .npz and image folders, whole and damaged."""

import gzip
import importlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from normwise.data import Arrays, load
from normwise.data.files import read_idx
from normwise.data.sources import DEBIAN_FOLDER, FASHION_FILES
from normwise.errors import UsageError

needs_pillow = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="needs Pillow")


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def arrays(samples: Any) -> Arrays:
    assert isinstance(samples, Arrays)
    return samples


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A folder with twelve tiny images, as idx files: two gzipped, two plain."""
    rng = np.random.default_rng(0)
    for name in FASHION_FILES:
        shape = (12, 28, 28) if "images" in name else (12,)
        content = idx(rng.integers(0, 256 if "images" in name else 10, shape, dtype=np.uint8))
        if name.startswith("train"):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (tmp_path / name).write_bytes(content)
    return tmp_path


class TestIdx:
    def test_what_was_written_is_read(self, tmp_path: Path) -> None:
        values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        (tmp_path / "a").write_bytes(idx(values))
        assert np.array_equal(read_idx(tmp_path / "a").numpy(), values)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is no idx file of bytes: it must begin with 00 00 08, got ''"),
            (b"PK\3\4junk", "must begin with 00 00 08, got '50 4b 03'"),
            (bytes([0, 0, 13, 1, 0, 0, 0, 0]), "got '00 00 0d'"),
            (
                idx(np.zeros((2, 3), np.uint8))[:-1],
                r"is damaged: it declares shape \(2, 3\) but holds 5 bytes",
            ),
            (bytes([0, 0, 8, 3, 0, 0]), "is no idx file"),
        ],
    )
    def test_what_is_no_idx_file(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_idx(tmp_path / "a")

    def test_damaged_gzip(self, tmp_path: Path) -> None:
        whole = gzip.compress(idx(np.zeros((20, 3), np.uint8)))
        for name, content in (
            ("cut", whole[:-9]),
            ("other", b"hello"),
            ("flipped", whole[:12] + b"\xff" * 9),
        ):
            path = tmp_path / f"{name}.gz"
            path.write_bytes(content)
            with pytest.raises(UsageError, match=f"cannot read .*{name}.gz"):
                read_idx(path)


class TestFashion:
    def test_folder_given(self, fashion: Path) -> None:
        data = load(f"fashion-mnist:{fashion}")
        assert data.judge is not None
        assert arrays(data.train).inputs.shape == (12, 1, 28, 28)
        pixels = read_idx(fashion / "train-images-idx3-ubyte.gz")
        torch.testing.assert_close(arrays(data.train).inputs[3, 0], (pixels[3] / 255 - 0.286) / 0.353)

    def test_folder_of_the_variable(self, fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NORMWISE_FASHION_MNIST", str(fashion))
        assert len(load("fashion-mnist").train) == 12

    def test_lacking_files_are_named(self, fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (fashion / FASHION_FILES[3]).unlink()
        with pytest.raises(UsageError, match=r"the folder given, .*, lacks t10k-labels-idx1-ubyte \(plain or .gz\)"):
            load(f"fashion-mnist:{fashion}")
        monkeypatch.setenv("NORMWISE_FASHION_MNIST", str(fashion))
        with pytest.raises(UsageError, match=r"the folder of NORMWISE_FASHION_MNIST, .*, lacks t10k-labels"):
            load("fashion-mnist")

    def test_labels_of_another_set(self, fashion: Path) -> None:
        (fashion / FASHION_FILES[3]).write_bytes(idx(np.zeros(5, np.uint8)))
        with pytest.raises(UsageError, match=r"images \(12, 28, 28\) and labels \(5,\) do not match"):
            load(f"fashion-mnist:{fashion}")

    def test_nowhere_to_be_found(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("NORMWISE_FASHION_MNIST", raising=False)
        monkeypatch.setattr("normwise.data.sources.DEBIAN_FOLDER", tmp_path / "none")
        monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
        with pytest.raises(
            UsageError, match="not on this machine: apt install dataset-fashion-mnist, or name a folder"
        ):
            load("fashion-mnist")

    def test_torchvision_downloads(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fashion: Path) -> None:
        def download(root: str, download: bool) -> None:
            assert download
            raw = Path(root) / "FashionMNIST" / "raw"
            raw.mkdir(parents=True)
            for path in fashion.glob("*ubyte*"):
                (raw / path.name).write_bytes(path.read_bytes())

        monkeypatch.delenv("NORMWISE_FASHION_MNIST", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("normwise.data.sources.DEBIAN_FOLDER", tmp_path / "none")
        monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "torchvision.datasets", SimpleNamespace(FashionMNIST=download))
        assert len(load("fashion-mnist").train) == 12

    @pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs the package dataset-fashion-mnist")
    def test_the_real_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NORMWISE_FASHION_MNIST", raising=False)
        data = load("fashion-mnist")
        assert [len(part) for part in data.sets] == [60000, 10000]
        assert arrays(data.judge).targets.bincount().tolist() == [1000] * 10
        assert arrays(data.train).inputs.mean().abs() < 1e-3


class TestNpz:
    def save(self, folder: Path, **content: Any) -> str:
        np.savez(folder / "own.npz", **content)
        return str(folder / "own.npz")

    def test_one_set(self, tmp_path: Path) -> None:
        x, y = np.random.default_rng(0).normal(size=(6, 2)), np.array([0, 1] * 3)
        train = arrays(load(self.save(tmp_path, x=x, y=y)).train)
        np.testing.assert_allclose(train.inputs.numpy(), x, rtol=1e-6)
        assert train.targets.tolist() == y.tolist()

    def test_separate_sets(self, tmp_path: Path) -> None:
        x, y = np.zeros((6, 2), np.float32), np.array([0, 1] * 3)
        path = self.save(tmp_path, x_train=x, y_train=y, x_test=x[:4], y_test=y[:4], x_val=x[:2], y_val=y[:2])
        data = load(path)
        assert [len(part) for part in data.sets] == [6, 2, 4]

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [((4, 9, 8), (1, 9, 8)), ((4, 9, 8, 3), (3, 9, 8)), ((4, 3, 9, 8), (3, 9, 8)), ((4, 5), (5,))],
    )
    def test_bytes_are_images(self, tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        x = np.zeros(shape, np.uint8)
        x[..., -1] = 255
        data = load(self.save(tmp_path, x=x, y=np.arange(4)))
        inputs = arrays(data.train).inputs
        assert inputs.shape[1:] == expected
        assert set(inputs.unique().tolist()) == {-2.0, 2.0}
        assert "(x / 255 - 0.5) / 0.25" in data.notes[0]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"a": [1], "x": [1]}, "must hold arrays x and y, or x_train, .*; it has a, x"),
            (
                {"x": np.array([{}, {}], dtype=object), "y": [0, 1]},
                "holds Python objects, .* only arrays of numbers",
            ),
            ({"x": ["a", "b"], "y": [0, 1]}, "own.npz: x must hold numbers, got an array of <U1"),
            ({"x": [[1.0], [np.nan]], "y": [0, 1]}, "own: x must be finite, got 1 NaN"),
            ({"x": [[1.0], [2.0]], "y": [0, 1, 2]}, r"equally long, got shapes \(2, 1\) and \(3,\)"),
            ({"x": [[1.0], [2.0]], "y": [1, 1]}, "at least two classes, got only class 1"),
            ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "the data set is empty"),
        ],
    )
    def test_bad_content(self, tmp_path: Path, content: dict, message: str) -> None:
        path = self.save(tmp_path, **content)
        with pytest.raises(UsageError, match=message):
            load(path)

    def test_a_lone_array_is_no_npz_file(self, tmp_path: Path) -> None:
        np.save(tmp_path / "lone.npy", np.zeros(3))
        (tmp_path / "lone.npy").rename(tmp_path / "own.npz")
        with pytest.raises(UsageError, match=r"must hold arrays x and y, .*; it has none"):
            load(str(tmp_path / "own.npz"))

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4" + b"x" * 40])
    def test_no_npz_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "own.npz").write_bytes(content)
        with pytest.raises(UsageError, match=r"cannot read .*own.npz"):
            load(str(tmp_path / "own.npz"))


def test_images_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.ImageOps", None)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"reading images needs Pillow: pip install 'normwise\[vision\]'"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ((), "must have one sub-folder of images per class; it has no sub-folder"),
        (("a", "b"), "a holds no image"),
    ],
)
def test_a_folder_without_images(tmp_path: Path, places: tuple[str, ...], message: str) -> None:
    for name in places:
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=message):
        load(str(tmp_path))


def test_options_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no option 'sise=3'; its options and their defaults: size=0"):
        load(f"{tmp_path}:sise=3")


@needs_pillow
class TestImages:
    def paint(self, path: Path, size: tuple[int, int] = (6, 4), colour: Any = (255, 0, 0), mode: str = "RGB") -> None:
        image = importlib.import_module("PIL.Image")

        path.parent.mkdir(parents=True, exist_ok=True)
        image.new(mode, size, colour).save(path)

    def test_one_folder_a_class(self, tmp_path: Path) -> None:
        self.paint(tmp_path / "dog" / "1.png", colour=(0, 0, 255))
        self.paint(tmp_path / "cat" / "2.png")
        self.paint(tmp_path / "cat" / "deeper" / "1.PNG")
        (tmp_path / "cat" / "notes.txt").write_text("no image")
        (tmp_path / ".hidden").mkdir()
        data = load(str(tmp_path))
        train = arrays(data.train)
        assert train.targets.tolist() == [0, 0, 1]
        assert train.inputs.shape == (3, 3, 4, 6)
        assert train.inputs[0, :, 0, 0].tolist() == [2.0, -2.0, -2.0]
        assert train.inputs[2, :, 0, 0].tolist() == [-2.0, -2.0, 2.0]
        assert any("cat, dog" in note for note in data.notes)

    def test_grey_images_have_one_channel(self, tmp_path: Path) -> None:
        self.paint(tmp_path / "a" / "1.png", colour=0, mode="L")
        self.paint(tmp_path / "b" / "1.png", colour=255, mode="L")
        assert arrays(load(str(tmp_path)).train).inputs.shape == (2, 1, 4, 6)
        self.paint(tmp_path / "b" / "2.png")
        assert arrays(load(str(tmp_path)).train).inputs.shape == (3, 3, 4, 6)

    def test_unequal_sizes_are_brought_to_a_square(self, tmp_path: Path) -> None:
        self.paint(tmp_path / "a" / "1.png", (6, 4))
        self.paint(tmp_path / "b" / "1.png", (30, 20))
        data = load(str(tmp_path))
        assert arrays(data.train).inputs.shape == (2, 3, 4, 4)
        assert any("4 x 4" in note for note in data.notes)
        assert arrays(load(f"{tmp_path}:size=5").train).inputs.shape == (2, 3, 5, 5)

    def test_large_images_of_many_sizes_are_made_small(self, tmp_path: Path) -> None:
        self.paint(tmp_path / "a" / "1.png", (300, 200))
        self.paint(tmp_path / "b" / "1.png", (200, 210))
        assert arrays(load(str(tmp_path)).train).inputs.shape == (2, 3, 64, 64)

    @pytest.mark.parametrize(("places", "sizes"), [(("train", "test"), [2, 2]), (("train", "val", "judge"), [2, 2, 2])])
    def test_separate_sets(self, tmp_path: Path, places: tuple[str, ...], sizes: list[int]) -> None:
        for place in places:
            for name in "ab":
                self.paint(tmp_path / place / name / "1.png")
        data = load(str(tmp_path))
        assert [len(part) for part in data.sets] == sizes
        assert arrays(data.judge).targets.tolist() == [0, 1]

    def test_a_class_named_train_is_a_class(self, tmp_path: Path) -> None:
        for name in ("train", "tram"):
            self.paint(tmp_path / name / "1.png")
        assert arrays(load(str(tmp_path)).train).targets.tolist() == [0, 1]

    def test_a_broken_image_is_named(self, tmp_path: Path) -> None:
        self.paint(tmp_path / "a" / "1.png")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "2.png").write_bytes(b"no image")
        with pytest.raises(UsageError, match=r"cannot read the image .*2.png"):
            load(str(tmp_path))

    def test_too_much_for_the_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("normwise.data.images.LARGEST_BYTES", 100)
        self.paint(tmp_path / "a" / "1.png")
        with pytest.raises(
            UsageError, match=r"1 images of 6 x 4 pixels need .* give a smaller size, e.g. FOLDER:size=64"
        ):
            load(str(tmp_path))
