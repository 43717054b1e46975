import re

import pytest

import report
from report import paper
from report.data import read_measurements

pytest.importorskip("matplotlib")


def test_figures_and_table_are_written_and_the_same_again(database, tmp_path):
    first, again = (report.write_figures(database, tmp_path / name) for name in ("one", "two"))
    names = ["quality-against-cost.svg", "quality-against-cost.pdf", "ranks.svg", "ranks.pdf", "leaderboard.tex"]
    assert [path.name for path in first] == names
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    drawn = first[0].read_text("utf-8")
    assert drawn.startswith("<?xml") and "digits-flow-small" in drawn and first[1].read_bytes().startswith(b"%PDF")


def test_the_latex_table_holds_each_models_best_row_with_intervals(database):
    data = read_measurements(database)
    table = paper.latex(data)
    lines = [line for line in table.splitlines() if line.startswith("digits-")]
    assert [line.split(" & ")[0] for line in lines] == [data.fact(cell, "model") for cell in data.best("mmhm")]
    assert all(line.count("&") == lines[0].count("&") and line.endswith(r" \\") for line in lines)
    assert r"\pm" in lines[0] and r"\mathbf" in lines[0] and table.count("{") == table.count("}")
    assert not re.search(r"(?<!\\)[%&#_](?!needs)", re.sub(r"^%.*$|\{%$| & |\$[^$]*\$", "", table, flags=re.M))


def test_names_of_any_kind_are_text_in_latex():
    assert paper._tex(r"50% of a_b & {c} \x") == r"50\% of a\_b \& \{c\} \textbackslash{}x"
