"""Bundles hand rows to others whole, and what is no whole bundle changes nothing."""

import io
import json
import shutil
import stat
import subprocess
import zipfile

import numpy as np
import pytest

from bench.cli import main
from results.bundles import FORMAT, MANIFEST, read_bundle
from results.cells import CellDirectory
from results.errors import BenchError, StoreError
from results.evidence import Evidence, read_evidence, write_evidence
from results.moving import merge, write_bundle
from results.store import connect

NEEDS_SSH = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


@pytest.fixture
def runs(tmp_path, runs_with):
    """Rows a, b and c; a with evidence."""
    path = runs_with(tmp_path / "runs", "a", "b", "c")
    scores = Evidence({"pick.score/score": np.arange(100, dtype=np.float16)}, 100)
    write_evidence(CellDirectory(path, "a").path, scores)
    return path


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "somebody", "-f", path], check=True)
    return path


def bundle(runs, tmp_path, *names, key=None):
    path = tmp_path / "rows.zip"
    return path, write_bundle(runs, names or ("a", "b"), path, key)


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path, files, compress=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_merged_rows_are_the_bundled_ones_with_their_evidence(runs, tmp_path):
    path, made = bundle(runs, tmp_path)
    assert sorted(made.cells) == ["a", "b"] and made.digest == read_bundle(path).digest
    there = tmp_path / "there"
    there.mkdir()
    assert sorted(merge(there, [path]).added) == ["a", "b"]
    for name in ("a", "b"):
        mine, theirs = (CellDirectory(place, name).load_result() for place in (runs, there))
        assert mine["metrics"] == theirs["metrics"] and theirs["cell"]["signed_by"] is None
    assert (read_evidence(there / "cells/a").arrays["pick.score/score"] == np.arange(100)).all()
    assert read_evidence(there / "cells/b") is None
    assert merge(there, [path]).added == []


def test_the_same_rows_make_the_same_bytes_without_code_or_pickle(runs, tmp_path):
    path, _ = bundle(runs, tmp_path)
    first = path.read_bytes()
    bundle(runs, tmp_path)
    assert path.read_bytes() == first
    assert {name.rpartition("/")[2] for name in members(path)} == {MANIFEST, "result.json", "evidence.safetensors"}


def test_only_finished_rows_are_bundled(runs, tmp_path, record):
    CellDirectory(runs, "d").write_result(record("d", status="failed", reason="broke", model="other"))
    with pytest.raises(BenchError, match="'other' is not finished"):
        bundle(runs, tmp_path, "other")
    with pytest.raises(BenchError, match="'nobody' is not here"):
        bundle(runs, tmp_path, "nobody")
    assert not (tmp_path / "rows.zip").exists()


def manifest_of(files, **changes):
    return files | {MANIFEST: json.dumps(json.loads(files[MANIFEST]) | changes).encode()}


def changed_row(files):
    return files | {"cells/a/result.json": files["cells/a/result.json"].replace(b"3.0", b"2.0")}


def without(files, name):
    return {key: data for key, data in files.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (changed_row, "does not have the digest"),
        (lambda files: files | {"cells/a/evidence.safetensors": b"x" * 300}, "does not have the digest"),
        (lambda files: without(files, "cells/b/result.json"), "is listed and not in it"),
        (lambda files: without(files, MANIFEST), f"no {MANIFEST} in it"),
        (lambda files: manifest_of(files, format="a bundle of others"), f"another format than '{FORMAT}'"),
        (lambda files: manifest_of(files, version=2), "of version 2, this program knows 1"),
        (lambda files: manifest_of(files, cells={}), "lists no rows"),
        (lambda files: manifest_of(files, cells={"../a": {"files": {}}}), "which is no row"),
        (lambda files: manifest_of(files, cells={"a": {"files": {"result.json": {}}}}), "which no row has"),
        (lambda files: manifest_of(files, cells={"a": {"files": {"result.json": {"bytes": 2}}}}), "which no row has"),
        (lambda files: files | {"../../escaped/result.json": b"{}"}, f"{MANIFEST} does not list it"),
        (lambda files: files | {"/etc/passwd": b"root"}, "is not a file of a bundle"),
        (lambda files: files | {"cells/a/code.py": b"import os"}, "is not a file of a bundle"),
        (lambda files: files | {MANIFEST: b"[" * 100_000}, "nested too deeply|not readable as JSON"),
        (lambda files: files | {"signature.json": b"[]"}, "its signature is none"),
        (lambda files: files | {"signature.json": b'{"kind": [], "signature": "x"}'}, "its signature is none"),
        (lambda files: files | {"signature.json": b'{"kind": "ssh", "signature": "x"}'}, "does not verify"),
    ],
)
def test_a_bundle_that_is_not_whole_adds_nothing(runs, tmp_path, damage, reason, runs_with, cells):
    path, _ = bundle(runs, tmp_path)
    rewritten(path, damage(members(path)))
    mine = runs_with(tmp_path / "mine", "e")
    with pytest.raises(StoreError, match=reason) as refused:
        merge(mine, [path])
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    assert cells(mine) == ["e"] and [place.name for place in (mine / "cells").iterdir()] == ["e"]


