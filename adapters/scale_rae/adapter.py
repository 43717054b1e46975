"""Scale-RAE's family: what its worker is told, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from bench.contracts.out_of_process import WorkerAdapter
from bench.contracts.settings import SamplerSettings


class ScaleRAESettings(SamplerSettings):
    """Which of two samplers runs: they make other images of the same noise, and are systems of their own."""

    behaviour: Literal["corrected", "released"] = Field(
        "corrected",
        description="corrected: steps in order, and guidance acts; released: the authors' order of steps, whose "
        "guidance does nothing at twice the evaluations",
    )


class ScaleRAE(WorkerAdapter):
    """The authors' language model and networks under a sampler of ours, with the harness's noise."""

    Settings = ScaleRAESettings
    script = Path(__file__).with_name("worker.py")
    takes_prompts = True

    def declared_nfe(self, steps: int, cfg: float, settings: ScaleRAESettings) -> float:
        """Return a step's evaluation of the flow's network, twice with guidance; the language model is not counted."""
        return float(steps * (2 if cfg > 1 else 1))

    def unsupported(self, steps: int, cfg: float, settings: ScaleRAESettings | None = None) -> str | None:
        """Refuse scales below 1, which the authors' code takes for none, and more steps than its grid has points."""
        if cfg < 1:
            return f"{self.card.name}: cfg must be at least 1 (no guidance), found {cfg:g}"
        if steps > 999:
            return f"{self.card.name}: its grid has 1000 times, so at most 999 steps; found {steps}"
        return super().unsupported(steps, cfg, settings)
