import duckdb
import pytest

from report.data import read_measurements
from results.errors import ReportError


def test_cells_carry_labels_cost_and_the_composite(database):
    data = read_measurements(database)
    assert data.headline == "mmhm" and list(data.metrics)[:5] == ["mmhm", "fid", "is", "clip", "pick"]
    assert "digits-flow-small at 16 steps, cfg 1.5" in set(data.cells["label"])
    assert data.cells["seconds"].iloc[0] == pytest.approx(1 / data.cells["images_per_second"].iloc[0])
    assert set(data.unfinished["status"]) == {"failed", "unsupported"}


def test_rows_of_another_ranking_are_never_ranked_with_the_others(new_database):
    builder = new_database()
    builder.frame()
    builder.run()
    builder.model("a")
    for steps in (1, 2):
        builder.cell("a", steps, 1.0 / steps)
    other = builder.cell("a", 4, 0.1, ranking="cd34" * 16, num_samples=500)
    data = read_measurements(builder.close())
    assert other in data.elsewhere.index and other not in data.cells.index
    assert data.headline == "fid" and len(data.contenders("fid")) == 2


def test_random_weights_are_shown_but_not_ranked(new_database):
    builder = new_database()
    builder.frame()
    builder.run()
    builder.model("a")
    builder.cell("a", 1, 1.0)
    speed = builder.cell("a", 2, 0.1, random_weights=True)
    data = read_measurements(builder.close())
    assert speed in data.cells.index and speed not in {row.cell["cell_id"] for row in data.contenders("fid")}


def test_a_value_over_fewer_samples_is_shown_but_not_ranked(new_database):
    builder = new_database()
    builder.frame()
    builder.run()
    whole, short = builder.cell("a", 1, 1.0), builder.cell("a", 2, 0.5, failures=7)
    for row in builder.rows["metrics"]:
        row["n"] -= 7 if row["cell_id"] == short else 0
    data = read_measurements(builder.close())
    assert [row.cell["cell_id"] for row in data.contenders("fid")] == [whole]
    assert data.value(short, "fid")["value"] == 0.5


def test_a_protocol_is_chosen_by_name(new_database):
    builder = new_database()
    builder.frame()
    builder.run()
    builder.cell("a", 1, 1.0)
    builder.cell("a", 2, 1.0)
    builder.cell("a", 1, 1.0, protocol="imagenet", protocol_digest="00" * 32, ranking="ef" * 32)
    path = builder.close()
    assert read_measurements(path).other_protocols == ["imagenet"]
    assert read_measurements(path, "imagenet").protocol["name"] == "imagenet"
    with pytest.raises(ReportError, match="no finished rows of protocol 'x', only of digits, imagenet"):
        read_measurements(path, "x")


def test_faults_are_one_line(new_database, tmp_path):
    with pytest.raises(ReportError, match=r"absent.duckdb: no database here; 'bench run' creates one"):
        read_measurements(tmp_path / "absent.duckdb")
    (tmp_path / "damaged.duckdb").write_bytes(b"not a database" * 100)
    with pytest.raises(ReportError, match=r"^[^\n]*damaged.duckdb: not a readable database[^\n]*$"):
        read_measurements(tmp_path / "damaged.duckdb")
    with pytest.raises(ReportError, match="has no finished rows"):
        read_measurements(new_database("empty.duckdb").close())
    refused = new_database("refused.duckdb")
    refused.cell("digits-dmd", 2, 0, status="unsupported", reason="takes 1 step only", images_per_second=None)
    with pytest.raises(ReportError, match=r"no finished rows: the last one is unsupported \(takes 1 step only\)"):
        read_measurements(refused.close())
    newer = new_database("newer.duckdb")
    newer.insert("schema_version", version=99)
    with pytest.raises(ReportError, match="its schema is version 99"):
        read_measurements(newer.close())


def test_the_database_is_only_read(database):
    before = database.read_bytes()
    read_measurements(database)
    assert database.read_bytes() == before


def test_a_database_locked_by_another_process_is_named(database, tmp_path):
    import subprocess
    import sys

    copy = tmp_path / "locked.duckdb"
    copy.write_bytes(database.read_bytes())
    code = f"import duckdb, sys; c = duckdb.connect({str(copy)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline().strip() == b"open"
        with pytest.raises(ReportError, match="in use by another process"):
            read_measurements(copy)
        writer.communicate(b"")
    assert duckdb.connect(str(copy), read_only=True).execute("SELECT count(*) FROM cells").fetchone()[0] > 0
