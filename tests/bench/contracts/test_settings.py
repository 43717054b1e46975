"""Sampler settings: what is checked, what the error says, and that values stay as they were given."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, model_validator

from bench.contracts.card import ModelCard
from bench.contracts.settings import Number, SamplerSettings
from bench.models import registry
from bench.models.registry import family_class
from bench.models.scaffold import write_adapter
from protocols.schema import digest_of
from results.errors import BenchError


class Example(SamplerSettings):
    solver: Literal["euler", "heun"] = Field("euler", description="the solver")
    order: int = Field(1, ge=1, le=2, description="the order")
    ratio: Annotated[Number, Field(ge=0, le=1)] | Literal["Auto"] = Field(0.0, description="the ratio")
    shift: Number = Field(1.0, gt=0, description="the shift")
    gaps: Sequence[Annotated[Number, Field(ge=0, lt=1)]] = Field(
        (0.0, 0.0), min_length=2, max_length=2, description="the gaps"
    )
    times: Sequence[Number] | None = Field(None, description="the times")
    clamp: bool = Field(True, description="whether to clamp")

    @model_validator(mode="after")
    def _one_grid(self) -> Self:
        if self.times is not None and self.shift != 1:
            raise ValueError("times and shift exclude each other; leave one out")
        return self


@pytest.mark.parametrize(("values", "line"), [
    ({"solvr": "euler"}, "m: unknown sampler setting 'solvr'; did you mean solver? it takes: solver, order"),
    ({"solver": "Heun"}, "m: sampler setting solver must be one of euler, heun, found 'Heun'; did you mean heun?"),
    ({"solver": 3}, "m: sampler setting solver must be one of euler, heun, found 3"),
    ({"order": 3}, "m: sampler setting order must be an integer in [1, 2], found 3"),
    ({"order": 1.0}, "m: sampler setting order must be an integer in [1, 2], found 1.0"),
    ({"order": True}, "m: sampler setting order must be an integer in [1, 2], found True"),
    ({"ratio": 1.5}, "m: sampler setting ratio must be a number in [0, 1] or Auto, found 1.5"),
    ({"ratio": "auto"}, "m: sampler setting ratio must be a number in [0, 1] or Auto, found 'auto'; did you mean Auto"),
    ({"shift": 0}, "m: sampler setting shift must be a number above 0, found 0"),
    ({"shift": float("nan")}, "m: sampler setting shift must be a number above 0, found nan"),
    ({"shift": float("inf")}, "m: sampler setting shift must be a number above 0, found inf"),
    ({"shift": None}, "m: sampler setting shift must be a number above 0, found None"),
    ({"gaps": [0.5]}, "m: sampler setting gaps must be a list of 2 numbers each in [0, 1), found [0.5]"),
    ({"gaps": (0, 1)}, "m: sampler setting gaps must be a list of 2 numbers each in [0, 1), found [0, 1]"),
    ({"gaps": "ab"}, "m: sampler setting gaps must be a list of 2 numbers each in [0, 1), found 'ab'"),
    ({"times": 1.0}, "m: sampler setting times must be a list of numbers or null, found 1.0; write a list with one "
        "element as"),
    ({"clamp": 1}, "m: sampler setting clamp must be true or false, found 1"),
    ({"times": [1, 0], "shift": 2}, "m: times and shift exclude each other; leave one out"),
])  # fmt: skip
def test_a_wrong_setting_is_one_line_that_says_what_is_allowed(values: dict[str, Any], line: str) -> None:
    with pytest.raises(BenchError) as caught:
        Example.checked(values, "m")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_values_are_recorded_as_they_were_given() -> None:
    given = {"shift": 2, "ratio": 1, "gaps": [0, 0.5], "order": 2}
    recorded = dict(Example.checked(given, "m"))
    assert {name: (type(recorded[name]), recorded[name]) for name in given} == {
        name: (type(value), value) for name, value in given.items()
    }
    assert [type(gap) for gap in recorded["gaps"]] == [int, float]
    assert digest_of({"shift": 2}) != digest_of({"shift": 2.0})


def test_a_record_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Example().order = 2


def test_every_setting_tells_type_range_default_and_meaning() -> None:
    facts = {setting.name: setting for setting in Example.facts()}
    assert list(facts) == ["solver", "order", "ratio", "shift", "gaps", "times", "clamp"]
    assert facts["solver"].choices == ("euler", "heun")
    assert [setting.type for setting in facts.values()] == [
        "text", "integer", "number or text", "number", "list of numbers", "list of numbers or null", "boolean",
    ]  # fmt: skip
    assert facts["shift"].default == 1.0
    assert facts["gaps"].meaning == "the gaps"
    assert SamplerSettings.facts() == []


def test_an_adapter_of_the_earlier_contract_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: Any, labels: Any, steps: int, cfg: float, noise: Any, *, shift: float = 1.0) -> Any:
        return labels

    old = type("Old", (registry.Adapter,), {"generate": generate})
    monkeypatch.setattr(type(registry.ADAPTERS), "load", lambda self, family: old)
    reason = r"family 'old': .*Old\.generate takes no 'settings'.*Settings"
    with pytest.raises(BenchError, match=reason) as caught:
        family_class("old")
    assert "\n" not in str(caught.value)


def test_the_scaffold_declares_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter("settings-model", tmp_path / "package")
    monkeypatch.syspath_prepend(str(tmp_path / "package"))
    family = importlib.import_module("settings_model.adapter").SettingsModel
    adapter = family(ModelCard("m", "m", "m", 8, 10, (1, 8, 8), {"width": 0.1}))
    assert adapter.resolve_settings(4).shift == 1.0
    with pytest.raises(BenchError, match="shift must be a number above 0, found 0"):
        adapter.resolve_settings(4, overrides={"shift": 0})
