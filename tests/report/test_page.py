import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest

import report
from report import page, samples
from report.data import read_measurements, read_rankings
from report.markup import kept
from report.students import sentence
from results import picks

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script><b>'&"
VOID = {"meta", "link", "img", "input", "br"}


class Tree(HTMLParser):
    """Records tags, and fails on elements that are not closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def content(database) -> str:
    return page.build(read_measurements(database))


def plain(content: str) -> str:
    return re.sub("</?span.*?>", "", content)


def data_of(content: str) -> dict:
    return json.loads(re.search(r'id="page-data">(.*?)</script>', content, re.S).group(1))


def test_page_is_one_well_formed_file_below_fifteen_megabytes(content):
    tree = Tree(content)
    assert tree.open == [] and len(content.encode()) < 15_000_000
    outside = [value for _, attributes in tree.tags for key, value in attributes.items() if key in ("src", "href")]
    assert outside and all(value.startswith(("data:", "#")) for value in outside)
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_figure_has_a_place_with_alternative_text(content):
    tree = Tree(content)
    places = [attributes["data-figure"] for tag, attributes in tree.tags if tag == "figure"]
    assert sorted(places) == sorted(data_of(content)["figures"])
    assert {
        "curve",
        "students",
        "pareto",
        "guidance",
        "composite",
        "correlation",
        "classes",
        "ranks",
        "convergence",
        "sensitivity",
        "cost",
    } <= set(places)
    plots = [attributes for _, attributes in tree.tags if attributes.get("class") == "plot"]
    assert len(plots) == len(places) and all(plot["aria-label"] for plot in plots)


def test_the_page_runs_its_own_scripts_alone_and_connects_to_nothing(content):
    tree = Tree(content)
    (policy,) = [a["content"] for tag, a in tree.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["connect-src"] == rules["form-action"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", content, re.S)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert rules["script-src"] == " ".join(f"'sha256-{digest}'" for digest in hashes) and len(scripts) == 2
    config = data_of(content)["config"]
    assert config["modeBarButtons"] == [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]]
    assert config["plotlyServerURL"] == "" and not config["showSendToCloud"] and not config["showEditInChartStudio"]


def test_every_section_is_reached_by_the_navigation(content):
    tree = Tree(content)
    sections = [attributes["id"] for tag, attributes in tree.tags if tag == "section"]
    assert [a["data-section"] for tag, a in tree.tags if tag == "a" and "data-section" in a] == sections
    assert {"picker", "wins", "heads", "images", "stability"} <= set(sections)


def test_ties_of_the_page_are_those_of_the_results(content, database):
    data = read_measurements(database)
    shown = data_of(content)
    for metric in data.metrics:
        rows = data.contenders(metric)
        beaten = picks.beaten_by(rows, metric)
        found = picks.pick(rows, metric, beaten)
        if metric != "mmhm":  # the synthetic composite has no blocks
            assert [row.cell["cell_id"] for row in (found.row, *found.tied)] == data.leaders(metric)
        for cell, line in zip(shown["compared"], shown["beaten"][metric], strict=True):
            ahead = {c for k, c in enumerate(shown["compared"]) if int(line[k // 4], 16) >> k % 4 & 1}
            assert ahead == beaten[cell]


def test_several_rankings_are_on_one_page(new_database):
    builder = new_database()
    builder.frame()
    builder.run()
    for model in ("a", "b"):
        builder.cell(model, 1, 1.0 + (model == "b"))
        builder.cell(model, 1, 1.5, ranking="cd" * 32, num_samples=500)
    builder.rank()
    views = read_rankings(builder.close())
    assert {view.title for view in views} == {"digits, 500 images, seed 0", "digits, 2,000 images, seed 0"}
    content = page.build(*views)
    assert content.count("<template") == 1 and 'id="rankings"' in content and "left out" not in content
    assert content.count('<option value="') > 2 and "cd" * 6 in content


def test_names_and_commands_are_never_broken_over_lines(content):
    assert '<h2><span class="kept">digits-shortcut</span> at' in content
    assert '<td><span class="kept">digits-ucgm-few</span> at 1 step</td>' in content
    assert "<pre" in content and content.count("<pre") == content.count('<pre tabindex="0">')
    assert kept("a-b, 0.5 and x") == '<span class="kept">a-b,</span> 0.5 and x'


def test_a_row_alone_is_neither_compared_nor_drawn_against_nothing(new_database):
    builder = new_database()
    builder.frame()
    builder.run()
    builder.model("digits-dmd", 1)
    builder.cell("digits-dmd", 1, 0.7)
    builder.rank()
    keys = ("fid", "is", "clip", "pick")
    builder.rows["rankings"][0]["correlation"] = json.dumps({one: dict.fromkeys(keys) for one in keys})
    content = page.build(read_measurements(builder.close()))
    assert "alone in its ranking" in content and "leads on" not in plain(content.split("<script")[0])
    assert "It takes 1 network evaluation per image." in content
    assert "correlation" not in data_of(content)["figures"] and "composite" in data_of(content)["figures"]


def test_marks_and_missing_metrics_are_said_in_every_view(new_database, monkeypatch):
    builder = new_database()
    builder.frame()
    builder.run()
    builder.model("a", trained_on=["digits-classifier"])
    builder.model("b")
    cells = [builder.cell(model, 1, 1.0 + (model == "b"), off_regime=model == "a") for model in ("a", "b")]
    for row in builder.rows["metrics"]:
        row["method"] += "; rough: 30 images in 6 dimensions" * (row["metric"] == "kid" and row["cell_id"] == cells[1])
    builder.rows["metrics"] = [
        row for row in builder.rows["metrics"] if row["metric"] != "clip" or row["cell_id"] == cells[0]
    ]
    builder.insert("skipped_metrics", cell_id=cells[1], metric="clip", reason="no labels")
    builder.rank()
    for rank in builder.rows["ranks"]:
        rank["outside"] = '["fid"]' if rank["cell_id"] == cells[0] else "[]"
    data = read_measurements(builder.close())
    content = page.build(data)
    notes = re.search(r'<ul class="note notes">(.*?)</ul>', content, re.S).group(1)
    for said in (
        "* outside the step counts",
        "^ outside the bounds of MMHM (fid)",
        "# a: trained on features of <span",
        "~ rough, too few images per dimension to remove all bias: b (kid)",
        "no labels: clip not measured (b)",
    ):
        assert said in notes
    assert "<small>* off-regime · ^ fid outside the bounds · # trained on digits-classifier</small>" in content
    monkeypatch.setattr(page.tables, "MOST_LINES", 0)  # as where there are very many rows
    one, other = (data_of(page.build(data))["cells"][cell] for cell in cells)
    assert one["badges"] == "* off-regime · ^ fid outside the bounds · # trained on digits-classifier"
    assert (one["marks"], other["marks"]) == (" * ^ #", "")
    assert one["metrics"]["fid"][8] == " #" and one["metrics"]["fid"][9].endswith(page.tables.TRAINED_TIP)
    assert other["metrics"]["kid"][8] == " ~" and len(other["metrics"]["is"]) == 8
    assert "a at 1 step * ^ #" in re.search(r'id="wins-table".*?</table>', content, re.S).group()


def test_headings_state_findings(content):
    headings = re.findall(r"<h2>(.*?)</h2>", plain(content))
    assert re.match(r"digits-shortcut at 16 steps leads on MMHM 0.98", headings[0])
    assert any("has its best FID at guidance 1.5, an optimum inside the swept range" in heading for heading in headings)


def test_students_stand_beside_their_teacher_with_the_budget_of_its_overtaking(content, database):
    data = read_measurements(database)
    assert [(student.model, student.teacher) for student in data.students] == [
        ("digits-ucgm-few", "digits-flow"), ("digits-dmd", "digits-flow")
    ]  # fmt: skip
    dmd = data.students[1]
    assert dmd.overtaken_at == 32 and dmd.points[0].cost == 1 / 32
    traces = data_of(content)["figures"]["students"]["data"]
    teacher, crossed = traces[0], next(trace for trace in traces if trace.get("name") == "digits-dmd overtaken")
    assert teacher["line"]["dash"] == "dash" and teacher["x"] == [1, 2, 4, 8, 16, 32]
    assert (crossed["x"], crossed["y"]) == ([32], [dmd.line[0].value("fid")])
    assert content.count("student of digits-flow") == 7
    assert "digits-dmd is overtaken at 32 NFE" in content
    assert sentence(dmd._replace(overtaken_at=None), "", "FID") == "digits-dmd is not overtaken by 32 NFE"


def test_leaderboard_is_complete_without_scripts(content, database):
    data = read_measurements(database)
    assert content.count("<tbody data-cell=") == len(data.cells)
    assert content.count('class="best"') == data.cells["model"].nunique()
    assert "bench run --model digits-flow-small --steps 16 --cfg 1.5" in content


def test_failed_and_unsupported_settings_are_shown_with_their_reason(content):
    assert 'role="alert"' in content and "1 row failed: digits-edm at 8 steps" in plain(content)
    assert "the generator was distilled to one step" in content and "sample 12 of shard 3 is not finite" in content


COLUMNS = "system,variant,dataset,resolution,params_m,steps,nfe,guidance,fid,is,precision,recall,clip,pick,mmhm,"
COLLECTED = f"""{COLUMNS}source,date,note,model
digits-meanflow,,,8,,1,,,0.90,,,,,,,a paper,,,digits-meanflow
digits-meanflow,,,8,,1,,,7,,,,,,,a similar name,,,
digits-meanflow,,,256,,1,,,8,,,,,,,another size,,,digits-meanflow
digits-ucgm-few,,,8,,4,,,9,,,,,,,what the card states already,,,digits-ucgm-few
"""


def test_published_figures_are_those_of_the_checkpoint(database, monkeypatch):
    from results.published import parse_figures

    monkeypatch.setattr("results.published.published_figures", lambda: parse_figures(COLLECTED))
    found = read_measurements(database).claims
    assert {(claim.metric, claim.published) for claim in found} == {("fid", 0.52), ("fid", 0.90)}


def test_downloads_hold_every_row(content, database):
    links = [attributes for tag, attributes in Tree(content).tags if tag == "a" and "download" in attributes]
    table = json.loads(
        base64.b64decode(next(link["href"] for link in links if link["download"].endswith("json")).split(",")[1])
    )
    assert len(table) == len(read_measurements(database).cells) and {"fid", "fid_low", "mmhm_rank_high"} <= set(
        table[0]
    )


def test_hostile_names_are_text_everywhere(new_database):
    builder = new_database()
    builder.frame()
    builder.run(command=HOSTILE, device=HOSTILE)
    builder.model(HOSTILE)
    builder.model("b")
    for name in (HOSTILE, "b"):
        for steps in (1, 2, 4):
            for cfg in (1.0, 1.5, 2.0):
                builder.cell(
                    name,
                    steps,
                    1.0 / steps + cfg,
                    cfg,
                    checkpoint=HOSTILE,
                    settings={HOSTILE: HOSTILE},
                    command=HOSTILE,
                )
    builder.cell(HOSTILE, 8, 0, status="failed", reason=HOSTILE)
    builder.rank()
    content = page.build(read_measurements(builder.close()))
    assert "<img src=x" not in content and "</script><b>" not in content
    assert not [tag for tag, attributes in Tree(content).tags if "onerror" in attributes]
    names = [trace.get("name", "") for figure in data_of(content)["figures"].values() for trace in figure["data"]]
    assert any("&lt;img" in name for name in names) and not any("<img" in name for name in names)


def test_a_database_without_composite_sweep_or_pictures_still_gives_a_page(new_database):
    builder = new_database()
    builder.frame()
    builder.run()
    builder.model("a")
    builder.cell("a", 1, 1.0)
    builder.rows.pop("thumbnails")
    builder.rows.pop("per_class")
    content = page.build(read_measurements(builder.close()))
    assert Tree(content).open == [] and "guidance" not in data_of(content)["figures"]


def test_speed_only_and_folder_rows_give_a_page(new_database):
    builder = new_database()
    builder.frame()
    builder.run()
    builder.cell("a", 1, 1.0, random_weights=True)
    content = page.build(read_measurements(builder.close()))
    assert "no quality was measured" in content
    folder = new_database("folder.duckdb")
    folder.frame()
    folder.run()
    folder.cell("images", None, 1.0, cfg=None, sampler="images", images_per_second=None, latency_seconds=None, nfe=None)
    folder.cell("other", None, 2.0, cfg=None, sampler="images", images_per_second=None, latency_seconds=None, nfe=None)
    folder.rank()
    assert Tree(page.build(read_measurements(folder.close()))).open == []


def test_rows_of_bench_speed_are_a_section_beside_the_rankings(new_database, tmp_path):
    builder = new_database()
    builder.frame()
    builder.run()
    builder.cell("a", 1, 1.0)
    builder.cell("a", 1, 0.0, protocol="speed", ranking="cd34" * 16, random_weights=True)
    builder.rank()
    content = report.write_report(builder.close(), tmp_path / "report.html").read_text("utf-8")
    assert 'id="speed"' in content and 'id="rankings"' not in content


def test_alerts_name_what_is_dirty_mixed_or_unfinished(new_database):
    builder = new_database()
    builder.frame()
    builder.run(code_dirty=True)
    builder.run(run_id="run-2", finished=None, code_version="0.2.0")
    builder.cell("a", 1, 1.0, failures=3)
    builder.cell(
        "a",
        1,
        1.0,
        ranking="cd" * 32,
        started=pd.Timestamp("2026-01-01"),
        finished=pd.Timestamp("2026-01-01"),
        run_id="run-2",
    )
    found = " ".join(page.alerts(read_measurements(builder.close())))
    for words in (
        "3 images in 1 row were not finite",
        "1 run did not finish",
        "uncommitted changes",
        "2 versions",
        "never ranked",
    ):
        assert words in found


def test_rows_of_another_noise_shape_are_marked():
    cells = pd.DataFrame(
        {"model": ["a", "b", "c"], "variant": "", "steps": 1, "latent_shape": ["(4, 2)", "(4, 2)", "(3, 8)"]},
        index=["a1", "b1", "c1"],
    )
    pictures = pd.DataFrame(
        [
            {"cell_id": c, "sample_index": i, "label": 0, "class_name": "x", "width": 8, "height": 8, "png": b"p"}
            for c in cells.index
            for i in (0, 1)
        ]
    )
    grid = samples.grids(cells, pictures)
    assert "same noise and labels, noise of shape (4, 2)" in grid and "labels only" in grid and grid.count("<img") == 6


def test_pictures_beyond_the_budget_are_left_out(monkeypatch):
    monkeypatch.setattr(samples, "LARGEST", 5)
    pictures = pd.DataFrame({"sample_index": [0, 1, 2], "png": [b"123"] * 3})
    assert list(samples.within_budget(pictures)["sample_index"]) == [0]


def test_report_is_written_in_one_step(database, tmp_path):
    output = tmp_path / "new" / "report.html"
    assert report.write_report(database, output) == output
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(report.ReportError, match="cannot be written"):
        report.write_report(database, tmp_path / "file" / "report.html")


def test_importing_the_package_loads_no_heavy_library():
    code = "import sys, report; print([name for name in ('plotly', 'pandas', 'duckdb') if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_claims_of_systems_with_nothing_to_run_are_greyed_and_take_part_in_nothing(new_database):
    builder = new_database()
    builder.run()
    builder.model("sid-imagenet-64", 1)
    definition = {"reference": {"name": "adm-imagenet-64"}}
    facts = {"name": "imagenet-64", "title": "ImageNet", "resolution": 64, "definition": definition}
    builder.insert("protocols", digest="9c1e" * 16, **facts)
    builder.cell("sid-imagenet-64", 1, 2.9, protocol="imagenet-64")
    builder.rank()
    data = read_measurements(builder.close())
    claims = {figure.system: figure for figure in data.published_only}
    assert claims["DMD"].metrics["fid"] < 2.9 and data.best("fid") == list(data.cells.index)
    content = page.build(data)
    greyed = content[content.index('<div class="claims">') :]
    (line,) = re.findall(r"<tr><td>claim</td><td>DMD</td><td>1</td>.*?</tr>", greyed)
    assert "<td>2.62</td>" in line and "<td>2023-11</td>" in line
    board = content[content.index('id="leaderboard"') : content.index('<div class="claims">')]
    assert "DMD" not in board
