"""Contracts: all that an adapter may import. The adapter itself, its noise, its card and the parity case."""
