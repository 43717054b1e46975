"""docs/wrapping-diffusers.md, block by block: a real class of diffusers, trained for a moment, checked and sampled."""

import os
import re
import subprocess
import sys
from pathlib import Path

TEXT = (Path(__file__).parent.parent / "docs" / "wrapping-diffusers.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def test_the_second_worked_example_works(tmp_path):
    adapter, train = blocks("python")
    (card,) = (block for block in blocks("toml") if block.startswith("name"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}

    def run(*words):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("-m", "bench", "adapter", "new", "my-ddim")
    (tmp_path / "my-ddim/my_ddim/adapter.py").write_text(adapter, encoding="utf-8")
    (tmp_path / "my-ddim/my_ddim/cards/my-ddim.toml").write_text(card, encoding="utf-8")
    (tmp_path / "train.py").write_text(train, encoding="utf-8")
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", "site")
    run(*install, "./my-ddim")
    loss = float(run("train.py", "40", "site/my_ddim/cards/my-ddim.safetensors").split("loss ")[1].split()[0])
    assert loss < 1.0
    said = run("-m", "bench", "adapter", "check", "my-ddim")
    assert "FAIL" not in said and "never waits for the device between steps" in said
    assert "NFE 16" in run("-m", "bench", "sample", "my-ddim", "--steps", "16", "--device", "cpu", "-o", "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
