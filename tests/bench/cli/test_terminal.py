"""Text from outside never reaches a terminal or a spreadsheet as a command, and no output is lost to its encoding."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from results.printable import in_ascii, printable

HOSTILE = "\x1b[31mred\x1b]0;owned\x07\u202egnp\r\x9b2J"


def bench(*words, directory, environment=(), binary=False):
    command = [sys.executable, "-c", "from bench.cli import main; main()", *words]
    variables = {**os.environ, **dict(environment)}
    result = subprocess.run(command, cwd=directory, env=variables, capture_output=True, check=False)
    return result.returncode, result.stdout, result.stderr


def test_controls_and_direction_marks_are_shown_not_sent():
    assert printable("naïve 模型 ±") == "naïve 模型 ±"
    shown = printable(HOSTILE)
    assert shown.startswith("\\x1b[31mred\\x1b]0;owned\\x07\\u202egnp\\r\\x9b2J")
    assert printable("a\nb\udcff") == "a\\nb\\udcff"
    assert printable("a\nb", keep="\n") == "a\nb"


def test_ascii_keeps_the_sense():
    assert in_ascii("1.5 ± 0.2 × 3 │ ┏━ é") == "1.5 +- 0.2 x 3 | +- \\xe9"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a runs directory with one row whose name is hostile."""
    directory = tmp_path_factory.mktemp("hostile")
    code, _, errors = bench(
        "run", "--model", "digits-dmd", "--steps", "1", "--num-samples", "20", "--workers", "1", directory=directory
    )
    assert code == 0, errors
    with duckdb.connect(str(directory / "runs" / "bench.duckdb")) as connection:
        connection.execute("UPDATE cells SET model = ?, command = ?", [HOSTILE, "=cmd|'/C calc'!A0"])
    return directory


@pytest.mark.parametrize("words", [("leaderboard", "--all"), ("show", HOSTILE), ("report", "--protocol", HOSTILE)])
def test_no_command_passes_an_escape_sequence_on(runs, words):
    _, out, errors = bench(*words, directory=runs)
    assert out + errors
    for text in (out.decode(), errors.decode()):
        assert not any(letter in text for letter in "\x1b\x07\x9b\u202e")


def test_json_stays_json(runs):
    code, out, _ = bench("leaderboard", "--all", "--json", directory=runs)
    assert code == 0
    assert out.isascii()
    assert [row["model"] for row in json.loads(out)] == [HOSTILE]


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii streams", "C locale"],
)
def test_a_table_is_whole_where_the_terminal_knows_ascii_alone(runs, environment):
    code, out, errors = bench("leaderboard", "--all", directory=runs, environment=environment)
    assert code == 0, errors
    assert b" +- " in out
    assert out.isascii()


def test_a_csv_holds_no_formulas_unless_asked_for(runs):
    for words, expected in (((), "'=cmd|'/C calc'!A0"), (("--raw",), "=cmd|'/C calc'!A0")):
        code, _, errors = bench("export", "cells", "--output", "cells.csv", *words, directory=runs)
        assert code == 0, errors
        with (runs / "cells.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        assert row["command"] == expected
        assert float(row["nfe"]) == 1.0


def test_bytes_that_are_no_text_are_refused_in_one_line(runs):
    code, _, errors = bench("show", os.fsdecode(b"a\xff"), directory=runs)
    assert code == 2
    assert errors.count(b"\n") == 1
    assert b"is not UTF-8 text" in errors


def shell(line, directory):
    """Return (exit code, stdout, stderr) of a shell line, in which `bench` is the command."""
    command = f'bench() {{ {sys.executable} -c "from bench.cli import main; main()" "$@"; }}; {line}'
    result = subprocess.run(["bash", "-c", command], cwd=directory, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", ["--version", "models --json"])
def test_an_output_that_is_full_is_one_line(tmp_path, words):
    code, _, errors = shell(f"bench {words} > /dev/full", tmp_path)
    assert code == 2
    assert errors == "Error: no space left on the device; free some and run the same command to continue\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_exit_code_needs_no_stderr(tmp_path):
    assert shell("bench nothing 2> /dev/full", tmp_path)[0] == 2
    assert shell("bench leaderboard 2> /dev/full", tmp_path)[0] == 2


@pytest.mark.skipif(os.name != "posix", reason="descriptors of POSIX")
def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    look = "import os; prepare_streams(); fd = os.open('x', os.O_CREAT); assert fd > 2, fd; print('lost')"
    line = f'{sys.executable} -c "from bench.cli.terminal import prepare_streams; {look}" <&- >&-'
    assert shell(line, tmp_path) == (0, "", "")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a directory in use stays")
def test_a_working_directory_that_was_removed_is_named(tmp_path):
    (tmp_path / "gone").mkdir()
    code, _, errors = shell("cd gone && rmdir ../gone && bench models", tmp_path)
    assert code == 2
    assert errors == "Error: the working directory was removed, or may not be read; change to another\n"
