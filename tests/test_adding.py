"""The pages on adding a metric, a judge, a protocol and a data set, executed: files, entry points and commands."""

import re
import shlex
import tomllib
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"


def digits_folder(folder):
    from protocols.digits.data import load_split

    folder.mkdir()
    split = load_split("test")
    for index, (image, label) in enumerate(zip(split.images[:200], split.labels[:200], strict=True)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{label}_{index:04d}.png")
    assert len(np.unique(split.labels[:200])) == 10


@pytest.mark.parametrize(
    ("page", "metrics"),
    [("metric", {"fid", "confidence"}), ("judge", {"fd_dinov2"}), ("protocol", {"fid"}), ("data-set", {"fid", "kid"})],
)
def test_the_page_works_as_written(tmp_path, install, run_bench, page, metrics):
    text = (DOCS / f"adding-a-{page}.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"^```\w+ title=(\S+)\n(.*?)^```", text, re.M | re.S))
    assert len([file for file in files if file.endswith(".py")]) == 1  # one module is all that a plug-in is
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    (group, points), *_ = project["entry-points"].items()
    install(
        tmp_path, project["name"], "\n".join([f"[{group}]", *(f"{k} = {v}" for k, v in points.items()), ""]), **files
    )
    digits_folder(tmp_path / "images")
    commands = re.findall(r"^\$ bench (.*)$", text, re.M)
    assert commands
    for command in commands:
        done = run_bench(tmp_path, *shlex.split(command), BENCH_CACHE_DIR=str(tmp_path / "cache"))
        assert done.returncode == 0, (command, done.stderr)
    with duckdb.connect(tmp_path / "runs" / "bench.duckdb", read_only=True) as connection:
        found = {name for (name,) in connection.execute("SELECT DISTINCT metric FROM metrics").fetchall()}
    assert metrics <= found
