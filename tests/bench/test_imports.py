"""Help and listings answer at once: they import none of the heavy libraries."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "pandas", "plotly", "duckdb", "diffusers", "transformers", "open_clip", "sklearn", "scipy", "numpy"}
PROBE = """
import json, sys
from bench.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
sys.stderr.write(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


LIGHT = ("--help", "run --help", "models", "models --json", "protocols", "show digits")


@pytest.mark.parametrize("command", [line.split() for line in LIGHT])
def test_light_commands_import_no_heavy_library(command):
    done = subprocess.run([sys.executable, "-c", PROBE, *command], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert done.stdout
    assert not loaded & HEAVY


def test_importing_any_package_has_no_side_effects():
    code = (
        "import bench, adapters, protocols, results, report, sys; print(sorted(set(sys.modules) & {'torch', 'duckdb'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
