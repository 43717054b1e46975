"""What each number is, one row each: names, direction, unit, definition and source, and where it is read from.

Metrics of a cell come first, then composites and costs (`results.derived`). A plug-in brings rows of its own; they are
stored in the database's table `metric_facts`, and readers ask `read_facts`, so that a database with a plug-in's metric
reads right where the plug-in is not installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from results.derived import COMPOSITES, COSTS
from results.facts import MetricFact, Option, ordered

if TYPE_CHECKING:
    import duckdb

_KID = (
    Option("kid_degree", int, 3, "degree of the polynomial kernel", low=1),
    Option("kid_gamma", float, None, "factor of the inner product; 1/d by default", above=0),
    Option("kid_coef0", float, 1.0, "constant of the kernel", low=0),
)
_COMPARISON = Option("comparison", str, "<=", "whether the rim of a ball belongs to it", choices=("<=", "<"))
_NEIGHBOURS = (Option("neighborhood", int, 3, "neighbours that make a ball", low=1), _COMPARISON)
_DENSITY_NEIGHBOURS = (Option("density_neighborhood", int, 5, "neighbours that make a ball", low=1), _COMPARISON)
_CLASSES = (Option("num_classes", int, None, "classes of the labels; the largest label + 1 by default", low=1),)
VALIDATION_DISTANCES = {
    "inception": 1.68, "convnext": 56.87, "dinov2_256": 14.19, "mae": 0.04, "siglip": 0.60, "clip_256": 5.60,
}  # fmt: skip
"""Judges of FDr6, and the Frechet distance of 50,000 validation images to the training images by each (FD-Loss)."""

_METRICS = (
    MetricFact(
        name="fid",
        title="FID",
        better="lower",
        definition="Frechet distance between Gaussians fitted to Inception features of generated and reference images "
        "(Heusel et al., arXiv 1706.08500); biased upwards by about c/N, so comparable at equal N only.",
        judge="inception",
        array="inception.features",
        reference="statistics",
        lowest=0.0,
        place=10,
        summary=True,
        mmhm="FID",
    ),
    MetricFact(
        name="is",
        title="Inception Score",
        short="IS",
        better="higher",
        definition="exp of the mean divergence between each image's class probabilities and their mean, averaged over "
        "splits (Salimans et al., arXiv 1606.03498); needs no reference and rewards what the classifier finds easy.",
        judge="inception",
        array="inception.logits",
        lowest=1.0,
        place=20,
        summary=True,
        mmhm="IS",
        aliases=("is_mean", "inception_score"),
        options=(
            Option("is_splits", int, 10, "parts that the score is averaged over", low=1),
            Option("is_shuffle", bool, True, "whether images are shuffled before they are split"),
            Option("is_rng_seed", int, 2020, "seed of the shuffle", low=0),
        ),
    ),
    MetricFact(
        name="clip",
        title="CLIP score",
        short="CLIP",
        better="higher",
        definition="Mean of 100 x cosine between image and prompt embeddings, not clipped at zero "
        "(Radford et al., arXiv 2103.00020; as in the fair benchmark, arXiv 2603.14186).",
        judge="clip",
        array="clip.score",
        lowest=-100.0,
        highest=100.0,
        place=30,
        summary=True,
        mmhm="CLIP Score",
    ),
    MetricFact(
        name="pick",
        title="PickScore",
        short="Pick",
        better="higher",
        definition="Mean of exp(logit scale) x cosine under a CLIP tuned on human choices "
        "(Kirstain et al., arXiv 2305.01569).",
        judge="pick",
        array="pick.score",
        place=40,
        summary=True,
        mmhm="Pick Score",
        aliases=("pickscore",),
    ),
    MetricFact(
        name="kid",
        title="KID",
        better="lower",
        definition="Unbiased squared maximum mean discrepancy of Inception features under the kernel (x.y/d + 1)^3, "
        "over all images (Binkowski et al., arXiv 1801.01401); may be negative.",
        judge="inception",
        array="inception.features",
        reference="features",
        place=50,
        counted_from=("own", "cross"),
        options=_KID,
    ),
    MetricFact(
        name="precision",
        title="Precision",
        better="higher",
        definition="Share of generated images inside the k-nearest-neighbour ball of some reference image "
        "(Kynkaanniemi et al., arXiv 1904.06991): fidelity.",
        judge="inception",
        array="inception.features",
        reference="features",
        lowest=0.0,
        highest=1.0,
        place=60,
        counted_from=("inside",),
        options=_NEIGHBOURS,
    ),
    MetricFact(
        name="recall",
        title="Recall",
        better="higher",
        definition="Share of reference images inside the k-nearest-neighbour ball of some generated image "
        "(Kynkaanniemi et al., arXiv 1904.06991): coverage.",
        judge="inception",
        array="inception.features",
        reference="features",
        lowest=0.0,
        highest=1.0,
        place=70,
        counted_from=("radius", "holder"),
        options=_NEIGHBOURS,
    ),
    MetricFact(
        name="accuracy",
        title="Label agreement",
        short="Accuracy",
        better="higher",
        definition="Share of images whose most probable class under the judge's classifier is the class asked for.",
        judge="inception",
        array="inception.logits",
        lowest=0.0,
        highest=1.0,
        place=80,
        summary=True,
        options=_CLASSES,
    ),
    MetricFact(
        name="fid_corrected",
        title="FID, bias-corrected",
        better="lower",
        definition="FID less its 1/N bias (Chong and Forsyth, arXiv 1911.07023) as the delete-block jackknife "
        "estimates it.",
        judge="inception",
        array="inception.features",
        reference="statistics",
        place=90,
    ),
    MetricFact(
        name="fid_infinity",
        title="FID-infinity",
        better="lower",
        definition="FID extrapolated in 1/N to infinitely many generated images (Chong and Forsyth, arXiv 1911.07023).",
        judge="inception",
        array="inception.features",
        reference="statistics",
        place=100,
        options=(
            Option("fid_infinity_sizes", int, 15, "numbers of images that the line goes through", low=2),
            Option("fid_infinity_draws", int, 3, "random draws of each", low=1),
            Option("fid_infinity_rng_seed", int, 2020, "seed of the draws", low=0),
        ),
    ),
    MetricFact(
        name="sfid",
        title="sFID",
        better="lower",
        definition="Frechet distance on seven channels of a 17x17 Inception map, 2023 features, sensitive to layout "
        "(Nash et al., arXiv 2103.03841; ADM evaluator).",
        judge="inception",
        array="inception.spatial",
        reference="statistics",
        lowest=0.0,
        place=110,
    ),
    MetricFact(
        name="kid_subsets",
        title="KID over subsets",
        better="lower",
        definition="Mean KID over seeded random subsets, as torch-fidelity computes it "
        "(Binkowski et al., arXiv 1801.01401).",
        judge="inception",
        array="inception.features",
        reference="features",
        place=120,
        options=(
            *_KID,
            Option("kid_subsets", int, 100, "number of random subsets", low=1),
            Option("kid_subset_size", int, 1000, "images in each", low=2),
            Option("kid_rng_seed", int, 2020, "seed of the draws", low=0),
        ),
    ),
    MetricFact(
        name="density",
        title="Density",
        better="higher",
        definition="Mean number of reference balls around a generated image, over k "
        "(Naeem et al., arXiv 2002.09797); may exceed 1.",
        judge="inception",
        array="inception.features",
        reference="features",
        lowest=0.0,
        place=130,
        counted_from=("around",),
        options=_DENSITY_NEIGHBOURS,
    ),
    MetricFact(
        name="coverage",
        title="Coverage",
        better="higher",
        definition="Share of reference balls that hold a generated image (Naeem et al., arXiv 2002.09797).",
        judge="inception",
        array="inception.features",
        reference="features",
        lowest=0.0,
        highest=1.0,
        place=140,
        counted_from=("holder",),
        options=_DENSITY_NEIGHBOURS,
    ),
    MetricFact(
        name="top1",
        title="Top-1 agreement",
        short="Top-1",
        better="higher",
        definition="Share of images that a classifier of its own, read by no other metric, puts into the class asked "
        "for.",
        judge="classifier",
        array="classifier.logits",
        lowest=0.0,
        highest=1.0,
        place=150,
        options=_CLASSES,
    ),
    MetricFact(
        name="clip_l14",
        title="CLIP score, ViT-L/14",
        short="CLIP L/14",
        better="higher",
        definition="The CLIP score by a second, larger CLIP (ViT-L/14), so that no single network decides about "
        "alignment.",
        judge="clip_l14",
        array="clip_l14.score",
        lowest=-100.0,
        highest=100.0,
        place=160,
    ),
    MetricFact(
        name="image_reward",
        title="ImageReward",
        better="higher",
        definition="Mean reward of a BLIP tuned on human rankings, roughly standard normal "
        "(Xu et al., arXiv 2304.05977); some generators are trained on it.",
        judge="image_reward",
        array="image_reward.score",
        place=170,
    ),
    MetricFact(
        name="hpsv2",
        title="HPSv2",
        better="higher",
        definition="Mean cosine under a CLIP ViT-H/14 tuned on human choices (Wu et al., arXiv 2306.09341); "
        "some generators are trained on it.",
        judge="hpsv2",
        array="hpsv2.score",
        place=180,
    ),
    MetricFact(
        name="aesthetic",
        title="aesthetic score",
        better="higher",
        definition="Mean rating, about 1 to 10, that LAION's aesthetic predictor V2 expects of an image, by CLIP "
        "ViT-L/14; it reads no prompt, and some generators are trained on images that it chose.",
        judge="aesthetic",
        array="aesthetic.score",
        place=185,
    ),
    MetricFact(
        name="fd_dinov2",
        title="FD-DINOv2",
        better="lower",
        definition="Frechet distance on DINOv2 ViT-L/14 class-token features (Stein et al., arXiv 2306.04675).",
        judge="dinov2",
        array="dinov2.features",
        reference="statistics",
        lowest=0.0,
        place=190,
    ),
    MetricFact(
        name="fd_cross_check",
        title="FD, second network",
        short="FD check",
        better="lower",
        definition="Frechet distance on features of a second network, trained apart from the one that FID reads.",
        judge="cross_check",
        array="cross_check.features",
        reference="statistics",
        lowest=0.0,
        place=195,
    ),
    MetricFact(
        name="cmmd",
        title="CMMD",
        unit="x 1000",
        better="lower",
        definition="1000 x squared maximum mean discrepancy of CLIP ViT-L/14-336 embeddings of unit length, Gaussian "
        "kernel of width 10 (Jayasumana et al., arXiv 2401.09603).",
        judge="clip_l14_336",
        array="clip_l14_336.features",
        reference="features",
        lowest=0.0,
        place=200,
        counted_from=("own", "cross"),
        options=(
            Option("cmmd_sigma", float, 10.0, "width of the Gaussian kernel", above=0),
            Option("cmmd_scale", float, 1000.0, "factor of the value", above=0),
        ),
    ),
    MetricFact(
        name="fd_convnext",
        title="FD-ConvNeXt",
        short="FD-ConvNeXt",
        better="lower",
        definition="Frechet distance on ConvNeXt V2 features, pooled (FD-Loss, arXiv 2604.28190).",
        judge="convnext",
        array="convnext.features",
        reference="statistics",
        lowest=0.0,
        place=210,
    ),
    MetricFact(
        name="fd_dinov2_256",
        title="FD-DINOv2, 256 pixels",
        short="FD-DINOv2 256",
        better="lower",
        definition="Frechet distance on DINOv2 ViT-L/14 class tokens of 256 pixels (FD-Loss, arXiv 2604.28190).",
        judge="dinov2_256",
        array="dinov2_256.features",
        reference="statistics",
        lowest=0.0,
        place=220,
    ),
    MetricFact(
        name="fd_mae",
        title="FD-MAE",
        short="FD-MAE",
        better="lower",
        definition="Frechet distance on MAE ViT-L/16 class tokens (FD-Loss, arXiv 2604.28190).",
        judge="mae",
        array="mae.features",
        reference="statistics",
        lowest=0.0,
        place=230,
    ),
    MetricFact(
        name="fd_siglip",
        title="FD-SigLIP",
        short="FD-SigLIP",
        better="lower",
        definition="Frechet distance on SigLIP 2 features, pooled by attention (FD-Loss, arXiv 2604.28190).",
        judge="siglip",
        array="siglip.features",
        reference="statistics",
        lowest=0.0,
        place=240,
    ),
    MetricFact(
        name="fd_clip",
        title="FD-CLIP",
        short="FD-CLIP",
        better="lower",
        definition="Frechet distance on CLIP ViT-L/14 class tokens of 256 pixels (FD-Loss, arXiv 2604.28190).",
        judge="clip_256",
        array="clip_256.features",
        reference="statistics",
        lowest=0.0,
        place=250,
    ),
    MetricFact(
        name="fdr6",
        title="FDr6",
        better="lower",
        definition="Frechet distances in six feature spaces, each over the one that its authors measured for "
        "validation images, averaged: 1 is as far as those are (FD-Loss, arXiv 2604.28190). Like published figures "
        "only against statistics of ImageNet's training images.",
        judge="inception, convnext, dinov2_256, mae, siglip, clip_256",
        array="inception.features",
        reference="statistics",
        lowest=0.0,
        place=260,
        options=tuple(
            Option(f"fdr6_{space}", float, distance, f"distance of validation images by {space}", above=0)
            for space, distance in VALIDATION_DISTANCES.items()
        ),
    ),
)

CATALOG: dict[str, MetricFact] = {fact.name: fact for fact in ordered(_METRICS)}
"""Every built-in metric by name, in the order in which tables show them."""

FACTS: dict[str, MetricFact] = {fact.name: fact for fact in (*CATALOG.values(), *COMPOSITES, *COSTS)}
"""Everything that rows can be sorted by: metrics, composites and costs."""

MMHM_METRICS: tuple[str, ...] = tuple(fact.name for fact in CATALOG.values() if fact.mmhm)
"""The four metrics that MMHM reads, in its order."""


def read_facts(connection: duckdb.DuckDBPyConnection) -> dict[str, MetricFact]:
    """Return FACTS with the facts that a database states over them: those of plug-ins' metrics among them."""
    result = connection.execute("SELECT * FROM metric_facts")
    names = [column[0] for column in result.description or []]
    stated = [_fact(dict(zip(names, row, strict=True))) for row in result.fetchall()]
    return FACTS | {fact.name: fact for fact in stated}


def _fact(row: Mapping[str, Any]) -> MetricFact:
    """Return the fact of a row of table `metric_facts`; columns without a value keep what the catalogue says."""
    known = CATALOG.get(row["metric"])
    own = {} if known is None else {field.name: getattr(known, field.name) for field in dataclasses.fields(known)}
    stated = {key: value for key, value in row.items() if value is not None}
    stated["name"] = stated.pop("metric")
    stated["better"] = "higher" if stated.pop("higher_is_better") else "lower"
    return MetricFact(**own | stated)
