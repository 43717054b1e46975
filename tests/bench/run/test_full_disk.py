"""A disk that is full at any moment: one line and exit code 2, nothing lost, and the same command completes."""

import shutil
import subprocess

import duckdb
import numpy as np
import pytest
from PIL import Image

from bench.cli import main
from bench.run import readiness

RUN = ["run", "--protocol", "gaussian", "--num-samples", "2000", "--batch-size", "500", "--workers", "1"]
RUN += ["--steps", "1,2", "--cfg", "1"]
PROTOCOL = """
extends = "digits"
name = "mine"
[reference]
name = "mine"
kind = "folder"
images = 2
[metrics]
names = ["fid"]
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A file system of 32 MiB of its own."""
    place = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def emptied(disk, monkeypatch):
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(readiness, "FREE_BYTES_NEEDED", 0)  # else a full disk is met before the first sample
    return disk


def bench(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code, capsys.readouterr().err


def metrics(runs):
    with duckdb.connect(str(runs / "bench.duckdb"), read_only=True) as connection:
        return connection.execute("SELECT cell_id, metric, value, low, high FROM metrics ORDER BY ALL").fetchall()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole") / "runs"
    with pytest.raises(SystemExit, match="0"):
        main([*RUN, "--runs-dir", str(runs)])
    return runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (128, 8, 8, 3), dtype=np.uint8)):
        (place / str(index % 2)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / str(index % 2) / f"{index}.png")
    return place


@pytest.mark.parametrize("free", [4096, 100_000, 400_000])
@pytest.mark.parametrize(
    "command", ["run", "score", "merge", "reindex", "export", "remove", "report", "reference build"]
)
def test_a_command_completes_after_a_full_disk(emptied, whole, folder, capsys, monkeypatch, command, free):
    runs, cache = emptied / "runs", emptied / "cache"
    at = ["--runs-dir", runs]
    words = {
        "run": [*RUN, *at],
        "score": ["score", folder, *at],
        "merge": ["merge", whole, *at],
        "reindex": ["reindex", *at],
        "export": ["export", "thumbnails", "--output", emptied / "out.csv", *at],
        "remove": ["remove", "gaussian@2", "--yes", *at],
        "report": ["report", "--output", emptied / "out.html", *at],
        "reference build": ["reference", "build", "mine", "--data", folder, "--protocol", emptied / "mine.toml"],
    }[command]
    (emptied / "mine.toml").write_text(PROTOCOL)
    if command in ("reindex", "export", "remove", "report"):
        shutil.copytree(whole, runs)
    if command == "reference build":
        monkeypatch.setenv("BENCH_CACHE_DIR", str(cache))
    before = metrics(runs) if (runs / "bench.duckdb").exists() else []
    filler = emptied / "filler"
    with filler.open("wb") as file:
        file.write(b"\0" * (shutil.disk_usage(emptied).free - free))
    code, errors = bench(capsys, *words)
    assert code in (0, 2), errors
    if code:
        assert errors.splitlines()[-1].startswith("Error: "), errors
        assert "no space left" in errors.splitlines()[-1], errors
        assert before == (metrics(runs) if before else [])
        assert not [path for path in emptied.rglob("*") if path.name.endswith((".tmp", ".tmp.wal"))]
        assert not list(emptied.glob("out.*"))
    else:
        assert free > 10_000
    filler.unlink()
    code, errors = bench(capsys, *words)
    assert code == 0, errors
    if command in ("run", "merge", "reindex"):
        assert metrics(runs) == metrics(whole)
    if command == "remove":
        assert {row[0] for row in metrics(runs)} < {row[0] for row in metrics(whole)}
