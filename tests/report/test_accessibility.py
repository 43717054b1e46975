"""axe-core finds nothing wrong at any size, light or dark, where Chromium and axe-core (from npm) are installed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import duckdb
import pytest
from test_browser import CHROMIUM, browser

import report
from results.moving import write_bundle

PLACES = (os.environ.get("AXE_CORE", ""), "node_modules/axe-core/axe.min.js")
AXE = next((Path(place) for place in PLACES if place and Path(place).is_file()), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None or AXE is None, reason="needs Chromium and axe-core")
RUN = """
const done = arguments[0];
axe.run(document, {resultTypes: ["violations"]}).then((found) =>
  done(found.violations.map((one) => `${one.id}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))}`)));
"""


@pytest.fixture(scope="module")
def with_speed(database, tmp_path_factory):
    """The usual database with two rows of `bench speed`, which have a section of their own."""
    copy = Path(shutil.copy(database, tmp_path_factory.mktemp("speed") / "bench.duckdb"))
    part = {"median": 0.02, "low": 0.019, "high": 0.021, "repeats": 20}
    timing = {"batch_size": 16, "threads": 1, "cores": 2, "load": 0.1, "clock_mhz": 2600.0, "matrix_peak": 5e10}
    with duckdb.connect(str(copy)) as connection:
        connection.execute(
            "INSERT INTO cells SELECT * REPLACE (cell_id || 's' AS cell_id, 'speed' AS protocol, 'speed' AS ranking, "
            "true AS random_weights, ?::JSON AS timing) FROM cells WHERE status = 'done' LIMIT 2",
            [json.dumps(timing | {"batch": part, "latency": part})],
        )
    return copy


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (768, 1024), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(with_speed, tmp_path, width, height, scheme):
    page = report.write_report(with_speed, tmp_path / "report.html")
    assert 'id="speed"' in page.read_text("utf-8")
    assert violations(tmp_path, width, height, scheme, page) == [[]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_in_a_site(synthetic, tmp_path, scheme):
    database = synthetic()
    cell = database.add("a-b", {"fid": 3.0, "is": 9.0, "clip": 28.0, "pick": 20.0})
    write_bundle(database.write().parent, [cell], tmp_path / "b.zip")
    report.write_site(tmp_path / "site", [tmp_path / "b.zip"])
    pages = [tmp_path / "site" / name for name in ("index.html", "models/a-b.html")]
    assert violations(tmp_path, 390, 844, scheme, *pages) == [[], []]


def violations(tmp_path, width, height, scheme, *pages):
    """What axe-core says of each page; a page with scripts is looked at when all is drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    chromium = browser(tmp_path / "profile")
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    try:
        chromium.set_script_timeout(120)
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        found = []
        for page in pages:
            chromium.get(page.as_uri())
            drawn = "return document.documentElement.dataset.drawn === 'true' || !document.querySelector('script')"
            WebDriverWait(chromium, 60).until(lambda b: b.execute_script(drawn))  # noqa: B023
            chromium.execute_script(AXE.read_text("utf-8"))
            found.append(chromium.execute_async_script(RUN))
        return found
    finally:
        chromium.quit()