def test_a_bomb_is_refused_before_it_is_unpacked(runs, tmp_path):
    path, _ = bundle(runs, tmp_path)
    rewritten(path, members(path) | {"cells/z/result.json": b" " * (65 << 20)})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(StoreError, match="larger than 64 MiB once unpacked"):
        read_bundle(path)


def test_a_member_that_goes_on_beyond_its_stated_size_is_refused(runs, tmp_path):
    path, _ = bundle(runs, tmp_path)
    data = bytearray(path.read_bytes())
    start = data.rindex(b"PK\x01\x02")  # the last member, in the directory of the archive
    size = int.from_bytes(data[start + 24 : start + 28], "little")
    data[start + 24 : start + 28] = (size - 10).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(StoreError):
        read_bundle(path)


def test_a_member_packed_by_other_means_is_refused(runs, tmp_path):
    path, _ = bundle(runs, tmp_path)
    files = members(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(StoreError, match="packed in a way that no bundle is"):
        read_bundle(path)


@pytest.mark.parametrize("length", [10, 200, -30])
def test_a_bundle_that_was_cut_off_is_refused(runs, tmp_path, length):
    path, _ = bundle(runs, tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(StoreError, match="not a readable bundle"):
        read_bundle(path)


def test_a_file_that_is_there_twice_is_refused(runs, tmp_path):
    path, _ = bundle(runs, tmp_path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cells/a/result.json", b"{}")
    with pytest.raises(StoreError, match="in it twice"):
        read_bundle(path)


@NEEDS_SSH
def test_a_signature_is_shown_with_every_row(runs, tmp_path, key, capsys):
    path, made = bundle(runs, tmp_path, key=key)
    assert made.signed_by.startswith("ssh ED25519 SHA256:")
    there = tmp_path / "there"
    there.mkdir()
    merge(there, [path])
    with connect(there / "bench.duckdb") as connection:
        stored = connection.execute("SELECT DISTINCT signed_by FROM cells").fetchall()
    assert stored == [(made.signed_by,)]
    with pytest.raises(SystemExit):
        main(["leaderboard", "--all", "--runs-dir", str(there)])
    assert f"signed by {made.signed_by}: m" in capsys.readouterr().out


@NEEDS_SSH
def test_a_signer_that_a_record_or_a_database_claims_is_not_believed(runs, tmp_path, record):
    CellDirectory(runs, "a").write_result(record("a", signed_by="ssh ED25519 SHA256:somebody"))
    path, _ = bundle(runs, tmp_path, "a")
    assert b"somebody" not in path.read_bytes() and b"signed_by" not in members(path)["cells/a/result.json"]
    there = tmp_path / "there"
    there.mkdir()
    merge(there, [runs])
    assert "signed_by" not in CellDirectory(there, "a").load_result()["cell"]


@NEEDS_SSH
def test_a_changed_bundle_does_not_verify(runs, tmp_path, key):
    path, _ = bundle(runs, tmp_path, key=key)
    files = members(path)
    rewritten(path, files | {MANIFEST: files[MANIFEST] + b"\n"})
    with pytest.raises(StoreError, match="does not verify"):
        read_bundle(path)


@NEEDS_SSH
def test_allowed_signers_are_named_and_others_refused(runs, tmp_path, key):
    path, _ = bundle(runs, tmp_path, key=key)
    allowed = tmp_path / "allowed"
    allowed.write_text("me@example.org " + key.with_suffix(".pub").read_text())
    assert read_bundle(path, allowed).signed_by.startswith("me@example.org (ssh ED25519 SHA256:")
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    allowed.write_text("you@example.org " + other.with_suffix(".pub").read_text())
    with pytest.raises(StoreError, match="does not verify"):
        read_bundle(path, allowed)
    bundle(runs, tmp_path)
    with pytest.raises(StoreError, match="nobody signed it"):
        read_bundle(path, allowed)
    with pytest.raises(StoreError, match="no bundle, so nobody signed it"):
        merge(tmp_path / "runs2", [runs], allowed)


@NEEDS_SSH
def test_what_cannot_sign_is_named(runs, tmp_path, key):
    for bad, reason in ((tmp_path / "none", "cannot be read"), (tmp_path / "runs/cells/a/result.json", "cannot sign")):
        with pytest.raises(StoreError, match=reason):
            bundle(runs, tmp_path, key=bad)
    assert not (tmp_path / "rows.zip").exists()


def test_the_commands_bundle_and_merge_say_what_they_did(runs, tmp_path, capsys):
    path = tmp_path / "out.zip"
    with pytest.raises(SystemExit) as stop:
        main(["bundle", "a", "b", "-o", str(path), "--runs-dir", str(runs)])
    said = capsys.readouterr().err
    assert stop.value.code == 0 and f"2 rows: {path}" in said and "1 without evidence" in said
    assert stat.S_IMODE(path.stat().st_mode) & 0o111 == 0
    with pytest.raises(SystemExit) as stop:
        main(["merge", str(path), "--runs-dir", str(tmp_path / "there")])
    assert stop.value.code == 0 and "2 rows added" in capsys.readouterr().err
    path.write_bytes(io.BytesIO(path.read_bytes()).read()[:-40])
    with pytest.raises(SystemExit) as stop:
        main(["merge", str(path), "--runs-dir", str(tmp_path / "there")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and len(said.splitlines()) == 1
