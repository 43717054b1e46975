"""Protocols: what is measured, against which reference, by which judges; data in TOML, checked when loaded."""

from protocols.schema import Protocol, Sweep, find_protocol, load_protocol, protocol_files, protocol_schema
from results.errors import ProtocolError

__all__ = ["Protocol", "ProtocolError", "Sweep", "find_protocol", "load_protocol", "protocol_files", "protocol_schema"]
