"""The same 300 digits in every layout people keep images in: one distance, or one line that says why not."""

import io
import os
import tarfile
import zipfile

import duckdb
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bench.metrics.frechet import FrechetReference
from bench.references.source import open_images
from bench.references.stored import prepare_reference
from bench.run.worker import load_judges
from protocols import find_protocol
from protocols.digits.data import CLASS_NAMES, load_split
from results.errors import BenchError

DISTANCE = 1.5286848901
COUNT = 30


def first_of_each_class():
    split = load_split("train")
    for label in range(10):
        rows = (split.labels == label).nonzero()[:COUNT, 0]
        for number, row in enumerate(rows.tolist()):
            yield label, number, split.images[row].permute(1, 2, 0).numpy()


DIGITS = list(first_of_each_class())
PNG = {}
for _label, _number, _pixels in DIGITS:
    _stream = io.BytesIO()
    Image.fromarray(_pixels).save(_stream, "PNG")
    PNG[_label, _number] = _stream.getvalue()


def write(root, folder=str, suffix=".png", **options):
    for label, number, pixels in DIGITS:
        path = root / folder(label) / f"{number:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".png" and not options:
            path.write_bytes(PNG[label, number])
        else:
            Image.fromarray(pixels).save(path, **options)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("digits") / "plain")


@pytest.fixture(scope="module")
def distance(tmp_path_factory):
    """Open images as `bench score` does; return their distance to the held-out digits and their source."""
    protocol = find_protocol("digits")
    judge = load_judges(protocol, "cpu")["inception"]
    reference = prepare_reference(protocol, load_judges(protocol, "cpu"), tmp_path_factory.mktemp("runs"))
    real = reference.features()["inception.features"]
    held_out = real.frechet
    assert isinstance(held_out, FrechetReference)

    def measure(path, **options):
        source = open_images(path, 8, CLASS_NAMES, **options)
        features = []
        for batch in source.batches(0, 64):
            assert not batch.faults, batch.faults
            features.append(judge(batch.images, torch.zeros(len(batch.images), dtype=torch.int64))["features"].numpy())
        if source.labels is not None:
            assert np.bincount(source.labels).tolist() == [COUNT] * 10
        return held_out.distance_from_features(np.concatenate(features)), source

    return measure


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".webp", {"lossless": True}), (".bmp", {}), (".tif", {}), (".TIFF", {"compression": "tiff_lzw"}), (".PNG", {}),
        (".gif", {}), (".ppm", {}), ("\n[a] ü.png", {"format": "PNG"}),
    ],
)  # fmt: skip
def test_every_lossless_suffix_gives_the_same_distance(tmp_path, distance, suffix, options):
    value, source = distance(write(tmp_path / "set", suffix=suffix, **options))
    assert value == pytest.approx(DISTANCE, abs=1e-8) and source.describe() == "300 images, 10 classes"


@pytest.mark.parametrize(
    "name",
    [
        "{0:02d}", "{0:03d}", "class_{0}", "Label {0}", "{1}", "{2}", "{1} ", "samples/{0}", "train/{1}",
        "a/b/{1}/deep", "{0}/{1}", "{1}/part-{0}",
    ],
)  # fmt: skip
def test_class_folders_are_found_by_name_or_number_at_any_one_level(tmp_path, distance, name):
    root = write(tmp_path / "set", lambda label: name.format(label, CLASS_NAMES[label], CLASS_NAMES[label].upper()))
    value, source = distance(root)
    assert value == pytest.approx(DISTANCE, abs=1e-8) and source.labels is not None


def test_suffixes_may_be_mixed_and_images_may_lie_flat(tmp_path, distance):
    mixed = tmp_path / "mixed"
    for label, number, pixels in DIGITS:
        path = mixed / f"{label}_{number}{('.png', '.BMP', '.tif')[number % 3]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    for root in (mixed, tmp_path):
        value, source = distance(root)
        assert value == pytest.approx(DISTANCE, abs=1e-8) and source.labels is None
        assert source.describe() == "300 images, no classes" and "no labels" in source.unlabelled


def test_hidden_files_and_what_systems_leave_behind_are_no_part_of_a_set(tmp_path, distance):
    root = write(tmp_path / "set")
    for place in ("0/.ipynb_checkpoints", "__MACOSX/0", ".thumbnails", "3/@eaDir"):
        (root / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / place / "blank.png")
    (root / "0" / "._00000.png").write_bytes(b"resource fork")
    (root / "Thumbs.db").write_bytes(b"x")
    (root / "notes.txt").write_text("x")
    (root / "1" / "film.webm").write_text("x")
    (root / "1" / "later.avif").write_text("x")
    value, source = distance(root)
    assert value == pytest.approx(DISTANCE, abs=1e-8)
    said = source.describe()
    assert said == (
        "300 images, 10 classes; passed over: 2 (1 .webm, 1 .txt), each of which is not an image file; "
        "passed over: 1/later.avif is of a format that is not read; use PNG"
    )


