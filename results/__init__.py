"""Results: the DuckDB store, leaderboard queries, baselines and published figures."""


class StoreError(ValueError):
    """A fault of the store that the user can mend, in one line."""
