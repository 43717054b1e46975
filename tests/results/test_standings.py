"""A view of a database: which rows it shows, in which order, and what it says of the rest."""

import pytest

from results.errors import BenchError, StoreError
from results.standings import View, leaderboard
from results.store import connect


@pytest.fixture
def database(synthetic):
    """Two models of two settings each, and one ranking."""
    builder = synthetic()
    for model, steps, fid in (("a", 1, 3.0), ("a", 4, 1.0), ("b", 1, 2.0), ("b", 4, 4.0)):
        builder.add(model, {"fid": fid}, {"fid": [fid] * 5}, steps=steps)
    return builder.write()


def shown(database, **asked):
    with connect(database) as connection:
        board = leaderboard(connection, View(**asked))
    return [(row.cell["model"], row.cell["steps"]) for standing in board.standings for row in standing.rows], board


def test_the_best_setting_of_each_model_is_shown_best_first(database):
    rows, board = shown(database)
    assert rows == [("a", 4), ("b", 1)]
    (standing,) = board.standings
    assert standing.metric == "fid" and len(standing.members) == 4 and standing.measured and board.found


def test_a_view_narrows_and_orders(database):
    assert shown(database, every=True)[0] == [("a", 4), ("b", 1), ("a", 1), ("b", 4)]
    assert shown(database, steps=1)[0] == [("b", 1), ("a", 1)]
    assert shown(database, every=True, sort="steps")[0][:2] == [("a", 1), ("b", 1)]
    rows, board = shown(database, steps=77)
    assert rows == [] and board.found
    rows, board = shown(database, protocol="other")
    assert rows == [] and not board.found


def test_what_a_view_cannot_show_is_refused(database):
    with pytest.raises(StoreError, match="unknown metric 'fjd'"):
        shown(database, sort="fjd")
    with pytest.raises(StoreError, match="no finished row of seed 9"):
        shown(database, select_on=9)
    with pytest.raises(BenchError, match="use one of the two"):
        View(every=True, select_on=0)