def test_links_are_followed_but_not_in_a_circle(tmp_path, folder, distance):
    root = tmp_path / "set"
    root.mkdir()
    for label in range(10):
        (root / CLASS_NAMES[label]).symlink_to(folder / str(label))
    value, _ = distance(root)
    assert value == pytest.approx(DISTANCE, abs=1e-8)
    copied = write(tmp_path / "copied")
    (copied / "0" / "up").symlink_to(copied)
    (copied / "latest").symlink_to(tmp_path / "gone")
    value, source = distance(copied)
    assert value == pytest.approx(DISTANCE, abs=1e-8)
    said = source.describe()
    assert "0/up is a link to a folder above it" in said and "latest is a link to nothing" in said
    (copied / "0" / "00000.png").unlink()
    (copied / "0" / "00000.png").symlink_to(tmp_path / "gone.png")
    batch = next(open_images(copied, 8, CLASS_NAMES).batches(0, 64))
    assert [(fault.name, fault.reason) for fault in batch.faults] == [("0/00000.png", "is a link to nothing")]


def zipped(path, prefix="", more=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for (label, number), content in PNG.items():
            archive.writestr(f"{prefix}{label}/{number}.png", content)
        for name, content in more:
            archive.writestr(name, content)
    return path


def tarred(path, mode, prefix="", webdataset=False, shuffled=False):
    entries = list(PNG.items())
    if shuffled:
        entries = [entries[place] for place in np.random.default_rng(0).permutation(len(entries))]
    with tarfile.open(path, mode) as archive:
        for place, ((label, number), content) in enumerate(entries):
            parts = {f"{prefix}{label}/{number}.png": content}
            if webdataset:
                parts = {f"{place:06d}.png": content, f"{place:06d}.cls": str(label).encode()}
            for name, data in parts.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def parquet(path, columns):
    table = pd.DataFrame(
        {"content": list(PNG.values()), "label": [key[0] for key in PNG], "number": [key[1] for key in PNG]}
    )
    with duckdb.connect() as connection:
        connection.register("digits", table)
        connection.execute(f"COPY (SELECT {columns} FROM digits ORDER BY number, label) TO '{path}' (FORMAT parquet)")
    return path


ARCHIVES = {
    "a.zip": lambda path: zipped(path),
    "wrapped.zip": lambda path: zipped(path, "set/", [("__MACOSX/set/0/._0.png", b"x"), ("../0/evil.png", b"x")]),
    "named.npz": lambda path: zipped(path),
    "a.tar": lambda path: tarred(path, "w", "./"),
    "a.tar.gz": lambda path: tarred(path, "w:gz", shuffled=True),
    "a.tgz": lambda path: tarred(path, "w:gz", "set/"),
    "a.tar.bz2": lambda path: tarred(path, "w:bz2"),
    "web.tar": lambda path: tarred(path, "w", webdataset=True, shuffled=True),
    "struct.parquet": lambda path: parquet(path, "{'bytes': content::BLOB, 'path': 'x.png'} AS image, label"),
    "bytes[1]*.parquet": lambda path: parquet(path, "content::BLOB AS png, label"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_read_where_they_lie(tmp_path, distance, name):
    path = ARCHIVES[name](tmp_path / name)
    value, source = distance(path)
    assert value == pytest.approx(DISTANCE, abs=1e-8)
    assert source.labels is not None and [entry.name for entry in tmp_path.iterdir()] == [name]
    assert ("../0/evil.png points outside the archive" in source.describe()) == (name == "wrapped.zip")


def test_arrays_are_read_with_their_labels_or_say_that_they_have_none(tmp_path, distance):
    pixels, labels = np.stack([entry[2] for entry in DIGITS]), np.array([entry[0] for entry in DIGITS])
    np.savez(tmp_path / "a.npz", arr_0=pixels, labels=labels)
    np.savez(tmp_path / "b.npz", arr_0=pixels, y=labels)
    np.savez(tmp_path / "c.npz", arr_0=pixels, arr_1=labels + 1)
    assert distance(tmp_path / "a.npz")[0] == pytest.approx(DISTANCE, abs=1e-8)
    value, source = distance(tmp_path / "b.npz")
    assert value == pytest.approx(DISTANCE, abs=1e-8) and source.labels is None
    assert source.unlabelled == "no labels (arr_1, labels or label); the file also contains: y"
    with pytest.raises(BenchError, match=r"seem to be numbered from 1.*--first-label"):
        distance(tmp_path / "c.npz")
    assert distance(tmp_path / "c.npz", first_label=1)[1].labels.tolist() == labels.tolist()


def touched(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG[0, 0])
    return root


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["train/0/a.png", "val/1/b.png"], "contains the parts train and val; name the folder of one"),
        (["4/0/a.png", "4/1/b.png"], "two levels of folders name classes"),
            (
                ["zero/a.png", "thre/b.png"],
                r"'thre' does not match any class \(close to: three\).*its number 0..9 \(leading zeros",
            ),
        (["9/a.png", "11/b.png"], r"'11' does not match any class \(they are numbered 0..9\)"),
        ([f"{n}/a.png" for n in range(1, 11)], "seem to be numbered from 1 .*--first-label 1"),
        ([f"{n:03d}/a.png" for n in range(1, 10)], "seem to be numbered from 1 .*--first-label 1"),
        (["0/a.png", "1/b.png", "grid.png"], r"grid\.png: lies next to class folders"),
        (["a.png", "b.png", "c.png", "old/d.png"], r"/old: is a folder with 1 image next to 3 loose ones"),
        (["0/a.avif"], "contains no images.*passed over: 0/a.avif is of a format that is not read; use PNG"),
        (["0/a.txt"], "contains no images.*passed over: 0/a.txt is not an image file"),
        (["a.tar", "b.tar"], r"contains no images but 2 archives \(the first a.tar\)"),
        (["0/a.png"], "contains 1 image; a score needs at least 2"),
    ],
)  # fmt: skip
def test_layouts_that_leave_a_doubt_are_refused_in_one_line(tmp_path, names, reason):
    with pytest.raises(BenchError, match=reason) as raised:
        open_images(touched(tmp_path / "set", *names), 8, CLASS_NAMES)
    assert "\n" not in str(raised.value)


