import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.judges.pixels.images import ImageFolder, open_images, read_rgb
from results.errors import BenchError

PIXELS = np.random.RandomState(0).randint(0, 256, (7, 6, 5, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, pixels in zip(["cats/b.png", "cats/a.PNG", "dogs/1.png", "dogs/deep/2.Png"], PIXELS[:4], strict=True):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, format="PNG")
    return tmp_path / "images"


def read_all(source, batch_size=3, **limits):
    return list(source.batches(batch_size, **limits))


def test_folder_is_sorted_by_path_with_classes_of_its_folders(folder):
    (folder / "cats" / "notes.txt").write_text("no image")
    (folder / "cats" / "._a.png").write_bytes(b"resource fork")
    source = open_images(folder)
    first, second = read_all(source)
    assert len(source) == 4
    assert source.class_names == ("cats", "deep", "dogs")
    assert first.images.shape == (3, 3, 6, 5)
    assert first.images.dtype == torch.uint8
    assert np.array_equal(first.images.permute(0, 2, 3, 1).numpy(), PIXELS[[1, 0, 2]])
    assert torch.cat([first.labels, second.labels]).tolist() == [0, 0, 2, 1]


def test_flat_folder_has_no_labels(tmp_path):
    for number, pixels in enumerate(PIXELS[:2]):
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpeg", quality=95)
    (batch,) = read_all(open_images(tmp_path))
    assert batch.labels is None
    assert batch.images.shape == (2, 3, 6, 5)


def test_part_of_a_source_can_be_read(folder, tmp_path):
    np.savez(tmp_path / "all.npz", PIXELS)
    for source in (open_images(folder), open_images(tmp_path / "all.npz")):
        whole = torch.cat([batch.images for batch in read_all(source)])
        part = torch.cat([batch.images for batch in read_all(source, 2, start=1, stop=4)])
        assert torch.equal(part, whole[1:4])


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_other_colour_modes_become_rgb_by_pillows_rule(tmp_path, mode):
    picture = Image.fromarray(PIXELS[0]).convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    picture.save(path)
    with Image.open(path) as reread:
        assert np.array_equal(read_rgb(path), np.asarray(reread.convert("RGB")))


def test_alpha_is_dropped_and_exif_orientation_ignored(tmp_path):
    transparent = np.dstack([PIXELS[0], np.zeros(PIXELS[0].shape[:2], np.uint8)])
    Image.fromarray(transparent).save(tmp_path / "alpha.png")
    assert np.array_equal(read_rgb(tmp_path / "alpha.png"), PIXELS[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS[0]).save(tmp_path / "rotated.png", exif=exif)
    assert np.array_equal(read_rgb(tmp_path / "rotated.png"), PIXELS[0])


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.tile(PIXELS[0], (20, 20, 1))).save(stream, format=form)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("dogs/1.png", b"", "is empty"),
        ("dogs/1.png", b"this is no image", "cannot be decoded"),
        ("dogs/1.png", encoded("PNG")[:300], "cannot be decoded"),
        ("dogs/1.JPG", encoded("JPEG")[:600], "cannot be decoded"),
    ],
)
def test_unreadable_image_is_named(folder, name, content, reason):
    (folder / name).write_bytes(content)
    with pytest.raises(BenchError, match=rf"{name}: {reason}") as raised:
        read_all(open_images(folder))
    assert "\n" not in str(raised.value)


def test_deep_image_is_refused(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999).save(tmp_path / "deep.png")
    with pytest.raises(BenchError, match=r"deep\.png: has more than 8 bits"):
        read_all(open_images(tmp_path))


def test_another_size_is_named(folder):
    Image.new("RGB", (9, 9)).save(folder / "dogs" / "1.png")
    with pytest.raises(BenchError, match=r"dogs/1\.png: is 9x9 pixels, the first image 5x6"):
        read_all(open_images(folder))


