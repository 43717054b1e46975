"""What was measured, changed by somebody: databases, records, shards, references and recordings."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
from safetensors.numpy import save
from texts import TEXTS

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDINGS = [GOLDEN / name for name in ("metrics-kid-a", "metrics-mmhm-a", "metrics-is-a", "metrics-resize-a")]
SMALLEST = ["run", "--protocol", "gaussian", "--cfg", "1", "--num-samples", "20", "--workers", "1"]


@dataclass
class Case:
    """One command line, made in a directory of its own."""

    words: list[str]
    title: str
    outputs: list[Path] = field(default_factory=list)
    """Files that must be whole or absent, and absent after an error."""


class Stored:
    """The makers of such cases; `Generator` has the tools that they use."""

    rng: random.Random
    place: Path

    def reading(self) -> list[str]:
        return self.rng.choice(
            [
                ["leaderboard"], ["leaderboard", "--json", "--all"], ["report"], ["doctor", "--json"],
                ["show", "gaussian"],
                ["compare", "gaussian", "gaussian"], ["export", "cells", "--output", "out"], ["references"],
                ["reindex"],
                ["remove", "gaussian", "--yes"], ["merge", "other"],
                ["export", "metrics", "--format", "json", "--output", "out"],
                [*SMALLEST, "--steps", "1"],
            ]
        )  # fmt: skip

    def database(self) -> Case:
        runs = self.runs()
        path = runs / "bench.duckdb"
        content = path.read_bytes()
        if self.rng.random() < 0.3:
            path.unlink()
            path.mkdir() if self.rng.random() < 0.3 else None
        else:
            path.write_bytes(self.damage(content))
        if self.rng.random() < 0.3:
            self.write("runs/bench.duckdb.wal", self.rng.randbytes(200))
        other = self.rng.choice(["other", "other", str(self.write("foreign.duckdb", self.damage(content)))])
        words = [other if word == "other" else word for word in self.reading()]
        return Case(words, "", [self.place / "out"])

    def tables(self) -> Case:
        """A database whose tables somebody changed, with its cells' directories or without."""
        rng, runs = self.rng, self.runs()
        for _ in range(rng.choice([1, 1, 2, 4])):
            with duckdb.connect(str(runs / "bench.duckdb")) as connection, suppress(duckdb.Error):
                connection.execute(self.statement(connection))
        if rng.random() < 0.5:
            shutil.rmtree(runs / "cells")
        other, export = self.place / "other", ["export", rng.choice(["cells", "metrics", "runs"]), "--output", "out"]
        words = rng.choice([["merge", "other"], ["reindex"], ["reindex", "--drop"], export, self.reading()])
        if words == ["merge", "other"]:
            runs.rename(other)
            words = ["merge", rng.choice(["other", "other/bench.duckdb"])]
        return Case(words, " ".join(words), [self.place / "out"])

    def statement(self, connection: duckdb.DuckDBPyConnection) -> str:
        """Return one change of a table."""
        rng = self.rng
        names = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        table = rng.choice(sorted(names))
        columns = connection.execute(
            f"SELECT column_name FROM duckdb_columns() WHERE table_name = '{table}'"
        ).fetchall()
        column = rng.choice(sorted(columns))[0]
        text = rng.choice(TEXTS).replace("\udcff", "?").replace("'", "''")
        value = rng.choice(["NULL", "-1", "'nan'", "1e308", "9223372036854775807", "''", f"'{text}'", "'[1, {'", "0"])
        view = f'CREATE VIEW "{table}" AS SELECT * FROM "old"'
        return rng.choice(
            [f'UPDATE "{table}" SET "{column}" = {value}'] * 5
            + [f'UPDATE "{table}" SET "{column}" = {value} WHERE rowid = 0'] * 3
            + [
                f'DROP TABLE "{table}"', f'DELETE FROM "{table}"', f'ALTER TABLE "{table}" DROP COLUMN "{column}"',
                f'ALTER TABLE "{table}" ADD COLUMN "{text or "x"}" INTEGER',
                f'ALTER TABLE "{table}" ALTER COLUMN "{column}" TYPE VARCHAR',
                f'ALTER TABLE "{table}" ALTER COLUMN "{column}" DROP NOT NULL',
                f'INSERT INTO "{table}" SELECT * FROM "{table}"', f'ALTER TABLE "{table}" RENAME TO "old"; {view}',
                f"UPDATE schema_version SET version = {rng.choice(['0', '1', '4', '99', '-1', 'NULL'])}",
                f'CREATE OR REPLACE TABLE "{table}" AS SELECT * FROM range(3)',
                "CREATE VIEW more AS SELECT * FROM read_text('/etc/hostname')", "DROP TABLE schema_version",
            ]
        )  # fmt: skip

    def record(self) -> Case:
        path = self.rng.choice(sorted(self.runs().glob("cells/*/result.json")))
        path.write_bytes(self.json(json.loads(path.read_text())))
        if self.rng.random() < 0.7:
            (self.place / "runs" / "bench.duckdb").unlink()
        words = self.rng.choice(
            [
                ["reindex"],
                ["merge", "other"],
                ["remove", "gaussian@1", "--yes"],
                [*SMALLEST, "--steps", "1"],
                self.reading(),
            ]
        )
        if words == ["merge", "other"]:
            (self.place / "runs").rename(self.place / "other")
        return Case(words, " ".join(words), [self.place / "out"])

    def shard(self) -> Case:
        path = self.rng.choice(sorted(self.runs().glob("cells/*/result.json")))
        path.unlink()
        arrays = {
            self.rng.choice(["inception.features", "../../../out", "thumbnails", "x"]): np.ones((20, 3), np.float32)
        }
        facts = self.mutated({"start": 0, "stop": 20, "batch_size": 500, "network_rows": 20, "peak_memory": 0})
        content = save(arrays, metadata={"facts": json.dumps(facts)})
        content = self.damage(content) if self.rng.random() < 0.4 else content
        (path.parent / "shard-00000000-00000020.safetensors").write_bytes(content)
        return Case([*SMALLEST, "--steps", "1,2"], "")

    def reference(self) -> Case:
        path = self.rng.choice(sorted(self.runs().glob("references/*/*")))
        if path.suffix == ".json":
            path.write_bytes(self.json(json.loads(path.read_text())))
        else:
            path.write_bytes(self.damage(path.read_bytes()))
        return Case([*SMALLEST, "--steps", "2", "--cfg", "1.5"], "")

    def recording(self) -> Case:
        source = self.rng.choice(RECORDINGS)
        shutil.copytree(source, self.place / "case")
        path = self.place / "case" / "case.json"
        path.write_bytes(self.json(json.loads(path.read_text())))
        return Case(["parity", str(self.place / "case")], source.name)
