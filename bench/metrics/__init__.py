"""Metrics as pure functions of judge outputs: numpy in, float64 inside, a value and its uncertainty out.

`catalog` says what each metric is; `cell` measures all of them for one cell; the other modules hold the mathematics.
"""
