"""`--compile`: the same images and the same count of evaluations, another cell."""

import pytest
import torch
from torch import nn

from bench.contracts.adapter import Adapter
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.models.compilation import check_compiler, compile_networks
from bench.models.meter import Meter
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


def test_compiling_makes_another_cell_that_its_command_repeats(digits_request):
    (eager,), (compiled,) = (make_plan(digits_request(compile=chosen), "") for chosen in (False, True))
    assert eager.cell_id != compiled.cell_id
    assert "--compile" in compiled.command("digits")
    assert "--compile" not in eager.command("digits")


def test_a_missing_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BenchError, match=r"--compile needs a C\+\+ compiler .*leave out --compile"):
        check_compiler("cpu")
