"""The page in headless Chromium: charts draw, nothing is fetched, nothing is logged, sorting works, phones fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import report
from report.data import Measurements, read_measurements
from results.budgets import cost_of, pareto_front
from results.leaderboard import sorted_rows, within_budget
from results.picks import beaten_by, pick
from results.statistics import share_difference

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found (install chromium and chromium-driver)")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
FLAGS = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
    ),
    *("--disable-sync", "--no-first-run", "--disable-dev-shm-usage"),
)
DRAWN = """
return Object.fromEntries([...document.querySelectorAll("[data-figure]")].map((figure) => [figure.dataset.figure,
  [...figure.querySelectorAll(".points path, .bars path, .heatmaplayer image, .js-line, .textpoint, .errorbar path")]
    .filter((mark) => mark.getBoundingClientRect().width + mark.getBoundingClientRect().height > 0).length]));
"""


@pytest.fixture(scope="module")
def page(database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write_report(database, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def measured(database: Path) -> Measurements:
    """What the page shows, as results says it."""
    return read_measurements(database)


def browser(profile: Path) -> Any:
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    return selenium.Chrome(options=options, service=selenium.ChromeService(executable_path=driver) if driver else None)


@pytest.fixture(scope="module", params=SIZES)
def opened(request: pytest.FixtureRequest, page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser of one size in which the page has drawn all of its figures."""
    from selenium.webdriver.support.ui import WebDriverWait

    width, height = SIZES[request.param]
    chromium = browser(tmp_path_factory.mktemp("profile"))
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        chromium.get(page.as_uri())
        WebDriverWait(chromium, 60).until(
            lambda b: b.execute_script("return document.documentElement.dataset.drawn") == "true"
        )
        yield chromium
    finally:
        chromium.quit()


def test_every_figure_draws_its_data(opened):
    marks = opened.execute_script(DRAWN)
    assert len(marks) >= 10 and all(count > 0 for count in marks.values()), marks
    points = opened.execute_script("return document.querySelectorAll('[data-figure=curve] .points path').length")
    assert points == 47


def test_nothing_is_fetched_and_nothing_is_logged(opened, page):
    asked = []
    for entry in opened.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent" and message["params"]["documentURL"].startswith(
            page.as_uri()
        ):
            asked.append(message["params"]["request"]["url"])
    assert page.as_uri() in asked and not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert opened.get_log("browser") == []


def test_page_does_not_scroll_sideways(opened):
    wide = opened.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]


def rows(opened: Any) -> list[str]:
    return opened.execute_script(
        "return [...document.getElementById('leaderboard').tBodies].filter((body) => body.offsetHeight > 0)"
        ".map((body) => body.querySelector('th').innerText.split('\\n')[0].trim())"
    )


def choose(opened: Any, control: str, value: str) -> None:
    """Set a control as a person would: its value, then the event the page listens to."""
    script = (
        "const c = document.getElementById(arguments[0]); c.value = arguments[1]; c.dispatchEvent(new Event('input'))"
    )
    opened.execute_script(script, control, value)


def click(opened: Any, selector: str) -> None:
    opened.execute_script("document.querySelector(arguments[0]).click()", selector)


def test_leaderboard_ranks_by_the_heading_that_is_clicked(opened):
    first = rows(opened)
    assert len(first) == 8 and first[0] == "digits-shortcut"
    click(opened, "th[data-key=accuracy] button")
    assert rows(opened)[0] == "digits-flow-small"
    heading = opened.execute_script("return document.querySelector('th[data-key=accuracy]').ariaSort")
    note = opened.execute_script("return document.getElementById('rank-note').innerText")
    assert heading == "descending" and "by Accuracy" in note
    assert "sort=accuracy" in opened.execute_script("return location.hash")
    click(opened, "th[data-key=rank] button")
    click(opened, "th[data-key=mmhm] button")
    assert rows(opened) == first


