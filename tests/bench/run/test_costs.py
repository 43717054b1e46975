"""Costs of a row: operations against arithmetic, and memory that does not grow with the number of samples."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bench.models.timing import TensorMemory
from bench.run.costs import attention_operations, count_operations, first_calls, sample_operations
from results.cells import CellDirectory
from results.leaderboard import rows
from results.store import connect


class Sampler(SimpleNamespace):
    """As much of an adapter as the count reads: a network called `steps` times on 4 rows, and a decoder."""

    def __init__(self, network, guide=None):
        super().__init__(network=network, guide=guide, device=torch.device("cpu"))

    def decode(self, latents):
        return latents @ torch.ones(10, 7)

    def sample(self, steps=3):
        x = torch.zeros(4, 10)
        with torch.inference_mode():
            for _ in range(steps):
                x = self.network(x)
                if self.guide is not None:
                    self.guide(x, scale=2.0)
            return self.decode(x[:2])


class Scaled(nn.Linear):
    def forward(self, x, scale):
        return super().forward(x) * scale


def counted(adapter):
    with first_calls(adapter) as calls:
        adapter.sample()
    return count_operations(adapter, calls)


def test_operations_are_those_of_one_row_of_one_call():
    operations = counted(Sampler(nn.Linear(10, 10), Scaled(10, 5)))
    assert operations == (2 * 10 * 10, 2 * 10 * 5, 2 * 10 * 7)
    assert operations.per_sample(nfe=3.0, guide_nfe=1.5) == 3 * 200 + 1.5 * 100 + 140
    assert operations.per_sample(nfe=3.0, guide_nfe=None) == 3 * 200 + 140


def test_a_part_that_is_never_called_costs_nothing():
    assert counted(Sampler(nn.Identity())) == (0.0, 0.0, 140.0)


@pytest.mark.parametrize("guide", [None, Scaled(10, 5)], ids=["alone", "guided"])
def test_a_checkpoint_is_counted_once_and_no_image_is_drawn_for_what_is_known(guide, monkeypatch):
    class Whole(Sampler):
        out_of_process = evaluations_differ = False

        def own_labels(self, labels):
            return labels

        def sample(self, label, steps, cfg, *, noise):
            guide, self.guide = self.guide, self.guide if cfg > 1 else None
            drawn.append(steps)
            try:
                return super().sample(steps)
            finally:
                self.guide = guide

    monkeypatch.setattr("bench.run.costs._operations", {})
    drawn, adapter, labels = [], Whole(nn.Linear(10, 10), guide), np.zeros(4, np.int64)

    def count(steps, cfg):
        card = SimpleNamespace(name="linear")
        cell = SimpleNamespace(card=card, dtype="float32", seed=0, steps=steps, cfg=cfg, settings={})
        return sample_operations(cell, adapter, labels)

    assert count(2, 1.0) == count(3, 1.0) == (200.0, 0.0, 140.0)
    assert count(4, 2.0) == count(5, 2.0) == (200.0, 0.0 if guide is None else 100.0, 140.0)
    assert drawn == ([2] if guide is None else [2, 3, 4]), "only a part that may have been left out is looked for"


@pytest.mark.parametrize("fused", [True, False])
def test_fused_attention_is_counted_and_the_switch_left_alone(fused):
    class Attention(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x[:, None], x[:, None], x[:, None], need_weights=False)[0][:, 0]

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fused)
    try:
        operations = counted(Sampler(Attention(10, 2, batch_first=True).eval()))
        assert torch.backends.mha.get_fastpath_enabled() == fused
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert operations.network == 4 * 2 * 10 * 10 + 2 * 2 * 10


class Heads(nn.Module):
    """Attention of [4, 10] as 2 heads of 5 features over a sequence of 1, by the operator `attend`."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend

    def forward(self, x):
        heads = x.reshape(4, 2, 1, 5)
        output = self.attend(heads, heads, heads)
        return (output[0] if isinstance(output, tuple) else output).reshape(4, 10)


def grouped(q, k, v):
    return nn.functional.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)


def masked(q, k, v):
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(1, 1))


