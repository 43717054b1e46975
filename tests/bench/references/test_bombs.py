"""Sets of images that state more than they hold, or hold more than images are: refused in bounded memory."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import pytest

from bench.judges.pixels.images import Unreadable
from bench.judges.pixels.npz import ImageArchive
from bench.references import containers
from bench.references.containers import open_container
from results.errors import BenchError


def header(kind, size):
    member = tarfile.TarInfo("x.png")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_names_and_attributes_of_a_tar_are_small(tmp_path, kind):
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(header(kind, 1 << 33))
        file.write(b"\0" * (1 << 22))
    with pytest.raises(BenchError, match="cannot be read"):
        open_container(path)


def test_a_compressed_tar_of_headers_alone_is_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "BLOATED", (1 << 20, 10))
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", 9) as file:
        file.write(empty_members(5_000))
    with pytest.raises(BenchError, match="decompression bomb"):
        open_container(path)


def empty_members(count):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for index in range(count):
            archive.addfile(tarfile.TarInfo(f"{index}.txt"))
    return buffer.getvalue()


def test_a_table_of_more_rows_than_its_bytes_hold_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    duckdb.sql(f"COPY (SELECT NULL::BLOB AS image FROM range(20_000_000)) TO '{path}'")
    with pytest.raises(BenchError, match="states 20,000,000 rows, more than images fit into it"):
        open_container(path)


def test_labels_of_a_table_are_cut_and_numbers_stay_numbers(tmp_path):
    path = tmp_path / "a.parquet"
    duckdb.sql(f"COPY (SELECT 'x'::BLOB AS image, repeat('y', 1_000_000) AS label FROM range(3)) TO '{path}'")
    assert [len(label) for label in open_container(path).labels] == [300] * 3
    duckdb.sql(f"COPY (SELECT 'x'::BLOB AS image, range - 1 AS label FROM range(3)) TO '{path}'")
    assert open_container(path).labels == [-1, 0, 1]


def npy(shape, kind):
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


def test_an_npz_whose_directory_lies_about_its_sizes_allocates_nothing(tmp_path):
    path, count = tmp_path / "a.npz", 40_000_000
    arrays = {"arr_0": (npy((count, 1, 1, 3), "|u1"), count * 3), "arr_1": (npy((count,), "<i8"), count * 8)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (content, _) in arrays.items():
            archive.writestr(f"{name}.npy", content)
    content = path.read_bytes()
    for start, more in arrays.values():
        content = content.replace(struct.pack("<I", len(start)), struct.pack("<I", len(start) + more))
    path.write_bytes(content)
    with pytest.raises(BenchError, match="more than the file can hold"):
        ImageArchive(path)


def test_an_npz_of_black_images_is_no_lie(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", np.zeros((2000, 64, 64, 3), np.uint8))
    assert len(ImageArchive(tmp_path / "a.npz")) == 2000


def test_links_that_double_at_every_level_are_no_endless_walk(tmp_path):
    for level in range(30):
        (tmp_path / f"{level}").mkdir()
        for link in "ab":
            (tmp_path / f"{level}" / link).symlink_to(tmp_path / f"{level + 1}")
    (tmp_path / "30").mkdir()
    with pytest.raises(BenchError, match="is reached by more than 100 ways"):
        open_container(tmp_path / "0")


def test_a_folder_of_hundreds_of_levels_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(300):
        Path("a").mkdir()
        os.chdir("a")
    os.chdir(tmp_path)
    with pytest.raises(BenchError, match="lies too deep"):
        open_container(tmp_path)


def test_a_cell_of_a_table_larger_than_an_image_is_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MAX_FILE_BYTES", 10)
    path = tmp_path / "a.parquet"
    duckdb.sql(f"COPY (SELECT repeat('x', 9 + range)::BLOB AS image FROM range(3)) TO '{path}'")
    table = open_container(path)
    assert table.read(table.images[0]) == b"x" * 9 and table.read(table.images[1]) == b"x" * 10
    with pytest.raises(Unreadable, match="too large for an image"):
        table.read(table.images[2])
