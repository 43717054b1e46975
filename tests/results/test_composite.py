import numpy as np
import pytest

from results.composite import (
    COLUMNS,
    leave_one_row_out,
    metric_correlation,
    minmax_geometric_mean,
    minmax_harmonic_mean,
    rank_composite,
    read_bounds,
    table_array,
    write_bounds,
)
from results.errors import BenchError

ROWS = {"a": (4, 280, 28, 20.6), "b": (8, 330, 29, 20.9), "c": (20, 390, 30.2, 21.6), "d": (11, 150, 27, 20.1)}
BROKEN = (250, 3, 17, 17.5)


def table(*rows):
    return {column: [row[i] for row in rows] for i, column in enumerate(COLUMNS)}


def test_one_bad_row_decides_who_wins():
    full = minmax_harmonic_mean(table(*ROWS.values())).scores
    without = minmax_harmonic_mean(table(*[ROWS[r] for r in "abc"])).scores
    broken = minmax_harmonic_mean(table(*[ROWS[r] for r in "abc"], BROKEN)).scores
    assert np.round(full, 3).tolist() == [0.443, 0.652, 0.004, 0.001]
    assert np.round(without, 3).tolist() == [0.001, 0.442, 0.004]
    assert np.round(broken, 3)[:3].tolist() == [0.814, 0.889, 0.984]
    assert np.argmax(full) == 1 and np.argmax(broken) == 2


def test_leave_one_row_out_names_the_pairs_that_swap():
    sensitivity = {s.dropped: s for s in leave_one_row_out(table(*ROWS.values()))}
    assert (0, 2) in sensitivity[3].reordered  # without d, c overtakes a
    assert np.isnan(sensitivity[3].scores[3])
    frozen = minmax_harmonic_mean(table(*ROWS.values())).bounds
    assert all(not s.reordered for s in leave_one_row_out(table(*ROWS.values()), bounds=frozen))


def test_frozen_bounds_flag_and_clip_rows_outside():
    frozen = minmax_harmonic_mean(table(*ROWS.values())).bounds
    better = (2, 400, 31, 22)
    free = minmax_harmonic_mean(table(better, BROKEN), bounds=frozen)
    clipped = minmax_harmonic_mean(table(better, BROKEN), bounds=frozen, clip=True)
    assert free.outside.all() and free.scores[0] > 1.001
    assert clipped.scores == pytest.approx([1.001, 0.001]) and clipped.bounds == frozen


def test_columns_go_by_any_of_their_names():
    named = {"fid": [1, 2], "Inception_Score": [3, 4], "CLIP": [5, 6], "pickscore": [7, 8], "num_steps": [1, 1]}
    assert table_array(named).tolist() == [[1, 3, 5, 7], [2, 4, 6, 8]]


@pytest.mark.parametrize(
    "broken,words",
    [
        ({"FID": [1.0]}, "has no IS, CLIP Score, Pick Score"),
        ({**table(*ROWS.values()), "is_mean": [1, 2, 3, 4]}, "appears twice"),
        ({**table(*ROWS.values()), "IS": [1.0]}, "differ in length"),
        (table(), "no rows"),
    ],
)
def test_a_malformed_table_is_one_clear_line(broken, words):
    with pytest.raises(BenchError, match=words):
        minmax_harmonic_mean(broken)


def test_a_row_without_a_metric_scores_nothing_and_leaves_the_bounds_alone():
    result = minmax_harmonic_mean(table(*ROWS.values(), (3, None, 28, 20)))
    assert np.isnan(result.scores[4]) and np.isfinite(result.scores[:4]).all()
    assert result.bounds["IS"] == {"min": 150.0, "max": 390.0}


def test_a_utility_of_minus_eps_scores_zero_not_an_error():
    bounds = {c: {"min": 0.0, "max": 1.0} for c in COLUMNS}
    assert minmax_harmonic_mean(table((0.5, -0.001, 0.5, 0.5)), bounds=bounds).scores[0] == 0.0


def test_the_gentler_composites_keep_a_row_that_is_last_once():
    values = table_array(table(*ROWS.values()))
    composite = minmax_harmonic_mean(table(*ROWS.values()))
    geometric, ranks = minmax_geometric_mean(composite.utilities), rank_composite(values)
    assert composite.scores[2] < 0.01 < 0.1 < geometric[2]
    assert ranks == pytest.approx([(1 + 3 * 1 / 3) / 4, 2 / 3, 3 / 4, (1 / 3) / 4])


def test_correlation_counts_a_low_fid_as_good():
    values = table_array(table((1, 10, 1, 5), (2, 9, 3, 5), (3, 7, 2, 5)))
    correlation = metric_correlation(values)
    assert correlation[0, 1] == pytest.approx(1.0) and correlation[0, 2] == pytest.approx(-0.5)
    assert np.isnan(correlation[3, 0])


def test_bounds_files_are_read_back_and_malformed_ones_named(tmp_path):
    path = tmp_path / "bounds.json"
    write_bounds(path, {"FID": {"min": 1.0, "max": None}})
    assert read_bounds(path) == {"FID": {"min": 1.0, "max": None}}
    for text in ("[]", "{", '{"FID": 3}', '{"speed": {"min": 1}}', '{"FID": {"min": "low"}}'):
        path.write_text(text)
        with pytest.raises(BenchError, match=r"bounds\.json"):
            read_bounds(path)
