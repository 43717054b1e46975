"""Runs hostile cases through the command line in this process and prints what should never have happened, as JSON.

python tests/fuzz/run.py --seed 1 --cases 320 [--only INDEX] [--show]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "weights"))
sys.path.insert(0, str(Path(__file__).parent))

from hostile import CANARY, OUTSIDE, Case, Generator

SECONDS, WAITING_SECONDS = 40, 300
"""Of computing, which another process does not lengthen, and of waiting."""
GROWTH_BYTES = 1 << 30
FILE_BYTES = 200 << 20
ADDRESS_BYTES = 8 << 30
CONTROLS = {chr(code) for code in [*range(32), *range(127, 160)]} - {"\n"} | set("\u202a\u202b\u202c\u202d\u202e")


class Hang(BaseException):
    """A case took longer than it may."""


def ring(number, frame):
    raise Hang("".join(traceback.format_stack(frame)[-3:]))


class Stream(io.TextIOWrapper):
    """What a command writes, kept."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self):
        return self.buffer.getvalue().decode("utf-8", "replace")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def call(words):
    """Return (exit code, stdout, stderr) of a command line; what escapes is raised."""
    from bench.cli import main

    out, err = Stream(), Stream()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return code, out.text(), err.text()


def faults(case: Case, place: Path) -> tuple[list[str], int | None, str]:
    """Run one case in `place`; return what should not have been, the exit code and what was said."""
    found = []
    code, out, err = None, "", ""
    before = resident()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
    try:
        code, out, err = call(case.words)
    except Hang as hang:
        found.append(f"hang: {hang}")
    except BaseException:
        found.append(f"escaped: {traceback.format_exc(limit=-4)}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if resident() - before > GROWTH_BYTES:
        found.append(f"memory: {(resident() - before) >> 20} MiB more")
    if "Traceback" in out + err:
        found.append("traceback")
    if "--debug for the traceback" in err:
        found.append("unforeseen exception")
    if code not in (None, 0, 1, 2):
        found.append(f"exit code {code}")
    if code == 2 and not err.strip():
        found.append("an error without a word")
    escapes = CONTROLS.intersection(out + err)
    if escapes:
        found.append(f"control characters {sorted(escapes)}")
    if list(Path.cwd().rglob(CANARY)) or (Path.cwd().parent / CANARY).exists() or OUTSIDE.exists():
        found.append("code ran, or a file was written outside")
    if (leftover := list(place.rglob("*.tmp"))) or (leftover := [p for p in place.parent.glob("*") if p != place]):
        found.append(f"left behind: {[str(path) for path in leftover[:3]]}")
    if code == 2:
        found += [f"partial file {path.name}" for path in case.outputs if path.exists()]
    return found, code, out + err


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--cases", type=int, default=320)
    options.add_argument("--only", type=int)
    options.add_argument("--show", action="store_true")
    asked = options.parse_args()
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    os.environ.update(
        BENCH_CACHE_DIR=str(root / "cache"),
        HF_HOME=str(root / "hub"),
        HF_HUB_OFFLINE="1",
        TORCH_HOME=str(root / "torch"),
    )
    os.environ.pop("BENCH_RUNS_DIR", None)
    os.chdir(root)
    small = ["--num-samples", "20", "--workers", "1", "--steps", "1,2", "--cfg", "1"]
    assert call(["run", "--protocol", "gaussian", *small, "--runs-dir", str(root / "finished")])[0] == 0
    finished = Path(shutil.move(root / "finished", tempfile.mkdtemp(prefix="fuzz-runs-")))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, ring)
    signal.signal(signal.SIGPROF, ring)
    started, failures, codes, kinds = time.monotonic(), [], Counter(), Counter()
    for index in range(asked.cases) if asked.only is None else [asked.only]:
        place = root / "case" / "work"
        place.mkdir(parents=True)
        (place / "folder").mkdir()
        (place / "file").write_text("x")
        (place / "link").symlink_to("file")
        os.chdir(place)
        case = Generator(asked.seed, index, place, finished).case()
        if asked.show:
            print(index, case.title, case.words, file=sys.stderr, flush=True)
        began = time.monotonic()
        found, code, said = faults(case, place)
        codes[code] += 1
        kinds[case.title.partition(":")[0]] += 1
        if asked.show:
            print(f"   -> {code} in {time.monotonic() - began:.1f} s: {said[:300]!r}", file=sys.stderr, flush=True)
        if found:
            failures.append(
                {"index": index, "title": case.title, "words": case.words, "found": found, "said": said[-600:]}
            )
        os.chdir(root)
        shutil.rmtree(root / "case", ignore_errors=True)
    seconds = time.monotonic() - started
    shutil.rmtree(root, ignore_errors=True)
    shutil.rmtree(finished.parent, ignore_errors=True)
    summary = {"cases": sum(codes.values()), "codes": {str(key): codes[key] for key in codes}, "kinds": dict(kinds)}
    print(json.dumps({**summary, "seconds": round(seconds, 1), "failures": failures}, indent=1))


if __name__ == "__main__":
    main()
