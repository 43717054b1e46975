"""Results: what was measured. Cells, the DuckDB store and its index, statistics, rankings, published figures."""