def test_the_keyboard_works_headings_and_columns_without_room_are_named(opened):
    from selenium.webdriver.common.keys import Keys

    button = opened.find_element("css selector", "th[data-key=is] button")
    sorts = "return document.querySelector('th[data-key=is]').ariaSort"
    for key, direction in ((Keys.ENTER, "descending"), (Keys.SPACE, "ascending")):
        button.send_keys(key)
        assert opened.execute_script(sorts) == direction
        assert opened.switch_to.active_element == button
    click(opened, "th[data-key=mmhm] button")
    named = opened.execute_script("return document.getElementById('columns-hidden').textContent")
    cut = opened.execute_script(
        "const box = document.querySelector('#leaderboard').parentElement;"
        "return box.scrollWidth > box.clientWidth ? document.querySelector('#leaderboard th:last-child').innerText : ''"
    )
    assert named.endswith(cut) and bool(named) == bool(cut)


def test_all_settings_budget_and_filter_select_rows(opened):
    click(opened, "#view-all")
    assert len(rows(opened)) == 47
    choose(opened, "filter", "ucgm-few")
    assert rows(opened) == ["digits-ucgm-few"] * 6
    choose(opened, "budget", "2")
    assert rows(opened) == ["digits-ucgm-few"] * 2
    choose(opened, "filter", "")
    choose(opened, "budget", "")
    click(opened, "#view-best")
    assert len(rows(opened)) == 8


def test_budgets_can_be_evaluations_or_time(opened):
    title = "return document.getElementById('budget-title').innerText"
    assert "from 1 to 4 NFE" in opened.execute_script(title)
    choose(opened, "strip-cost", "seconds")
    assert " ms" in opened.execute_script(title) and "NFE" not in opened.execute_script(title)
    choose(opened, "strip-cost", "nfe")


HEADING = "return document.querySelector(`#${arguments[0]} h2`).innerText"


def test_headings_follow_metric_budget_and_hidden_models(opened):
    first = opened.execute_script(HEADING, "answer")
    click(opened, "th[data-key=fid] button")
    assert "leads on FID" in opened.execute_script(HEADING, "answer")
    assert "by=fid" in opened.execute_script("return location.hash")
    choose(opened, "budget", "1")
    assert opened.execute_script(HEADING, "answer").startswith("At most 1 NFE: digits-ucgm-few at 1 step leads on FID")
    choose(opened, "budget", "")
    choose(opened, "filter", "no such model")
    assert "No row matches" in opened.execute_script("return document.getElementById('rows-shown').innerText")
    choose(opened, "filter", "")
    click(opened, "th[data-key=mmhm] button")
    click(opened, "th[data-key=rank] button")
    click(opened, "th[data-key=rank] button")
    assert opened.execute_script(HEADING, "answer") == first
    front = shown_data(opened, "pareto")[0]["y"]
    click(opened, ".chips [data-model=digits-ucgm-few]")
    assert shown_data(opened, "pareto")[0]["y"] != front
    assert "digits-ucgm-few" not in opened.execute_script(HEADING, "pareto")
    assert "hide=digits-ucgm-few" in opened.execute_script("return location.hash")
    click(opened, ".chips [data-model=digits-ucgm-few]")


