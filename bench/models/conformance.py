"""The adapter contract, clause by clause, checked on a real adapter."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.contracts.adapter import Adapter
from bench.contracts.card import GUIDANCE_KINDS, SAMPLERS, ModelCard
from bench.contracts.noise import PhiloxNoise
from bench.contracts.precision import full_precision
from bench.models.loading import build_adapter
from bench.models.meter import Meter
from bench.models.registry import family_class, skeleton
from bench.models.watching import Copies, forbidden_draws
from results.errors import BenchError, one_line, trace

SAMPLES = 6
SEED = 11
SPLIT_TOLERANCE = 1e-3
"""Largest difference between batch splits, in units of [-1, 1], or of the images' standard deviation where random
weights carry them further out: kernels may round differently, nothing more."""
VISIBLE = 1e-3
"""Smallest mean change that counts as one, in standard deviations of the images: far above rounding."""
PROMPTS = ("a red apple", "an old bicycle leaning against a brick wall", "a photo of a great white shark")
"""Prompts of several lengths, for adapters that take any."""
BFLOAT16_TOLERANCE = 0.1
"""Largest root mean square error of bfloat16, in standard deviations of the images: a rounding is 0.2%, and some
hundreds of them in series, incoherent, and a few steps stay below this; a lost float32 state or time does not."""


class Finding(NamedTuple):
    """Whether one clause of the contract holds, and what was seen.

    `ok` is True too for a clause that the card waives, and `waived` then is its reason.
    """

    clause: str
    ok: bool
    detail: str
    waived: str = ""


def check_adapter(
    card: ModelCard,
    *,
    weights: Path | None = None,
    random_weights: bool = False,
    device: str = "cpu",
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[Finding]:
    """Check the model of `card` and return every clause with its finding.

    With `random_weights` (or for a card whose weights are not here) the same clauses are checked on seeded noise. Each
    call of the adapter's code is made inside a `guard()`.
    """
    try:
        with guard():
            adapter = build_adapter(card, device=device, weights=weights, random_weights=random_weights)
            adapter.prepare(PROMPTS)
            steps = _smallest_steps(adapter)
    except (BenchError, KeyboardInterrupt):
        raise
    except BaseException as error:
        trace(error)
        return [Finding("can be built", False, _told(error, card))]
    sample = _Sampler(adapter, steps)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("declares its facts", lambda: _facts(adapter)),
        ("declares its sampler settings", lambda: _settings(adapter)),
        ("returns float32 [B, 3, H, W]", lambda: _shape(sample(), card)),
        ("images are finite and near [-1, 1]", lambda: _range(sample(), random_weights)),
        ("same noise, same image, for any batch split", lambda: _splits(sample)),
        (
            "noise decides the image",
            lambda: _differs(sample(), sample(indices=range(100, 100 + SAMPLES)), "other noise"),
        ),
        ("labels matter", lambda: _labels(sample)),
        ("steps matter", lambda: _steps(sample)),
        ("guidance 1.0 equals no guidance", lambda: _no_guidance(sample)),
        ("guidance changes the image if there is any", lambda: _guidance(sample)),
        ("evaluations are counted", lambda: _evaluations(sample)),
        ("draws no random numbers of its own", lambda: _no_draws(sample)),
        ("leaves global state alone", lambda: _global_state(sample)),
        ("refuses unsupported input", lambda: _refusals(adapter)),
        ("never waits for the device between steps", lambda: _no_waiting(card)),
        ("bfloat16 stays close to float32", lambda: _bfloat16(sample)),  # last: it rounds the weights
    ]
    clauses = [clause for clause, _ in checks]
    findings = [
        Finding("waives known clauses", False, f"'{waived}' is none of them: {', '.join(clauses)}")
        for waived in card.waive
        if waived not in clauses
    ]
    seen: dict[str, str] = {}
    for clause, check in checks:
        try:
            with guard(), full_precision():  # as in a run: TF32 alone would move images by more than a split may
                detail = check()
            findings.append(Finding(clause, True, detail))
        except AssertionError as failure:
            findings.append(Finding(clause, False, str(failure)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() too: a check that passes by ending is none
            told = _told(error, card)
            if told not in seen:
                trace(error)
            detail = f"the same error as '{seen[told]}'" if told in seen else told
            seen.setdefault(told, clause)
            findings.append(Finding(clause, False, detail))
    return [_waived(finding, card.waive.get(finding.clause)) for finding in findings]


def _waived(finding: Finding, reason: str | None) -> Finding:
    """Return a finding as the card's waiver of its clause, if any, leaves it."""
    if reason is None:
        return finding
    if finding.ok:
        return finding._replace(detail=f"{finding.detail}; the waiver on the card is not needed")
    return finding._replace(ok=True, detail=f"waived: {reason} (seen: {finding.detail})", waived=reason)


