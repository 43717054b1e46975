"""Generators behind one interface: one module a family, shared networks, one card a published model."""
