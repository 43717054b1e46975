"""What rows have besides metrics: composites, computed over the rows of a ranking, and costs, columns of a cell."""

from __future__ import annotations

from results.facts import MetricFact

COMPOSITES = (
    MetricFact(
        name="mmhm",
        title="MMHM",
        better="higher",
        definition="MinMax Harmonic Mean of FID, IS, CLIP score and PickScore, each scaled to [0, 1] "
        "(arXiv 2603.14186).",
        array="mmhm",
        place=0,
        kind="composite",
    ),
    MetricFact(
        name="rank",
        title="Rank by MMHM",
        short="rank",
        better="lower",
        definition="Median over resamples of the place by MMHM; 1 is best.",
        array="rank",
        lowest=1.0,
        place=1,
        kind="composite",
    ),
    MetricFact(
        name="geometric",
        title="Geometric mean",
        short="geometric",
        better="higher",
        definition="Geometric mean of the four normalised metrics of MMHM: a last place costs a factor, not all.",
        array="geometric",
        place=2,
        kind="composite",
    ),
    MetricFact(
        name="mean_rank",
        title="Mean rank",
        short="mean rank",
        better="lower",
        definition="Mean place over the four metrics of MMHM; 1 is best.",
        array="mean_rank",
        lowest=1.0,
        place=3,
        kind="composite",
    ),
)

COSTS = (
    MetricFact(
        name="steps",
        title="Sampler steps",
        short="steps",
        better="lower",
        definition="Sampler steps asked for.",
        array="steps",
        lowest=0.0,
        kind="cost",
    ),
    MetricFact(
        name="nfe",
        title="Network evaluations per image",
        short="NFE",
        better="lower",
        definition="Measured network evaluations per image; both passes of guidance are counted.",
        array="nfe",
        lowest=0.0,
        kind="cost",
    ),
    MetricFact(
        name="images_per_second",
        title="Images per second",
        short="images/s",
        unit="1/s",
        better="higher",
        definition="Images per second of sampling and decoding in batches: the median of repetitions.",
        array="images_per_second",
        digits=3,
        lowest=0.0,
        kind="cost",
    ),
    MetricFact(
        name="latency_seconds",
        title="Latency of one image",
        short="latency",
        unit="s",
        better="lower",
        definition="Seconds for one image at batch 1: the median of repetitions after a warm-up.",
        array="latency_seconds",
        digits=3,
        lowest=0.0,
        kind="cost",
    ),
)
