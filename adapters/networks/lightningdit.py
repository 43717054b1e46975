"""LightningDiT (arXiv 2501.01423): TiT's layout with weighted RMS norms and without q/k norms."""

from __future__ import annotations

from typing import ClassVar

from adapters.networks.tit import TiT


class LightningDiT(TiT):
    """LightningDiT as UCGM samples it; keys as in the published checkpoints."""

    norm_weights: ClassVar[bool] = True
    qk_norm: ClassVar[bool] = False
