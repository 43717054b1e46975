"""Words that people read: one vocabulary, plain phrases, help that fits a terminal."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
PACKAGES = ("adapters", "bench", "protocols", "report", "results")
BANNED = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\banew\b": "again",
    r"\b(told|tells?) apart\b": "distinguished",
    r"\bdo(es)? not hold\b": "failed",
    r"\banswers? to\b": "matches",
    r"\bat most so many\b": "at most this many",
    r"\b(samples|evaluations|images|seconds|s|ms) (a|an) (cell|class|dimension|image|row|setting|step)\b": "per",
    r"\bholds? (no|NaN)\b": "contains, has",
    r"\bheld against\b": "checked against, compared with",
    r"\bis no (file|folder|directory|path)\b": "is not a",
    r"\bturns? round\b": "reverses",
    r"\bpassed over and said\b": "skipped and reported",
    r"\bgive another\b": "choose another",
    r"\d+ cells?\b": "rows",
    r"\d %(?![a-z(])": "no space before %",
}


def phrases(path):
    """Return the texts of a module that people may be shown: its strings, docstrings aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


def faults(text):
    """Return the banned phrases in a text, lines joined, each with the word to use instead."""
    flat = re.sub(r"\s+", " ", text)
    return [(found[0], better) for pattern, better in BANNED.items() for found in re.finditer(pattern, flat)]


def test_the_phrases_are_found():
    assert faults("Mend it,\nso that 30 cells hold\nno images; write it anew") == [
        ("anew", "again"),
        ("hold no", "contains, has"),
        ("30 cells", "rows"),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_plain_phrases(page):
    assert faults(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_messages_use_plain_phrases(package):
    found = [
        (str(path.relative_to(ROOT)), line, fault)
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in phrases(path)
        for fault in faults(text)
    ]
    assert found == []


def test_help_is_cut_nowhere_and_spells_arguments_in_capitals():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for block in re.findall(r"```text\n(.*?)```", page, flags=re.S):
        usage, *lines = block.splitlines()
        assert re.fullmatch(r"Usage: bench( [a-z]+)* \[OPTIONS\]( COMMAND \[ARGS\]\.\.\.|( [A-Z]+(\.\.\.)?)*)", usage)
        commands = lines[lines.index("Commands:") + 1 :] if "Commands:" in lines else []
        assert not [line for line in commands if line.endswith("...")], "a command's first sentence is too long"
        assert not re.search(r"<(str|int|float|path|list)", block)
        assert not re.search(r"--(no-(?!github)\S+)", block), "a flag that is off by default needs no opposite"


def test_the_glossary_defines_the_terms_that_tables_show():
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for term in ("NFE", "setting", "cell", "row", "reference", "judge", "protocol", "rank set", "`first`", "±", "tied"):
        assert re.search(rf"^\| {re.escape(term)} \|", page, flags=re.M), term
