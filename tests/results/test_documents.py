"""Files that people write are read or refused in one line that names them, whatever they hold."""

import copy
import json
import random
import tomllib

import pytest

from bench.models.cards import cards, load_card
from bench.run.gate import Machine, check_baseline
from protocols import load_protocol, protocol_files
from results.composite import read_bounds
from results.documents import read_text, read_toml
from results.errors import BenchError

CARDS = [card.path for card in cards().values()]
PROTOCOLS = list(protocol_files().values())
CASES = 300


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "p.toml"
    text = protocol_files()["gaussian"].read_text()
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_protocol(path).digest == load_protocol(protocol_files()["gaussian"]).digest


def test_bounds_with_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "bounds.json"
    path.write_bytes(b'\xef\xbb\xbf{"FID": {"min": 1, "max": 2}}')
    assert read_bounds(path) == {"FID": {"min": 1, "max": 2}}


def test_a_baseline_with_a_byte_order_mark_is_read_as_json(tmp_path):
    path = tmp_path / "baseline.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    with pytest.raises(BenchError, match="not a baseline of format"):
        check_baseline(path, Machine("cpu", 1, None))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \r\n", "is empty"),
        (b"\x00\x01\x02", "not UTF-8 text"),
        ('name = "\xe9"'.encode("latin-1"), "not UTF-8 text (byte 8)"),
        ('name = "a"'.encode("utf-16"), "not UTF-8 text"),
        (b"name = ", "not valid TOML"),
        (b"x = " + b"9" * 5000, "not valid TOML"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"x = " + b"[" * 40 + b"]" * 40, "nested too deeply"),
        (b".".join([b"a"] * 400) + b" = 1", "nested too deeply"),
        (b".".join([b"a"] * 400_000) + b" = 1", "nested too deeply"),  # tomllib would take hours and all memory
        (b"[" + b" . ".join([b'"a"'] * 100_000) + b"]", "nested too deeply"),
        (b"# " + b"x" * 2**21, "larger than 1 MiB"),
    ],
)
def test_what_is_no_toml_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    for read in (load_card, load_protocol):
        with pytest.raises(BenchError) as error:
            read(path)
        assert str(path) in str(error.value) and reason in str(error.value)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["", "missing.toml", "a/b.toml", "x" * 300 + ".toml", "loop.toml", "\0.toml"])
def test_what_is_no_file_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    for read in (load_card, load_protocol):
        with pytest.raises(BenchError) as error:
            read(tmp_path / name)
        assert "check the path" in str(error.value) and "\n" not in str(error.value)


def test_a_device_without_end_is_not_read():
    from pathlib import Path

    with pytest.raises(BenchError, match="not a file"):
        read_toml(Path("/dev/zero"), "card")
    with pytest.raises(BenchError, match="not a file"):
        read_text(Path("/dev/zero"), "list")


WRONG = [
    None, True, -1, 0, 2, 2**31, 2**63, -(2**70), 10**400, 1e400, float("nan"), -0.0, 1e-300, "", " ", "x", "5", "a\nb",
    "\x1b[0m", "../..", "x" * 5000, [], [[]], [1], [1, 2], [2, 1], [1, 2, 3], ["a", "a"], [None], [{}], {}, {"a": {}},
    {"kind": 1}, {"steps": [1]}, {"fid": [1, 2]}, {"a": [float("inf")]},
]  # fmt: skip


def places(value, at=()):
    """Every place in a table, as the keys that lead there."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*at, key))


def mutated(table, draw):
    """The table with one to three values replaced, removed, renamed or added."""
    table = copy.deepcopy(table)
    for _ in range(draw.randint(1, 3)):
        at = draw.choice([place for place in places(table) if place])
        holder = table
        for key in at[:-1]:
            holder = holder[key]
        wrong = draw.choice([value for value in WRONG if value is not None])
        action = draw.choice(("replace", "replace", "replace", "remove", "rename", "add"))
        if action == "replace":
            holder[at[-1]] = copy.deepcopy(wrong)
        elif action == "remove":
            del holder[at[-1]]
        elif isinstance(holder, dict):
            key = f"{at[-1]}x" if action == "rename" else draw.choice(("extra", "kind", "source", "names_file", "é"))
            holder[key] = holder.pop(at[-1]) if action == "rename" else copy.deepcopy(wrong)
        else:
            holder.append(copy.deepcopy(wrong))
    return table


def toml(value):
    """TOML of a table: keys quoted, all tables inline below the top."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


@pytest.mark.parametrize(("paths", "load"), [(CARDS, load_card), (PROTOCOLS, load_protocol)], ids=["card", "protocol"])
def test_a_mutated_file_is_loaded_or_refused_in_one_line_that_names_it(tmp_path, paths, load):
    draw = random.Random(2026)
    path = tmp_path / "mutated.toml"
    refused = 0
    for case in range(CASES):
        table = mutated(tomllib.loads(draw.choice(paths).read_text()), draw)
        path.write_text("\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in table.items()))
        try:
            loaded = load(path)
        except BenchError as error:
            refused += 1
            message = str(error)
            assert str(path) in message or "mutated.toml" in message, (case, message)
            assert "\n" not in message and len(message) < 1000, (case, message)
        else:  # what is let in can be taken a digest of and stored
            json.dumps(loaded.canonical() if load is load_protocol else loaded.settings(1), allow_nan=False)
    assert CASES // 3 < refused < CASES
