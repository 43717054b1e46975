"""A CSV scored by the paper's composite, as the paper's own script scores it."""

import csv
import json
import re
from pathlib import Path

import pytest
import typer

from bench.cli import mmhm
from results.errors import BenchError

CASE = json.loads((Path(__file__).parents[2] / "golden/metrics-mmhm-a/case.json").read_text(encoding="utf-8"))
NAMES = {"FID": "fid", "IS": "is_mean", "CLIP Score": "clip_score", "Pick Score": "pick_score"}


@pytest.fixture
def score(capsys):
    """Run the command in this process and return its stdout."""
    app = typer.Typer()
    mmhm.register(app)

    def call(*words):
        app([str(word) for word in words], standalone_mode=False)
        return capsys.readouterr().out

    return call


def write(path, table):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", *(NAMES[name] for name in table), "is_std"])
        for index, values in enumerate(zip(*table.values(), strict=True)):
            writer.writerow([f"row {index}", *("" if value is None else value for value in values), 1.5])
    return path


CALLS = [call for call in CASE["calls"] if all(None not in values for values in call["table"].values())]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call["id"])
def test_a_csv_scores_as_the_papers_script_recorded(score, tmp_path, call):
    words = [write(tmp_path / "t.csv", call["table"]), "--eps", call["options"].get("eps", 1e-3), "--json"]
    if call["options"].get("bounds"):
        stated = {**dict.fromkeys(NAMES), **call["options"]["bounds"]}  # null says: those of the rows
        (tmp_path / "b.json").write_text(json.dumps(stated))
        words += ["--bounds", tmp_path / "b.json"]
    result = json.loads(score(*words))
    assert [row["MMHM"] for row in result["rows"]] == call["expected"]["scores_5_significant"]
    for column, pair in call["expected"]["bounds"].items():
        assert result["bounds"][column] == pytest.approx(pair)
    assert result["rows"][0]["model"] == "row 0" and result["rows"][0]["is_std"] == "1.5"


def test_bounds_written_from_one_table_score_another(score, tmp_path):
    table = {"FID": [4, 20], "IS": [150, 390], "CLIP Score": [27, 30.2], "Pick Score": [20.1, 21.6]}
    score(write(tmp_path / "a.csv", table), "--write-bounds", tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text())["FID"] == {"min": 4.0, "max": 20.0}
    beyond = write(tmp_path / "b.csv", {name: [max(v) * 2 if name != "FID" else 1] for name, v in table.items()})
    free, clipped = (
        json.loads(score(beyond, "--bounds", tmp_path / "b.json", "--json", *clip))["rows"][0]
        for clip in ((), ("--clip",))
    )
    assert free["MMHM"] > clipped["MMHM"] == 1.001
    assert len(free["outside"]) == 4
    assert "780*" in score(beyond, "--bounds", tmp_path / "b.json")


def test_a_row_without_a_metric_has_no_score(score, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufefffid,is,clip,pick\n1,2,3,4\n\n2,,3,5\n", encoding="utf-8")
    rows = json.loads(score(path, "--json"))["rows"]
    assert rows[0]["MMHM"] is not None and rows[1]["MMHM"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: the file is empty"),
        ("fid,is,clip,pick\n", "t.csv: has a header but no rows"),
        ("model,fid,is\na,1,2\n", "t.csv: the table has no CLIP Score, Pick Score: it has model, fid, is"),
        ("fid,is,clip,pick\n1,2,3,4\n1,high,3,4\n", "t.csv, line 3, column 'is': 'high' is not a number"),
        ("fid,is,clip,pick\n1,nan,3,4\n", "t.csv, line 2, column 'is': 'nan' is not a number"),
        ("fid,is,clip,pick\n1,2,3\n", "t.csv, line 2: 3 cells under 4 columns"),
        ("fid,fid,is,clip,pick\n1,1,2,3,4\n", "t.csv: column 'fid' appears twice"),
        ("fid,is,is_mean,clip,pick\n1,1,2,3,4\n", "t.csv: column 'IS' appears twice, the second time as 'is_mean'"),
        ("fid,is,clip,pick\n1,,3,4\n", "column 'IS' has no bounds"),
    ],
)
def test_a_malformed_table_is_one_line(score, tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BenchError) as fault:
        score(path)
    assert message in str(fault.value) and "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ('{"FID": {"min": 9, "max": 1}}', "bounds of 'FID': min 9 is above max 1; fix"),
        ('{"FID": {"min": NaN, "max": 1}}', "entry 'FID' is not a column with a numeric min and max"),
        ("[]", "does not contain an object"),
        ('{"FID": {"min": "low"}}', "entry 'FID'"),
        (None, "cannot be read"),
    ],
)
def test_malformed_bounds_are_one_line(score, tmp_path, bounds, message):
    table = write(tmp_path / "t.csv", {name: [1.0, 2.0] for name in NAMES})
    path = tmp_path / "b.json"
    if bounds is not None:
        path.write_text(bounds)
    with pytest.raises(BenchError, match=message):
        score(table, "--bounds", path)
    with pytest.raises(BenchError, match="cannot be written"):
        score(table, "--write-bounds", tmp_path / "none" / "b.json")


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("2_27,278,30,20", "'2_27' is not a number"),
        ("-0.5,278,30,20", "-0.5 is impossible: FID is never below 0"),
        ("2.27,0.3,30,20", "0.3 is impossible: IS is never below 1"),
        ("2.27,278,0.311,20", "CLIP scores are in 0..1 or in 0..100, not in both"),
    ],
)
def test_a_value_that_cannot_be_is_refused(tmp_path, cells, reason):
    table = tmp_path / "table.csv"
    table.write_text(f"model,FID,IS,CLIP Score,Pick Score\na,{cells}\nb,3,250,30.8,21\n")
    with pytest.raises(BenchError, match=re.escape(reason)):
        mmhm.read_table(table)


def test_columns_separated_otherwise_are_named(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("model;FID;IS;CLIP Score;Pick Score\na;2,27;278,2;30,8;21\n")
    with pytest.raises(BenchError, match="separated by ';'"):
        mmhm.read_table(table)


def test_bounds_of_some_columns_are_refused(tmp_path, score):
    (tmp_path / "table.csv").write_text("model,FID,IS,CLIP Score,Pick Score\na,2,278,30,20\nb,3,250,31,21\n")
    (tmp_path / "bounds.json").write_text('{"FID": {"min": 1, "max": 9}}')
    with pytest.raises(BenchError, match="no bounds for IS, CLIP Score, Pick Score"):
        score("--bounds", tmp_path / "bounds.json", tmp_path / "table.csv")
