import io
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from bench.judges.pixels.images import read_rgb
from bench.judges.pixels.npz import ImageArchive
from results.errors import BenchError

PIXELS = np.random.RandomState(0).randint(0, 256, (7, 6, 5, 3)).astype(np.uint8)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_other_colour_modes_become_rgb_by_pillows_rule(tmp_path, mode):
    picture = Image.fromarray(PIXELS[0]).convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    picture.save(path)
    with Image.open(path) as reread:
        assert np.array_equal(read_rgb(path), np.asarray(reread.convert("RGB")))


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.tile(PIXELS[0], (20, 20, 1))).save(stream, format=form)
    return stream.getvalue()


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (bytes(500), "contains nothing but zero bytes"),
        (b"this is not an image", "cannot be decoded"),
        (encoded("PNG")[:300], "cannot be decoded"),
        (encoded("JPEG")[:600], "cannot be decoded"),
        (encoded("PNG")[:20], "cannot be decoded"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "is an HTML page, not an image: the download failed"),
        (b"PK\x03\x04....", "is a zip archive"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (png_header(100_000, 100_000), "more than 89,478,485 pixels"),
        (png_header(12_000, 10_000), "declares 12000x10000 pixels"),
        (png_header(2, 2, depth=16), "more than 8 bits per channel"),
        (png_header(2, 2, depth=16, colour=6), "more than 8 bits per channel"),
        (b"P6 2 2 65535\n" + bytes(24), "more than 8 bits per channel"),
    ],
)
def test_what_is_no_image_is_named_by_what_it_is(tmp_path, content, reason):
    (tmp_path / "1.png").write_bytes(content)
    with pytest.raises(BenchError, match=rf"1\.png: .*{reason}") as raised:
        read_rgb(tmp_path / "1.png")
    assert "\n" not in str(raised.value)


def test_deep_image_is_refused(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999).save(tmp_path / "deep.png")
    with pytest.raises(BenchError, match=r"deep\.png: has more than 8 bits"):
        read_rgb(tmp_path / "deep.png")


def test_an_array_that_declares_more_than_its_file_holds_is_refused_before_it_is_allocated(tmp_path):
    for key, shape in (("arr_0", (10**9, 64, 64, 3)), ("arr_1", (10**15,))):
        arrays = {"arr_0": PIXELS, "arr_1": np.arange(7)}
        with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w") as stream:
                    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
                    np.lib.format.write_array_header_1_0(stream, header | ({"shape": shape} if name == key else {}))
                    stream.write(array.tobytes())
        with pytest.raises(BenchError, match=rf"{key} declares .* but has"):
            ImageArchive(tmp_path / "bomb.npz")


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


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adm_archive_is_streamed_with_its_labels(tmp_path, save):
    save(tmp_path / "samples.npz", PIXELS, np.arange(7))
    source = ImageArchive(tmp_path / "samples.npz")
    batches = list(source.batches(3))
    assert len(source) == 7
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert np.array_equal(np.concatenate(batches), PIXELS)
    assert source.labels.tolist() == list(range(7))
    assert np.array_equal(np.concatenate(list(source.batches(2, start=1))), PIXELS[1:])


def test_statistics_beside_the_images_are_no_labels(tmp_path):
    np.savez(tmp_path / "batch.npz", arr_0=PIXELS, mu=np.zeros(4), sigma=np.eye(4))
    assert ImageArchive(tmp_path / "batch.npz").labels is None


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": PIXELS}, "has no arr_0 \\(it has images\\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "has no arr_0 \\(it has mu, sigma\\)"),
        ({"arr_0": PIXELS.astype(np.float32)}, r"arr_0 contains float32 \[7, 6, 5, 3\]"),
        ({"arr_0": PIXELS.transpose(0, 3, 1, 2)}, r"arr_0 contains uint8 \[7, 3, 6, 5\]"),
        ({"arr_0": PIXELS[0]}, r"arr_0 contains uint8 \[6, 5, 3\]"),
        ({"arr_0": PIXELS[:0]}, r"arr_0 contains uint8 \[0, 6, 5, 3\]"),
        ({"arr_0": np.array([{"a": 1}], dtype=object)}, "arr_0 contains pickled objects"),
        ({"arr_0": np.asfortranarray(PIXELS)}, "Fortran order"),
        ({"arr_0": PIXELS, "arr_1": np.arange(6)}, r"arr_1 contains int64 \[6\]"),
        ({"arr_0": PIXELS, "labels": np.zeros(7)}, "labels contains float64"),
        ({"arr_0": PIXELS, "arr_1": np.array([None] * 7, dtype=object)}, "Object arrays cannot be loaded"),
    ],
)
def test_wrong_archive_is_refused(tmp_path, arrays, reason):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BenchError, match=rf"bad\.npz: .*{reason}"):
        ImageArchive(tmp_path / "bad.npz")


def test_truncated_archive_is_named(tmp_path):
    np.savez(tmp_path / "all.npz", PIXELS)
    (tmp_path / "part.npz").write_bytes((tmp_path / "all.npz").read_bytes()[:200])
    with pytest.raises(BenchError, match=r"part\.npz: cannot be read as \.npz"):
        ImageArchive(tmp_path / "part.npz")


def test_damaged_archive_is_named(tmp_path):
    np.savez(tmp_path / "all.npz", PIXELS)
    content = bytearray((tmp_path / "all.npz").read_bytes())
    content[300] ^= 255
    (tmp_path / "all.npz").write_bytes(content)
    with pytest.raises(BenchError, match=r"all\.npz: cannot be read as \.npz \(Bad CRC"):
        list(ImageArchive(tmp_path / "all.npz").batches(3))


def test_memory_does_not_grow_with_the_archive(tmp_path):
    images = np.zeros((2000, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "large.npz", images)
    source = ImageArchive(tmp_path / "large.npz")
    tracemalloc.start()
    total = sum(len(batch) for batch in source.batches(20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 2000
    assert peak < images.nbytes / 10
