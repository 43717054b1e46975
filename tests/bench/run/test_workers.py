"""A model in another environment: a worker under another numpy, and one that misbehaves in every way we know."""

import json
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import replace
from pathlib import Path
from string import Template

import numpy as np
import pytest
import torch

from bench.contracts import bench_worker
from bench.contracts.card import Guidance, WorkerNeeds
from bench.contracts.noise import PhiloxNoise
from bench.contracts.out_of_process import SCRIPT
from bench.models import scaffold
from bench.models.cards import load_card
from bench.models.conformance import check_adapter
from bench.models.environments import PYTHON, environment_folder, environment_python, make_environment
from bench.models.loading import build_adapter
from bench.models.meter import Meter
from results.errors import BenchError

CARD = """
name = "scripted"
family = "worker"
title = "A scripted worker"
resolution = 8
num_classes = 10
latent_shape = [1, 8, 8]
[architecture]
width = 0.1
[guidance]
kind = "classifier-free"
range = [1.0, 3.0]
[worker]
start_seconds = 60
"""
GOOD = Template(scaffold.WORKER).substitute(name="scripted").replace('["shift"]', '.get("shift", 1.0)')
SAMPLE = '"""Return images, float32 [B, 3, resolution, resolution] in [-1, 1]."""\n'
DIES = "import os; os.kill(os.getpid(), 9)"
HANGS = "import time; time.sleep(600)"
RAISES = "raise RuntimeError('out of\\nluck')"
SHAPE = "return np.zeros((len(batch), 3, 4, 4), np.float32)"
DTYPE = "return np.zeros((len(batch), 3, 8, 8), np.float64)"
NAN = "return np.full((len(batch), 3, 8, 8), np.nan, np.float32) * (batch.evaluated(1) or 1)"
PRINTS = "print('x' * 10_000_000)"
HUGE = "import bench_worker; CHANNEL.writer.write(bench_worker.MAGIC + b'\\xff' * 8); CHANNEL.writer.flush()"
GARBAGE = "CHANNEL.writer.write(b'Loading checkpoint shards: 100%'); CHANNEL.writer.flush()"
UNCOUNTED = "return np.zeros((len(batch), 3, 8, 8), np.float32)"
GUIDES = "batch.evaluated(3, guide=True)"
NOISE = "batch.normal((1 << 20, 1 << 20))"
MUCH = "MUCH = True; CHANNEL.send('images', {'images': np.zeros((len(batch), 3, 8, 80000), np.float32)}, rows=1)"
EXTRA = "CHANNEL.send('images', {'images': np.zeros(3, np.float32), 'more': np.zeros(3)}, rows=1, guide_rows=0)"
OTHER = "CHANNEL.send('pong')"
KEEP = "import bench_worker, gc; CHANNEL = next(o for o in gc.get_objects() if isinstance(o, bench_worker.Channel))\n"


