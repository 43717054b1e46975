"""What each metric is: title, unit, direction, definition and source, and the judge outputs it reads."""

from __future__ import annotations

from typing import Literal, NamedTuple


class MetricFact(NamedTuple):
    """Facts about one metric.

    Attributes:
        name: name in protocols, tables and the database.
        title: name for people.
        unit: unit of the value; empty for a pure number.
        better: whether `lower` or `higher` values are better.
        definition: one sentence, with the source.
        judge: the judge whose output is read (`inception`, `classifier`, `clip`, `clip_l14`, `pick`, `image_reward`,
            `hpsv2`, `dinov2`, `clip_l14_336`).
        array: the judge output read, as named in `JudgeOutputs`.
        reference: what it needs of the reference: nothing, its `statistics` (mean and covariance), or its `features`.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher"]
    definition: str
    judge: str
    array: str
    reference: Literal["none", "statistics", "features"]


_FACTS = (
    MetricFact(
        "fid",
        "FID",
        "",
        "lower",
        "Frechet distance between Gaussians fitted to Inception features of generated and reference images "
        "(Heusel et al., arXiv 1706.08500); biased upwards by about c/N, so comparable at equal N only.",
        "inception",
        "inception.features",
        "statistics",
    ),
    MetricFact(
        "fid_corrected",
        "FID, bias-corrected",
        "",
        "lower",
        "FID less its 1/N bias (Chong and Forsyth, arXiv 1911.07023) as the delete-block jackknife estimates it.",
        "inception",
        "inception.features",
        "statistics",
    ),
    MetricFact(
        "fid_infinity",
        "FID-infinity",
        "",
        "lower",
        "FID extrapolated in 1/N to infinitely many generated images (Chong and Forsyth, arXiv 1911.07023).",
        "inception",
        "inception.features",
        "statistics",
    ),
    MetricFact(
        "sfid",
        "sFID",
        "",
        "lower",
        "Frechet distance on seven channels of a 17x17 Inception map, 2023 features, sensitive to layout "
        "(Nash et al., arXiv 2103.03841; ADM evaluator).",
        "inception",
        "inception.spatial",
        "statistics",
    ),
    MetricFact(
        "is",
        "Inception Score",
        "",
        "higher",
        "exp of the mean divergence between each image's class probabilities and their mean, averaged over splits "
        "(Salimans et al., arXiv 1606.03498); needs no reference and rewards what the classifier finds easy.",
        "inception",
        "inception.logits",
        "none",
    ),
    MetricFact(
        "kid",
        "KID",
        "",
        "lower",
        "Unbiased squared maximum mean discrepancy of Inception features under the kernel (x.y/d + 1)^3, "
        "over all images (Binkowski et al., arXiv 1801.01401); may be negative.",
        "inception",
        "inception.features",
        "features",
    ),
    MetricFact(
        "kid_subsets",
        "KID over subsets",
        "",
        "lower",
        "Mean KID over seeded random subsets, as torch-fidelity computes it (Binkowski et al., arXiv 1801.01401).",
        "inception",
        "inception.features",
        "features",
    ),
    MetricFact(
        "precision",
        "Precision",
        "",
        "higher",
        "Share of generated images inside the k-nearest-neighbour ball of some reference image "
        "(Kynkaanniemi et al., arXiv 1904.06991): fidelity.",
        "inception",
        "inception.features",
        "features",
    ),
    MetricFact(
        "recall",
        "Recall",
        "",
        "higher",
        "Share of reference images inside the k-nearest-neighbour ball of some generated image "
        "(Kynkaanniemi et al., arXiv 1904.06991): coverage.",
        "inception",
        "inception.features",
        "features",
    ),
    MetricFact(
        "density",
        "Density",
        "",
        "higher",
        "Mean number of reference balls around a generated image, over k (Naeem et al., arXiv 2002.09797); "
        "may exceed 1.",
        "inception",
        "inception.features",
        "features",
    ),
    MetricFact(
        "coverage",
        "Coverage",
        "",
        "higher",
        "Share of reference balls that hold a generated image (Naeem et al., arXiv 2002.09797).",
        "inception",
        "inception.features",
        "features",
    ),
    MetricFact(
        "accuracy",
        "Label agreement",
        "",
        "higher",
        "Share of images whose most probable class under the judge's classifier is the class asked for.",
        "inception",
        "inception.logits",
        "none",
    ),
    MetricFact(
        "top1",
        "Top-1 agreement",
        "",
        "higher",
        "Share of images that a classifier of its own, read by no other metric, puts into the class asked for.",
        "classifier",
        "classifier.logits",
        "none",
    ),
    MetricFact(
        "clip",
        "CLIP score",
        "",
        "higher",
        "Mean of 100 x cosine between image and prompt embeddings, not clipped at zero "
        "(Radford et al., arXiv 2103.00020; as in the fair benchmark, arXiv 2603.14186).",
        "clip",
        "clip.score",
        "none",
    ),
    MetricFact(
        "clip_l14",
        "CLIP score, ViT-L/14",
        "",
        "higher",
        "The CLIP score by a second, larger CLIP (ViT-L/14), so that no single network decides about alignment.",
        "clip_l14",
        "clip_l14.score",
        "none",
    ),
    MetricFact(
        "pick",
        "PickScore",
        "",
        "higher",
        "Mean of exp(logit scale) x cosine under a CLIP tuned on human choices (Kirstain et al., arXiv 2305.01569).",
        "pick",
        "pick.score",
        "none",
    ),
    MetricFact(
        "image_reward",
        "ImageReward",
        "",
        "higher",
        "Mean reward of a BLIP tuned on human rankings, roughly standard normal (Xu et al., arXiv 2304.05977); "
        "some generators are trained on it.",
        "image_reward",
        "image_reward.score",
        "none",
    ),
    MetricFact(
        "hpsv2",
        "HPSv2",
        "",
        "higher",
        "Mean cosine under a CLIP ViT-H/14 tuned on human choices (Wu et al., arXiv 2306.09341); "
        "some generators are trained on it.",
        "hpsv2",
        "hpsv2.score",
        "none",
    ),
    MetricFact(
        "fd_dinov2",
        "FD-DINOv2",
        "",
        "lower",
        "Frechet distance on DINOv2 ViT-L/14 class-token features (Stein et al., arXiv 2306.04675).",
        "dinov2",
        "dinov2.features",
        "statistics",
    ),
    MetricFact(
        "cmmd",
        "CMMD",
        "x 1000",
        "lower",
        "1000 x squared maximum mean discrepancy of CLIP ViT-L/14-336 embeddings, Gaussian kernel of width 10 "
        "(Jayasumana et al., arXiv 2401.09603).",
        "clip_l14_336",
        "clip_l14_336.features",
        "features",
    ),
)

CATALOG: dict[str, MetricFact] = {fact.name: fact for fact in _FACTS}
"""Every metric by name, in the order in which tables show them."""

MMHM = MetricFact(
    "mmhm",
    "MMHM",
    "",
    "higher",
    "Harmonic mean of FID, IS, CLIP score and PickScore after min-max scaling over declared bounds (arXiv 2603.14186); "
    "computed over rows, not over a cell's images.",
    "",
    "",
    "none",
)
"""The composite that ranks rows; it is no metric of a cell and so not in CATALOG."""
