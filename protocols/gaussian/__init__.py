"""The analytic fixture: pixels as features, and the exact statistics of its data."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

SIDE = 4
DIMENSIONS = 3 * SIDE**2
DEVIATION = 0.15
OFFSET = 0.3


class Statistics(NamedTuple):
    """Exact mean float64 [d] and covariance float64 [d, d] of the reference; `n` is None, for there are no images."""

    mu: np.ndarray
    sigma: np.ndarray
    n: int | None = None


def exact_statistics(part: str = "data") -> Statistics:
    """Return the data's moments: covariance s^2 I + delta^2 e e^T with balanced classes at -delta e and +delta e."""
    direction = np.full(DIMENSIONS, DIMENSIONS**-0.5)
    sigma = DEVIATION**2 * np.eye(DIMENSIONS) + OFFSET**2 * np.outer(direction, direction)
    return Statistics(np.zeros(DIMENSIONS), sigma)


class Pixels(FeatureExtractorBase):
    """The identity as a judge: "pool" is the image in [-1, 1], float32 [B, 48]; "logits" [B, 2] are the exact ones."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the names of the features."""
        return ("pool", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return which feature a metric reads by default."""
        return {"isc": "logits", "fid": "pool", "kid": "pool", "prc": "pool"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """Return True: there is nothing to compile."""
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Return an input of the right kind."""
        return torch.zeros(4, 3, SIDE, SIDE, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the asked-for features of uint8 images [B, 3, 4, 4]."""
        pool = images.flatten(1).float() / 127.5 - 1
        along = pool.sum(dim=1, keepdim=True) * (DIMENSIONS**-0.5 * OFFSET / DEVIATION**2)
        features = {"pool": pool, "logits": torch.cat([-along, along], dim=1)}
        return tuple(features[name] for name in self.features_list)
