"""TwinFlow's networks (arXiv 2512.05150): a stock transformer of diffusers with a second time embedder.

The second one sees the target time tt, 0 throughout sampling, and its weights lie in the checkpoint beside the
library's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class QwenTimes(nn.Module):
    """temb = embed(t) + embed2(tt) (t - tt), in place of `time_text_embed` of a Qwen-Image transformer."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.target: Tensor | float = 0.0

    def forward(self, timestep: Tensor, hidden_states: Tensor, addition_t_cond: Any = None) -> Tensor:
        """t float32 [B], 1 noise -> [B, D]."""
        target = torch.zeros_like(timestep) + self.target
        first: Tensor = self.first(timestep, hidden_states)
        return first + self.second(target, hidden_states) * (timestep - target)[:, None].to(first)


class ZImageTimes(nn.Module):
    """temb = embed(1000 |t'|) + embed2(1000 (tt' - t')) |t' - tt'|, in place of `t_embedder` of a Z-Image transformer.

    The network's time runs the other way, t' = sign(t) (1 - |t|) and tt' likewise, so that tt = 0 is tt' = 0, not 1.
    """

    def __init__(self, first: nn.Module, second: nn.Module, scale: float) -> None:
        super().__init__()
        self.first, self.second, self.scale = first, second, scale
        self.target: Tensor | float = 0.0

    def forward(self, t: Tensor) -> Tensor:
        """t float64 [B], the network's own time times the scale -> [B, D]."""
        own = t.double() / self.scale
        target = torch.zeros_like(own) + self.target
        target = target.sign() * (1 - target.abs())
        first: Tensor = self.first(self.scale * own.abs())
        return first + self.second(self.scale * (target - own)) * (own - target).abs()[:, None].to(first)


def with_second_time(network: nn.Module) -> nn.Module:
    """Give a Qwen-Image or Z-Image transformer its second time embedder, of the first one's kind, and return it."""
    own: Any = network
    if type(network).__name__ == "QwenImageTransformer2DModel":
        first = own.time_text_embed
        own.time_text_embed = QwenTimes(first, type(first)(own.inner_dim))
    else:
        first = own.t_embedder
        second = type(first)(first.mlp[2].out_features, mid_size=first.mlp[0].out_features)
        own.t_embedder = ZImageTimes(first, second, own.t_scale)
    return network


def second_time_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state under the names of `with_second_time`."""
    renamed = {}
    for key, value in state.items():
        for name in ("time_text_embed", "t_embedder"):
            if key.startswith(f"{name}_2."):
                key = key.replace(f"{name}_2.", f"{name}.second.", 1)
            elif key.startswith(f"{name}."):
                key = key.replace(f"{name}.", f"{name}.first.", 1)
        renamed[key] = value
    return renamed