@pytest.fixture(scope="module")
def other_python(tmp_path_factory):
    """The interpreter of an environment with another numpy than ours."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next((folder / "lib").iterdir()) / "site-packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages, "numpy<2"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"no other numpy can be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder / "bin" / "python"


@pytest.fixture
def worker(tmp_path, monkeypatch, other_python):
    """Return a function that builds the adapter of a worker whose `sample` begins with some lines."""

    def build(lines="", script=GOOD, needs=None, **facts):
        (tmp_path / "bench_worker.py").write_text(Path(bench_worker.__file__).read_text(encoding="utf-8"))
        indented = "".join(f"        {line}\n" for line in (KEEP + lines).splitlines())
        (tmp_path / "worker.py").write_text(script.replace(SAMPLE, SAMPLE + indented))
        (tmp_path / "scripted.toml").write_text(CARD)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # logs of workers that failed are kept
        monkeypatch.setenv(SCRIPT, str(tmp_path / "worker.py"))
        monkeypatch.setenv(PYTHON, str(other_python))
        card = replace(load_card(tmp_path / "scripted.toml"), **facts)
        return build_adapter(card if needs is None else replace(card, worker=needs))

    return build


def sample(adapter, steps=2, cfg=1.0):
    return adapter.sample(torch.arange(4), steps, cfg, noise=PhiloxNoise(5, range(4)))


def test_a_worker_under_another_numpy_gives_the_images_of_the_harness_noise(worker):
    adapter = worker()
    meter = Meter(adapter)
    with meter.installed():
        images = sample(adapter)
    again = sample(adapter)
    versions = subprocess.run([adapter.python, "-c", "import numpy; print(numpy.__version__)"], capture_output=True)
    assert versions.stdout.decode().strip() != np.__version__
    assert meter.rows == 8 and images.shape == (4, 3, 8, 8) and torch.equal(images, again)
    assert 10 * 2**20 < adapter.peak_memory < 2**30  # what the worker says of itself
    with meter.installed():
        sample(adapter, cfg=3.0)
    assert meter.rows == 8 + 16
    log = adapter._worker.log
    adapter.close()
    assert not log.exists()


def test_a_worker_keeps_the_contract_of_adapters(worker, tmp_path):
    worker()
    broken = [finding for finding in check_adapter(load_card(tmp_path / "scripted.toml")) if not finding.ok]
    assert not broken, broken


def test_a_worker_that_draws_by_itself_breaks_the_contract(worker, tmp_path):
    worker(script=GOOD.replace("x = batch.normal(self.latent_shape)", "x = np.random.randn(len(batch), 1, 8, 8)"
                               ".astype(np.float32)"))  # fmt: skip
    broken = {finding.clause for finding in check_adapter(load_card(tmp_path / "scripted.toml")) if not finding.ok}
    assert {"same noise, same image, for any batch split", "draws no random numbers of its own"} <= broken


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (DIES, r"ended \(SIGKILL\)"),
        ("import sys; sys.stderr.write('CUDA is gone\\n'); os._exit(3)", r"ended \(exit code 3\): CUDA is gone"),
        (HANGS, "did not answer within 1 s"),
        (RAISES, "RuntimeError: out of"),
        (SHAPE, r"answered images float32 \(4, 3, 4, 4\), expected float32 \(4, 3, 8, 8\)"),
        (DTYPE, "answered images float64"),
        (HUGE, "announced a message of 18,446,744,073,709,551,615 bytes"),
        (GARBAGE, "wrote what is no message: b'Loading chec"),
        (UNCOUNTED, "counted 0 evaluations of the network"),
        (GUIDES, "counted 3 evaluations of a guide that the card does not have"),
        (NOISE, "noise of shape .* is too large"),
        ("batch.normal((0,))", "no noise 'normal' of shape"),
        ("batch.normal((2,), draw=-1)", "no noise 'normal' of shape"),
        (MUCH, "announced a message of|answered images float32"),
        (EXTRA, "answered arrays images, more, expected images"),
        (OTHER, "answered a batch with 'pong'"),
        ("return np.zeros(3, complex)", "array 'images' is of type complex128"),
    ],
)
def test_whatever_goes_wrong_is_one_line_and_the_next_batch_starts_anew(worker, lines, reason):
    text = "import os\nif batch.steps == 2:\n" + "".join(f"    {line}\n" for line in lines.splitlines())
    adapter = worker(text, needs=WorkerNeeds(start_seconds=60, batch_seconds=1.0 if lines == HANGS else 60.0))
    with pytest.raises(BenchError, match=reason) as failure:
        sample(adapter)
    assert "\n" not in str(failure.value) and "scripted" in str(failure.value)
    assert sample(adapter, steps=1).isfinite().all()
    adapter.close()


def test_what_a_worker_prints_damages_nothing_and_is_kept_to_a_limit(worker):
    adapter = worker("print('x' * 30_000_000)\nimport os; os.write(1, b'FSBW' + b'\\xff' * 8)")
    assert sample(adapter).isfinite().all()
    assert adapter._worker.log.stat().st_size <= 16 * 2**20


def test_a_worker_that_takes_too_much_memory_is_ended(worker):
    needs = WorkerNeeds(start_seconds=60, batch_seconds=60, memory_gib=0.5)
    adapter = worker("x = np.ones(2**27); import time; time.sleep(30)", needs=needs)
    with pytest.raises(BenchError, match=r"took [01]\.\d\d GiB where 0\.50 are allowed"):
        sample(adapter)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("PROTOCOL = 1", "PROTOCOL = 2"), "speaks protocol 2, not 1"),
        (('card["num_classes"], card["arch', '7, card["arch'), "says num_classes 7 where the card says 10"),
        (('guidance = "classifier-free"', 'guidance = "none"'), "says guidance 'none' where the card says"),
        (('counted = "by hand', 'counted = "" and "by hand'), "does not say how it counts"),
        (("import numpy as np", "import numpy as np, torch"), "No module named 'torch'"),
        (
            ("def __init__(self, job):", "def __init__(self, job):\n        raise OSError('no weights')"),
            "OSError: no w",
        ),
        (("serve(Model)", "pass"), r"ended \(exit code 0\)"),
    ],
)
def test_a_worker_that_does_not_fit_its_card_is_refused_at_the_handshake(worker, tmp_path, change, reason):
    script = GOOD.replace(*change)
    adapter = worker(script=script)
    ours = tmp_path / "bench_worker.py"
    ours.write_text(ours.read_text().replace(*change))
    assert script != GOOD or change[0] == "PROTOCOL = 1"
    with pytest.raises(BenchError, match=reason):
        sample(adapter)


def test_the_script_is_part_of_a_rows_identity_and_nothing_in_a_file_names_it(worker, tmp_path, monkeypatch):
    first, second = worker().host, worker("pass").host
    assert first.startswith("worker ") and first != second
    monkeypatch.delenv(SCRIPT)
    with pytest.raises(BenchError, match="give it with --worker"):
        build_adapter(load_card(tmp_path / "scripted.toml"))
    (tmp_path / "scripted.toml").write_text(CARD + 'script = "evil.py"\n')
    with pytest.raises(BenchError, match="script"):
        load_card(tmp_path / "scripted.toml")


@pytest.mark.parametrize(
    "requirement", ["--index-url=http://x", "-r file", "numpy; rm", "x @ http://a/b.whl", "x @ git+https://a/b", "../x"]
)
def test_a_card_requires_packages_and_nothing_else(tmp_path, requirement):
    path = tmp_path / "scripted.toml"
    path.write_text(CARD + f"requirements = [{json.dumps(requirement)}]\n")
    with pytest.raises(BenchError, match="must be a package as 'numpy'"):
        load_card(path)
    good = ["numpy", "torch==2.2.0", "a[b,c]>=1,<2.0", "x @ git+https://example.org/a/b.git@0123abc"]
    path.write_text(CARD + f"requirements = {json.dumps(good)}\n")
    assert list(load_card(path).worker.requirements) == good


@pytest.mark.parametrize("name", [".", "..", "a/..", "../x", "/x/y"])
def test_an_environment_lies_among_the_others(tmp_path, name):
    path = tmp_path / "scripted.toml"
    path.write_text(CARD + f"environment = {json.dumps(name)}\n")  # `bench worker setup` empties its folder first
    with pytest.raises(BenchError, match=r"key 'worker\.environment' must be"):
        load_card(path)


def test_an_environment_is_made_when_asked_and_a_failed_one_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(PYTHON, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no uv: venv and pip
    (tmp_path / "scripted.toml").write_text(CARD)
    card = load_card(tmp_path / "scripted.toml")
    with pytest.raises(BenchError, match="bench worker setup scripted"):
        environment_python(card)
    told = []
    folder = make_environment(card, tell=told.append)
    assert folder == environment_folder(card) and environment_python(card) == folder / "bin" / "python" and told
    done = subprocess.run([environment_python(card), "-c", "import sys; print(sys.prefix)"], capture_output=True)
    assert done.stdout.decode().strip() == str(folder)
    absent = replace(card, worker=replace(card.worker, requirements=("no-such-package-of-anyone-000",)))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BenchError, match=r"python failed \(exit code 1\): ERROR"):
        make_environment(absent, tell=told.append)
    with pytest.raises(BenchError, match="bench worker setup scripted"):
        environment_python(card)
    with pytest.raises(BenchError, match=r"python3\.77 is not installed"):
        make_environment(replace(card, worker=WorkerNeeds(python="3.77")), tell=told.append)


def test_messages_survive_the_way_and_foreign_bytes_are_refused():
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros((0, 2), np.float32), "c": np.array([True])}
    body = bench_worker.encode({"kind": "x", "words": "äö"}, arrays)[12:]
    message, found = bench_worker.decode(body)
    assert message == {"kind": "x", "words": "äö"} and all(np.array_equal(found[k], arrays[k]) for k in arrays)
    from safetensors.numpy import load

    assert np.array_equal(load(body)["a"], arrays["a"])  # a message is a safetensors file
    generator = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(body)
        for _ in range(int(generator.integers(1, 6))):
            bad[int(generator.integers(len(bad)))] = int(generator.integers(256))
        try:
            bench_worker.decode(bytes(bad[: int(generator.integers(1, len(bad) + 1))]))
        except bench_worker.ProtocolError:
            continue


def test_a_run_names_each_failed_setting_and_goes_on(worker, tmp_path, run_bench):
    kinds = {2: DIES, 3: HANGS, 4: SHAPE, 5: NAN, 6: HUGE, 7: RAISES, 8: PRINTS}
    lines = "".join(f"if batch.steps == {steps}:\n    {line}\n" for steps, line in kinds.items())
    adapter = worker(lines)
    done = run_bench(
        tmp_path, "run", "--model", "scripted.toml", "--worker", "worker.py", "--worker-python", str(adapter.python),
        "--protocol", "digits", "--steps", "1,2,3,4,5,6,7,8", "--num-samples", "100", "--batch-size", "50",
        "--timeout", "8", "--workers", "1",
        **{SCRIPT: "", PYTHON: ""},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    rows = {}
    for path in (tmp_path / "runs").rglob("result.json"):
        cell = json.loads(path.read_text())["cell"]
        rows[cell["steps"]] = cell
    assert {steps for steps, cell in rows.items() if cell["status"] == "done"} == {1, 8}
    assert rows[1]["nfe"] == 1 and rows[1]["flops"] is None
    expected = {2: "SIGKILL", 3: "longer than", 4: "(50, 3, 4, 4)", 5: "NaN", 6: "announced a message", 7: "out of"}
    for steps, reason in expected.items():
        assert reason in rows[steps]["reason"] and "\n" not in rows[steps]["reason"], rows[steps]["reason"]
        assert reason in done.stderr.replace("\n", " ") or steps, steps


def test_a_worker_ends_with_the_harness(worker, tmp_path):
    adapter = worker("import os; open('pid', 'w').write(str(os.getpid())); import time; time.sleep(300)")
    program = (
        "import os, threading, time, torch\n"
        "from bench.models.cards import load_card\nfrom bench.models.loading import build_adapter\n"
        "from bench.contracts.noise import PhiloxNoise\nfrom pathlib import Path\n"
        "adapter = build_adapter(load_card(Path('scripted.toml')))\n"
        "def kill():\n    while not os.path.exists('pid'): time.sleep(0.05)\n    os.kill(os.getpid(), 9)\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
        "adapter.sample(torch.arange(2), 1, 1.0, noise=PhiloxNoise(0, range(2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {PYTHON: str(adapter.python)})
    assert done.returncode == -9
    pid = int((tmp_path / "pid").read_text())
    import time

    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its harness")


def test_a_model_that_takes_prompts_is_sent_those_of_its_batch(worker, monkeypatch):
    adapter = worker("assert batch.prompts == ['b', 'a', 'b'], batch.prompts")
    monkeypatch.setattr(type(adapter), "takes_prompts", True)
    adapter.prepare(["a", "b"])
    assert adapter.num_classes == 2 and not adapter.unconditional
    images = adapter.sample(torch.tensor([1, 0, 1]), 1, 1.0, noise=PhiloxNoise(5, range(3)))
    assert images.shape == (3, 3, 8, 8)
    with pytest.raises(BenchError, match=r"labels must be in 0\.\.1, found 2"):
        adapter.sample(torch.tensor([2]), 1, 1.0, noise=PhiloxNoise(5, [0]))


def test_guides_are_counted_apart(worker):
    adapter = worker(
        "batch.evaluated(len(batch), guide=True)",
        script=GOOD.replace('guidance = "classifier-free"', 'guidance = "autoguidance"'),
        guidance=Guidance("autoguidance", 1.0, (1.0, 2.0)),
    )
    meter = Meter(adapter)
    with meter.installed():
        sample(adapter)
    assert (meter.rows, meter.guide_rows) == (8, 4)
