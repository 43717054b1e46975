"""The run: plan, readiness, shards, measurement, regression gate and provenance."""
