import pytest

from bench.models.cards import cards
from results.errors import StoreError
from results.published import figures_of, metric_columns, parse_figures, published_figures
from results.ranking import rank_all
from results.store import connect

METRICS = metric_columns()
HEADER = "system,variant,dataset,resolution,params_m,steps,nfe,guidance," + ",".join(METRICS) + ",source,note,model"


def test_every_collected_figure_has_its_source():
    figures = published_figures()
    assert len(figures) == 277
    assert all(figure.source and figure.system for figure in figures)
    assert all(0 < value < 1000 for figure in figures for value in figure.metrics.values())


def test_figures_are_tied_to_cards_by_name_only():
    for figure in published_figures():
        if figure.model is not None:
            assert cards()[figure.model].resolution == figure.resolution
    assert {(f.steps, f.metrics["fid"]) for f in figures_of({"soflow-xl-2"})} == {(1, 2.9617), (2, 2.6606)}
    assert figures_of({"digits-flow"}) == []


def test_ranking_fills_the_table_of_published_figures(tmp_path):
    path = tmp_path / "bench.duckdb"
    for _ in range(2):
        rank_all(path)
    with connect(path) as connection:
        count = connection.execute("SELECT count(*) FROM published").fetchone()
        row = connection.execute('SELECT steps, fid, "is", params_m FROM published WHERE source = ?', ["x"]).fetchone()
        query = (
            "SELECT fid, \"is\" FROM published WHERE system = 'iMeanFlow' AND variant = 'XL/2 (paper)' AND steps = 1"
        )
        assert connection.execute(query).fetchall() == [(1.72, 282.0)]
    assert count == (277,) and row is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,,,x,,1,,,2,,,,,,,paper,,", "line 2: invalid literal"),
        ("a,,,8,,1,,,low,,,,,,,paper,,", "line 2: could not convert"),
        ("a,,,8,,1,,,2,,,,,,,,,", "line 2: a figure needs its system and its source"),
        ("a,b", "line 2"),
    ],
)
def test_a_malformed_line_is_named(line, message):
    with pytest.raises(StoreError, match=message):
        parse_figures(f"{HEADER}\n{line}\n")


def test_a_figure_keeps_only_what_is_stated():
    (figure,) = parse_figures(f'{HEADER}\nA,"B, c",ImageNet,256,675,2,,,1.5,,,,,,,paper,,\n')
    assert figure.metrics == {"fid": 1.5} and figure.nfe is None and figure.variant == "B, c"
    assert set(METRICS) <= set(figure.row()) and figure.row()["is"] is None and "model" not in figure.row()
