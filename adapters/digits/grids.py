"""Other ways to sample the flow networks: autoguidance, and given time grids (BOSS, arXiv 2312.16414, for one)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from adapters.digits.adapters import DigitsFlow, FlowSettings, velocity_of
from adapters.digits.network import build_network
from adapters.guidance import Guided
from adapters.meanflow import TimedSettings
from bench.contracts.adapter import load_strict
from bench.contracts.card import ModelCard


class DigitsAutoguided(DigitsFlow):
    """Rectified flow under autoguidance (arXiv 2406.02507): v_guide + w (v - v_guide), both with the label."""

    guide: nn.Module

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.guide = build_network(card.architecture["guide"])

    def load(self, state: Mapping[str, Tensor], extra: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Fill the network and, from `extra`, the weaker one called `guide`."""
        super().load(state, extra)
        if "guide" in extra:
            load_strict(self.guide, extra["guide"], f"{self.card.name} (guide)")

    def guided(self, labels: Tensor, cfg: float) -> Guided:
        """Return the velocity as a function of (x, t), away from the guide's."""
        return Guided(velocity_of(self.network), labels, None, cfg, weak=velocity_of(self.guide))


class GridSettings(FlowSettings, TimedSettings):
    """A solver on a given grid."""


class DigitsFlowGrid(DigitsFlow):
    """Rectified flow over given times."""

    Settings = GridSettings

    def times(self, steps: int, settings: FlowSettings) -> Sequence[float]:
        """Return the given times, in the sampler's direction."""
        assert isinstance(settings, GridSettings)
        return [1 - t for t in settings.grid(steps)]

    def unsupported(self, steps: int, cfg: float, settings: GridSettings | None = None) -> str | None:
        """Refuse times of another number of steps."""
        misfit = (settings or self.resolve_settings(steps)).misfit(steps)
        return super().unsupported(steps, cfg, settings) if misfit is None else f"{self.card.name}: {misfit}"
