"""The harness: contracts, planning, running, judging and measuring few-step image generators."""

__version__ = "0.1.0"
