"""axe-core finds nothing wrong at any size, light or dark, where Chromium and axe-core (from npm) are installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_browser import CHROMIUM, browser

import report

PLACES = (os.environ.get("AXE_CORE", ""), "node_modules/axe-core/axe.min.js")
AXE = next((Path(place) for place in PLACES if place and Path(place).is_file()), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None or AXE is None, reason="needs Chromium and axe-core")
RUN = """
const done = arguments[0];
axe.run(document, {resultTypes: ["violations"]}).then((found) =>
  done(found.violations.map((one) => `${one.id}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))}`)));
"""


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (768, 1024), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(database, tmp_path, width, height, scheme):
    from selenium.webdriver.support.ui import WebDriverWait

    page = report.write_report(database, tmp_path / "report.html")
    chromium = browser(tmp_path / "profile")
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    try:
        chromium.set_script_timeout(120)
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        chromium.get(page.as_uri())
        WebDriverWait(chromium, 60).until(
            lambda b: b.execute_script("return document.documentElement.dataset.drawn") == "true"
        )
        chromium.execute_script(AXE.read_text("utf-8"))
        assert chromium.execute_async_script(RUN) == []
    finally:
        chromium.quit()
