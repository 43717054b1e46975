"""Versions of one name are rows of their own, and a model with two names counts once."""

import numpy as np
import pytest

from results.comparing import compare_cells
from results.errors import BenchError
from results.leaderboard import best_of_each, rows
from results.marks import legend, marks_of
from results.moving import find_rows
from results.ranking import contenders
from results.store import connect

LEFT = np.linspace(-1, 1, 20)
OLD, NEW = "1965b10" + "0" * 57, "76a9cd0" + "1" * 57


@pytest.fixture
def versions(synthetic):
    """Two versions of one model's weights, two scored folders of one name, and another model."""
    database = synthetic()
    for weights, fid in ((OLD, 3.0), (NEW, 2.0)):
        database.add("twice", {"fid": fid}, {"fid": fid + LEFT}, weights_sha256=weights)
    for content in ("aa" * 32, "bb" * 32):
        database.add("folder", {"fid": 4.0}, {"fid": 4.0 + LEFT}, settings={"content": content}, steps=None)
    database.add("once", {"fid": 5.0}, {"fid": 5.0 + LEFT}, weights_sha256=OLD)
    return database.write()


def test_versions_of_a_name_are_labelled_rows_with_their_dates(versions):
    with connect(versions) as connection:
        found = rows(connection)
    names = ["twice#76a9cd0", "twice#1965b10", "folder#aaaaaaa", "folder#bbbbbbb", "once"]
    assert [row.cell["model"] for row in best_of_each(found)] == names
    said = [line for line in legend(found) if "several versions" in line]
    assert len(said) == 2 and "here: #76a9cd0 of 20" in said[0] and "once" not in "".join(said)


def test_a_version_names_a_row_wherever_rows_are_named(versions):
    compared = compare_cells(versions, "twice#76a9cd0", "twice#1965b10@1")
    assert compared.title_a.startswith("twice#76a9cd0") and compared.rows[1].cell["weights_sha256"] == OLD
    with pytest.raises(BenchError, match=r"'twice' matches 2 rows: .*twice#1965b10.*twice#76a9cd0.*MODEL#VERSION"):
        compare_cells(versions, "twice", "once")
    assert len(find_rows(versions.parent, ["twice#1965b10@1"])) == 1 and len(find_rows(versions.parent, ["twice"])) == 2


def test_a_row_under_the_name_of_a_card_that_stands_for_others_counts_once(synthetic):
    database = synthetic()
    for steps in (1, 2):
        database.add("both", {"fid": 3.0}, {"fid": 3.0 + LEFT}, steps=steps, checkpoint="member", weights_sha256=OLD)
    own = database.add("member", {"fid": 3.0}, {"fid": 3.0 + LEFT}, steps=1, checkpoint="member", weights_sha256=OLD)
    path = database.write()
    with connect(path) as connection:
        found = rows(connection)
        ranking = found[0].cell["ranking"]
        assert {(row.cell["model"], row.cell["steps"]) for row in found} == {("both", 2), ("member", 1)}
        assert set(contenders(connection, ranking)) == {row.cell["cell_id"] for row in found} and own in contenders(
            connection, ranking
        )


def test_marks_stand_beside_rows(versions):
    with connect(versions) as connection:
        row = rows(connection)[0]
    assert marks_of(row) == ""
    row.cell.update(off_regime=True, trained_on=["inception"], pixels={"remarks": ["all grey"]})
    row.rank["outside"] = ["fid"]
    assert marks_of(row) == " * ! ^ #"
