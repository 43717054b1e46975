"""`--compile`: the same images and the same count of evaluations, another cell."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.contracts.adapter import Adapter
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.models import compilation
from bench.models.cards import find_card
from bench.models.compilation import Batches, check_compiler, compile_forward, compile_networks, repeated_blocks
from bench.models.meter import Meter
from bench.models.registry import skeleton
from bench.run.plan import make_plan
from results.errors import BenchError


class Affine(nn.Module):
    """v = w x + t."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-0.5]))

    def forward(self, x, t):
        return self.weight * x + t[:, None, None, None]


class Steps(Adapter):
    """Euler steps, a doubled batch when guided."""

    def __init__(self, card):
        super().__init__(card)
        self.network = Affine()

    def load(self, state, extra):
        """There are no weights."""

    def generate(self, labels, steps, cfg, noise, settings):
        x = noise.normal(self.latent_shape)
        for i in range(steps):
            inputs = torch.cat([x, x]) if cfg != 1.0 else x
            v = self.network(inputs, torch.full((len(inputs),), i / steps, device=x.device))
            x = x + v[: len(x)] / steps
        return x


CARD = ModelCard("steps", "steps", "steps", 4, 0, (3, 4, 4), guidance=Guidance("classifier-free"))


def counted(adapter, steps, cfg):
    meter = Meter(adapter)
    with meter.installed():
        images = adapter.sample(torch.zeros(2, dtype=torch.int64), steps, cfg, noise=PhiloxNoise(0, range(2)))
    return images, meter.rows / 2


def test_a_compiled_network_makes_the_same_images_and_its_evaluations_count():
    adapter = Steps(CARD).to("cpu")
    exact, _ = counted(adapter, 3, 1.0)
    compile_networks(adapter)
    images, evaluations = counted(adapter, 3, 1.0)
    assert torch.allclose(images, exact, atol=1e-6)
    assert evaluations == 3
    assert counted(adapter, 3, 2.0)[1] == 6, "a doubled batch, another shape, counts twice"


@pytest.mark.gpu
def test_cuda_graphs_make_the_same_images_and_evaluations_count():
    adapter = Steps(CARD).to("cuda")
    labels, noise = torch.zeros(2, dtype=torch.int64), PhiloxNoise(0, range(2), "cuda")
    exact = adapter.sample(labels, 4, 1.0, noise=noise)
    compile_networks(adapter)
    meter = Meter(adapter)
    with meter.installed():
        images = [adapter.sample(labels, 4, 1.0, noise=noise) for _ in range(3)]
    assert all(torch.allclose(image, exact, atol=1e-5) for image in images)
    assert meter.rows == 3 * 4 * 2


@pytest.mark.parametrize(("model", "blocks", "decoder"), [("sit-xl", 28, 0), ("imf-xl", 48, 0), ("rae-xl-256", 30, 28)])
def test_a_transformer_is_compiled_block_by_block_and_a_convolutional_decoder_whole(model, blocks, decoder):
    adapter = skeleton(find_card(model))
    assert len(repeated_blocks(adapter.network)) == blocks
    assert len(repeated_blocks(adapter.autoencoder.decoder)) == decoder


def test_only_the_blocks_of_a_stack_are_compiled(monkeypatch):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compiled.append(module))
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("the whole was compiled"))
    network, x = Stack(), torch.randn(20, 8)
    expected = network(x)
    compile_forward(network, graphs=False)
    assert compiled == list(network.blocks)
    assert torch.equal(network(x), expected)


def test_the_end_of_a_run_is_filled_up_to_the_batches_before_it():
    sizes = []

    def function(x, t, scale=1.0):
        sizes.append(len(x))
        return scale * x + t[:, None]

    batches = Batches(function, graphs=False)
    x, t = torch.randn(64, 3), torch.arange(64.0)
    for rows in (64, 20, 64, 3, 15):
        assert torch.equal(batches(x[:rows], t[:rows], scale=2.0), 2 * x[:rows] + t[:rows, None])
    assert sizes == [64, 64, 64, 3, 15], "20 rows are filled, batches that are far smaller are their own shape"
    batches(x[:20], torch.arange(64.0)[:20, None][:, 0])
    assert sizes[-1] == 64
    with pytest.raises(RuntimeError):
        batches(x[:20], t[:30])  # tensors of different lengths go through as they are


def test_operators_are_counted_of_the_rows_that_were_asked_for():
    linear = nn.Linear(3, 5)
    batches = Batches(linear, graphs=False)
    batches(torch.zeros(64, 3))
    with FlopCounterMode(display=False) as counter:
        batches(torch.zeros(20, 3))
    assert counter.get_total_flops() == 2 * 20 * 3 * 5


@pytest.mark.gpu
def test_a_small_batch_is_replayed_with_the_values_of_each_call():
    linear = nn.Linear(16, 16).cuda()
    batches = Batches(linear, graphs=True)
    with torch.inference_mode():
        for seed in range(5):
            x = torch.randn(4, 16, generator=torch.Generator("cuda").manual_seed(seed), device="cuda")
            assert torch.allclose(batches(x), linear(x))
    (replay,) = batches.replays.values()
    assert isinstance(replay, compilation.Replay)


def test_compiling_makes_another_cell_that_its_command_repeats(digits_request):
    (eager,), (compiled,) = (make_plan(digits_request(compile=chosen), "") for chosen in (False, True))
    assert eager.cell_id != compiled.cell_id
    assert "--compile" in compiled.command("digits")
    assert "--compile" not in eager.command("digits")


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BenchError, match=r"--compile needs a C\+\+ compiler .*leave out --compile"):
        check_compiler("cpu")
