"""VAR (arXiv 2404.02905): one token map a scale, each predicted whole from the scales before and drawn at once.

A step is a scale. What is drawn is drawn from the harness's noise: one uniform a token, by inverse transform, where the
authors call torch.multinomial, whose draws depend on device and batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from adapters.autoencoders import AutoencoderKind, register
from adapters.guidance import combine
from adapters.latent import LatentAdapter
from adapters.networks.kl_autoencoder import KLDecoder
from adapters.networks.var import Cache, ResidualQuantiser, VARTransformer
from bench.contracts.adapter import load_strict
from bench.contracts.card import Guidance, ModelCard
from bench.contracts.noise import NoiseSource
from bench.contracts.recording import Call, Case, Replay, sampled
from bench.contracts.settings import Number, SamplerSettings
from results.errors import BenchError

State = Mapping[str, Tensor]
QUANTISER = "quantize."
TRAINING_ONLY = ("attn_bias_for_masking", "ema_vocab_hit_SV", "beta")
"""Keys of published files that sampling has no part for: masks of training, counts of used codes."""
QUANTISER_FACTS = ("vocabulary", "code_channels", "patch_nums", "share_quant_resi", "quant_resi")


class VARSettings(SamplerSettings):
    """What the draw of a token is limited to."""

    top_k: int = Field(0, ge=0, description="how many of the likeliest tokens are drawn from; 0: all")
    top_p: Number = Field(0.0, ge=0, le=1, description="probability that the likeliest tokens drawn from hold; 0: all")


def limited(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return logits [B, N, V] with -inf for the tokens that are not drawn: first by number, then by probability."""
    if top_k > 0:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p > 0:
        rising, order = logits.sort(dim=-1)
        out = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        out = torch.cat([out[..., :-1], torch.zeros_like(out[..., -1:])], dim=-1)
        logits = logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -torch.inf)
    return logits


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return the tokens, int64 [B, N], that `uniform` [B, N] in [0, 1) draws: how many cumulative values are <= it."""
    below = logits.double().softmax(dim=-1).cumsum(dim=-1) <= uniform.double()[..., None]
    return below.sum(dim=-1).clamp(max=logits.shape[-1] - 1)


class VAR(LatentAdapter):
    """Next-scale prediction with guidance that grows with the scale, from none at the first to `cfg` at the last."""

    Settings: ClassVar[type[SamplerSettings]] = VARSettings
    evaluations_differ = True
    discrete = True
    network: VARTransformer

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        facts = dict(card.architecture)
        quantiser = {key: facts[key] for key in QUANTISER_FACTS if key in facts}
        own = {key: value for key, value in facts.items() if key not in ("share_quant_resi", "quant_resi")}
        try:
            self.network, self.quantiser = VARTransformer(**own), ResidualQuantiser(**quantiser)
        except TypeError as error:
            raise BenchError(f"card {card.name}: architecture of VAR: {error}") from error

    def modules(self) -> list[nn.Module]:
        """Return the transformer, the quantiser and the decoder."""
        return [*super().modules(), self.quantiser]

    def load(self, state: State, extra: Mapping[str, State]) -> None:
        """Load the transformer, and the quantiser from the autoencoder's file (`extra` role `quantiser`)."""
        own = {key: value for key, value in state.items() if not key.startswith(QUANTISER)}
        load_strict(self.network, _needed(own), self.card.name)
        file = extra.get("quantiser", state)
        codes = {key.removeprefix(QUANTISER): value for key, value in file.items() if key.startswith(QUANTISER)}
        load_strict(self.quantiser, _needed(codes), f"{self.card.name} (quantiser)")

    def unsupported(self, steps: int, cfg: float, settings: VARSettings | None = None) -> str | None:
        """Refuse any number of steps but that of the scales."""
        scales = len(self.network.patch_nums)
        if steps != scales:
            return f"{self.card.name} predicts {scales} scales, one a step, and takes {scales} steps only"
        return super().unsupported(steps, cfg, settings)

    def declared_nfe(self, steps: int, cfg: float, settings: VARSettings) -> float:
        """Return one evaluation per scale, two where guided."""
        return len(self.network.spans) * (1.0 if cfg == 1.0 else 2.0)

    def generate(self, labels: Tensor, steps: int, cfg: float, noise: NoiseSource, settings: VARSettings) -> Tensor:
        """Return the code maps, float32 [B, code_channels, side, side]."""
        return self.tokens_and_codes(labels, cfg, noise, settings)[1]

    def tokens_and_codes(
        self, labels: Tensor, cfg: float, noise: NoiseSource, settings: VARSettings
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens of all scales, int64 [B, L], and the code maps that they add up to."""
        spans, side = self.network.spans, self.network.patch_nums[-1]
        channels, guided = self.network.code_channels, cfg != 1.0
        uniform = noise.uniform((spans[-1][1],)).to(self.device)
        asked = torch.cat([labels, torch.full_like(labels, self.num_classes)]) if guided else labels
        codes = torch.zeros(len(labels), channels, side, side, device=self.device)
        x = codes.new_zeros(len(labels), 0, channels)
        cache: Cache = [None] * len(self.network.blocks)
        tokens = []
        for scale, (start, stop) in enumerate(spans):
            logits = self.network(torch.cat([x, x]) if guided else x, asked, scale, cache)
            if guided:
                cond, null = logits.chunk(2)
                logits = combine(cond, null, 1 + (cfg - 1) * scale / max(len(spans) - 1, 1))
            tokens.append(drawn(limited(logits, settings.top_k, settings.top_p), uniform[:, start:stop]))
            codes = self.quantiser.add(codes, tokens[-1], scale)
            if scale + 1 < len(spans):
                x = self.quantiser.next_input(codes, scale)
        return torch.cat(tokens, dim=1), codes


def _needed(state: State) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.endswith(TRAINING_ONLY)}


class VARDecoder(KLDecoder):
    """The KL decoder with attention at the lowest level and a 3x3 post_quant_conv."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        channels = facts["latent_channels"]
        self.post_quant_conv = nn.Conv2d(channels, channels, 3, padding=1)


def decoder_state(state: State) -> dict[str, Tensor]:
    """Return the decoder's half of VAR's autoencoder, its fused attention taken apart."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith(("decoder.", "post_quant_conv.")):
            continue
        if ".qkv." in key:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                found[key.replace(".qkv.", f".{name}.")] = part
        else:
            found[key] = value
    return found


register(
    "var-vae",
    AutoencoderKind(
        VARDecoder,
        decoder_state,
        {
            "weights": {"format": "torch", "repo": "FoundationVision/var", "file": "vae_ch160v4096z32.pth"},
            "downsample": 16,
            "config": {"latent_channels": 32, "base_channels": 160},
        },
    ),
)


def replay(case: Case) -> Replay:
    """Return the replay of a VAR recording: teacher-forced logits, and samples as tokens or as codes."""
    facts = case.architecture
    try:
        shape = (facts["code_channels"], facts["patch_nums"][-1], facts["patch_nums"][-1])
        card = ModelCard(
            name=case.name,
            family="var",
            title=case.name,
            resolution=shape[1],
            num_classes=facts["num_classes"],
            latent_shape=shape,
            architecture=facts,
            guidance=Guidance("classifier-free"),
        )
    except (KeyError, IndexError, TypeError) as error:
        raise BenchError(f"{case.directory}: the architecture of VAR lacks {error}") from error
    adapter = VAR(card)
    adapter.load(case.weights, {})
    adapter.to("cpu")

    def run(call: Call) -> dict[str, Any]:
        if call["kind"] == "network":
            x, labels = case.arguments(call, "x", "labels", null_label=adapter.num_classes)
            return {"output": adapter.network(x, labels)}
        options = case.options(call)
        part = options.pop("part", "codes")
        options.pop("margin", None)  # how far the recorded draws keep from a boundary
        if options.pop("more_smooth", False):
            raise BenchError(f"{case.name}: more_smooth draws from a softened softmax, for pictures alone; not offered")
        if part not in ("tokens", "codes"):
            raise BenchError(f"{case.name}: part must be tokens or codes, found {part}")
        settings = VARSettings.checked(options, case.name)
        # The authors' number is how much is added: 0 is no guidance there.
        labels, cfg = case.labels(call, adapter.num_classes), 1 + float(call.get("guidance") or 0.0)
        reason = adapter.unsupported(call["steps"], cfg, settings)
        if reason is not None:
            raise BenchError(reason)
        index = ("tokens", "codes").index(part)
        return sampled(adapter, lambda: adapter.tokens_and_codes(labels, cfg, case.noise(call), settings)[index])

    return run