def test_image_beside_class_folders_is_refused(folder):
    Image.new("RGB", (5, 6)).save(folder / "loose.png")
    with pytest.raises(BenchError, match=r"loose\.png: lies beside class folders"):
        open_images(folder)


def test_empty_or_missing_source_is_refused(tmp_path):
    with pytest.raises(BenchError, match="holds no PNG or JPEG"):
        open_images(tmp_path)
    with pytest.raises(BenchError, match="does not exist"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(BenchError, match="neither a folder nor"):
        open_images(tmp_path / "images.zip")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adm_archive_is_streamed_with_its_labels(tmp_path, save):
    save(tmp_path / "samples.npz", PIXELS, np.arange(7))
    source = open_images(tmp_path / "samples.npz")
    batches = read_all(source)
    assert len(source) == 7
    assert [len(batch.images) for batch in batches] == [3, 3, 1]
    assert np.array_equal(torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy(), PIXELS)
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(7))


def test_statistics_beside_the_images_are_no_labels(tmp_path):
    np.savez(tmp_path / "batch.npz", arr_0=PIXELS, mu=np.zeros(4), sigma=np.eye(4))
    assert open_images(tmp_path / "batch.npz").labels is None


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": PIXELS}, "has no arr_0 but images"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "has no arr_0 but mu, sigma"),
        ({"arr_0": PIXELS.astype(np.float32)}, r"arr_0 holds float32 \[7, 6, 5, 3\]"),
        ({"arr_0": PIXELS.transpose(0, 3, 1, 2)}, r"arr_0 holds uint8 \[7, 3, 6, 5\]"),
        ({"arr_0": PIXELS[0]}, r"arr_0 holds uint8 \[6, 5, 3\]"),
        ({"arr_0": PIXELS[:0]}, r"arr_0 holds uint8 \[0, 6, 5, 3\]"),
        ({"arr_0": np.array([{"a": 1}], dtype=object)}, "arr_0 holds pickled objects"),
        ({"arr_0": np.asfortranarray(PIXELS)}, "Fortran order"),
        ({"arr_0": PIXELS, "arr_1": np.arange(6)}, r"arr_1 holds int64 \[6\]"),
        ({"arr_0": PIXELS, "labels": np.zeros(7)}, "labels holds float64"),
        ({"arr_0": PIXELS, "arr_1": np.array([None] * 7, dtype=object)}, "Object arrays cannot be loaded"),
    ],
)
def test_wrong_archive_is_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BenchError, match=rf"bad\.npz: .*{reason}"):
        open_images(tmp_path / "bad.npz")


def test_truncated_archive_is_named(tmp_path):
    np.savez(tmp_path / "all.npz", PIXELS)
    (tmp_path / "part.npz").write_bytes((tmp_path / "all.npz").read_bytes()[:200])
    with pytest.raises(BenchError, match=r"part\.npz: cannot be read as \.npz"):
        open_images(tmp_path / "part.npz")


def test_damaged_archive_is_named(tmp_path):
    np.savez(tmp_path / "all.npz", PIXELS)
    content = bytearray((tmp_path / "all.npz").read_bytes())
    content[300] ^= 255
    (tmp_path / "all.npz").write_bytes(content)
    with pytest.raises(BenchError, match=r"all\.npz: cannot be read as \.npz \(Bad CRC"):
        read_all(open_images(tmp_path / "all.npz"))


def test_memory_does_not_grow_with_the_archive(tmp_path):
    images = np.zeros((2000, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "large.npz", images)
    source = open_images(tmp_path / "large.npz")
    tracemalloc.start()
    total = sum(len(batch.images) for batch in source.batches(20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 2000
    assert peak < images.nbytes / 10


def test_folder_reads_ahead_by_one_batch_only(folder, monkeypatch):
    decoded = []
    monkeypatch.setattr("bench.judges.pixels.images.read_rgb", lambda path: decoded.append(path) or read_rgb(path))
    batches = ImageFolder(folder).batches(1)
    next(batches)
    assert len(decoded) <= 3
