"""Students beside their teachers, on rows whose blocks are known."""

import json

import numpy as np
import pytest

from results.comparing import paired, ratio, tied
from results.errors import StoreError
from results.leaderboard import rows
from results.store import connect, write_cell
from results.teachers import students

BLOCKS = np.linspace(-0.02, 0.02, 20)


@pytest.fixture
def measured(tmp_path, record):
    """Make a database of settings (name, NFE, FID, card) that share the noise of their blocks, and read its rows."""

    def make(*settings, **changes):
        with connect(tmp_path / "bench.duckdb", write=True) as connection:
            for index, (name, nfe, fid, card) in enumerate(settings):
                made = record(f"{index:020x}", fid, model=name, checkpoint=card["name"], nfe=nfe, steps=int(nfe))
                made["cell"] |= changes
                for metric in made["metrics"]:
                    metric["jackknife"] = list(fid * (1 + BLOCKS))
                model = {"model": card["name"], "family": "f", "title": "t", "resolution": 8, "num_classes": 10}
                model |= {"parameters": 1, "guidance": "none", "natural_steps": 1, "natural_cfg": 1.0, "paper": ""}
                made["model"] = model | {"licence": "", "card": card}
                write_cell(connection, made)
            found = students(connection, rows(connection, blocks=True))
            return found, rows(connection, blocks=True)

    return make


TEACHER = {"name": "flow", "weights": {"sha256": "a" * 64, "tree": None, "prefix": ""}}
HEUN = {"name": "flow-heun", "weights": {"sha256": "a" * 64, "tree": None, "prefix": ""}}
OTHER = {"name": "other", "weights": {"sha256": "b" * 64, "tree": None, "prefix": ""}}
STUDENT = {"name": "student", "teacher": "flow", "weights": {"sha256": "c" * 64, "tree": None, "prefix": ""}}


def test_a_student_stands_beside_its_teacher_by_whichever_card_samples_those_weights_best(measured):
    found, _ = measured(
        ("flow", 1, 10.0, TEACHER), ("flow", 8, 2.0, TEACHER), ("flow-heun", 6, 1.0, HEUN), ("other", 1, 0.1, OTHER),
        ("student", 1, 2.5, STUDENT), ("student", 2, 1.25, STUDENT), ("student", 4, 3.0, STUDENT),
    )  # fmt: skip
    (student,) = found
    assert (student.model, student.teacher, student.metric) == ("student", "flow", "fid")
    assert student.best.cell["model"] == "flow-heun"
    assert [point.row.cell["steps"] for point in student.points] == [1, 2]
    assert [point.quality.value for point in student.points] == pytest.approx([1 / 2.5, 1 / 1.25])
    assert [point.cost for point in student.points] == pytest.approx([1 / 6, 2 / 6])
    assert {point.verdict for point in student.points} == {"worse"}
    assert (student.level_at, student.overtaken_at, student.measured_to) == (6, 6, 6)
    told = json.loads(json.dumps(student.json()))
    assert [point["evaluations"] for point in told["teacher_line"]] == [1, 6]
    assert told["line"][1]["quality"]["value"] == pytest.approx(0.8)


def test_a_teacher_that_never_catches_up_is_said_to_be_behind_as_far_as_measured(measured):
    ((student,), _) = measured(("flow", 1, 10.0, TEACHER), ("flow", 8, 5.0, TEACHER), ("student", 1, 2.0, STUDENT))
    assert (student.level_at, student.overtaken_at, student.measured_to) == (None, None, 8)
    assert student.points[0].verdict == "better" and student.points[0].quality.low > 1


def test_a_student_without_a_measured_teacher_or_of_random_weights_has_no_points(measured):
    ((student,), _) = measured(("student", 1, 2.0, STUDENT), ("other", 1, 1.0, OTHER))
    assert (student.points, student.best, student.level_at, student.overtaken_at) == ([], None, None, None)
    assert measured(("student", 1, 2.0, STUDENT), random_weights=True)[0] == []


def test_a_ratio_holds_one_exactly_where_the_rows_are_tied(measured):
    generator = np.random.default_rng(0)
    for _ in range(20):
        _, (a, b) = measured(("flow", 1, 2.0, TEACHER), ("student", 1, 2.0 + generator.normal() / 5, STUDENT))
        for row in (a, b):
            value = row.metrics["fid"]
            noisy = tuple(value.value * (1 + generator.normal(size=20) / 200))
            object.__setattr__(value, "jackknife", noisy)
        share = ratio(a, b, "fid")
        assert share.low < share.value < share.high
        assert (share.low <= 1 <= share.high) == tied(a, b, "fid")
        for end, side in ((share.low, "low"), (share.high, "high")):
            assert getattr(paired(a, b, "fid", end), side) == pytest.approx(0, abs=1e-9)


def test_a_divisor_that_may_be_zero_leaves_the_ratio_without_an_upper_end(measured):
    _, (a, b) = measured(("flow", 1, 2.0, TEACHER), ("student", 1, 0.01, STUDENT))
    object.__setattr__(b.metrics["fid"], "jackknife", tuple(0.01 + BLOCKS))
    assert ratio(a, b, "fid").high is None
    object.__setattr__(b.metrics["fid"], "value", -0.01)
    assert ratio(a, b, "fid") is None


def test_an_unknown_metric_is_named(measured, tmp_path):
    measured(("student", 1, 2.0, STUDENT))
    with connect(tmp_path / "bench.duckdb") as connection, pytest.raises(StoreError, match="no row here has 'kidd'"):
        students(connection, rows(connection, blocks=True), "kidd")