def _told(error: BaseException, card: ModelCard) -> str:
    """Return an error on one line, with the adapter's own line where it came from and the deepest line it called."""
    return one_line(f"{_where(error, card)}{type(error).__name__}: {error}")


def _where(error: BaseException, card: ModelCard) -> str:
    """Return `file:line (code): ` of the adapter, and of the library it called; empty for an error of our own code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours, torch_itself = Path(__file__).parents[1], Path(torch.__file__).parent
    outside = [f for f in frames if not {ours, torch_itself} & set(Path(f.filename).parents) and "<" not in f.filename]
    try:
        home = Path(inspect.getfile(family_class(card.family))).parent
    except (BenchError, TypeError, OSError):
        home = None
    own = [frame for frame in outside if home is not None and home in Path(frame.filename).parents]
    if not outside:
        return ""
    nearest, deepest = (own or outside)[-1], outside[-1]
    place = f"{Path(nearest.filename).name}:{nearest.lineno} ({nearest.line})"
    called = "" if deepest is nearest else f", in {Path(deepest.filename).name}:{deepest.lineno}"
    return f"{place}{called}: "


class _Sampler:
    """Samples a few images with a known noise, and counts their evaluations."""

    def __init__(self, adapter: Adapter, steps: int) -> None:
        self.adapter, self.steps = adapter, steps
        self.labels = torch.arange(SAMPLES) % max(adapter.num_classes, 1)
        self.nfe = self.guide_nfe = 0.0

    def __call__(
        self,
        *,
        indices: range = range(SAMPLES),
        labels: Tensor | None = None,
        steps: int | None = None,
        cfg: float = 1.0,
    ) -> Tensor:
        noise = PhiloxNoise(SEED, indices, self.adapter.device)
        chosen = self.labels if labels is None else labels
        meter = Meter(self.adapter)
        with meter.installed():
            images = self.adapter.sample(chosen, steps or self.steps, cfg, noise=noise)
        self.nfe, self.guide_nfe = meter.rows / len(chosen), meter.guide_rows / len(chosen)
        return images


def _smallest_steps(adapter: Adapter) -> int:
    for steps in (2, 1, 4, 8, *(adapter.card.supported_steps or ())):
        if adapter.unsupported(steps, 1.0) is None:
            return steps
    raise BenchError(f"{adapter.card.name} supports none of 1, 2, 4, 8 steps: name some in supported_steps")


def _other_steps(adapter: Adapter, steps: int) -> list[int]:
    known = (1, 4, 2, 8, *(adapter.card.supported_steps or ()))
    return [count for count in known if count != steps and adapter.unsupported(count, 1.0) is None]


def _require(condition: bool, detail: str) -> str:
    assert condition, detail
    return detail


def _facts(adapter: Adapter) -> str:
    _require(isinstance(adapter.network, torch.nn.Module), "network must be the module whose calls count")
    _require(adapter.guidance in GUIDANCE_KINDS, f"guidance '{adapter.guidance}' is not one of {GUIDANCE_KINDS}")
    return f"{adapter.latent_shape} latents, {adapter.num_classes} classes, guidance {adapter.guidance}"


def _settings(adapter: Adapter) -> str:
    """The defaults and the card's own settings are valid, each one has a meaning, and others are refused."""
    facts = adapter.Settings.facts()
    unexplained = [setting.name for setting in facts if not setting.meaning]
    _require(not unexplained, f"{', '.join(unexplained)} has no description; add one")
    adapter.Settings.checked({}, adapter.card.name)
    presets = [preset.steps[0] for preset in adapter.card.presets]
    for steps in (_smallest_steps(adapter), *presets):
        for sampler in SAMPLERS:
            adapter.resolve_settings(steps, sampler)
    try:
        adapter.resolve_settings(_smallest_steps(adapter), overrides={"no_such_setting": 1})
    except BenchError:
        return ", ".join(f"{setting.name} {setting.default}" for setting in facts) or "none"
    raise AssertionError("an unknown setting was accepted")


