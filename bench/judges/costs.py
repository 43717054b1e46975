"""What a judge costs before it is loaded: operations and kept numbers of one image, from its network's published shape.

Known are the networks that the shipped protocols name; of others nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bench.judges.judge import JudgeSpec


class JudgeCost(NamedTuple):
    """What a judge makes of one image.

    Attributes:
        operations: floating-point operations, a multiply-add counting two.
        numbers: float32 values that are kept.
    """

    operations: float
    numbers: int


class Tower(NamedTuple):
    """A vision transformer: side of its images and patches in pixels, width, depth, hidden width, extra tokens."""

    size: int
    patch: int
    width: int
    depth: int
    hidden: int
    extra: int = 1

    def operations(self, size: int | None = None) -> float:
        """Return the operations of one image of side `size` (its own): patches, projections, attention, products."""
        patches = ((size or self.size) // self.patch) ** 2
        tokens = patches + self.extra
        layer = 8 * tokens * self.width**2 + 4 * tokens**2 * self.width + 4 * tokens * self.width * self.hidden
        return float(2 * patches * self.width * 3 * self.patch**2 + self.depth * layer)


_B16, _L14, _H14 = Tower(224, 16, 768, 12, 3072), Tower(224, 14, 1024, 24, 4096), Tower(224, 14, 1280, 32, 5120)
TOWERS: Mapping[str, Tower] = {
    "ViT-B-16-quickgelu": _B16,
    "ViT-L-14-quickgelu": _L14,
    "ViT-L-14-336-quickgelu": _L14._replace(size=336),
    "yuvalkirstain/PickScore_v1": _H14,
    "xswu/HPSv2": _H14,
    "google/vit-base-patch16-224": _B16,
    "facebook/dinov2-base": _B16._replace(patch=14),
    "facebook/dinov2-large": _L14,
    "vit_large_patch14_dinov2.lvd142m": _L14._replace(size=518),
    "vit_large_patch16_224.mae": _L14._replace(patch=16),
    "vit_large_patch14_clip_224.openai": _L14,
    "vit_so400m_patch16_siglip_256.v2_webli": Tower(256, 16, 1152, 27, 4304, 0),
}
"""By what names a network: option `model` or `hub` of its judge, or a repository."""


def tower_cost(spec: JudgeSpec, default: str = "", numbers: int | None = None) -> JudgeCost | None:
    """Return the cost of a judge that is a known tower, named by option `model` or `hub` (else `default`).

    `numbers` are what it says of an image; None: its features.
    """
    tower = TOWERS.get(str(spec.options.get("model") or spec.options.get("hub") or default))
    if tower is None:
        return None
    size = spec.options.get("size")
    return JudgeCost(tower.operations(int(size) if size else None), tower.width if numbers is None else numbers)


def feature_cost(spec: JudgeSpec) -> JudgeCost | None:
    """Return the cost of a judge whose output is features."""
    return tower_cost(spec)


def score_cost(spec: JudgeSpec) -> JudgeCost | None:
    """Return the cost of a judge whose output is a score."""
    return tower_cost(spec, numbers=1)


def unknown_cost(spec: JudgeSpec) -> JudgeCost | None:
    """Say nothing of a judge."""
    return None
