import pandas as pd
import pytest

from report import figures, tables
from report.data import Measurements, read_measurements


@pytest.fixture(scope="module")
def data(database) -> Measurements:
    return read_measurements(database)


@pytest.fixture(scope="module")
def styles(data: Measurements) -> dict[str, dict[str, str]]:
    return figures.palette(data.models, sorted(set(data.cells["model"])))


def titles(figure) -> tuple[str, str]:
    return figure.layout.xaxis.title.text, figure.layout.yaxis.title.text


def test_colours_differ_and_symbols_tell_few_steps_from_many(styles):
    assert len({style["colour"] for style in styles.values()}) == len(styles)
    assert styles["digits-dmd"]["symbol"] == "circle" and styles["digits-flow"]["symbol"] == "square"


def test_curve_has_a_line_for_each_model_and_guidance_with_bars_and_hollow_marks(data, styles):
    figure = figures.steps_curve(data.with_metric("fid"), data.metrics["fid"], styles)
    names = [trace.name for trace in figure.data]
    assert "digits-flow" in names and "digits-flow-small cfg 1.5" in names and len(names) == 7 + 5
    assert titles(figure) == ("network evaluations per image (NFE)", "FID (lower is better)")
    assert figure.layout.xaxis.type == "log" and figure.layout.yaxis.type == "log"
    few = figure.data[names.index("digits-ucgm-few")]
    assert list(few.x) == [1, 2, 4, 8, 16, 32] and all(length > 0 for length in few.error_y.array)
    assert list(few.marker.symbol) == ["circle"] * 4 + ["circle-open"] * 2


def test_guided_rows_are_drawn_at_their_measured_evaluations(data, styles):
    figure = figures.steps_curve(data.with_metric("fid"), data.metrics["fid"], styles)
    guided = next(trace for trace in figure.data if trace.name.endswith("cfg 3"))
    assert list(guided.x) == [8, 32]


def test_pareto_marks_the_front_and_pales_the_rest(data, styles):
    figure = figures.pareto(
        rows := data.with_metric("fid"), data.metrics["fid"], styles, data.front("fid", "latency_seconds", rows.index)
    )
    front, dots = figure.data[0], figure.data[1:]
    assert (
        front.line.shape == "hv" and list(front.x) == sorted(front.x) and list(front.y) == sorted(front.y, reverse=True)
    )
    solid = sum(opacity == 1 for trace in dots for opacity in trace.marker.opacity)
    assert solid == len(front.x) < sum(len(trace.x) for trace in dots)
    assert titles(figure)[0] == "seconds for one image, batch 1"


def test_guidance_path_follows_the_scale_and_stars_the_choice(data, styles):
    rows = data.with_metric("fid")
    rows = rows[rows["model"] == "digits-flow-small"]
    other = data.with_metric("accuracy")[["value", "low", "high"]].set_axis(["x", "x_low", "x_high"], axis=1)
    chosen = data.best("fid", ("model", "steps"), rows.index)
    figure = figures.guidance_path(rows.join(other), data.metrics["accuracy"], data.metrics["fid"], styles, chosen)
    assert [trace.text[1:] for trace in figure.data] == [("1.25", "1.5", "2", "3")] * 2
    assert list(figure.data[0].marker.symbol).index("star") == 2
    assert titles(figure) == ("Accuracy (higher is better)", "FID (lower is better)")


def test_heat_map_names_the_weakest_metric():
    rows = pd.DataFrame(
        [
            {
                "model": "a",
                "label": "a",
                "steps": 1,
                "value": 0.2,
                "low": 0.1,
                "high": 0.3,
                "utilities": {"fid": 0.1, "is": 0.9},
            },
            {
                "model": "a",
                "label": "a",
                "steps": 4,
                "value": 0.8,
                "low": 0.7,
                "high": 0.9,
                "utilities": {"fid": 0.9, "is": 0.7},
            },
        ]
    )
    figure = figures.composite_heatmap(rows, "model", {"fid": "F", "is": "I"})
    assert [list(line) for line in figure.data[0].text] == [["0.20 F", "0.80 I"]]
    assert list(figure.data[0].x) == ["1", "4"] and titles(figure)[0] == "sampler steps"


