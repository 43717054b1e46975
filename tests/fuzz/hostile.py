"""A seeded generator of hostile and malformed command lines: every command, every option, every kind of file.

A case is a function of (seed, index): what failed once can be made again. Commands and options are read off the
command line itself, so that one that is added is tried without a word here.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from networks import CANARY, Bomb, Networks
from PIL import Image
from safetensors.numpy import save
from stored import Case, Stored
from texts import HTML, LFS, LITERALS, PLACES, TEXTS, VALUES
from typer.main import get_command

from bench.cli import app

OUTSIDE = Path(tempfile.gettempdir(), "out.png")
"""Where a member of an archive would lie if its absolute path were believed."""

PROTOCOL = """
extends = "digits"
name = "mine"

[sampling]
num_samples = 20
seed = 1
batch_size = 10

[reference]
name = "mine"
kind = "folder"
images = 2

[metrics]
names = ["fid", "accuracy"]
blocks = 5
"""


class Generator(Networks, Stored):
    """Makes cases in `place`, the working directory, beside `runs`, a copy of a finished run."""

    def __init__(self, seed: int, index: int, place: Path, finished: Path) -> None:
        self.rng = random.Random(f"{seed} {index}")
        self.place, self.finished = place, finished

    def case(self) -> Case:
        makers = [self.options] * 5 + [
            self.protocol, self.card, self.baseline, self.table, self.bounds, self.images, self.images, self.data_set,
            self.weights, self.weights, self.network, self.network, self.database, self.tables, self.tables,
            self.record, self.record, self.shard, self.reference, self.recording, self.labels, self.measuring,
        ]  # fmt: skip
        make = self.rng.choice(makers)
        case = make()
        case.title = f"{make.__name__}: {case.title}"
        return case

    # ---- words

    def options(self) -> Case:
        """Any command with some of its options, at least one of them hostile."""
        path, command = self.rng.choice(list(commands()))
        words, hostile = list(path), []
        for parameter in command.params:
            if parameter.name in ("help", "version"):
                continue
            argument = not parameter.opts[0].startswith("-")
            if not (parameter.required or self.rng.random() < 0.25):
                continue
            if getattr(parameter, "is_flag", False):
                words.append(parameter.opts[0])
                continue
            value = self.value(parameter.name)
            hostile.append(f"{parameter.name}={value[:40]!r}")
            words += [value] if argument else [f"{parameter.opts[0]}={value}"]
        if self.rng.random() < 0.1:
            words.append(self.rng.choice(["--nowhere", "-x", "extra", "--help=1", "--json=maybe"]))
        words += SAFE.get(" ".join(path), [])
        if self.rng.random() < 0.5:
            self.runs()
        return Case(words, " ".join(hostile))

    def value(self, name: str) -> str:
        known = SENSIBLE.get(name)
        if known and self.rng.random() < 0.4:
            return self.rng.choice(known)
        if name == "workers":  # "0" is a process per core: `measuring` starts some
            return self.rng.choice([text for text in TEXTS if text != "0"])
        if name in ("output", "write", "write_bounds", "directory", "runs_dir"):
            return self.rng.choice(OUTPUTS)
        if self.rng.random() < 0.25:
            return self.rng.choice(PLACES)
        return self.rng.choice(TEXTS)

    # ---- files

    def damage(self, content: bytes) -> bytes:
        rng, size = self.rng, len(content)
        kinds = [
            lambda: b"", lambda: content[: rng.randrange(max(size, 1))], lambda: rng.randbytes(300), lambda: HTML,
            lambda: LFS, lambda: b"\x00" * 300, lambda: b"[" * 100_000, lambda: b'{"a":' * 50_000,
            lambda: content.decode("latin-1").encode("utf-16"), lambda: b"\xef\xbb\xbf" + content,
            lambda: content + rng.randbytes(50), lambda: rng.randbytes(8) + content, lambda: self.flipped(content),
            lambda: self.flipped(content), lambda: self.flipped(content), lambda: pickle.dumps(Bomb()),
        ]  # fmt: skip
        return rng.choice(kinds)()

    def flipped(self, content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(self.rng.choice([1, 3, 20])):
            if changed:
                changed[self.rng.randrange(len(changed))] = self.rng.randrange(256)
        return bytes(changed)

    def mutated(self, tree):
        """Return a JSON tree with one node replaced, removed or doubled."""
        tree = copy.deepcopy(tree)
        nodes = []

        def walk(node):
            for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
                nodes.append((node, key))
                walk(node[key])

        walk(tree)
        if not nodes or self.rng.random() < 0.05:
            return self.rng.choice(VALUES)
        for _ in range(self.rng.choice([1, 1, 3])):
            node, key = self.rng.choice(nodes)
            if isinstance(node, dict) and self.rng.random() < 0.3:
                node.pop(key, None)
                if self.rng.random() < 0.4:
                    node[self.rng.choice(TEXTS).replace("\udcff", "?")] = 1
            elif isinstance(node, dict) or key < len(node):
                node[key] = copy.deepcopy(self.rng.choice(VALUES))
        return tree

    def json(self, tree) -> bytes:
        text = json.dumps(self.mutated(tree)).encode()
        return self.damage(text) if self.rng.random() < 0.3 else text

    def toml(self, text: str) -> bytes:
        lines = text.splitlines()
        for _ in range(self.rng.choice([1, 1, 2])):
            at = self.rng.randrange(len(lines))
            key = lines[at].partition("=")[0]
            lines[at] = self.rng.choice(
                [f"{key}= {self.rng.choice(LITERALS)}"] * 6
                + ["", lines[at] * 2, f"[{self.rng.choice(['judges.clip', 'labels', 'x', 'judges.x'])}]", "a b c"]
                + [f"{self.rng.choice(['notes', 'title', 'source', 'x', 'kind'])} = {self.rng.choice(LITERALS)}"]
            )
        if self.rng.random() < 0.15:
            lines += ["[reference]", 'source = "os:system"', f'part = "touch {CANARY}"']
        content = "\n".join(lines).encode("utf-8", "replace")
        return self.damage(content) if self.rng.random() < 0.2 else content

    def write(self, name: str, content: bytes) -> Path:
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def runs(self) -> Path:
        target = self.place / "runs"
        if not target.exists():
            shutil.copytree(self.finished, target)
        return target

    def folder(self, name: str = "images") -> Path:
        for label in ("zero", "one"):
            for index in range(2):
                self.write(f"{name}/{label}/{index}.png", self.png())
        return self.place / name

    def png(self, size: int = 8) -> bytes:
        buffer = io.BytesIO()
        pixels = np.frombuffer(self.rng.randbytes(size * size * 3), np.uint8).reshape(size, size, 3)
        Image.fromarray(pixels).save(buffer, format="PNG")
        return buffer.getvalue()

    def protocol(self) -> Case:
        text = PROTOCOL if self.rng.random() < 0.6 else self.rng.choice(SHIPPED).read_text(encoding="utf-8")
        path = str(self.write("mine.toml", self.toml(text)))
        words = self.rng.choice(
            [
                ["run", "--dry-run", "--protocol", path],
                [
                    "run",
                    "--num-samples",
                    "20",
                    "--workers",
                    "1",
                    "--model",
                    "digits-dmd",
                    "--steps",
                    "1",
                    "--protocol",
                    path,
                ],
                ["show", path],
                ["fetch", "--dry-run", "--protocol", path],
                ["score", str(self.folder()), "--protocol", path],
                ["reference", "build", "mine", "--data", str(self.folder()), "--protocol", path],
                ["leaderboard", "--protocol", path],
            ]
        )
        return Case(words, "")

    def card(self) -> Case:
        """A model's card as a file of its own, which every command takes where it takes a name."""
        name = self.rng.choice(["gaussian", "digits-dmd"])
        lines = CARDS[name].replace("../weights", str(WEIGHTS)).splitlines()
        path = str(self.write("mine.toml", self.toml("\n".join(lines))))
        asked = ["--model", path, "--protocol", self.rng.choice(["digits", "gaussian"])]
        words = self.rng.choice(
            [
                ["run", "--num-samples", "20", "--workers", "1", "--steps", "1", "--cfg", "1", *asked],
                ["run", "--dry-run", *asked], ["fetch", "--dry-run", *asked], ["show", path],
                ["adapter", "check", path, "--timeout", "20"], ["weights", "add", path, path], ["models", path],
            ]
        )  # fmt: skip
        return Case(words, name)

    def measuring(self) -> Case:
        """A small run with what it may be told of how it runs, well and badly."""
        words = ["run", "--protocol", "gaussian", "--steps", "1", "--cfg", "1", "--num-samples", "20"]
        told = {
            "workers": [*TEXTS[1:], "1", "2"], "executor": [*TEXTS, "local", "ray"], "device": [*TEXTS, "cpu:0"],
            "timeout": [*TEXTS, "0.001", "0.5", "1e-9"], "dtype": [*TEXTS, "bfloat16", "float16", "float64"],
            "option": [*TEXTS, "steps=1", "sampler=x", "=", "a=b=c", "a=1,2", "method=null", "x=[1]", "deviation=nan"],
            "batch-size": [*TEXTS, "1", "7"], "seed": TEXTS, "select-on": TEXTS, "sampler": [*TEXTS, "plain"],
        }  # fmt: skip
        for option in self.rng.sample(sorted(told), self.rng.choice([1, 1, 2])):
            value = self.rng.choice(told[option])
            words += [f"--{option}={'1' if (option, value) == ('workers', '0') else value}"]
        if not any(word.startswith(("--workers", "--timeout")) for word in words):
            words += ["--workers=1"]
        if self.rng.random() < 0.3:
            words += ["--runs-dir", str(self.runs()), "--fresh"]
        return Case(words, " ".join(words[9:])[:80])

    def baseline(self) -> Case:
        tree = {
            "protocol": "gaussian", "protocol_digest": "x", "models": ["gaussian"], "steps": [1], "num_samples": 20,
            "cells": {"gaussian 1": {"fid": {"value": 1.0, "low": 0.9, "high": 1.1}}},
        }  # fmt: skip
        known = Path(__file__).parents[1] / "baselines" / "digits.json"
        tree = json.loads(known.read_text()) if self.rng.random() < 0.5 else tree
        if tree.get("protocol") == "digits":
            tree["num_samples"], tree["models"] = 20, ["digits-dmd"]
        return Case(["check", "--workers", "1", "--baseline", str(self.write("b.json", self.json(tree)))], "")

    def table(self) -> Case:
        lines = ["model,fid,is,clip,pick", "a,2.27,278.2,30.1,20.5", "b,3.1,200.0,29,21"]
        if self.rng.random() < 0.7:
            at = self.rng.randrange(3)
            cells = lines[at].split(",")
            cells[self.rng.randrange(len(cells))] = self.rng.choice(TEXTS)
            lines[at] = ",".join(cells)
            content = "\n".join(lines).encode("utf-8", "surrogateescape")
        else:
            content = self.damage("\n".join(lines).encode())
        return Case(["mmhm", str(self.write("table.csv", content))], "")

    def bounds(self) -> Case:
        table = self.write("t.csv", b"model,fid,is\na,2.27,278.2\nb,3.1,200.0\n")
        tree = {"fid": [1.0, 5.0], "is": [100.0, 300.0]}
        if self.rng.random() < 0.3:
            tree = {name: {"low": low, "high": high} for name, (low, high) in tree.items()}
        return Case(["mmhm", str(table), "--bounds", str(self.write("bounds.json", self.json(tree)))], "")

    def npz(self) -> bytes:
        rng, buffer = self.rng, io.BytesIO()
        count, side = rng.choice([0, 1, 3]), rng.choice([0, 1, 8, 9])
        shape = rng.choice([(count, side, side, 3), (count, 3, side, side), (count, side), (side,), ()])
        dtype = rng.choice([np.uint8, np.float32, np.int64, object, "U4", "datetime64[s]", bool])
        images = np.full(shape, Bomb() if dtype is object else 1).astype(dtype)
        labels = rng.choice(
            [np.arange(count), np.full(count, -1), np.full(count, 10**9), np.array("x"), np.zeros((2, 2))]
        )
        with np.errstate(all="ignore"):
            np.savez(buffer, arr_0=images, **({"arr_1": labels} if rng.random() < 0.6 else {}))
        return buffer.getvalue()

    def archive(self) -> tuple[str, bytes]:
        rng, buffer = self.rng, io.BytesIO()
        names = [
            "zero/0.png",
            "one/1.png",
            "../out.png",
            str(OUTSIDE),
            "zero/\x1b[31m.png",
            "x.txt",
            "zero/é.png",
            "a//b.png",
        ]
        chosen = rng.sample(names, 3)
        kind = rng.choice(["zip", "tar"])
        if kind == "zip":
            with zipfile.ZipFile(buffer, "w") as archive:
                for name in chosen:
                    archive.writestr(name, self.png() if rng.random() < 0.7 else self.damage(self.png()))
        else:
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                for name in chosen:
                    content = self.png() if rng.random() < 0.7 else self.damage(self.png())
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    if rng.random() < 0.2:
                        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
                    archive.addfile(entry, io.BytesIO(content))
        return kind, buffer.getvalue()

    def pictures(self) -> Path:
        rng = self.rng
        kind = rng.choice(["npz", "npz", "archive", "archive", "folder", "folder", "other"])
        if kind == "npz":
            content = self.npz()
            return self.write("a.npz", self.damage(content) if rng.random() < 0.4 else content)
        if kind == "archive":
            suffix, content = self.archive()
            return self.write(f"a.{suffix}", self.damage(content) if rng.random() < 0.4 else content)
        if kind == "folder":
            folder = self.folder()
            name = rng.choice(["zero/0.png", "two words/0.png", "zero/x.jpg", "0/0.webp", "x.png", "zero/\x1b[31m.png"])
            self.write(f"images/{name}", self.damage(self.png(rng.choice([1, 8, 300]))))
            if rng.random() < 0.2:
                (folder / "loop").symlink_to(folder)
            return folder
        return self.write(rng.choice(["a.parquet", "a.tar", "a.zip", "a.npz", "a.png", "a"]), self.damage(self.png()))

    def images(self) -> Case:
        words = ["score", str(self.pictures())]
        if self.rng.random() < 0.3:
            words += [f"--name={self.rng.choice(TEXTS)}"]
        return Case(words, "")

    def data_set(self) -> Case:
        protocol = self.write("mine.toml", PROTOCOL.encode())
        words = ["reference", "build", "mine", "--data", str(self.pictures()), "--protocol", str(protocol)]
        if self.rng.random() < 0.3:
            words.append("--skip-unreadable")
        return Case(words, "")

    def labels(self) -> Case:
        rng, names = self.rng, [f"ILSVRC2012_val_0000000{number}" for number in (1, 2, 3)]
        for name in names:
            self.write(f"val/{name}.JPEG", self.png())
        synsets = ["n01440764", "n01443537", "n15075141"]
        lines = rng.choice(
            [
                ["ImageId,PredictionString", *(f"{n},{s} 1 2 3 4" for n, s in zip(names, synsets, strict=True))],
                [f"{n}.JPEG {k}" for k, n in enumerate(names)],
                [f"{n}\t{s}" for n, s in zip(names, synsets, strict=True)],
                synsets, ["490", "361", "171"], [f'"{n}";"{k}"' for k, n in enumerate(names)],
            ]
        )  # fmt: skip
        for _ in range(rng.choice([0, 0, 1, 1, 2])):
            at = rng.randrange(len(lines))
            odd = rng.choice([*TEXTS, "n00000000", "1000", "999", "x,", f"{names[0]} 5"]).replace("\udcff", "?")
            lines[at] = rng.choice([odd, lines[at] + odd, f"{names[0]},{odd}", lines[at] + "\n" + lines[at]])
        content = rng.choice(["\n", "\r\n", "\r"]).join(lines).encode()
        content = self.damage(content) if rng.random() < 0.3 else content
        path = self.write(rng.choice(["labels.csv", "labels.txt", "labels.json", "labels"]), content)
        protocol = self.write("mine.toml", PROTOCOL.encode())
        words = ["reference", "build", "mine", "--data", str(self.place / "val"), "--protocol", str(protocol)]
        words += ["--kind", "imagenet-val", "--labels", str(path)]
        words += rng.choice([[], [], [], ["--first-label", "0"], ["--first-label", "1"], ["--first-label", "-1"]])
        return Case(words, "")

    def weights(self) -> Case:
        rng, tensors = self.rng, {"a": np.ones((2, 3), np.float32), "b.weight": np.zeros(4, np.float32)}
        content = rng.choice(
            [
                lambda: save(tensors), lambda: pickle.dumps(tensors), lambda: pickle.dumps(Bomb()),
                lambda: pickle.dumps({"ema": Bomb()}, protocol=0), lambda: self.npz(), lambda: self.archive()[1],
                lambda: (2**60).to_bytes(8, "little") + b'{"a":1}', lambda: (2).to_bytes(8, "little") + b"{}",
                lambda: b"cos\nsystem\n(S'touch canary'\ntR.",
                lambda: b"\x80\x04c__builtin__\nbytearray\n\x8a\x05" + b"\xff" * 4 + b"\x00\x85R.",
            ]
        )()  # fmt: skip
        content = self.damage(content) if rng.random() < 0.4 else content
        path = str(self.write(rng.choice(["w.pt", "w.safetensors", "w.pkl", "w.ckpt", "w", "w.bin", "w.npz"]), content))
        model = rng.choice(["digits-flow-small", "digits-dmd", "sit-xl"])
        small = ["--protocol", "digits", "--steps", "1", "--num-samples", "20", "--workers", "1"]
        words = rng.choice(
            [["run", "--model", "digits-dmd", "--weights", path, *small], ["weights", "add", model, path]] * 2
            + [["adapter", "check", "digits-dmd", "--weights", path]]
        )
        return Case(words, "")


