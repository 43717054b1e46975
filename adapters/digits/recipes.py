"""How each digits generator is trained: start, schedule and the loop around its family's objective.

Every recipe takes the training images, the network it starts from and a seed, and returns the moving average of the
weights, which is what gets sampled. The numbers are small-data choices; the objectives are the families' own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn

from adapters.digits import distillation, objectives
from adapters.digits.network import IMAGE_SIZE, DigitsMixer
from adapters.digits.objectives import Batch
from adapters.integrators import ode_sample

BATCH_SIZE = 128
ENHANCEMENT = 0.1
"""Strength of UCGM's enhancement; the published 0.4 to 0.7 over-guide on data that needs no guidance."""
FAKE_UPDATES = 4
Drawn = TypeVar("Drawn", covariant=True)
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
    """A network being trained, its optimiser and `ema`, the moving average of its weights.

    With `target_average` there is a second, faster average, `target`, for targets that must keep up with the network.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, target_average: float | None = None) -> None:
        self.network = network.requires_grad_(True)
        self.ema = frozen(network)
        self.target = self.ema if target_average is None else frozen(network)
        self.averages = {schedule.average: self.ema} | ({target_average: self.target} if target_average else {})
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
        for longest, average in self.averages.items():
            decay = min(longest, (1 + self.iteration) / (10 + self.iteration))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), self.network.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)
        self.iteration += 1
        return loss.detach()


class Source(Protocol[Drawn]):
    """Anything that batches are drawn from."""

    def batch(self, draws: Generator) -> Drawn:
        """Return a random batch."""


def fit(
    learner: Learner, data: Source[Drawn], draws: Generator, report: Report, loss: Callable[[Drawn], Tensor]
) -> nn.Module:
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


def train_bifm(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """BiFM from the flow, which is its own h = 0 in both directions."""
    learner = Learner(network, Schedule(iterations, 1e-3))
    return fit(learner, data, draws, report, lambda batch: objectives.bidirectional_flow(network, batch, draws))


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
            critic.step(distillation.fake_score(fake, network, data.batch(draws).y, draws))
        return distillation.distribution_matching(network, fake, teacher, batch.y, draws)

    return fit(generator, data, draws, report, loss)


def train_split_mean_flow(
    data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int
) -> nn.Module:
    """SplitMeanFlow from the flow; the targets come from an average twenty times faster than that of the samples."""
    learner = Learner(network, Schedule(iterations, 1e-3), target_average=0.98)
    return fit(
        learner, data, draws, report, lambda batch: objectives.split_mean_flow(network, learner.target, batch, draws)
    )


def train_intrinsic_shortcut(
    data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int
) -> nn.Module:
    """Shortcut model with the guidance scale as an input, from the flow; the targets come from a fast average."""
    learner = Learner(network, Schedule(iterations, 1e-3, weight_decay=0.1), target_average=0.95)
    return fit(
        learner, data, draws, report, lambda batch: objectives.intrinsic_shortcut(network, learner.target, batch, draws)
    )


def train_analog_bits(
    data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int
) -> nn.Module:
    """Analog bits with self-conditioning from random weights."""
    learner = Learner(network, Schedule(iterations, 2e-3))
    return fit(learner, data, draws, report, lambda batch: objectives.analog_bits(network, batch, draws))


def train_low_diff(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """LowDiff from the flow, whose layers for 8x8 images and trunk it keeps."""
    learner = Learner(network, Schedule(iterations, 1e-3))
    return fit(learner, data, draws, report, lambda batch: objectives.low_diff(network, batch, draws))


def train_weak_guide(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """Rectified flow stopped so early that it errs as the trained network does, only more: autoguidance's guide."""
    learner = Learner(network, Schedule(iterations, 2e-3, average=0.99, warm_up=50))
    return fit(learner, data, draws, report, lambda batch: objectives.rectified_flow(network, batch, draws))


