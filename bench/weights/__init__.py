"""Weights: found, fetched, verified by digest, and read without executing anything."""

from bench.weights.cache import FileCache, cache_directory, sha256_of
from bench.weights.sources import (
    FileState,
    ModelFile,
    add_file,
    autoencoder_sources,
    fetch_file,
    fetch_model,
    locate,
    model_files,
    read_state,
    verify_model,
    weights_digest,
    weights_digests,
)

__all__ = [
    "FileCache",
    "FileState",
    "ModelFile",
    "add_file",
    "autoencoder_sources",
    "cache_directory",
    "fetch_file",
    "fetch_model",
    "locate",
    "model_files",
    "read_state",
    "sha256_of",
    "verify_model",
    "weights_digest",
    "weights_digests",
]
