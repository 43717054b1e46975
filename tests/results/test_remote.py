"""Rows, bundles and copies in storage of other machines: memory, files, and an S3 server of this test."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from bench.cli import main
from results.bundles import read_bundle
from results.cells import CellDirectory
from results.errors import BenchError, StoreError
from results.mirror import local_copies, pull_cells, push_cell
from results.remote import MANIFEST, Storage, is_remote, local_path, pull, push, read_manifest
from results.store import connect

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="session")
def server():
    """Run a moto S3 server with an empty bucket `rows`, and return its address."""
    for module in ("moto", "s3fs", "flask"):
        pytest.importorskip(module)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(address, timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def s3(server, monkeypatch):
    """Return the URL of an empty bucket."""
    for name, value in (
        ("AWS_ENDPOINT_URL", server),
        ("AWS_ACCESS_KEY_ID", "testing"),
        ("AWS_SECRET_ACCESS_KEY", "testing"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"rows-{os.urandom(4).hex()}"
    s3fs.S3FileSystem().mkdir(bucket)
    yield f"s3://{bucket}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path):
    """Return the URL of an empty place in each kind of storage."""
    if request.param == "s3":
        return request.getfixturevalue("s3") + "/prefix"
    return f"memory://{os.urandom(4).hex()}" if request.param == "memory" else (tmp_path / "store").as_uri()


def files(path):
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def error_of(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    said = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and len(said) == 1, said
    return said[0]


def test_what_is_a_place_of_storage_and_what_is_a_path(tmp_path):
    assert is_remote("s3://bucket/rows.zip") and is_remote("file://" + "/x") and not is_remote("runs/rows.zip")
    assert not is_remote("C:\\rows.zip") and not is_remote("c://x")
    assert local_path("file://" + "/a%20b/c") == tmp_path.__class__("/a b/c") and local_path("s3://b/c") is None


def test_a_folder_comes_back_whole_and_only_what_changed_is_uploaded(url, tmp_path):
    here, there, folder = tmp_path / "here", tmp_path / "there", Storage(url) / "cell"
    here.mkdir()
    (here / "a.npy").write_bytes(b"a" * 10)
    (here / "result.json").write_bytes(b"{}")
    (here / "b.npy.tmp").write_bytes(b"half")
    assert read_manifest(folder) is None
    assert push(here, folder) == 2 and push(here, folder) == 0
    assert pull(folder, there) == 2
    assert files(there) == {"a.npy": b"a" * 10, "result.json": b"{}"}
    (here / "a.npy").write_bytes(b"other")
    assert push(here, folder) == 1
    shutil.rmtree(there)
    pull(folder, there)
    assert files(there)["a.npy"] == b"other"
    assert Storage(url).folders() == ["cell"]


def test_a_bundle_in_storage_is_merged_and_audited_as_a_file_is(url, tmp_path, runs_with, capsys):
    runs, there = runs_with(tmp_path / "runs", "a", "b"), tmp_path / "there"
    for words in (
        ["bundle", "a", "b", "-o", f"{url}/rows.zip", "--runs-dir", str(runs)],
        ["merge", f"{url}/rows.zip", "--runs-dir", str(there)],
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0, capsys.readouterr().err
    with connect(there / "bench.duckdb") as connection:
        assert connection.execute("SELECT cell_id FROM cells ORDER BY 1").fetchall() == [("a",), ("b",)]
    with local_copies([f"{url}/rows.zip"], 1 << 20) as (path,):
        assert sorted(read_bundle(path).cells) == ["a", "b"]


def test_a_copy_of_a_runs_directory_goes_on_elsewhere(url, tmp_path, runs_with, record):
    runs, there, storage = runs_with(tmp_path / "runs", "a"), tmp_path / "there", Storage(url)
    half = CellDirectory(runs, "b")
    half.write_shard(0, 4, {"pick.score": np.arange(4.0)}, {"batch_size": 4})
    assert push_cell(runs, "a", storage) == 2 and push_cell(runs, "b", storage) == 1
    assert push_cell(runs, "absent", storage) == 0
    assert pull_cells(storage, there, arrays=False) == 2
    assert CellDirectory(there, "a").load_result() == CellDirectory(runs, "a").load_result()
    assert CellDirectory(there, "b").shard_facts(0, 4) == {"batch_size": 4}
    # The other machine finishes the cell: shards go, and arrays that only the first machine has stay in its copy.
    done = CellDirectory(there, "b")
    done.write_result(record("b"))
    done.remove_shards()
    push_cell(there, "b", storage)
    push_cell(there, "a", storage)
    assert set(read_manifest(storage / "cells" / "b")) == {"result.json"}
    assert set(read_manifest(storage / "cells" / "a")) == {"result.json", "pick.score.npy"}
    with local_copies([url], 1 << 20) as (copy,):
        assert sorted(path.name for path in (copy / "cells" / "a").iterdir()) == ["pick.score.npy", "result.json"]


def test_a_reader_sees_the_folder_before_or_after_a_change(tmp_path, monkeypatch):
    folder, here = Storage(f"memory://{os.urandom(4).hex()}/cell"), tmp_path / "here"
    here.mkdir()
    (here / "result.json").write_bytes(b"one")
    push(here, folder)
    (here / "result.json").write_bytes(b"two")
    (here / "more.npy").write_bytes(b"more")

    def cut_off(self, data):
        raise BenchError("the network is gone")

    monkeypatch.setattr(Storage, "write", cut_off)
    with pytest.raises(BenchError, match="network"):
        push(here, folder)
    monkeypatch.undo()
    pull(folder, tmp_path / "before")
    assert files(tmp_path / "before") == {"result.json": b"one"}
    push(here, folder)
    pull(folder, tmp_path / "after")
    assert files(tmp_path / "after") == {"result.json": b"two", "more.npy": b"more"}


def test_a_folder_that_another_machine_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    folder, here = Storage(f"memory://{os.urandom(4).hex()}/cell"), tmp_path / "here"
    here.mkdir()
    (here / "shard-a").write_bytes(b"a")
    (here / "shard-b").write_bytes(b"b")
    push(here, folder)
    download = Storage.download

    def finish_meanwhile(self, path, entry):
        monkeypatch.undo()
        (here / "shard-a").unlink()
        (here / "shard-b").rename(here / "result.json")
        push(here, folder)
        download(self, path, entry)

    monkeypatch.setattr(Storage, "download", finish_meanwhile)
    assert pull(folder, tmp_path / "there") == 1
    assert files(tmp_path / "there") == {"result.json": b"b"}


def test_a_disk_of_this_machine_that_is_full_is_not_the_storages_fault(tmp_path, runs_with, monkeypatch):
    runs, storage = runs_with(tmp_path / "runs", "a"), Storage(f"memory://{os.urandom(4).hex()}")
    push_cell(runs, "a", storage)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("results.files.os.fsync", full)
    with pytest.raises(BenchError, match="there/cells/a: no space left"):
        pull_cells(storage, tmp_path / "there", arrays=True)
    assert not list((tmp_path / "there").rglob("*.*"))


def test_a_byte_that_changed_in_storage_is_never_taken(tmp_path, runs_with):
    url = f"memory://{os.urandom(4).hex()}"
    runs, storage = runs_with(tmp_path / "runs", "a"), Storage(url)
    push_cell(runs, "a", storage)
    entry = read_manifest(storage / "cells" / "a")["result.json"]
    for altered in (b"x" * entry.bytes, b"short", b"x" * (entry.bytes + 1)):
        (storage / "cells" / "a" / entry.sha256).write(altered)
        with pytest.raises(StoreError, match="digest"):
            pull_cells(storage, tmp_path / "there", arrays=True)
        assert not (tmp_path / "there" / "cells" / "a" / "result.json").exists()
        assert not list((tmp_path / "there").rglob("*.tmp"))


@pytest.mark.parametrize(
    "manifest",
    [
        {"format": "other", "version": 1, "files": {}},
        {"format": "fewstep-bench folder", "version": 2, "files": {}},
        {"format": "fewstep-bench folder", "version": 1, "files": {"../x": {"sha256": "0" * 64, "bytes": 1}}},
        {"format": "fewstep-bench folder", "version": 1, "files": {"x": {"sha256": "../../x", "bytes": 1}}},
        {"format": "fewstep-bench folder", "version": 1, "files": {"x": {"sha256": "0" * 64, "bytes": -1}}},
        {"format": "fewstep-bench folder", "version": 1, "files": [1]},
        [],
    ],
)
def test_a_foreign_manifest_is_refused(manifest, tmp_path):
    folder = Storage(f"memory://{os.urandom(4).hex()}/cell")
    (folder / MANIFEST).write(json.dumps(manifest).encode())
    with pytest.raises(StoreError):
        pull(folder, tmp_path / "there")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("nosuch://bucket/rows.zip", "no storage has the scheme 'nosuch'"),
        ("memory://absent/rows.zip", "neither a file nor a copy"),
    ],
)
def test_a_place_that_cannot_be_is_one_line_and_nothing_is_merged(place, told, tmp_path, runs_with, capsys):
    runs = runs_with(tmp_path / "runs", "a")
    assert told in error_of(["merge", place, "--runs-dir", str(tmp_path / "there")], capsys)
    assert not (tmp_path / "there").exists()
    if place.startswith("nosuch"):
        assert told in error_of(["bundle", "a", "-o", place, "--runs-dir", str(runs)], capsys)
        assert told in error_of(["run", "--sync", place, "--runs-dir", str(runs), "--model", "digits-dmd"], capsys)


def test_a_package_that_a_scheme_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(BenchError, match=r"needs the package gcsfs; pip install 'fewstep-bench\[remote\]'"):
        Storage("gs://bucket/prefix")


def test_a_bucket_that_is_not_there_or_not_ours_is_one_line(s3, tmp_path, runs_with, capsys, monkeypatch):
    runs = runs_with(tmp_path / "runs", "a")
    assert "not found" in error_of(["merge", "s3://no-such-bucket-here/rows.zip", "--runs-dir", "x"], capsys)
    assert "not found" in error_of(
        ["bundle", "a", "-o", "s3://no-such-bucket-here/rows.zip", "--runs-dir", str(runs)], capsys
    )
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    said = error_of(["bundle", "a", "-o", f"{s3}/rows.zip", "--runs-dir", str(runs)], capsys)
    assert "credentials" in said
    assert not (tmp_path / "x").exists()


def test_rights_that_are_lacking_are_named(monkeypatch):
    storage = Storage(f"memory://{os.urandom(4).hex()}/rows.zip")

    def denied(*arguments, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(storage.system, "pipe_file", denied)
    with pytest.raises(BenchError, match="access denied; check the credentials"):
        storage.write(b"x")


@pytest.mark.parametrize(("url", "said"), [("", "is empty"), ("x://y", "no storage has the scheme 'x'")])
def test_an_url_of_nothing_is_no_folder_here(url, said):
    with pytest.raises(BenchError, match=said):
        Storage(url)
