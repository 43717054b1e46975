import json

import pytest

from bench.cli import main
from bench.judges.base import judge_cost
from bench.judges.costs import Tower
from bench.judges.judge import JudgeSpec
from bench.models.cards import find_card
from bench.models.counting import Counter
from bench.models.loading import build_adapter
from bench.run.costs import operations_ahead, sample_operations
from bench.run.forecast import PEAKS, Hardware, forecast
from bench.run.plan import make_plan
from bench.run.preview import preview
from bench.run.rates import read_rates
from protocols.labels import plan_labels


@pytest.mark.parametrize(("model", "cfg"), [("digits-flow-small", 2.0), ("digits-meanflow", 1.0)])
def test_operations_are_counted_without_weights_as_a_run_counts_them(model, cfg, digits_request):
    (cell,) = make_plan(digits_request(models=(model,), cfg=(cfg,)), "")
    adapter = build_adapter(cell.card)
    counter = Counter(find_card(model))
    settings = counter.adapter.resolve_settings(cell.steps, cell.sampler, cell.options)
    ahead = operations_ahead(counter, cell.steps, cell.cfg, settings)
    assert ahead == sample_operations(cell, adapter, plan_labels("balanced", 10, 10, seed=0))
    assert ahead.network > 0


def test_a_million_steps_are_not_run_to_be_counted():
    counter = Counter(find_card("digits-flow-small"))
    settings = counter.adapter.resolve_settings(10**6, "native", {})
    assert counter.count(10**6, 1.0, settings) is None
    one = operations_ahead(counter, 1, 1.0, counter.adapter.resolve_settings(1, "native", {}))
    assert operations_ahead(counter, 10**6, 1.0, settings) == one


def test_a_network_of_a_published_size_is_counted_in_its_own_forward():
    counter = Counter(find_card("meanflow-b-4"))
    settings = counter.adapter.resolve_settings(1, "native", {})
    ahead = operations_ahead(counter, 1, 1.0, settings)
    assert 10e9 < ahead.network < 13e9 and ahead.decoder > 1e11  # DiT-B/4: 5.56 G multiply-adds (arXiv 2212.09748)
    assert counter.count(4, 1.0, settings).nfe == 4


def test_judges_cost_what_their_shapes_say():
    import torch
    from transformers import Dinov2Config, Dinov2Model

    from bench.run.costs import operation_counter

    with torch.device("meta"):
        network = Dinov2Model(Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56))
        with operation_counter() as counted:
            network(torch.zeros(1, 3, 56, 56))
    assert Tower(56, 14, 64, 2, 256).operations() == pytest.approx(counted.get_total_flops(), rel=1e-6)
    large = judge_cost(JudgeSpec("d", "dinov2", {"hub": "facebook/dinov2-large"}))
    assert large.numbers == 1024 and 1.5e11 < large.operations < 1.7e11
    assert judge_cost(JudgeSpec("i", "torch-fidelity", {"spatial": True})).numbers == 2048 + 1008 + 2023
    assert judge_cost(JudgeSpec("x", "torch-fidelity", {"extractor": "mine"})) is None
    assert judge_cost(JudgeSpec("x", "open-clip", {"model": "unheard of"})) is None


def test_rates_that_rows_measured_replace_what_is_assumed(measure, digits_request, tmp_path):
    runs = tmp_path / "runs"
    request = digits_request(steps=(2, 4))
    before = forecast([request], preview([request], runs), runs)
    assert [cost.how for cost in before.cells] == ["operations", "operations"]
    assert set(before.uncounted) == set(request.protocol.judges)
    doubled = forecast([request], preview([request], runs), runs, Hardware(peak=2 * PEAKS["cpu"]["float32"]))
    assert doubled.cells[0].image == pytest.approx(before.cells[0].image / 2)
    (cell,) = measure(runs).measured
    after = forecast([request], preview([request], runs), runs)
    assert [(cost.planned.cell.steps, cost.how) for cost in after.cells] == [(4, "scaled")]
    again = forecast([request], preview([request], runs), runs, fresh=True)
    assert [cost.how for cost in again.cells] == ["measured", "scaled"]
    assert again.cells[1].image / again.cells[0].image == pytest.approx(
        again.cells[1].flops / again.cells[0].flops, rel=1e-6
    )
    assert not after.uncounted and after.cells[0].judging > 0
    assert after.bytes.arrays > 0 and after.bytes.evidence > 0
    assert read_rates(runs / "bench.duckdb", "another device").rows == 0
    kept = sum(path.stat().st_size for path in (runs / "cells" / cell.cell_id).glob("*.npy"))
    assert after.bytes.arrays == pytest.approx(kept, rel=1e-3)


def run_main(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    return caught.value.code, *capsys.readouterr()


def test_bench_plan_and_dry_run_say_the_same(tmp_path, capsys):
    words = ["--model", "digits-dmd,digits-flow-small", "--steps", "1", "--runs-dir", str(tmp_path)]
    code, out, err = run_main(["plan", *words, "--gpus", "1,4", "--device", "cpu", "--json"], capsys)
    assert code == 0, err
    told = json.loads(out)
    assert [cell["model"] for cell in told["cells"]] == ["digits-dmd", "digits-flow-small"]
    assert [one["workers"] for one in told["schedules"]] == [1, 4]
    assert told["accelerator_seconds"] == pytest.approx(sum(cell["accelerator_seconds"] for cell in told["cells"]))
    assert told["bytes"]["download"] == 0 and told["assumed"]
    code, plan, _ = run_main(["plan", *words, "--device", "cpu"], capsys)
    code_too, dry, _ = run_main(["run", *words, "--device", "cpu", "--dry-run"], capsys)
    assert (code, code_too) == (0, 0)
    for line in ("Time:", "Download:", "Disk:", "Assumed:", "Not counted:"):
        (planned,) = [found for found in plan.splitlines() if found.startswith(line)]
        assert planned in dry
    code, cuda, told = run_main(["plan", *words, "--device", "cuda", "--gpus", "8", "--compile", "auto"], capsys)
    assert code == 0 and "H100" in cuda and "on cpu" not in cuda + told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus", "0"], "not an integer from 1"),
        (["--gpus", "one"], "not an integer from 1"),
        (["--model", "nobody"], "unknown model"),
        (["--device", "cuda:abc"], "unknown device"),
        (["--peak-tflops", "-1"], "Invalid value for '--peak-tflops'"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(words, told, tmp_path, capsys):
    code, _, err = run_main(["plan", *words, "--runs-dir", str(tmp_path)], capsys)
    assert code == 2 and told in err


def test_bench_plan_takes_what_decides_a_run():
    import inspect

    from bench.cli import planning
    from bench.cli.measure import run

    taken = inspect.signature(planning.plan).parameters
    for name in planning.OPTIONS_OF_RUN:
        assert taken[name].default == inspect.signature(run).parameters[name].default
