import numpy as np
import pandas as pd
import pytest

from report import findings, text
from report.markup import element, escape, script_json


@pytest.mark.parametrize(
    ("value", "low", "high", "shown", "spread"),
    [
        (0.51234, 0.49, 0.53, "0.512", "± 0.020"),
        (-1e-9, -0.02, 0.02, "0.000", "± 0.020"),
        (0.001, 0.001 - 3e-18, 0.001 + 3e-18, "0.00100", ""),
        (3908.2, 3700.0, 3979.0, "3,908", "3,700 to 3,979"),
        (0.51234, 0.46, 0.56, "0.51", "± 0.05"),
        (281.27, 277.0, 285.0, "281", "± 4"),
        (13.04, 12.0, 15.0, "13.0", "12.0 to 15.0"),
        (0.5, None, None, "0.500", ""),
        (0.5, 0.5, 0.5, "0.500", ""),
        (None, None, None, "–", ""),
        (float("nan"), 0, 1, "–", ""),
    ],
)
def test_decimals_are_cut_to_the_interval(value, low, high, shown, spread):
    assert text.number(value, low, high) == shown
    assert text.spread(value, low, high) == spread


def test_a_difference_keeps_its_sign_where_it_rounds_to_nothing():
    assert text.numbers.limits(-0.0004, 0.02) == "-0.000 .. +0.020"
    assert text.numbers.difference(-1234.0, -1300.0, -1200.0) == "-1,234"


def test_numpy_numbers_are_known():
    assert text.plain(np.int32(16)) == "16" and text.plain(np.float64(1.5)) == "1.5"


def test_units_fit():
    assert (
        text.seconds(0.00286) == "2.86 ms"
        and text.memory(410 * 2**20) == "410 MiB"
        and text.parameters(177_000) == "177 k"
    )


def test_ranks_and_lists_read_naturally():
    assert (text.rank(1, 3), text.rank(2, 2), text.rank(None, None)) == ("1–3", "2", "–")
    assert text.listed(["a", "b", "c"]) == "a, b and c" and text.listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"


def test_markup_escapes_text_and_attributes_but_not_itself():
    assert element("td", "<b>", element("i", "&"), title='"') == '<td title="&quot;">&lt;b&gt;<i>&amp;</i></td>'
    assert escape(["<", None]) == "&lt;"


def test_script_json_cannot_end_its_element():
    written = script_json({"name": "</script><!--\u2028", "value": float("nan")})
    assert "<" not in written and "\u2028" not in written and '"value":null' in written


def test_metrics_that_pull_apart_are_not_said_to_agree():
    names = {"fid": "FID", "is": "IS", "clip": "CLIP"}
    apart = {"fid": {"is": -0.6, "clip": 0.2}, "is": {"clip": 0.1}, "clip": {}}
    assert findings.correlation(apart, names) == "FID and IS contradict each other most (rank correlation -0.60)"
    assert findings.correlation({"fid": {"is": 0.6}, "is": {}}, names).startswith("FID and IS agree most")


def test_parts_that_take_no_time_are_not_named():
    rows = pd.DataFrame({"network_seconds": [8.0], "decode_seconds": [0.0], "judge_seconds": [2.0]})
    assert findings.time_spent(rows) == "The network takes 80% and the judges take 20% of the time"
