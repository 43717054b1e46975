"""How each digits generator is trained: start, schedule and the loop around its family's objective.

Every recipe takes the training images, the network it starts from and a seed, and returns the moving average of the
weights, which is what gets sampled. The numbers are small-data choices; the objectives are the families' own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from adapters.digits import objectives
from adapters.digits.network import DigitsMixer
from adapters.digits.objectives import Batch

BATCH_SIZE = 128
ENHANCEMENT = 0.1
"""Strength of UCGM's enhancement; the published 0.4 to 0.7 over-guide on data that needs no guidance."""
FAKE_UPDATES = 4
Report = Callable[[Tensor], None]
"""Called with the loss after each update of the sampled network (or of one on the way to it)."""


@dataclass(frozen=True)
class Data:
    """All training images, float32 [n, 1, 8, 8] in [-1, 1], and labels, int64 [n]."""

    x: Tensor
    y: Tensor

    def batch(self, draws: Generator) -> Batch:
        """Return images drawn with replacement."""
        rows = torch.randint(0, len(self.x), (BATCH_SIZE,), generator=draws)
        return Batch(self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Schedule:
    """AdamW with a linear warm-up, a cosine decay to a twentieth of `rate` and a moving average of the weights."""

    iterations: int
    rate: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    average: float = 0.999
    warm_up: int = 200

    def rate_at(self, iteration: int) -> float:
        """Return the learning rate of the 0-based `iteration`."""
        cosine = 0.5 * (1 + math.cos(math.pi * iteration / self.iterations))
        return self.rate * min(1.0, (iteration + 1) / self.warm_up) * (0.05 + 0.95 * cosine)


class Learner:
    """A network being trained, its optimiser and `ema`, the moving average of its weights."""

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        self.network = network.requires_grad_(True)
        self.ema = frozen(network)
        self.schedule = schedule
        self.iteration = 0
        self.optimiser = torch.optim.AdamW(
            network.parameters(), schedule.rate, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True
        )

    def step(self, loss: Tensor) -> Tensor:
        """Make one update and return the detached loss."""
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate_at(self.iteration)
        self.optimiser.step()
        decay = min(self.schedule.average, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            for average, value in zip(self.ema.parameters(), self.network.parameters(), strict=True):
                average.lerp_(value, 1 - decay)
        self.iteration += 1
        return loss.detach()


def fit(learner: Learner, data: Data, draws: Generator, report: Report, loss: Callable[[Batch], Tensor]) -> nn.Module:
    """Minimise `loss` of random batches for the learner's whole schedule and return the averaged network."""
    for _ in range(learner.schedule.iterations):
        report(learner.step(loss(data.batch(draws))))
    return learner.ema


def train_flow(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """Rectified flow from random weights: the multi-step baseline and the start of most few-step models."""
    learner = Learner(network, Schedule(iterations, 2e-3))
    return fit(learner, data, draws, report, lambda batch: objectives.rectified_flow(network, batch, draws))


def train_ucgm_multi(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """UCGM with consistency ratio 0 from random weights; enhancement starts after a tenth of the training."""
    learner = Learner(network, Schedule(iterations, 2e-3))

    def loss(batch: Batch) -> Tensor:
        enhancement = ENHANCEMENT if learner.iteration >= iterations // 10 else 0.0
        return objectives.ucgm_multi_step(network, learner.ema, batch, draws, enhancement=enhancement)

    return fit(learner, data, draws, report, loss)


def train_ucgm_few(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """UCGM with consistency ratio 1 from the flow, which stays its frozen teacher."""
    start, learner = frozen(network), Learner(network, Schedule(iterations, 5e-4))
    return fit(learner, data, draws, report, lambda batch: objectives.ucgm_few_step(network, start, batch, draws))


def train_consistency(
    data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int
) -> nn.Module:
    """EDM diffusion from random weights for five ninths of the iterations, then easy consistency tuning."""
    diffusion = Learner(network, Schedule(iterations * 5 // 9, 2e-3))
    denoiser = fit(diffusion, data, draws, report, lambda batch: objectives.edm_diffusion(network, batch, draws))
    tuned = copy.deepcopy(denoiser)
    learner = Learner(tuned, Schedule(iterations - diffusion.schedule.iterations, 1e-3))

    def loss(batch: Batch) -> Tensor:
        stage = 1 + 6 * learner.iteration // learner.schedule.iterations
        return objectives.easy_consistency(tuned, batch, draws, stage=stage)

    return fit(learner, data, draws, report, loss)


def train_mean_flow(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """MeanFlow from the flow, which is its own h = 0."""
    learner = Learner(network, Schedule(iterations, 1e-3))
    return fit(learner, data, draws, report, lambda batch: objectives.mean_flow(network, batch, draws))


def train_shortcut(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """Shortcut model from the flow, which is its own finest step."""
    learner = Learner(network, Schedule(iterations, 1e-3, weight_decay=0.1))
    return fit(learner, data, draws, report, lambda batch: objectives.shortcut(network, learner.ema, batch, draws))


def train_dmd(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """DMD from the flow, which is generator, fake score and teacher at the start.

    The fake score learns on the faster time scale: `FAKE_UPDATES` to one of the generator.
    """
    teacher, fake = frozen(network), copy.deepcopy(network)
    generator = Learner(network, Schedule(iterations, 5e-4, betas=(0.5, 0.99), average=0.995, warm_up=50))
    critic = Learner(fake, Schedule(iterations * FAKE_UPDATES, 1e-3, betas=(0.5, 0.99)))

    def loss(batch: Batch) -> Tensor:
        for _ in range(FAKE_UPDATES):
            critic.step(objectives.fake_score(fake, network, data.batch(draws).y, draws))
        return objectives.distribution_matching(network, fake, teacher, batch.y, draws)

    return fit(generator, data, draws, report, loss)


@dataclass(frozen=True)
class Recipe:
    """A model's training: the loop, how long, from which other model's weights (None: random) and how wide."""

    train: Callable[..., nn.Module]
    iterations: int
    start: str | None = None
    width: int = 64
    blocks: int = 3

    def network(self, seed: int) -> DigitsMixer:
        """Return the untrained network, the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DigitsMixer(self.width, self.blocks)


RECIPES = {
    "digits-flow": Recipe(train_flow, 4000),
    "digits-flow-small": Recipe(train_flow, 700, width=32, blocks=2),
    "digits-ucgm-multi": Recipe(train_ucgm_multi, 3000),
    "digits-ucgm-few": Recipe(train_ucgm_few, 1000, start="digits-flow"),
    "digits-consistency": Recipe(train_consistency, 5400),
    "digits-meanflow": Recipe(train_mean_flow, 1500, start="digits-flow"),
    "digits-shortcut": Recipe(train_shortcut, 2000, start="digits-flow"),
    "digits-dmd": Recipe(train_dmd, 350, start="digits-flow"),
}
"""Every trained model; a model comes after the one it starts from."""


def frozen(network: nn.Module) -> nn.Module:
    """Return a copy of `network` without gradients."""
    return copy.deepcopy(network).requires_grad_(False)
