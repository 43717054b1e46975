"""`bench run` from end to end: wall clock against sampling and judging, time to the first batch, workers.

python benchmarks/run.py [--device cuda] [--model NAME] [--protocol P] [--num N] [--steps 1,2] [--workers 1,2]
python benchmarks/run.py --judges published --model sit-xl --num 2048 --steps 1 --device cuda --dtype bfloat16

`--judges` takes the protocol and the random judges of evaluation.py at 256 pixels in place of a protocol's own.
Every run is a `bench run --random-weights` in a process and a runs directory of its own, and its shares are read off
the records that it leaves. On a processor two workers are compared with one: on an idle machine of two cores or more
they sample and judge at least 1.8 times as fast. The timing of rows, alone and one by one, and the metrics of the last
cell do not divide.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from results.cells import CellDirectory


class Measured(NamedTuple):
    """Seconds of one run."""

    wall: float
    """From the command to its end."""
    start: float
    """From the command to the first batch: imports, judges, reference and weights."""
    sampling: float
    """Of all workers, in network and decoder."""
    judging: float
    images: int

    def line(self, workers: int) -> str:
        """Return the row of the table."""
        work = (self.sampling + self.judging) / workers
        after = self.wall - self.start
        return (
            f"| {workers} | {self.images} | {self.wall:.1f} | {self.start:.1f} | {self.sampling:.1f} | "
            f"{self.judging:.1f} | {self.wall / work:.2f} | {after / work:.2f} | {self.images / self.wall:.1f} |"
        )


def first_shard(runs: Path) -> float | None:
    """Return how long sampling and judging the first shard took; None while it is not there."""
    for shard in runs.glob("cells/*/shard-*.safetensors"):
        facts = CellDirectory(runs, shard.parent.name).first_facts() or {}
        if facts:
            return float(facts["network_seconds"] + facts["decode_seconds"] + facts["judge_seconds"])
    return None


def measure(arguments: list[str], workers: int, limit: float, environment: dict[str, str]) -> Measured:
    """Run `bench run` with `workers` workers and return what it took. Raises SystemExit when it fails."""
    with tempfile.TemporaryDirectory(prefix="bench-run-") as folder:
        runs = Path(folder)
        command = [sys.executable, "-m", "bench", "run", *arguments, "--workers", str(workers), "--runs-dir", folder]
        began = time.time()
        with (runs / "output").open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            first = None
            try:
                while process.poll() is None:
                    if first is None and (took := first_shard(runs)) is not None:
                        first = time.time() - began - took
                    if time.time() - began > limit:
                        sys.exit(f"bench run was ended after {limit:.0f} s")
                    time.sleep(0.02)
            finally:
                process.kill()
                process.wait()
        wall = time.time() - began
        if process.returncode:
            sys.exit(f"bench run failed:\n{(runs / 'output').read_text()[-2000:]}")
        rows = [json.loads(path.read_text())["cell"] for path in runs.glob("cells/*/result.json")]
        done = [row for row in rows if row["status"] == "done"]
        sampling = sum(row["network_seconds"] + row["decode_seconds"] for row in done)
        judging = sum(row["judge_seconds"] for row in done)
        return Measured(wall, first or wall, sampling, judging, sum(row["num_samples"] for row in done))


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default=None, help="[the protocol's]")
    parser.add_argument("--protocol", default="digits")
    parser.add_argument("--num", type=int, default=None)
    parser.add_argument("--steps", default=None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--workers", default="1", help="numbers of workers, e.g. 1,2")
    parser.add_argument("--compile", nargs="?", const="yes", help="as `bench run` takes it, e.g. auto")
    parser.add_argument("--judges", default=None, help="small, full or published: evaluation.py's, not a protocol's")
    parser.add_argument("--references", type=int, default=1024, help="reference images of --judges")
    parser.add_argument("--files", type=Path, default=None, help="where evaluation.py --files keeps its weights")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds for each run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-judges-") as temporary:
        compare(given, given.files or Path(temporary))


def compare(given: argparse.Namespace, files: Path) -> None:
    """Run with each number of workers and print what each took."""
    protocol, environment = given.protocol, dict(os.environ)
    if given.judges is not None:
        from evaluation import Setting, prepare

        files.mkdir(parents=True, exist_ok=True)
        setting = Setting(files, given.judges, given.num or 1024, 256, given.device)
        prepare(setting, given.references, images=False)
        protocol, environment = str(files / "ours.toml"), setting.environment()
    arguments = ["--protocol", protocol, "--device", given.device, "--dtype", given.dtype, "--random-weights"]
    for name, value in (("model", given.model), ("num-samples", given.num), ("steps", given.steps)):
        arguments += [] if value is None else [f"--{name}", str(value)]
    arguments += [] if given.compile is None else ["--compile", *([given.compile] if given.compile != "yes" else [])]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"bench run {' '.join(arguments)}; {cores} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| workers | images | wall s | first batch s | sampling s | judging s | wall / work | then | images/s |")
    print("|" + " -: |" * 9)
    found = {}
    for workers in map(int, given.workers.split(",")):
        found[workers] = measure(arguments, workers, given.budget, environment)
        print(found[workers].line(workers), flush=True)
    if {1, 2} <= set(found):
        work = {workers: (run.sampling + run.judging) / workers for workers, run in found.items()}
        print(
            f"\n2 workers against 1: {found[1].wall / found[2].wall:.2f} times as fast; sampling and judging "
            f"{work[1] / work[2]:.2f} times"
        )


if __name__ == "__main__":
    main()
