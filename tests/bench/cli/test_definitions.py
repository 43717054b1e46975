"""Protocol files from anywhere through the command line: met at the door, before a database or a sample exists."""

import json
import tomllib

import pytest
from jsonschema import Draft202012Validator

from bench.cli import main
from bench.models.cards import cards, find_card
from bench.models.scaffold import write_adapter
from protocols import protocol_files

ONE_CELL = ["--model", "digits-dmd", "--steps", "1", "--workers", "1"]
EXTENDS = 'extends = "digits"\nname = "mine"\n[sampling]\nnum_samples = 40\nsweeps = []\nthumbnails = 2\n'


@pytest.fixture
def bench(capsys, tmp_path, monkeypatch):
    """Run a command in this process; return (exit code, stdout, stderr)."""
    monkeypatch.setenv("BENCH_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "400")

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    return call


def test_the_embedded_default_is_extended_from_any_folder(bench, tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "mine.toml").write_bytes(b"\xef\xbb\xbf" + EXTENDS.replace("\n", "\r\n").encode())
    monkeypatch.chdir(folder)
    code, _, err = bench("run", "--protocol", "mine.toml", *ONE_CELL)
    assert code == 0, err
    code, out, _ = bench("leaderboard", "--all", "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["protocol"] == "mine" and {"clip", "pick"} <= set(row["metrics"])


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("[composite]\nbounds = { fid = [0.365] }", "key 'composite.bounds.fid' must be two numbers [low, high]"),
        ('[composite]\neps = "small"', "key 'composite.eps' must be a number, found 'small'"),
        ('[composite]\nmetrics = ["fid"]', "key 'composite.metrics' is not known"),
        (
            '[metrics.options]\nis_splits = "ten"',
            "key 'metrics.options.is_splits' must be an integer of at least 1, found 'ten'",
        ),
        ('[metrics.options]\ncomparison = "<<"', "key 'metrics.options.comparison' must be '<=' or '<', found '<<'"),
        ("[judges.clip]\nscale = true", "key 'judges.clip.scale' must be a number, found True"),
        ("[judges.pick]\npath = 3", "key 'judges.pick.path' must be text, found 3"),
        ('[judges.inception]\nspatial = "yes"', "key 'judges.inception.spatial' must be true or false, found 'yes'"),
    ],
)
def test_a_malformed_definition_never_reaches_a_database(bench, tmp_path, addition, message):
    path = tmp_path / "mine.toml"
    path.write_text(f"{EXTENDS}{addition}\n")
    for words in ((), ("--dry-run",)):
        code, out, err = bench("run", "--protocol", path, *ONE_CELL, *words)
        assert code == 2 and out == ""
        assert err.startswith(f"Error: protocol {path}: ") and message in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ('[metrics]\nnames = ["fid", "fdi"]', "key 'metrics.names': unknown metric 'fdi': did you mean fid"),
        (
            "[metrics.options]\nis_splitz = 3",
            "key 'metrics.options': unknown metric option 'is_splitz': did you mean is_",
        ),
        (
            "[metrics.options]\nis_splits = 0",
            "key 'metrics.options.is_splits' must be an integer of at least 1, found 0",
        ),
        (
            '[judges.clip]\nkind = "open-klip"',
            "key 'judges.clip.kind': unknown kind of judge 'clip' 'open-klip': did you",
        ),
        ("[judges.clip]\nscale = -1", "key 'judges.clip.scale' must be a number above 0"),
    ],
)
def test_what_a_protocol_gets_wrong_is_told_where_it_is_first_looked_at(bench, tmp_path, addition, message):
    path = tmp_path / "mine.toml"
    path.write_text(f"{EXTENDS}{addition}\n")
    for words in (("show", path), ("fetch", "--protocol", path), ("score", tmp_path, "--protocol", path)):
        code, out, err = bench(*words)
        assert code == 2 and out == "" and err.startswith(f"Error: protocol {path}: ") and message in err
        assert len(err.strip().splitlines()) == 1


def test_an_option_that_a_kind_of_judge_lacks_is_told_with_file_and_key(bench, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f"{EXTENDS}[judges.clip]\nscael = 1.0\n")
    code, _, err = bench("run", "--protocol", path, *ONE_CELL)
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert err.startswith(
        f"Error: protocol {path}: key 'judges.clip.scael': unknown option of judge 'clip' (open-clip)"
    )


@pytest.mark.parametrize(("command", "paths"), [("models", [card.path for card in cards().values()]),
                                                ("protocols", list(protocol_files().values()))])  # fmt: skip
def test_the_schema_that_editors_read_fits_every_shipped_file(bench, command, paths):
    code, out, _ = bench(command, "--schema")
    validator = Draft202012Validator(json.loads(out))
    assert code == 0
    for path in paths:
        assert [error.message for error in validator.iter_errors(tomllib.loads(path.read_text()))] == []
        words = path.read_text().splitlines()[0].split()
        assert words[0] == "#:schema"
        assert json.loads((path.parent / words[1]).read_text()) == json.loads(out)
    table = tomllib.loads(paths[0].read_text())
    assert list(validator.iter_errors({**table, "resolution": "big"}))
    assert list(validator.iter_errors({**table, "resolutoin": 3}))


def test_a_new_adapter_comes_with_the_schema_of_its_card(tmp_path):
    written = write_adapter("my-flow", tmp_path / "new")
    card = next(path for path in written if path.name == "my-flow.toml")
    schema = json.loads((card.parent / card.read_text().splitlines()[0].split()[1]).read_text())
    assert not list(Draft202012Validator(schema).iter_errors(tomllib.loads(card.read_text())))


def test_a_card_in_a_file_is_measured_at_its_own_steps_where_no_sweep_names_it(bench, tmp_path):
    card = find_card("edm-cifar10-uncond-vp")
    path = tmp_path / "mine.toml"
    path.write_text(card.path.read_text("utf-8").replace(f'name = "{card.name}"', 'name = "mine"'), "utf-8")
    code, out, err = bench("run", "--model", path, "--random-weights", "--dry-run")
    assert code == 0, err
    assert [line.split()[1:5] for line in out.splitlines() if line.startswith("-")] == [["mine", "18", "1", "35"]]