def train_scm(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """sCM distilled from the flow, from which it also starts; the tangent warms up over a fifth of the training."""
    teacher, learner = frozen(network), Learner(network, Schedule(iterations, 5e-4))

    def loss(batch: Batch) -> Tensor:
        warm_up = min(1.0, 5 * learner.iteration / iterations)
        return distillation.continuous_consistency(network, teacher, batch, draws, warm_up=warm_up)

    return fit(learner, data, draws, report, loss)


def train_ayf(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """Align Your Flow distilled from the flow, which is its own h = 0; the tangent warms up as for sCM."""
    teacher, learner = frozen(network), Learner(network, Schedule(iterations, 1e-3))

    def loss(batch: Batch) -> Tensor:
        warm_up = min(1.0, 5 * learner.iteration / iterations)
        return distillation.eulerian_map(network, teacher, batch, draws, warm_up=warm_up)

    return fit(learner, data, draws, report, loss)


def train_guided(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """Guided distillation, stage 1: the flow's two evaluations under guidance become one with the scale as an input."""
    teacher, learner = frozen(network), Learner(network, Schedule(iterations, 1e-3))
    return fit(
        learner, data, draws, report, lambda batch: distillation.guided_distillation(network, teacher, batch, draws)
    )


HALVINGS = {16: 150, 8: 350, 4: 600, 2: 900, 1: 1300}
"""By step count, the iteration of 1,300 at which progressive distillation goes on to half of them."""


def train_progressive(
    data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int
) -> nn.Module:
    """Progressive distillation of the guided student's 32 steps: each student starts as, and halves, the one before.

    A student is right at its own step count alone, so that all up to 8 steps are kept.
    """
    teacher, done, students = frozen(network), 0, {}
    for steps, until in HALVINGS.items():
        last = iterations * until // 1300
        student = copy.deepcopy(teacher)
        learner = Learner(student, Schedule(last - done, 5e-4, average=0.99, warm_up=50))

        def loss(
            batch: Batch, student: nn.Module = student, teacher: nn.Module = teacher, steps: int = steps
        ) -> Tensor:
            return distillation.progressive_distillation(student, teacher, batch, draws, steps=steps)

        teacher, done = fit(learner, data, draws, report, loss), last
        students[str(steps)] = teacher
    return gathered({name: student for name, student in students.items() if name != "16"})


PAIR_USES = 26
"""How often each of CAF's pairs is drawn on average."""


def train_caf(data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int) -> nn.Module:
    """Constant acceleration flow on pairs of the flow's, two fifths of the iterations for V and the rest for A."""
    pairs = teacher_pairs(frozen(network), data, max(1, iterations // PAIR_USES), draws)
    velocity = copy.deepcopy(network)
    learner = Learner(velocity, Schedule(iterations * 2 // 5, 1e-3))
    trained = fit(learner, pairs, draws, report, lambda batch: distillation.initial_velocity(velocity, batch, draws))
    learner = Learner(network, Schedule(iterations - learner.schedule.iterations, 1e-3))
    acceleration = fit(
        learner, pairs, draws, report, lambda batch: distillation.constant_acceleration(network, trained, batch, draws)
    )
    return gathered({"velocity": trained, "acceleration": acceleration})


@dataclass(frozen=True)
class PairData:
    """CAF's training data: all pairs of noise and the teacher's sample from it."""

    pairs: distillation.Pairs

    def batch(self, draws: Generator) -> distillation.Pairs:
        """Return pairs drawn with replacement."""
        rows = torch.randint(0, len(self.pairs.y), (BATCH_SIZE,), generator=draws)
        return distillation.Pairs(*(part[rows] for part in self.pairs))


@torch.no_grad()
def teacher_pairs(teacher: nn.Module, data: Data, batches: int, draws: Generator) -> PairData:
    """Return `batches` batches of pairs: noise, Heun's 16 steps of the flow from it clipped to [-1, 1], and labels."""
    made = []
    for _ in range(batches):
        y = data.batch(draws).y
        z = torch.randn(len(y), 1, IMAGE_SIZE, IMAGE_SIZE, generator=draws)
        none = torch.zeros_like(z)

        def towards_data(x: Tensor, t: Tensor, y: Tensor = y, none: Tensor = none) -> Tensor:
            return distillation.constant_motion(teacher, x, t, none, y)

        x = ode_sample(towards_data, z, [i / 16 for i in range(17)], "heun2")
        made.append(distillation.Pairs(z, x.clamp(-1, 1), y))
    return PairData(distillation.Pairs(*(torch.cat(parts) for parts in zip(*made, strict=True))))


def train_multi_student(
    data: Data, network: nn.Module, draws: Generator, report: Report, *, iterations: int
) -> nn.Module:
    """Multi-student distillation: the DMD recipe once for the labels 0 to 4 and once for 5 to 9, from the same flow."""
    students = {}
    for name, first, updates in (("low", 0, iterations // 2), ("high", 5, iterations - iterations // 2)):
        rows = (data.y >= first) & (data.y < first + 5)
        student = copy.deepcopy(network)
        students[name] = train_dmd(Data(data.x[rows], data.y[rows]), student, draws, report, iterations=updates)
    return gathered(students)


def gathered(networks: Mapping[str, nn.Module]) -> nn.Module:
    """Return several trained networks as one module, named as `network.Members` names them."""
    module = nn.Module()
    module.add_module("members", nn.ModuleDict(dict(networks)))
    return module


@dataclass(frozen=True)
class Recipe:
    """A model's training: the loop, how long, from which other model's weights (None: random) and the network."""

    train: Callable[..., nn.Module]
    iterations: int
    start: str | None = None
    architecture: Mapping[str, Any] = field(default_factory=lambda: {"width": 64, "blocks": 3})
    """What the card says of the network."""
    storage: torch.dtype = torch.float32
    """What the weights are rounded to in their file."""

    def network(self, seed: int) -> DigitsMixer:
        """Return the untrained network (one, where the model has several), the same for the same seed."""
        facts = {key: value for key, value in self.architecture.items() if key not in ("members", "experts")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DigitsMixer(**facts)


MIXER = {"width": 64, "blocks": 3}
SMALL = {"width": 32, "blocks": 2}
RECIPES = {
    "digits-flow": Recipe(train_flow, 4000),
    "digits-flow-small": Recipe(train_flow, 700, architecture=SMALL),
    "digits-ucgm-multi": Recipe(train_ucgm_multi, 3000),
    "digits-ucgm-few": Recipe(train_ucgm_few, 1000, start="digits-flow"),
    "digits-consistency": Recipe(train_consistency, 5400),
    "digits-meanflow": Recipe(train_mean_flow, 1500, start="digits-flow"),
    "digits-shortcut": Recipe(train_shortcut, 2000, start="digits-flow"),
    "digits-dmd": Recipe(train_dmd, 350, start="digits-flow"),
    "digits-flow-weak": Recipe(train_weak_guide, 150, architecture=SMALL),
    "digits-scm": Recipe(train_scm, 1500, start="digits-flow"),
    "digits-ayf": Recipe(train_ayf, 1500, start="digits-flow"),
    "digits-split-meanflow": Recipe(train_split_mean_flow, 1200, start="digits-flow"),
    "digits-bifm": Recipe(train_bifm, 1500, start="digits-flow"),
    "digits-guided": Recipe(train_guided, 600, start="digits-flow", architecture=MIXER | {"guided": True}),
    "digits-progressive": Recipe(
        train_progressive,
        1300,
        "digits-guided",
        MIXER | {"guided": True, "members": ["8", "4", "2", "1"]},
        storage=torch.float16,
    ),
    "digits-caf": Recipe(
        train_caf, 2500, "digits-flow", MIXER | {"hinted": True, "members": ["velocity", "acceleration"]}
    ),
    "digits-ism": Recipe(train_intrinsic_shortcut, 1500, start="digits-flow", architecture=MIXER | {"guided": True}),
    "digits-multi-student": Recipe(
        train_multi_student, 500, "digits-flow", MIXER | {"members": ["low", "high"], "experts": True}
    ),
    "digits-low-diff": Recipe(
        train_low_diff, 2000, start="digits-flow", architecture=MIXER | {"cascade": True}, storage=torch.float16
    ),
    "digits-analog-bits": Recipe(train_analog_bits, 2200, architecture=MIXER | {"channels": 10, "outputs": 5}),
}
"""Every trained model; a model comes after the one it starts from."""


def frozen(network: nn.Module) -> nn.Module:
    """Return a copy of `network` without gradients."""
    return copy.deepcopy(network).requires_grad_(False)