def of_rank_three(q, k, v):
    parts = (part.reshape(8, 1, 5) for part in (q, k, v))
    return nn.functional.scaled_dot_product_attention(*parts)


def without_fused_kernels(q, k, v):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        return nn.functional.scaled_dot_product_attention(q, k, v)


DIRECT = [
    getattr(torch.ops.aten, name)
    for name in (
        "scaled_dot_product_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_attention_math",
    )
    if hasattr(torch.ops.aten, name)
]


@pytest.mark.parametrize(
    "attend",
    [nn.functional.scaled_dot_product_attention, grouped, masked, of_rank_three, without_fused_kernels, *DIRECT],
    ids=lambda attend: getattr(attend, "__name__", str(attend)),
)
def test_attention_counts_once_whichever_operator_runs_it(attend):
    assert counted(Sampler(Heads(attend))).network == 2 * (2 * 1 * 5 * 1 + 2 * 1 * 1 * 5)


def test_attention_costs_two_products_for_every_query():
    assert attention_operations((3, 4, 7, 5), (3, 2, 9, 5), (3, 2, 9, 6)) == 3 * 4 * (2 * 7 * 5 * 9 + 2 * 7 * 9 * 6)


def test_the_adapter_is_left_as_it_was():
    adapter = Sampler(nn.Linear(10, 10))
    counted(adapter)
    assert "decode" not in vars(adapter) and not adapter.network._forward_pre_hooks


def test_a_row_states_operations_in_proportion_to_its_evaluations(measure):
    with connect(measure(steps=(2, 4), cfg=(1.0, 1.5)).database) as connection:
        cells = [row.cell for row in rows(connection)]
    per_evaluation = {cell["flops"] / cell["nfe"] for cell in cells}
    assert len(cells) == 4
    assert max(per_evaluation) == pytest.approx(min(per_evaluation)) and min(per_evaluation) > 1e5
    assert all(cell["peak_memory"] > 0 for cell in cells)


def test_memory_is_that_of_weights_and_of_tensors_alive_at_once():
    layers = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(5)))
    x = torch.zeros(50, 100)
    with torch.inference_mode(), TensorMemory(layers.parameters()) as memory:
        layers(x)
        kept = [layers(x) for _ in range(3)]
    assert len(kept) == 3
    # five matrices; at most three results kept (two of them), an input of a layer and its output
    assert memory.peak == 4 * (5 * 100 * 100 + 4 * 50 * 100)


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from results.cells import CellDirectory
from bench.metrics.measure import ReferenceFeatures, measure

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

count, shard = int(sys.argv[2]), 500
directory = CellDirectory(Path(sys.argv[1]), "cell")
random = np.random.default_rng(0)
reference = ReferenceFeatures.of(random.standard_normal((1000, 128)), np.arange(1000) % 10)
ranges = [(start, start + shard) for start in range(0, count, shard)]
labels = np.arange(count) % 10
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
for start, stop in ranges:
    arrays = {
        "inception.features": random.standard_normal((shard, 128), dtype=np.float32),
        "inception.logits": random.standard_normal((shard, 400), dtype=np.float32),
    }
    directory.write_shard(start, stop, arrays, {})
measured = measure(
    directory.assemble(ranges), reference, ["fid", "is", "accuracy"], labels=labels, options={"num_classes": 400}
)
assert [value.name for value in measured.values] == ["fid", "is", "accuracy"] and measured.per_class
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_memory_does_not_grow_with_the_samples(tmp_path):
    used = {}
    for count in (9_000, 36_000):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / str(count)), str(count)]
        used[count] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    written = (36_000 - 9_000) * (128 + 400) * 4 / 1024
    assert used[36_000] - used[9_000] < written / 5


def test_an_array_that_cannot_be_written_is_one_line(tmp_path):
    from results.errors import BenchError

    directory = CellDirectory(tmp_path, "cell")
    directory.write_shard(0, 2, {"a.b": np.zeros((2, 3), np.float32)}, {})
    (directory.path / "a.b.npy").mkdir()
    with pytest.raises(BenchError, match="cannot be written"):
        directory.assemble([(0, 2)])
