"""Nothing waits for a pipe or reads a device without end, whichever file of a command it stands for."""

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bench.cli.mmhm import read_table
from bench.contracts.recording import load_case
from bench.references.containers import open_container
from bench.references.label_file import read_label_file
from bench.run.plan import Request, make_plan
from bench.run.readiness import check_surroundings
from bench.run.score import name_of
from bench.weights.cache import FileCache, sha256_of
from bench.weights.sniff import kind_of
from protocols import find_protocol
from report.site import _outcomes
from results.cells import CellDirectory
from results.documents import read_json, read_toml
from results.errors import BenchError
from results.files import mark, output_file, writing
from results.moving import read_source
from results.signatures import sign, verify

CELL = "0" * 20


def raised(fault):
    if fault is not None:
        raise BenchError(fault)


def beside(path, name):
    """Put a link to `path` where a command looks for `name`; return the folder."""
    folder = path.parent if os.access(path.parent, os.W_OK) and path.parent != Path("/dev") else Path.cwd()
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(path)
    return folder


DOORS = {
    "table": read_table,
    "database": lambda path: read_source(path),
    "toml": lambda path: read_toml(path, "card"),
    "json": lambda path: read_json(path, "baseline"),
    "weights": lambda path: raised(kind_of(path).fault),
    "digest": sha256_of,
    "labels": read_label_file,
    "key": lambda path: sign(b"", path),
    "signers": lambda path: verify(b"", {"kind": "ssh", "signature": "x"}, path),
    "audits": lambda path: _outcomes([path]),
    "record": lambda path: CellDirectory(beside(path, f"cells/{CELL}/result.json"), CELL).load_result(),
    "recording": lambda path: load_case(beside(path, "case.json")),
    "pins": lambda path: FileCache(beside(path, "pins.json")).pinned("x"),
}


@pytest.fixture
def in_time():
    def late(*_):
        raise TimeoutError("waits for a file without end")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("door", DOORS)
def test_a_file_without_end_is_refused_at_once(tmp_path, monkeypatch, in_time, door, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pipe" if kind == "pipe" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(BenchError) as stop:
        DOORS[door](path)
    assert "\n" not in str(stop.value) and len(str(stop.value)) < 400


def test_a_damaged_table_of_the_cache_is_named(tmp_path):
    for content in ("[]", '{"x": 1}', '{"x": {"sha256": 5}}', "{", "[" * 100_000):
        (tmp_path / "pins.json").write_text(content)
        with pytest.raises(BenchError, match=r"pins\.json"):
            FileCache(tmp_path).pinned("x")


def test_a_checkpoint_that_is_none_is_met_before_anything_is_loaded(tmp_path):
    np.save(tmp_path / "w.npy", np.zeros(3))
    for name, reason in (("w.npy", "is a single numpy array"), ("missing", "does not exist")):
        request = Request(find_protocol("digits"), models=("digits-dmd",), weights=tmp_path / name)
        with pytest.raises(BenchError, match=f"--weights: .*{reason}"):
            check_surroundings(request, tmp_path / "runs", tmp_path / "runs" / "bench.duckdb")


def test_a_link_to_itself_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loop = Path("loop")
    loop.symlink_to(loop)
    for act in (lambda: open_container(loop), lambda: name_of(loop) and load_case(loop), lambda: sha256_of(loop)):
        with pytest.raises(BenchError):
            act()
    with pytest.raises(BenchError, match="choose another place with -o"):
        output_file(loop, "-o")


def test_a_place_that_cannot_be_written_is_met_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("file/x.json", "file/deep/x.json"):
        with pytest.raises(BenchError, match="choose another place with --write"):
            output_file(tmp_path / place, "--write")
    assert output_file(tmp_path / "new" / "deep" / "x.json", "--write") == tmp_path / "new" / "deep" / "x.json"


def test_what_a_killed_command_left_of_a_file_goes_with_the_next(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    machine = mark().partition("-")[0]
    for name in (f"site.{machine}-{gone.pid}-00000000.tmp", f"[s].{machine}-{gone.pid}-00000000.tmp"):
        (tmp_path / name).mkdir()
    living = tmp_path / f"site.{machine}-{os.getppid()}-00000000.tmp"
    living.mkdir()
    with writing(tmp_path / "site") as made:
        made.mkdir()
    assert sorted(tmp_path.glob("site*")) == [tmp_path / "site", living]


def test_a_plan_of_too_many_rows_is_refused_before_one_is_worked_out():
    request = Request(find_protocol("gaussian"), models=("gaussian",), steps=tuple(range(1, 2001)), cfg=(1.0,) * 2000)
    with pytest.raises(BenchError, match="4,000,000 rows are asked for, a run takes at most 10,000"):
        make_plan(request, "")


def test_memory_that_ends_is_one_line(monkeypatch, capsys):
    from bench.cli import main

    def much(*_):
        raise MemoryError("Unable to allocate 16.0 GiB")

    monkeypatch.setattr("bench.models.cards.cards", much)
    with pytest.raises(SystemExit) as stop:
        main(["models"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "Error: not enough memory (Unable to allocate 16.0 GiB); ask for less at once\n"