def _shape(images: Tensor, card: ModelCard) -> str:
    expected = (SAMPLES, 3, card.resolution, card.resolution)
    found = f"{images.dtype} {tuple(images.shape)}"
    return _require(images.dtype == torch.float32 and tuple(images.shape) == expected, f"{found}, card says {expected}")


def _range(images: Tensor, random_weights: bool) -> str:
    _require(bool(images.isfinite().all()), "contains NaN or infinite values")
    low, high = float(images.min()), float(images.max())
    share = float(((images < -1.5) | (images > 1.5)).float().mean())
    # Samplers that divide by small noise levels carry a random network far outside; a trained one stays inside.
    return _require(share < 0.5 or random_weights, f"values {low:.2f} to {high:.2f}, {share:.0%} beyond 1.5")


def _splits(sample: _Sampler) -> str:
    whole = sample()
    parts = [
        sample(indices=range(first, last), labels=sample.labels[first:last])
        for first, last in ((0, 1), (1, 4), (4, SAMPLES))
    ]
    error = float((whole - torch.cat(parts)).abs().max() / max(1.0, float(whole.std())))
    return _require(error <= SPLIT_TOLERANCE, f"largest difference {error:.1e} between batches of 6 and of 1, 3, 2")


def _differs(a: Tensor, b: Tensor, what: str) -> str:
    change = _change(a, b)
    return _require(change > VISIBLE, f"mean change {change:.2g} standard deviations with {what}")


def _change(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().mean() / a.std())


def _labels(sample: _Sampler) -> str:
    if sample.adapter.num_classes < 2:
        return "unconditional"
    return _differs(sample(), sample(labels=(sample.labels + 1) % sample.adapter.num_classes), "other labels")


def _steps(sample: _Sampler) -> str:
    others = _other_steps(sample.adapter, sample.steps)
    if not others:
        return f"{sample.steps} steps only"
    # A second-order sampler may spend two steps on what it does in one.
    changes = (_change(sample(), sample(steps=other)) for other in others)
    found = next((other for other, change in zip(others, changes, strict=True) if change > VISIBLE), None)
    _require(found is not None, f"the images at {sample.steps} steps and at {others} are the same")
    return f"the images at {sample.steps} and {found} steps differ"


def _no_guidance(sample: _Sampler) -> str:
    plain = sample(cfg=1.0)
    evaluations = sample.nfe
    _require(sample.guide_nfe == 0, f"the guide was evaluated {sample.guide_nfe:g} times at cfg 1")
    if sample.adapter.guidance == "none":
        return f"guidance-free, NFE {evaluations:g} at {sample.steps} steps"
    again = sample(cfg=1.0)
    _require(bool(torch.equal(plain, again)), "two calls at cfg 1 differ")
    if sample.adapter.unsupported(sample.steps, 1.0 + 1e-6) is not None:
        return f"not guided at {sample.steps} steps, NFE {evaluations:g}"
    limit = sample(cfg=1.0 + 1e-6)
    guided = sample.nfe + sample.guide_nfe
    saved = evaluations < guided or sample.adapter.guidance == "embedded"
    _require(saved, f"NFE {evaluations:g} at cfg 1, no less than {guided:g} with guidance")
    error = float((plain - limit).abs().max())
    return _require(error < 1e-2, f"cfg 1.000001 differs from cfg 1 by {error:.1e}; NFE {evaluations:g} at cfg 1")


def _guidance(sample: _Sampler) -> str:
    if sample.adapter.guidance == "none":
        return "guidance-free"
    scale = _scale(sample.adapter)
    reason = sample.adapter.unsupported(sample.steps, scale)
    if reason is not None:
        return f"not at {sample.steps} steps: {reason}"
    return _differs(sample(cfg=1.0), sample(cfg=scale), f"cfg {scale:g}")


