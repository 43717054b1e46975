"""`bench.contracts.adapter` under its former name, for adapters in the wild; goes with 1.0."""

from bench.contracts.adapter import Adapter, load_strict

__all__ = ["Adapter", "load_strict"]
