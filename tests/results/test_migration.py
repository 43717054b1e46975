"""A database of the first schema, made by a default run of the version before: it migrates and says the same."""

import gzip
import html
import json
import re
from collections import defaultdict
from pathlib import Path

import duckdb
import pytest

from bench.cli import main
from bench.cli.output import leaderboard_table
from report import tables
from report.data import read_measurements
from results.comparing import tied
from results.database import SCHEMA_VERSION
from results.leaderboard import rankings, rows, sorted_rows
from results.picks import tied_with_best
from results.store import connect

OLD = Path(__file__).parent / "databases" / "version1.duckdb.gz"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    path = tmp_path_factory.mktemp("old") / "bench.duckdb"
    path.write_bytes(gzip.decompress(OLD.read_bytes()))
    return path


@pytest.fixture(scope="module")
def found(old):
    with connect(old) as connection:
        return rows(connection, blocks=True)


def stored(path, query):
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_an_old_database_is_read_without_being_altered(old, found):
    before = old.read_bytes()
    values = {(row.cell["cell_id"], name): value.value for row in found for name, value in row.metrics.items()}
    assert values == {(c, m): v for c, m, v in stored(old, "SELECT cell_id, metric, value FROM metrics")}
    columns = ("mmhm", "low", "high", "geometric", "mean_rank")
    for cell, *numbers in stored(old, f"SELECT cell_id, {', '.join(columns)} FROM ranks"):
        rank = next(row.rank for row in found if row.cell["cell_id"] == cell)
        assert [rank[column] for column in columns] == pytest.approx(numbers, rel=1e-12)
    assert all(value.rank_low is not None for row in found for value in row.metrics.values())
    assert len({row.cell["measurement"] for row in found}) == 1
    assert old.read_bytes() == before


def test_the_first_command_that_writes_migrates_in_place_and_keeps_everything(old, found, tmp_path):
    path = tmp_path / "bench.duckdb"
    path.write_bytes(old.read_bytes())
    with connect(path, write=True) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchall() == [(SCHEMA_VERSION,)]
        assert rows(connection, blocks=True) == found
    assert [file.name for file in tmp_path.iterdir()] == ["bench.duckdb"]
    for table in ("cells", "metrics", "per_class", "thumbnails", "models", "runs", "protocols"):
        count = f"SELECT count(*) FROM {table}"
        assert stored(path, count) == stored(old, count)
    ((dated, printed),) = stored(path, "SELECT count(date), count(*) FROM published")
    assert 0.9 * printed < dated <= printed  # a month for every paper; some repositories have none


def test_report_command_line_and_budgets_name_the_same_ties(old, found):
    data = read_measurements(old)
    for metric in ("mmhm", "fid", "recall"):
        ranked = sorted_rows(found, metric)
        tied = [row.cell["cell_id"] for row in ranked[1:] if row.measured(metric).may_be_best]
        assert sorted(data.leaders(metric)) == sorted([ranked[0].cell["cell_id"], *tied])
        asked = {row.cell["cell_id"] for row in tied_with_best(ranked, metric)}
        assert len(asked ^ set(tied)) <= 1  # at the limit the draws decide, which have a seed for each ranking


def printed_by_the_report(data):
    """Return {(cell, metric): text} of every metric in the page's leaderboard."""
    bodies = re.findall(
        r"<tbody[^>]*data-cell=\"(\w+)\"[^>]*>(.*?)</tr>", str(tables.leaderboard(data, [], [], defaultdict(str)))
    )
    assert len(bodies) == len(data.cells)
    found = {}
    first = 3 + len(tables.BEFORE)
    for cell, line in bodies:
        cells = re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", line)[first : first + len(data.metrics)]
        for name, text in zip(data.metrics, cells, strict=True):
            found[cell, name] = html.unescape(re.sub(r"<[^>]*>", "", text.replace("<small>", "|")))
    return found


def printed_by_the_command(row, metric):
    table = leaderboard_table([row], 10**6, sort=metric)
    column = next(column for column in table.columns if str(column.header).lower() == metric)
    (text,) = column.cells
    return text


def test_report_and_command_line_print_every_number_alike(old, found):
    printed = printed_by_the_report(read_measurements(old))
    for row in found:
        for metric in (*row.metrics, "mmhm"):
            value, _, interval = printed.pop((row.cell["cell_id"], metric)).partition("|")
            lopsided = " to " in interval
            expected = f"{value} ({interval})" if lopsided else f"{value} {interval}".rstrip()
            assert printed_by_the_command(row, metric) == expected
    assert not printed


def test_rank_sets_are_wider_than_what_single_pairs_say(found):
    for metric in ("fid", "recall", "mmhm"):
        for row in found:
            others = [other for other in found if other is not row and not tied(row, other, metric)]
            sign = row.fact(metric).sign
            better = sum(sign * (other.value(metric) - row.value(metric)) > 0 for other in others)
            value = row.measured(metric)
            assert 1 <= value.rank_low <= 1 + better
            assert len(found) - (len(others) - better) <= value.rank_high <= len(found)


@pytest.mark.parametrize(
    ("composite", "reason"),
    [
        ({"bounds": {"fid": [0.365]}}, "composite.bounds.fid: [0.365] is not a pair of numbers"),
        ({"eps": "small"}, "composite.eps: 'small' is not a number of at least 0"),
        ({"metrics": ["fid", "kid"]}, "composite.metrics: ['fid', 'kid'] requested"),
        (["bounds"], "composite: not a table"),
    ],
)
def test_a_malformed_stored_composite_is_a_note_on_its_ranking(synthetic, composite, reason, capsys):
    database = synthetic()
    values = {"fid": 3.0, "is": 9.0, "clip": 28.0, "pick": 20.0}
    database.add("one", values)
    database.protocol["definition"]["composite"] = composite
    path = database.write()
    with connect(path) as connection:
        (ranking,) = rankings(connection).values()
        (row,) = rows(connection)
    assert reason in ranking["note"] and row.rank == {} and row.metrics["fid"].value == 3.0
    for words in (("leaderboard",), ("leaderboard", "--composites")):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--runs-dir", str(path.parent)])
        captured = capsys.readouterr()
        assert stop.value.code == 0 and reason in captured.out + captured.err
    assert json.dumps(ranking["bounds"]) == "null"