def test_the_picker_answers_as_the_results_do(opened, measured):
    table = "return [...document.getElementById('pick-table').tBodies[0].rows].map((row) => row.cells[1].innerText)"
    choose(opened, "pick-metric", "fid")
    choose(opened, "pick-most", "4")
    choose(opened, "pick-limit-1", "recall")
    choose(opened, "pick-bound-1", "0.6")
    among = [row for row in within_budget(list(measured.rows.values()), nfe=4) if row.value("recall") >= 0.6]
    found = pick(among, "fid", beaten_by(measured.contenders("fid"), "fid"))
    heading = opened.execute_script(HEADING, "picker")
    assert heading.startswith(found.row.cell["model"]) and f"best of {len(among)} settings" in heading
    shown = opened.execute_script(table)
    assert shown[0] == found.row.cell["model"]
    assert sorted(shown[1:]) == sorted(row.cell["model"] for row in found.tied)[: len(shown) - 1]
    choose(opened, "pick-bound-1", "")
    choose(opened, "pick-cost", "milliseconds")
    for most in (10.0, 100.0, 1000.0):
        among = within_budget(list(measured.rows.values()), seconds=most / 1e3)
        among = [row for row in among if not row.cell["random_weights"]]
        choose(opened, "pick-most", f"{most:g}")
        heading = opened.execute_script(HEADING, "picker")
        assert "No setting" in heading if not among else f"best of {len(among)} setting" in heading
    choose(opened, "pick-cost", "nfe")
    choose(opened, "pick-most", "4")
    choose(opened, "pick-limit-1", "recall")
    choose(opened, "pick-bound-1", "2")
    assert "No setting with FID meets" in opened.execute_script(HEADING, "picker")
    for control, value in (("pick-bound-1", ""), ("pick-limit-1", ""), ("pick-most", "")):
        choose(opened, control, value)
    for name in ("rank", "geometric", "mean_rank"):  # every composite of 'bench leaderboard --sort'
        choose(opened, "pick-metric", name)
        best = sorted_rows([measured.rows[cell] for cell in measured.ranked.index], name)[0]
        assert opened.execute_script(table)[0] == best.cell["model"]
        assert opened.execute_script(HEADING, "picker").endswith("ties are not known")
    choose(opened, "pick-metric", "mmhm")


def test_two_rows_stand_head_to_head_either_way_round(opened):
    lines = "return [...document.getElementById('head-table').tBodies[0].rows].map((row) => row.innerText)"
    pair = [opened.execute_script(f"return document.getElementById('head-{name}').value") for name in ("one", "other")]
    before = opened.execute_script(HEADING, "heads")
    for control, value in zip(("head-one", "head-other"), reversed(pair), strict=True):
        choose(opened, control, value)
    turned = opened.execute_script(HEADING, "heads")
    assert turned != before and "is better than" in turned and len(opened.execute_script(lines)) >= 8
    pictures = "return document.querySelectorAll('#head-images img').length"
    assert opened.execute_script(pictures) == 32


def test_a_row_opens_its_settings(opened):
    hidden = opened.execute_script("return document.querySelector('#leaderboard .more').offsetHeight")
    click(opened, "#leaderboard .open")
    shown = opened.execute_script("return document.querySelector('#leaderboard .more').offsetHeight")
    click(opened, "#leaderboard .open")
    assert hidden == 0 < shown


@pytest.mark.parametrize(("figure", "control", "value"), [
    ("curve", "curve-metric", "mmhm"), ("curve", "curve-axis", "seconds"), ("pareto", "pareto-metric", "clip"),
    ("guidance", "guidance-axis", "clip"), ("classes", "class-metric", "pick"),
])  # fmt: skip
def test_controls_redraw_their_figure(opened, figure, control, value):
    plot = f"document.querySelector('[data-figure={figure}] .plot')"
    titles = f"{plot}.layout.xaxis.title.text, {plot}.layout.yaxis.title.text"
    state = f"return JSON.stringify([{plot}.data.map((t) => [t.x, t.y]), {titles}])"
    before = opened.execute_script(state)
    choose(opened, control, value)
    assert opened.execute_script(state) != before
    assert opened.execute_script(DRAWN)[figure] > 0 and opened.get_log("browser") == []


def shown_data(opened: Any, figure: str) -> list[dict[str, Any]]:
    script = "return document.querySelector(`[data-figure=${arguments[0]}] .plot`).data.map((t) => ({...t}))"
    return opened.execute_script(script, figure)


def test_the_front_that_is_drawn_is_that_of_the_results(opened, measured):
    for metric in measured.metrics:
        choose(opened, "pareto-metric", metric)
        for cost in ("seconds", "latency_seconds"):
            choose(opened, "pareto-axis", cost)
            front, *dots = shown_data(opened, "pareto")
            among = [cell for trace in dots for cell in trace["meta"]["cells"]]
            expected = pareto_front([measured.rows[cell] for cell in among], metric, cost)
            assert front["x"] == [pytest.approx(cost_of(row, cost)) for row in expected]
            assert front["y"] == [pytest.approx(row.measured(metric).value) for row in expected]


