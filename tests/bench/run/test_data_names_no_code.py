"""Files that people exchange give names of installed plug-ins; no text in them is imported, called or evaluated."""

import json
import sys

import pytest
import torch

from bench.contracts.recording import Case
from bench.judges.base import load_judge
from bench.judges.judge import JudgeSpec
from bench.models.cards import load_card
from bench.models.registry import family_class
from bench.recordings.replay import open_replay
from bench.references.datasets import open_image_set
from bench.references.stored import prepare_reference
from bench.run.executors import open_executor
from bench.run.needs import needs_of_run
from bench.run.plan import Request
from bench.run.readiness import check_protocol, preflight
from protocols import load_protocol
from results.errors import BenchError

HOSTILE = [
    "os:system",
    "os.system",
    "builtins:eval",
    "builtins:exec",
    "subprocess:getoutput",
    "side_effect",
    "side_effect:run",
    "side_effect.run",
    "protocols.digits.data:__class__",
    "protocols.digits.data:load_split.__globals__",
    "protocols.digits.data:np.load",
    "protocols.digits.data",
    "protocols.digits.classifier:torch.load",
    "protocols.digits.train_judges:main",
    "importlib:import_module",
    "__main__:x",
    ":",
    "",
    " protocols.digits.data:load_split",
    "protocols.digits.data:load_split\n",
    "../side_effect.py",
    "fewstep-bench",
]


def dry_run(request):
    """What `--dry-run` asks of a protocol before anything is sampled."""
    check_protocol(request.protocol)
    return needs_of_run([request])


@pytest.fixture(params=HOSTILE)
def text(request, tmp_path, monkeypatch):
    """A hostile name, beside a module that leaves a trace when it is imported."""
    (tmp_path / "side_effect.py").write_text(f"open({str(tmp_path / 'PWNED')!r}, 'w')\ndef run(*given): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    loaded = set(sys.modules)
    yield request.param
    assert not (tmp_path / "PWNED").exists()
    assert not {name for name in set(sys.modules) - loaded if name.startswith(("side_effect", "protocols.digits.tr"))}


def refused(do, *arguments, **named):
    with pytest.raises(BenchError) as stop:
        do(*arguments, **named)
    assert len(str(stop.value).splitlines()) == 1


def protocol(tmp_path, body):
    path = tmp_path / "evil.toml"
    path.write_text(f'extends = "gaussian"\n{body}')
    return load_protocol(path)


def test_a_source_is_no_code(tmp_path, text):
    def evil():
        return protocol(tmp_path, f"[reference]\nsource = {json.dumps(text)}\npart = 'id > PWNED'\n")

    refused(lambda: prepare_reference(evil(), {}, tmp_path / "runs"))
    refused(lambda: dry_run(Request(evil(), random_weights=True)))  # what --dry-run asks
    refused(lambda: preflight(Request(evil()), tmp_path / "runs", tmp_path / "runs" / "bench.duckdb"))


def test_an_extractor_is_no_code(tmp_path, text):
    refused(load_judge, JudgeSpec("j", "torch-fidelity", {"extractor": text}), device="cpu", root=tmp_path)
    refused(
        lambda: dry_run(
            Request(protocol(tmp_path, f"[judges.inception]\nextractor = {json.dumps(text)}\n"), random_weights=True)
        )
    )


def test_a_kind_of_judge_or_of_data_set_is_no_code(tmp_path, text):
    refused(load_judge, JudgeSpec("j", text), device="cpu", root=tmp_path)
    refused(open_image_set, text, tmp_path)
    refused(
        lambda: dry_run(
            Request(protocol(tmp_path, f'[reference]\nname = "x"\nkind = {json.dumps(text)}\n'), random_weights=True)
        )
    )


def test_a_family_and_a_recorded_adapter_are_no_code(tmp_path, text):
    path = tmp_path / "card.toml"
    facts = 'name = "x"\ntitle = "x"\nresolution = 4\nnum_classes = 2\nlatent_shape = [3, 4, 4]\n'
    path.write_text(f"{facts}family = {json.dumps(text)}\n")
    refused(lambda: family_class(load_card(path).family))
    refused(open_replay, Case(tmp_path, {"adapter": text}, {}, {}))


def test_an_executor_is_no_code(text):
    refused(open_executor, text, 1, "cpu")


def test_a_part_is_only_an_argument(tmp_path):
    for part in ("id > PWNED", "../x", "__import__('os').system('id')"):
        evil = protocol(
            tmp_path,
            f'[reference]\nname = "x"\nsource = "protocols.digits.data:load_split"\npart = {json.dumps(part)}\n',
        )
        refused(prepare_reference, evil, {}, tmp_path / "runs")


def test_the_shipped_names_stand_for_what_they_always_did(tmp_path):
    from bench.judges.fidelity import EXTRACTORS
    from bench.references.stored import SOURCES
    from protocols import gaussian
    from protocols.digits import classifier, data

    assert SOURCES.load("protocols.digits.data:load_split") is data.load_split
    assert SOURCES.load("protocols.gaussian:exact_statistics") is gaussian.exact_statistics
    assert EXTRACTORS.load("protocols.digits.classifier:DigitsClassifier") is classifier.DigitsClassifier
    assert EXTRACTORS.load("protocols.gaussian:Pixels") is gaussian.Pixels


@pytest.mark.parametrize("command", [["run", "--dry-run"], ["run"], ["score", "images.npz"]])
def test_the_command_line_refuses_it_in_one_line(tmp_path, run_bench, command):
    import numpy as np

    np.savez(tmp_path / "images.npz", arr_0=torch.zeros(2, 4, 4, 3, dtype=torch.uint8).numpy())
    (tmp_path / "evil.toml").write_text(
        "extends = 'gaussian'\n[reference]\nsource = 'os:system'\npart = 'id > PWNED'\n"
    )
    done = run_bench(tmp_path, *command, "--protocol", "evil.toml")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "os:system" in done.stderr
    assert not (tmp_path / "PWNED").exists()
