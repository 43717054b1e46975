"""`bench.contracts.card` under its former name, for adapters in the wild; goes with 1.0."""

from bench.contracts.card import Guidance, Member, ModelCard, Preset, Published, WeightsSource

__all__ = ["Guidance", "Member", "ModelCard", "Preset", "Published", "WeightsSource"]