def test_folders_of_imagenet_are_named_by_synset_number_or_name_and_never_guessed(tmp_path):
    names = find_protocol("fair-imagenet-256").class_names
    root = touched(
        tmp_path / "set", "n01440764/a.png", "tench, Tinca tinca/b.png", "001/c.png", "Great-White_Shark/d.png"
    )
    assert open_images(root, 8, names).labels.tolist() == [1, 2, 0, 0]
    for clash, labels in (("crane", "134 .*517"), ("cardigan", "264 .*474"), ("maillot", "638 .*639")):
        with pytest.raises(BenchError, match=rf"'{clash}' matches both class {labels}"):
            open_images(touched(tmp_path / clash, f"{clash}/a.png", "0/b.png"), 8, names)
    apart = find_protocol("fair-imagenet-256-v2").class_names
    assert open_images(touched(tmp_path / "v2", f"{apart[474]}/a.png", "0/b.png"), 8, apart).labels.max() == 474


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", PNG[0, 0], "is a single image"),
        ("a.rar", b"Rar!\x1a\x07", "unpack it and name the folder"),
        ("a.tar.xz", b"\xfd7zXZ\0", "unpack it and name the folder"),
        ("a.npy", b"\x93NUMPY\x01\0", "is a single numpy array"),
        ("a.zip", b"", "is empty"),
        ("a.zip", b"<html>", r"is not a \.zip file"),
        ("a.zip", b"PK\x03\x04" + bytes(99), "cannot be read"),
        ("a.parquet", b"PAR1" + bytes(99), "cannot be read as parquet"),
        ("a.tar.gz", b"\x1f\x8b" + bytes(99), "cannot be read"),
    ],
)
def test_files_that_are_no_set_say_what_they_are(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchError, match=reason) as raised:
        open_images(tmp_path / name, 8, CLASS_NAMES)
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_members_that_declare_another_size_than_they_have_are_faults(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.references.containers.MAX_FILE_BYTES", 1000)
    path = zipped(tmp_path / "a.zip", more=[("0/bomb.png", bytes(10_000))])
    reasons = {
        fault.name: fault.reason for batch in open_images(path, 8, CLASS_NAMES).batches(0, 64) for fault in batch.faults
    }
    assert reasons == {"0/bomb.png": "declares 10,000 bytes, too large for an image"}


def test_a_name_of_undecodable_bytes_is_a_name(tmp_path):
    root = touched(tmp_path / "set", "0/a.png")
    (root / "0" / os.fsdecode(b"\xff\xfe.png")).write_bytes(PNG[0, 0])
    source = open_images(root, 8, CLASS_NAMES)
    assert len(source) == 2 and len(next(source.batches(0, 2)).images) == 2
    assert len(source.content(np.zeros((2, 32), np.uint8))) == 64 and len(source.listing) > 10


def test_one_batch_is_read_ahead_and_no_more(folder, monkeypatch):
    source = open_images(folder, 8, CLASS_NAMES)
    read = []
    whole = source.container.read
    monkeypatch.setattr(source.container, "read", lambda name: read.append(name) or whole(name))
    next(source.batches(0, 10))
    assert len(read) <= 20


def test_sets_side_by_side_are_taken_together_and_named(distance, tmp_path):
    for label, number, _ in DIGITS:
        path = tmp_path / ("part-1" if number % 2 else "part-0") / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG[label, number])
    value, source = distance(tmp_path)
    assert value == pytest.approx(DISTANCE, abs=1e-8)
    assert source.describe() == "300 images, 10 classes, taken together from 2 folders (part-0, part-1)"
