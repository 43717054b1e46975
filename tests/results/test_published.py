import re

import pytest

from bench.models.cards import cards
from results.errors import StoreError
from results.index import rank_all
from results.published import (
    claims_under,
    figures_of,
    metric_columns,
    nothing_to_run,
    parse_figures,
    published_figures,
)
from results.store import connect, write_cell

METRICS = metric_columns()
HEADER = (
    "system,variant,dataset,resolution,params_m,steps,nfe,guidance," + ",".join(METRICS) + ",source,date,note,model"
)


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
        ("a,,,8,,1,,,2,,,,,,,,,", "line 2: a figure needs a system and a source"),
        ("a,b", "line 2"),
    ],
)
def test_a_malformed_line_is_named(line, message):
    with pytest.raises(StoreError, match=message):
        parse_figures(f"{HEADER}\n{line}\n")


def test_a_figure_keeps_only_what_is_stated():
    (figure,) = parse_figures(f'{HEADER}\nA,"B, c",ImageNet,256,675,2,,,1.5,,,,,,,paper,,,\n')
    assert figure.metrics == {"fid": 1.5} and figure.nfe is None and figure.variant == "B, c"
    assert set(METRICS) <= set(figure.row()) and figure.row()["is"] is None and "model" not in figure.row()


def test_systems_with_nothing_to_run_are_those_that_no_card_runs_at_a_resolution():
    at_256 = nothing_to_run("fair-imagenet-256-v2", "imagenet-val-256-adm-crop", 256)
    assert {"MAR", "LowDiff", "ADM-G", "SphereLatent", "Self-Flow"} <= {figure.system for figure in at_256}
    assert not {"FACM", "MeanFlow", "iMeanFlow", "SoFlow", "IMM", "pi-Flow"} & {figure.system for figure in at_256}
    assert all(figure.model is None and figure.source and figure.metrics for figure in at_256)
    at_64 = {figure.system: figure for figure in nothing_to_run("imagenet-64", "adm-imagenet-64", 64)}
    assert {"DMD", "MSD", "sCM", "CMT"} <= set(at_64) and not {"DMD2", "CTM", "SiDA", "EDM2"} & set(at_64)
    assert (at_64["DMD"].metrics, at_64["DMD"].date) == ({"fid": 2.62}, "2023-11")
    assert {figure.system for figure in nothing_to_run("cifar10", "cifar10-train", 32)} >= {"sCM", "LowDiff"}


def test_another_data_set_has_no_claims():
    assert nothing_to_run("fair-imagenetv2-256-v2", "imagenetv2-256", 256) == []
    assert nothing_to_run("digits", "digits-test", 8) == []


def test_dates_are_months_and_every_claim_names_an_installed_card_or_none():
    for figure in published_figures():
        assert figure.date is None or re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", figure.date), figure
        assert figure.model is None or figure.model in cards(), figure


def test_claims_are_found_by_the_protocol_that_the_database_holds(tmp_path, record):
    made = record("a" * 20, protocol="mine")
    definition = {"reference": {"name": "adm-imagenet-64"}}
    made["protocol"] = {"digest": "d", "name": "mine", "title": "t", "resolution": 64, "definition": definition}
    with connect(tmp_path / "bench.duckdb", write=True) as connection:
        write_cell(connection, made)
        assert "DMD" in {figure.system for figure in claims_under(connection, "mine")}
        assert claims_under(connection, "nowhere") == []
