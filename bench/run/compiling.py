"""`--compile auto`: whether compiling the networks of a plan pays, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from bench.models.compilation import check_compiler
from bench.models.counting import Counter
from bench.run.plan import Request, make_plan
from results.errors import BenchError

EVALUATIONS_TO_PAY = 200_000
"""Evaluations of one network from which compiling it is taken to pay on CUDA: a minute of compiling against a gain of
1.4 at about 1,000 evaluations a second, what SiT-XL/2 reaches uncompiled on an H200 in bfloat16."""


class Decision(NamedTuple):
    """Whether the networks of a plan are compiled, and why."""

    compile: bool
    why: str


def decide(request: Request) -> Decision:
    """Return what `--compile auto` comes to for a request, by its device, the compilers here and its evaluations."""
    if not request.device.startswith("cuda"):
        return Decision(False, f"not compiled: on {request.device} it gains too little")
    try:
        check_compiler(request.device)
    except BenchError as error:
        reason = str(error).partition(";")[0].removeprefix("--compile ")
        return Decision(False, f"not compiled: it {reason}")
    evaluations: dict[str, float] = {}
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
        a_sample = cell.steps if count is None else count.nfe + count.guide_nfe
        evaluations[name] = evaluations.get(name, 0) + a_sample * cell.num_samples
    least = min(evaluations.values(), default=0.0)
    models = f"{len(evaluations)} model{'s' if len(evaluations) != 1 else ''}"
    facts = f"{models}, at least {least:,.0f} evaluations each; it pays from about {EVALUATIONS_TO_PAY:,}"
    pays = least >= EVALUATIONS_TO_PAY
    return Decision(pays, f"{'compiled' if pays else 'not compiled'}: {facts}")
