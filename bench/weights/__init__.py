"""Weights: found, fetched, verified by digest, and read without executing anything."""