def _scale(adapter: Adapter) -> float:
    """Return the card's largest scale, where guidance shows most."""
    guidance = adapter.card.guidance
    largest = max(guidance.natural, guidance.range[1])
    return largest if largest > 1.0 else 1.5


def _evaluations(sample: _Sampler) -> str:
    sample()
    adapter, counted = sample.adapter, f"NFE {sample.nfe:g} at {sample.steps} steps"
    declared = adapter.declared_nfe(sample.steps, 1.0, adapter.resolve_settings(sample.steps))
    _require(declared in (None, sample.nfe), f"{counted}, declared {declared}")
    return _require(sample.nfe > 0, counted)


def _no_draws(sample: _Sampler) -> str:
    if sample.adapter.out_of_process:
        first = sample()
        sample(indices=range(100, 100 + SAMPLES))
        again = torch.equal(first, sample())
        return _require(again, "the same noise gave the same image again, after other images")
    with forbidden_draws():
        sample()
    return "torch's random functions were not called"


def _global_state(sample: _Sampler) -> str:
    if sample.adapter.out_of_process:
        return "in another process"

    def state() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().numpy().tobytes(),
            repr(np.random.get_state()),
            torch.get_default_dtype(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.is_grad_enabled(),
        )

    before = state()
    sample()
    return _require(before == state(), "random state, default dtype, TF32 and grad mode unchanged")


def _refusals(adapter: Adapter) -> str:
    if adapter.guidance == "none":
        _require(
            adapter.unsupported(_smallest_steps(adapter), 3.0) is not None, "accepts cfg 3 although guidance is none"
        )
    wrong = torch.tensor([adapter.num_classes + 1])
    if adapter.num_classes:
        try:
            adapter.sample(wrong, _smallest_steps(adapter), 1.0, noise=PhiloxNoise(SEED, [0], adapter.device))
        except BenchError:
            return "labels out of range and unsupported guidance are refused"
        raise AssertionError(f"label {int(wrong)} was accepted")
    return "unconditional"


def _no_waiting(card: ModelCard) -> str:
    """Sample on the meta device, whose tensors have no values: whatever reads one on the host raises."""
    adapter = skeleton(card)
    if adapter.host:
        return f"the loop is that of {adapter.host}"
    adapter = adapter.to("meta")
    first = _smallest_steps(adapter)
    second = (_other_steps(adapter, first) or [first])[0]
    copies = []
    for steps in (first, second):
        noise = PhiloxNoise(SEED, range(SAMPLES), "meta")
        labels = torch.arange(SAMPLES) % max(adapter.num_classes, 1)
        cfg = _scale(adapter) if adapter.unsupported(steps, _scale(adapter)) is None else 1.0
        try:
            with Copies() as counter:
                adapter.sample(labels, steps, cfg, noise=noise)
        except (RuntimeError, NotImplementedError) as error:
            trace(error)
            line = one_line(f"{_where(error, card)}needs a value of a device tensor: {error}")
            raise AssertionError(line) from error
        copies.append(counter.copies)
    _require(copies[0] == copies[1], f"{copies} copies between host and device at {first} and {second} steps")
    return f"copies between host and device: {copies[0]}, at {first} and at {second} steps"


def _bfloat16(sample: _Sampler) -> str:
    exact = sample()
    sample.adapter.to(sample.adapter.device, torch.bfloat16)
    rounded = sample()
    _require(rounded.dtype == torch.float32, f"returns {rounded.dtype} with bfloat16 weights")
    error = float((rounded - exact).square().mean().sqrt() / exact.std())
    if sample.adapter.discrete:  # one rounding may turn one token into any other
        return _require(bool(rounded.isfinite().all()), f"root mean square error {error:.1%}; tokens may turn")
    if sample.adapter.host:  # several of them round the times to bfloat16 too
        return f"root mean square error {error:.1%} of the standard deviation, by the loop of {sample.adapter.host}"
    return _require(error <= BFLOAT16_TOLERANCE, f"root mean square error {error:.1%} of the standard deviation")
