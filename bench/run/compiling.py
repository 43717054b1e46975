"""`--compile auto`: whether compiling the networks of a plan pays, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from bench.models.compilation import check_compiler
from bench.models.counting import Counter
from bench.run.plan import Request, make_plan
from results.errors import BenchError
from results.numbers import counted

COMPILING = 25.0
"""Seconds of compiling a transformer and a decoder, all shapes that a run meets."""
SAVED_BY_EVALUATION, SAVED_BY_DECODE = 2e-4, 7e-4
"""Seconds that a compiled network saves an evaluation and a compiled decoder an image. All three were measured on one
NVIDIA H200 in bfloat16 on 26 November 2026: SiT-XL/2 saves 0.08 ms, UCGM-XL 0.37; their decoders 0.8 and 0.6."""


class Decision(NamedTuple):
    """Whether the networks of a plan are compiled, and why."""

    compile: bool
    why: str


def decide(request: Request) -> Decision:
    """Return what `--compile auto` comes to for a request, by its device, the compilers here and what it samples."""
    if not request.device.startswith("cuda"):
        return Decision(False, f"not compiled: on {request.device} it gains too little")
    try:
        check_compiler(request.device)
    except BenchError as error:
        reason = str(error).partition(";")[0].removeprefix("--compile ")
        return Decision(False, f"not compiled: it {reason}")
    saved: dict[str, float] = {}
    counters: dict[str, Counter] = {}
    for cell in make_plan(replace(request, random_weights=True), ""):
        if cell.unsupported is not None:
            continue
        name = cell.card.name
        counter = counters.setdefault(name, Counter(cell.card))
        if counter.adapter.out_of_process:
            return Decision(False, f"not compiled: {name} is sampled by a worker")
        settings = counter.adapter.resolve_settings(cell.steps, cell.sampler, cell.options)
        count = counter.count(cell.steps, cell.cfg, settings)
        evaluations = cell.steps if count is None else count.nfe + count.guide_nfe
        decode = SAVED_BY_DECODE if cell.card.autoencoder is not None else 0.0
        a_sample = evaluations * SAVED_BY_EVALUATION + decode
        saved[name] = saved.get(name, 0.0) + a_sample * cell.num_samples
    least = min(saved.values(), default=0.0)
    models = counted(len(saved), "model")
    facts = f"{models}, each sampled about {least:,.0f} s sooner or more; compiling takes about {COMPILING:.0f} s"
    pays = least >= COMPILING
    return Decision(pays, f"{'compiled' if pays else 'not compiled'}: {facts}")
