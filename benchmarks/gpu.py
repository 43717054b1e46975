"""All that is measured on one accelerator, in calls of under eight minutes.

    python benchmarks/gpu.py --output DIR           (one GPU; random weights, nothing is downloaded)
    python benchmarks/gpu.py --output DIR --only generators,compiled,halves
    python benchmarks/gpu.py --output DIR --tiny    (the same parts at toy sizes on a processor: does the script run?)

Each part is a process of its own with a share of the time. What no time is left for is left out, and the command that
measures it is printed. The output of every part lies in DIR. Needs torchmetrics, as evaluation.py does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
TOTAL = 470.0
"""Seconds of a call."""


class Part(NamedTuple):
    """A script with its arguments, and the seconds it may take."""

    name: str
    seconds: float
    words: list[str]
    threads: int | None = None
    """Of each of its processes, where they are many; None: torch's own choice."""


def parts(tiny: bool, output: Path) -> list[Part]:
    """Return what is measured, the most telling first."""
    generators, evaluation, run, halves = (
        str(HERE / f"{name}.py") for name in ("generators", "evaluation", "run", "halves")
    )
    if tiny:
        few = ["--steps", "1", "--repeats", "1", "--depth", "0", "--device", "cpu"]
        return [
            Part("generators", 150, [generators, "--models", "digits-flow", *few, "--budget", "100"]),
            Part("evaluation", 150, [evaluation, "--num", "32", "--references", "32", "--variants", "floor,ours,loop"]),
            Part("many", 150, [evaluation, "--num", "64", "--references", "32", "--variants", "floor,ours"]),
            Part("run", 150, [run, "--device", "cpu", "--model", "digits-flow-small", "--steps", "1", "--num", "100"]),
            Part("halves", 150, [halves, "--device", "cpu", "--models", "soflow-cifar10"]),
        ]
    big = ["--batch-size", "128", "--device", "cuda", "--steps", "1,8", "--repeats", "1"]
    judges = ["--files", str(output.resolve().parent / "judges"), "--references", "1024"]
    names = ("metrics/test_algebra.py", "metrics/test_downdates.py", "models/test_compilation.py")
    tests = [*names, "../adapters/test_every_family.py"]
    workers = ["-n", "6"] if find_spec("xdist") else []
    evaluated = [evaluation, "--models", "published", "--resolution", "256", *judges, "--device", "cuda"]
    evaluated += ["--threads", "8", "--num"]
    measured = [run, "--device", "cuda", "--judges", "published", *judges, "--model", "sit-xl", "--num", "2048"]
    measured += ["--dtype", "bfloat16", "--budget", "100", "--steps"]
    return [
        Part(
            "evaluation",
            190,
            [*evaluated, "1024", "--variants", "floor,ours,loop,ours-fidelity,fidelity", "--budget", "160"],
        ),
        Part("many", 100, [*evaluated, "4096", "--variants", "floor,ours"]),
        Part("run", 90, [*measured, "1"]),
        Part("cells", 110, [*measured, "1,2,4"]),
        Part("generators", 90, [generators, *big, "--budget", "75", "--json", str(output / "generators.json")]),
        Part(
            "compiled",
            140,
            [generators, *big, "--compile", "--budget", "120", "--json", str(output / "compiled.json")],
        ),
        Part("halves", 70, [halves, "--device", "cuda", "--budget", "60", "--json", str(output / "halves.json")]),
        Part(
            "tests",
            120,
            ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *workers,
             *(str(HERE.parent / "tests/bench" / name) for name in tests)],
            threads=1,
        ),
    ]  # fmt: skip


def main() -> None:
    """Run the parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", default="", help="parts to run, e.g. generators,compiled [all]")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    failed, left_out = [], []
    wanted = set(filter(None, given.only.split(",")))
    for part in parts(given.tiny, given.output):
        if wanted and part.name not in wanted:
            continue
        left = TOTAL - (time.monotonic() - began)
        if left < 20 and not given.tiny:
            left_out.append(part.name)
            continue
        print(f"\n## {part.name}", flush=True)
        output = given.output / f"{part.name}.txt"
        with output.open("w") as file:
            try:
                own = {} if part.threads is None else {"OMP_NUM_THREADS": str(part.threads)}
                limit = part.seconds if given.tiny else min(part.seconds, left)
                done = subprocess.run(
                    [sys.executable, *part.words],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment | own,
                    timeout=limit,
                )
                ended = "" if done.returncode == 0 else f"exit code {done.returncode}"
            except subprocess.TimeoutExpired:
                ended = f"ended after {limit:.0f} s"
        print(output.read_text(), end="", flush=True)
        if ended:
            failed.append(f"{part.name}: {ended}")
            print(failed[-1], flush=True)
    if left_out:
        print(
            f"\nLeft out, the time is spent: python {sys.argv[0]} --output {given.output} --only {','.join(left_out)}"
        )
    print(f"\n{time.monotonic() - began:.0f} s in all; {'; '.join(failed) or 'every part came to its end'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