ROOT = Path(__file__).parents[2]
CARDS = {
    "gaussian": (ROOT / "adapters/cards/gaussian.toml").read_text(),
    "digits-dmd": (ROOT / "adapters/digits/cards/digits-dmd.toml").read_text(),
}
WEIGHTS = ROOT / "adapters/digits/weights"
SHIPPED = sorted((ROOT / "protocols").glob("*.toml"))
OUTPUTS = [
    "out", "folder", "missing/deep/out", "x" * 300, "file/below", "", "\x1b[31m", "é", "/dev/null", "/dev/full",
    "/proc/x", "/dev/stdout", "link", "file", "mine.toml", "runs/bench.duckdb", "runs",
]  # fmt: skip
SMALL = ["--num-samples=20", "--workers=1"]
SAFE = {
    "run": ["--dry-run", *SMALL], "check": SMALL, "fetch": ["--dry-run"], "adapter check": ["--timeout=20"],
    "remove": ["--yes"],
}  # fmt: skip
"""Words that keep a case small."""
SENSIBLE = {
    "model": ["gaussian", "digits-dmd", "sit-xl"], "protocol": ["gaussian", "digits"], "table": ["cells", "metrics"],
    "format": ["csv", "json", "parquet"], "names": ["judges", "digits-dmd"], "steps": ["1", "1,2"], "a": ["gaussian"],
    "b": ["gaussian"], "sort": ["fid", "mmhm"], "name": ["gaussian", "mine", "digits"], "device": ["cpu"],
    "dtype": ["bfloat16"], "role": ["weights"], "executor": ["local"], "timeout": ["10"], "option": ["method=euler"],
}  # fmt: skip


def commands():
    """Yield (path, command) of every command of the command line."""
    todo = [((), get_command(app))]
    while todo:
        path, command = todo.pop()
        children = getattr(command, "commands", None)
        if children:
            todo += [((*path, name), child) for name, child in children.items()]
        else:
            yield path, command
