"""A site of bundles links all that it names, and never replaces what is none."""

import copy
import html.parser
import json

import pytest

from bench.cli import main
from report.site import slug, write_site
from results.bundles import read_bundle
from results.cells import CellDirectory
from results.errors import BenchError, BenchWarning
from results.index import reindex
from results.moving import write_bundle


@pytest.fixture
def bundles(tmp_path, synthetic):
    """Two bundles of one row each, and the second again."""
    database = synthetic()
    values = {"fid": 3.0, "is": 9.0, "clip": 28.0, "pick": 20.0}
    cells = {"a": database.add("m", values), "b": database.add("../x <y>", values, steps=2)}
    runs = database.write().parent
    for name, cell in cells.items():
        write_bundle(runs, [cell], tmp_path / "in" / f"{name}.zip")
    (tmp_path / "in" / "again.zip").write_bytes((tmp_path / "in" / "b.zip").read_bytes())
    return tmp_path / "in"


FIRST, SECOND = f"{0:020d}", f"{1:020d}"


class Links(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found += [value for key, value in attributes if key == "href" and not value.startswith(("data:", "#"))]


def test_every_link_leads_to_a_page_and_every_page_is_linked(bundles, tmp_path):
    site = tmp_path / "site"
    written = write_site(site, [bundles])
    assert written == (2, 2, 1)
    reached, waiting = set(), [site / "index.html"]
    while waiting:
        page = waiting.pop()
        assert page.is_relative_to(site) and page.is_file(), page
        if page in reached:
            continue
        reached.add(page)
        if page.suffix == ".html" and page.parent.name != "protocols":
            waiting += [(page.parent / link).resolve() for link in Links(page.read_text("utf-8")).found]
    pages = {path for path in site.rglob("*") if path.is_file() and path.suffix in (".html", ".zip", ".css")}
    assert pages <= reached and len(list((site / "bundles").iterdir())) == 2
    assert "<y>" not in (site / "index.html").read_text("utf-8")


def test_a_row_that_two_bundles_have_with_other_numbers_is_told(bundles, tmp_path):
    theirs = copy.deepcopy(read_bundle(bundles / "a.zip").cells[FIRST])
    theirs.record["metrics"][0]["value"] += 1.0
    runs = tmp_path / "forged"
    CellDirectory(runs, FIRST).path.mkdir(parents=True)
    CellDirectory(runs, FIRST).write_result(theirs.record)
    reindex(runs)
    write_bundle(runs, [FIRST], bundles / "z.zip")
    with pytest.warns(BenchWarning, match=f"left out of the site: {FIRST}: "):
        write_site(tmp_path / "site", [bundles])


def test_data_say_what_the_pages_say(bundles, tmp_path):
    audits = tmp_path / "audits.json"
    audits.write_text(json.dumps([{"cell_id": FIRST, "outcome": "contradicted", "reasons": ["other samples"]}]))
    write_site(tmp_path / "site", [bundles], audits=[audits], title="Ours")
    index = json.loads((tmp_path / "site/data/index.json").read_text())
    assert index["title"] == "Ours" and [one["name"] for one in index["protocols"]] == ["synthetic"]
    rows = json.loads((tmp_path / "site" / index["protocols"][0]["data"]).read_text())
    assert {row["cell_id"]: row["audit"] and row["audit"]["outcome"] for row in rows} == {
        FIRST: "contradicted",
        SECOND: None,
    }
    assert "contradicted" in (tmp_path / "site/models/m.html").read_text("utf-8")


def test_no_page_of_a_site_may_connect_and_marks_are_explained(bundles, tmp_path):
    write_site(tmp_path / "site", [bundles])
    pages = [html.unescape(path.read_text("utf-8")) for path in (tmp_path / "site").rglob("*.html")]
    assert len(pages) == 4 and all("Content-Security-Policy" in page and "default-src 'none'" in page for page in pages)
    index = (tmp_path / "site/index.html").read_text("utf-8")
    assert "95% interval" in index and "rank: 95% rank set" in index
    assert "<script" not in index and '<link rel="stylesheet"' not in index


def test_a_site_is_replaced_and_other_directories_are_not(bundles, tmp_path):
    site = tmp_path / "site"
    write_site(site, [bundles])
    write_site(site, [bundles / "a.zip"])
    assert not (site / "models" / f"{slug('../x <y>')}.html").exists() and (site / "models/m.html").is_file()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(BenchError, match="holds something else"):
        write_site(mine, [bundles])
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("content", [
    "{}", "[1]", "nothing", '[{"cell_id": 1, "outcome": "consistent"}]',
    '[{"cell_id": "a", "outcome": "consistent", "reasons": 1}]',
])  # fmt: skip
def test_audits_of_another_form_are_refused(bundles, tmp_path, content):
    (tmp_path / "audits.json").write_text(content)
    with pytest.raises(BenchError, match=r"audits\.json"):
        write_site(tmp_path / "site", [bundles], audits=[tmp_path / "audits.json"])
    assert not (tmp_path / "site").exists()


def test_names_become_file_names_that_stay_apart():
    assert slug("digits-flow") == "digits-flow"
    assert slug("../a") != slug("..-a") and "/" not in slug("../a") and slug("..").startswith("name-")


def test_the_command_says_where_the_site_is(bundles, tmp_path, capsys):
    for words, code, said in (
        ([tmp_path / "site", bundles], 0, "2 rows, 2 models, 1 protocol"),
        ([tmp_path / "site", tmp_path / "none.zip"], 2, "no such bundle"),
        ([tmp_path / "site", tmp_path], 2, "no bundles"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["site", *map(str, words)])
        shown = capsys.readouterr().err
        assert (stop.value.code or 0) == code and said in shown and len(shown.splitlines()) == 1
