"""What a file is written over, and what it is not."""

import os
import socket
from pathlib import Path

import pytest

from results.errors import BenchError
from results.files import output_file, write_atomically, writing


@pytest.fixture
def special(tmp_path, monkeypatch):
    """Return paths, by what is there, that no file may replace."""
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    Path("folder").mkdir()
    Path("link").symlink_to("pipe")
    return {"a pipe": "pipe", "a socket": "socket", "a directory": "folder", "a device": os.devnull}


def test_an_output_replaces_nothing_but_a_file(special):
    for kind, path in special.items():
        with pytest.raises(BenchError, match=f"{path}: is {kind}, .*--write"):
            output_file(Path(path), "--write")
    with pytest.raises(BenchError, match="link: is a pipe"):
        output_file(Path("link"), "--output")


def test_nothing_is_written_over_a_pipe_or_a_device(special):
    for kind, path in special.items():
        with pytest.raises(BenchError):
            write_atomically(Path(path), b"1")
        assert os.path.lexists(path), kind
    assert Path(os.devnull).is_char_device() and Path("pipe").is_fifo()
    assert sorted(path.name for path in Path().iterdir()) == ["folder", "link", "pipe", "socket"]


def test_an_output_is_written_where_a_link_leads(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "table.csv")
    for text in (b"1", b"2"):  # a link to nothing yet, then to a file
        write_atomically(output_file(link, "--output"), text)
        assert link.is_symlink() and link.read_bytes() == text


def test_files_of_ones_own_never_go_where_a_link_leads(tmp_path):
    (tmp_path / "mine").write_text("mine")
    link = tmp_path / "result.json"
    link.symlink_to(tmp_path / "mine")
    with writing(link) as temporary:
        temporary.write_text("new")
    assert not link.is_symlink() and (tmp_path / "mine").read_text() == "mine"


def test_what_is_read_is_not_written_over(tmp_path):
    database = tmp_path / "bench.duckdb"
    database.write_text("x")
    (tmp_path / "other").symlink_to(database)
    with pytest.raises(BenchError, match="is what is read"):
        output_file(tmp_path / "other", "--output", database)


def test_a_link_in_a_loop_is_one_line(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "a")
    with pytest.raises(BenchError, match="cannot be written"):
        output_file(tmp_path / "a", "--output")