def test_correlation_matrix_is_square(data):
    figure = figures.correlation_matrix(data.ranking["correlation"], data.metrics)
    assert list(figure.data[0].x) == ["FID", "IS", "CLIP", "Pick"] == list(figure.data[0].y)
    assert figure.data[0].z[0][0] == pytest.approx(1)


def test_class_differences_are_sorted_and_accuracy_has_binomial_intervals(data):
    frame = pd.DataFrame({"label": [0, 1], "class_name": ["zero", "one"], "value": [0.9, 0.5], "n": [100, 100]})
    figure = figures.per_class_difference(frame, frame.assign(value=[0.5, 0.6]), data.metrics["accuracy"])
    assert list(figure.data[0].x) == pytest.approx([-0.1, 0.4]) and list(figure.layout.yaxis.ticktext) == [
        "one",
        "zero",
    ]
    assert figure.data[0].error_x.array[1] == pytest.approx(
        1.96 * (91 / 102 * 11 / 102 / 102 + 0.25 / 102) ** 0.5, rel=1e-4
    )
    assert figures.per_class_difference(frame, frame, data.metrics["clip"]).data[0].error_x.array is None


def test_rank_figure_shows_interval_and_chance(styles):
    rows = pd.DataFrame(
        {
            "model": ["digits-dmd"],
            "label": ["x"],
            "rank_low": [1.0],
            "rank_high": [4.0],
            "place": [2],
            "p_first": [0.25],
        }
    )
    figure = figures.rank_intervals(rows, styles)
    assert list(figure.data[0].error_x.array) == [2] and list(figure.data[0].error_x.arrayminus) == [1]
    assert figure.data[1].text[0].strip() == "25%" and titles(figure)[0] == "rank"


def test_a_long_row_label_keeps_its_setting_in_a_second_line():
    assert figures.row_label("digits-flow-small at 16 steps, cfg 1.5") == "digits-flow-small at 16 steps,<br>cfg 1.5"
    assert figures.row_label("digits-flow at 8 steps") == "digits-flow at 8 steps"
    assert figures.row_label("x" * 40) == "x" * 33 + "…"


def test_the_heat_table_shades_the_first_place_most_and_marks_who_may_be_first():
    places = pd.DataFrame({"FID": [1, 2], "IS": [1, None]}, index=["digits-dmd", "digits-flow"])
    table = tables.ranks_table(places, {("digits-dmd", "FID"), ("digits-flow", "FID")})
    assert table.count("<b>") == 2 and 'style="--heat:40%"><b>1</b>' in table and 'style="--heat:0%"><b>2</b>' in table
    assert '<td style="--heat:40%">1</td><' in table and "<td>–</td>" in table


def test_a_bounded_metric_stays_on_a_linear_axis(data):
    wide = pd.Series([0.004, 0.97])
    assert not figures.spans(wide, data.metrics["mmhm"]) and figures.spans(wide, data.metrics["fid"])


def test_sensitivity_leaves_out_rows_that_matter_to_nobody():
    figure = figures.sensitivity({"a": 0, "b": 3, "c": 1})
    assert list(figure.data[0].x) == [1, 3] and list(figure.layout.yaxis.ticktext) == ["c", "b"]


def test_cost_is_per_thousand_images(data):
    rows = data.cells.iloc[:1].assign(network_seconds=4.0, num_samples=2000)
    figure = figures.cost(rows)
    assert [trace.name for trace in figure.data] == ["network", "decoder", "judges"] and list(figure.data[0].x) == [2.0]
    assert titles(figure)[0] == "seconds for 1,000 images"