def test_the_best_of_each_model_is_that_of_the_results_within_every_budget(opened, measured):
    shown = (
        "return [...document.getElementById('leaderboard').tBodies].filter((body) => body.offsetHeight > 0)"
        ".map((body) => body.dataset.cell)"
    )
    for metric in ("fid", "accuracy"):
        click(opened, f"th[data-key={metric}] button")
        for budget in ("", "1", "4"):
            choose(opened, "budget", budget)
            rows_ = [row for row in measured.rows.values() if not row.cell["random_weights"]]
            within = within_budget(rows_, nfe=float(budget)) if budget else rows_
            ranked = measured.best(metric, among=[row.cell["cell_id"] for row in within])
            assert opened.execute_script(shown)[: len(ranked)] == ranked
    choose(opened, "budget", "")
    click(opened, "th[data-key=mmhm] button")


def test_intervals_of_classes_are_those_of_the_results(opened, measured):
    choose(opened, "class-metric", "accuracy")
    one, other = (
        opened.execute_script(f"return document.getElementById('class-{name}').value") for name in ("one", "other")
    )
    first, second = (
        measured.per_class[(measured.per_class["cell_id"] == cell) & (measured.per_class["metric"] == "accuracy")]
        for cell in (one, other)
    )
    expected = share_difference(first["value"], first["n"], second["value"], second["n"])
    (trace,) = shown_data(opened, "classes")
    assert len(expected) and sorted(trace["error_x"]["array"]) == pytest.approx(sorted(expected), rel=1e-4)


def test_sample_grid_changes_with_the_steps_and_stays_crisp(opened):
    grids = "[...document.querySelectorAll('[data-grid]')].filter((grid) => grid.offsetHeight > 0)"
    shown = f"return {grids}.map((grid) => grid.dataset.grid)"
    assert opened.execute_script(shown) == ["0"]
    choose(opened, "grid-steps", "5")
    assert opened.execute_script(shown) == ["5"]
    assert (
        opened.execute_script("return getComputedStyle(document.querySelector('.samples img')).imageRendering")
        == "pixelated"
    )
    assert opened.execute_script("return document.querySelector('[data-grid=\"5\"] img').naturalWidth") == 8


def test_a_chip_hides_its_model_in_every_figure(opened):
    click(opened, ".chips [data-model=digits-flow]")
    count = "return document.querySelector('[data-figure=pareto] .plot').data.filter((t) => t.visible === false).length"
    assert opened.execute_script(count) == 1
    click(opened, ".chips [data-model=digits-flow]")
    assert opened.execute_script(count) == 0


def test_hostile_names_do_not_run(new_database, tmp_path):
    builder = new_database()
    builder.frame()
    builder.run()
    hostile = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
    for name in (hostile, "b"):
        builder.model(name)
        for steps in (1, 2):
            for cfg in (1.0, 1.5, 2.0):
                builder.cell(name, steps, 1.0 / steps + (name == "b") + cfg / 9, cfg)
    builder.rank()
    output = report.write_report(builder.close(), tmp_path / "hostile.html")
    chromium = browser(tmp_path / "profile")
    try:
        chromium.get(output.as_uri() + "#sort=fid:1&curve-metric=clip&view=view-all")
        assert chromium.execute_script("return document.querySelectorAll('.js-plotly-plot').length") >= 8
        assert (
            chromium.title != "owned"
            and chromium.execute_script("return document.querySelectorAll('img[onerror]').length") == 0
        )
        assert hostile[:20] in chromium.execute_script("return document.querySelector('h2').innerText")
        assert chromium.execute_script("return document.getElementById('curve-metric').value") == "clip"
        assert chromium.get_log("browser") == []
    finally:
        chromium.quit()
