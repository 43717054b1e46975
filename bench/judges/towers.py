"""Judges made of two towers: one encodes images, the other prompts, and the score is the cosine between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.contracts.precision import full_precision
from bench.judges.judge import Judge, Prompt
from bench.judges.pixels.preprocess import Preprocess
from results.errors import BenchError

PROMPT_BATCH = 64


class Towers(ABC):
    """The two encoders of a CLIP-like model; features are projected and not yet of unit length."""

    @abstractmethod
    def image_features(self, pixels: Tensor) -> Tensor:
        """Encode preprocessed images, float32 [B, 3, S, S], to [B, d]."""

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return the inputs of `text_features`, int64 [B, T]: `input_ids` and, where taken, `attention_mask`."""

    @abstractmethod
    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode token ids, int64 [B, T], to [B, d]."""

    @abstractmethod
    def temperature(self) -> Tensor:
        """Return exp(logit_scale), a float32 scalar."""


def unit(features: Tensor) -> Tensor:
    """Return the rows of [B, d] at unit length."""
    return features / features.norm(dim=-1, keepdim=True)


def cosine_scores(image_features: Tensor, text_features: Tensor, scale: Tensor | float) -> Tensor:
    """Return scale cos(image_i, text_i), [B], of raw features [B, d] (or one text row [1, d]); not clipped at zero."""
    return scale * (unit(image_features) * unit(text_features)).sum(dim=-1)


class AlignmentJudge(Judge):
    """Scores each image against the prompt of its label; `score` is `scale` times the cosine.

    With `scale` None the model's own exp(logit_scale) is used (PickScore, arXiv 2305.01569); 100 is the CLIP score of
    the published benchmark, not clipped at zero.
    """

    needs_labels = True
    reads_native = True

    def __init__(
        self,
        name: str,
        towers: Towers,
        preprocess: Preprocess,
        scale: float | None,
        facts: Mapping[str, Any],
        device: torch.device,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(name, facts, device, batch_size)
        self.towers = towers
        self.preprocess = preprocess
        with torch.inference_mode():
            self.scale = towers.temperature() if scale is None else torch.tensor(float(scale), device=device)
        self.prompt_features: Tensor | None = None

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Encode the prompt of each class once: unit vectors [classes, d]; several prompts of a class are averaged."""
        variants = [[prompt] if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        flat = [prompt for group in variants for prompt in group]
        if not flat or not all(variants):
            raise BenchError(f"judge '{self.name}': every class needs a prompt; add class names or a prompt template")
        with torch.inference_mode(), full_precision(), torch.autocast(self.device.type, enabled=False):
            batches = [flat[start : start + PROMPT_BATCH] for start in range(0, len(flat), PROMPT_BATCH)]
            encoded = unit(torch.cat([self._encode(batch) for batch in batches]))
            groups = encoded.split([len(group) for group in variants])
            self.prompt_features = unit(torch.stack([group.mean(dim=0) for group in groups]))

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.towers.tokenize(prompts)
        return self.towers.text_features(**{key: value.to(self.device) for key, value in tokens.items()})

    def _check(self, images: Tensor, labels: Tensor) -> None:
        super()._check(images, labels)
        if self.prompt_features is None:
            raise BenchError(f"judge '{self.name}': no prompts are encoded yet; call prepare(prompts) first")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.prompt_features):
            raise BenchError(
                f"judge '{self.name}': labels {int(labels.min())}..{int(labels.max())} do not fit "
                f"its {len(self.prompt_features)} prompts"
            )

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `score` [B] of a batch."""
        assert self.prompt_features is not None
        image_features = self.towers.image_features(self.preprocess(images)).to(torch.float32)
        return {"score": cosine_scores(image_features, self.prompt_features[labels], self.scale)}


class ImageFeatureJudge(Judge):
    """Returns the image features [B, d] of one network, of whatever length the network gives them; labels are ignored.

    FD-DINOv2 takes them as they are, CMMD brings them to unit length itself.
    """

    def __init__(
        self,
        name: str,
        encode: Callable[[Tensor], Tensor],
        preprocess: Preprocess,
        facts: Mapping[str, Any],
        device: torch.device,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(name, facts, device, batch_size)
        self.encode = encode
        self.preprocess = preprocess

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `features` [B, d] of a batch."""
        return {"features": self.encode(self.preprocess(images)).to(torch.float32)}
