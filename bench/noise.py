"""`bench.contracts.noise` under its former name, for adapters in the wild; goes with 1.0."""

from bench.contracts.noise import NoiseSource, PhiloxNoise, RecordedNoise

__all__ = ["NoiseSource", "PhiloxNoise", "RecordedNoise"]
