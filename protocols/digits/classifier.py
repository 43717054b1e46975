"""Two digit classifiers behind torch-fidelity's feature-extractor interface.

`DigitsClassifier` (convolutional) is the judge: its "pool" features are for FID, KID, precision and recall, its
"logits" for the Inception Score and for agreement with the asked-for class. `DigitsCrossCheck` (a multilayer
perceptron with other inductive biases) offers the same features: do not trust a ranking that only one of the two
supports.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

WEIGHTS_DIRECTORY = Path(__file__).parent / "weights"
POOL_WIDTH = 48
TOTAL_VARIANCE = 100.0


class DigitsNetwork(nn.Module):
    """Trunk -> 48 features -> SiLU -> 10 logits, with the constant that puts the features into judge units."""

    feature_scale: torch.Tensor

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Sequential(nn.SiLU(), nn.Dropout(0.3), nn.Linear(POOL_WIDTH, 10))
        self.register_buffer("feature_scale", torch.ones(()))

    def features(self, grey: torch.Tensor) -> torch.Tensor:
        """Return the unscaled features [B, 48] of grey values [B, 1, 8, 8] in [-1, 1]."""
        return self.trunk(grey)

    def forward(self, grey: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, 10] of grey values [B, 1, 8, 8] in [-1, 1]."""
        return self.head(self.features(grey))


def convolutional_network() -> DigitsNetwork:
    """Return the judge's network (105,434 parameters): 3x3 convolutions of 32, 64 and, at 4x4 pixels, 64 channels."""
    return DigitsNetwork(
        nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 4 * 4, POOL_WIDTH),
        )
    )


def perceptron_network() -> DigitsNetwork:
    """Return the cross-check's network (29,466 parameters): 64 pixels, 256 hidden units, 48 features."""
    return DigitsNetwork(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.SiLU(), nn.Dropout(0.3), nn.Linear(256, POOL_WIDTH))
    )


class DigitsClassifier(FeatureExtractorBase):
    """A digit classifier that torch-fidelity can use as feature extractor.

    Provides "pool" (float32 [B, 48], scaled so that its total variance over all 1,797 real images is 100, which makes
    FID a percentage of the data's variance) and "logits" (float32 [B, 10]).

    Args:
        name: the name under which the class is registered with torch-fidelity.
        features_list: which of "pool" and "logits" `forward` returns, and in which order.
        weights: a safetensors file; by default the committed one.
        kwargs: torch-fidelity's options, of which `feature_extractor_weights_path` stands in for `weights`.

    Raises FileNotFoundError if the file of weights is missing, RuntimeError if it holds another network.
    """

    default_weights = WEIGHTS_DIRECTORY / "classifier.safetensors"

    def __init__(self, name: str, features_list: list[str], weights: Path | None = None, **kwargs: Any) -> None:
        super().__init__(name, features_list)
        path = Path(weights or kwargs.get("feature_extractor_weights_path") or self.default_weights)
        self.network = self.build_network()
        self.network.load_state_dict({key: value.float() for key, value in load_file(path).items()})
        self.requires_grad_(False)
        self.eval()

    @staticmethod
    def build_network() -> DigitsNetwork:
        """Return the untrained network."""
        return convolutional_network()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the names of the features."""
        return ("pool", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return which feature a metric ("isc", "fid", "kid", "prc") reads by default."""
        return {"isc": "logits", "fid": "pool", "kid": "pool", "prc": "pool"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """Return True: the network has no data-dependent control flow."""
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> torch.Tensor:
        """Return an image of the right shape and type."""
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the requested features of uint8 [B, 3, 8, 8] RGB images, each float32 [B, width].

        Raises ValueError for another shape or dtype.
        """
        if input.dtype != torch.uint8 or input.ndim != 4 or input.shape[1:] != (3, 8, 8):
            raise ValueError(f"the digits judge reads uint8 [B, 3, 8, 8], got {input.dtype} {list(input.shape)}")
        grey = input.to(torch.float32).mean(dim=1, keepdim=True) / 127.5 - 1
        pool = self.network.features(grey)
        provided = {"pool": pool * self.network.feature_scale, "logits": self.network.head(pool)}
        return tuple(provided[name] for name in self.features_list)


class DigitsCrossCheck(DigitsClassifier):
    """The second opinion: the same interface on a multilayer perceptron."""

    default_weights = WEIGHTS_DIRECTORY / "cross_check.safetensors"

    @staticmethod
    def build_network() -> DigitsNetwork:
        """Return the untrained network."""
        return perceptron_network()
