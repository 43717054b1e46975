"""Every metric is one row of the catalogue, and whatever sorts, draws or documents it follows that row."""

from pathlib import Path

import pytest

from bench.cli import main
from report.data import read_measurements
from results.catalog import CATALOG, FACTS, MetricFact, read_facts
from results.leaderboard import rows, sorted_rows
from results.store import connect

DOCS = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CATALOG)
def test_a_metric_is_sorted_in_its_direction_by_everyone(synthetic, capsys, name):
    fact = CATALOG[name]
    assert f"`{name}`" in DOCS
    database = synthetic()
    for model, value in (("small", 1.0), ("large", 2.0)):
        database.add(model, {name: value}, {name: [value] * 5})
    path = database.write()
    expected = ["small", "large"] if fact.better == "lower" else ["large", "small"]
    with connect(path) as connection:
        found = rows(connection)
        assert read_facts(connection)[name] == fact
    assert [row.cell["model"] for row in sorted_rows(found, name)] == expected
    places = {row.cell["model"]: row.metrics[name].rank_low for row in found}
    assert [places[model] for model in expected] == [1, 2]
    with pytest.raises(SystemExit):
        main(["leaderboard", "--sort", name, "--runs-dir", str(path.parent)])
    printed = capsys.readouterr().out
    assert sorted(expected, key=printed.index) == expected
    data = read_measurements(path)
    assert data.metrics[name] == fact and [row.cell["model"] for row in data.contenders(name)] == expected


def test_a_plug_ins_metric_reads_right_where_the_plug_in_is_not_installed(synthetic):
    fact = MetricFact(name="blur", title="Blur", better="lower", definition="Mean blur.", unit="px", place=15)
    assert "blur" not in FACTS
    database = synthetic()
    for model, value in (("small", 1.0), ("large", 2.0)):
        database.add(model, {"blur": value}, {"blur": [value, value]})
        database.records[-1]["metric_facts"] = [fact.row()]
    path = database.write()
    with connect(path) as connection:
        found = rows(connection)
        assert read_facts(connection)["blur"] == fact
    assert [row.cell["model"] for row in sorted_rows(found, "blur")] == ["small", "large"]
    assert read_measurements(path).metrics["blur"].title == "Blur"
