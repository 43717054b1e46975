"""What CI systems read of a check: JUnit XML, GitHub's annotations and its Markdown summary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from results.errors import one_line
from results.numbers import number

if TYPE_CHECKING:
    from bench.run.gate import Outcome
    from results.baseline import Check

SHOWN = 100
"""Rows of a summary, and annotations: GitHub shows ten of a step and cuts a summary of more than 1 MiB."""


def junit_xml(outcome: Outcome) -> str:
    """Return a test suite in which every metric and cost of a cell is a test case, its cell the class name."""
    skipped = [check for check in outcome.checks if check.verdict == "not compared"]
    counts = {"tests": len(outcome.checks), "failures": len(outcome.failed), "skipped": len(skipped), "errors": 0}
    numbers = {name: str(count) for name, count in counts.items()}
    suites = ElementTree.Element("testsuites", numbers)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "bench check", **numbers})
    for check in outcome.checks:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": one_line(check.cell), "name": one_line(check.name)}
        )
        if check.verdict == "not compared":
            ElementTree.SubElement(case, "skipped", {"message": one_line(str(check))})
        elif not check.passed:
            ElementTree.SubElement(case, "failure", {"message": one_line(str(check)), "type": check.verdict})
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def github_annotations(outcome: Outcome, baseline: Path) -> Iterator[str]:
    """Yield a workflow command for each failure (`error`), and a `notice` for what became better and may."""
    listed = [check for check in outcome.checks if check.verdict not in ("same", "not compared")]
    for check in listed[:SHOWN]:
        kind = "notice" if check.passed else "error"
        title = f"{check.name} {check.verdict}"
        yield f"::{kind} file={_property(str(baseline))},title={_property(title)}::{_message(str(check))}"


def _message(text: str) -> str:
    return one_line(text).replace("%", "%25")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def summary(outcome: Outcome, line: str) -> str:
    """Return the Markdown of a check: what it came to, and a table of all that is not as it was."""
    lines = [f"### bench {line}", "", *(f"> {_cell(remark)}" for remark in outcome.remarks)]
    listed = [check for check in outcome.checks if check.verdict not in ("same", "not compared")]
    if listed:
        lines += ["", "| cell | metric | baseline | now | difference | verdict |", "|---|---|---:|---:|---:|---|"]
        lines += [_row(check) for check in listed[:SHOWN]]
    if len(listed) > SHOWN:
        lines += ["", f"... and {len(listed) - SHOWN} more"]
    return "\n".join(lines) + "\n\n"


def _row(check: Check) -> str:
    exact = check.kind == "cost"
    was, now, moved = (
        "-" if value is None else f"{value:,.12g}" if exact else number(value)
        for value in (check.baseline, check.value, check.difference)
    )
    verdict = check.verdict if check.passed else f"**{check.verdict}**"
    return f"| {_cell(check.cell)} | {_cell(check.name)} | {was} | {now} | {moved} | {verdict} |"


def _cell(text: str) -> str:
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
