"""Replay of recorded metric cases (adapter `metrics`): every kind to the functions that the runner uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from bench.contracts.recording import Call, Case
from bench.metrics import frechet, inception, kernel, manifold
from results import composite
from results.errors import unknown

Result = Mapping[str, Any]
Inputs = Mapping[str, np.ndarray]


def replay(case: Case) -> Callable[[Call], Result]:
    """Return the replay of one case, a function from a call to {"expected": ...} (and "output" for judge calls)."""

    def run(call: Call) -> Result:
        kind = call["kind"]
        if kind in JUDGE_KINDS:
            from bench.recordings.judges import replay_judges  # loads CLIP libraries

            result: Result = replay_judges(case, call)
            return result
        if kind not in KINDS:
            raise unknown("metric call kind", kind, [*KINDS, *JUDGE_KINDS])
        inputs = {role: case.tensors[name].numpy() for role, name in call.get("inputs", {}).items() if name is not None}
        return {"expected": KINDS[kind](inputs, call.get("options", {}), call)}

    return run


def _mmhm(inputs: Inputs, options: Mapping[str, Any], call: Call) -> Result:
    result = composite.minmax_harmonic_mean(
        call["table"], eps=options.get("eps", 1e-3), bounds=options.get("bounds"), clip=options.get("clip", False)
    )
    return {
        "scores": result.scores,
        "scores_5_significant": composite.five_significant(result.scores),
        "bounds": result.bounds,
        "utilities": result.utilities,
    }


def _fid(inputs: Inputs, options: Mapping[str, Any], call: Call) -> Result:
    if "mu_1" in inputs:
        names = ("mu_1", "sigma_1", "mu_2", "sigma_2")
        return {"value": frechet.frechet_distance(*(inputs[name] for name in names))}
    a, b = _rows(inputs, options)
    if "labels_1" in inputs:
        classes = frechet.frechet_per_class(a, inputs["labels_1"], b, inputs["labels_2"])
        return {"per_class": {str(label): value for label, value in classes.items()}}
    return {"value": frechet.frechet_distance_from_features(a, b)}


def _fid_statistics(inputs: Inputs, options: Mapping[str, Any], call: Call) -> Result:
    features = inputs["features_1"] if "features_1" in inputs else inputs["features"]
    moments = frechet.Moments.of(features, shift=features[0])
    return {"mu": torch.from_numpy(moments.mean), "sigma": torch.from_numpy(moments.covariance), "n": moments.n}


def _inception_score(inputs: Inputs, options: Mapping[str, Any], call: Call) -> Result:
    logits = inputs["logits"][: options.get("rows")]
    if "labels" in inputs:
        classes = inception.inception_score_per_class(logits, inputs["labels"])
        return {"per_class": {str(label): value for label, value in classes.items()}}
    if "chunk_size" in options:
        return inception.inception_score_by_chunk(logits, options["chunk_size"])._asdict()
    return inception.inception_score(
        logits, options.get("splits", 10), options.get("shuffle", True), options.get("rng_seed", 2020)
    )._asdict()


def _kid(inputs: Inputs, options: Mapping[str, Any], call: Call) -> Result:
    a, b = _rows(inputs, options)
    form: kernel.Kernel = kernel.PolynomialKernel(
        options.get("kid_kernel_poly_degree", 3),
        options.get("kid_kernel_poly_gamma"),
        options.get("kid_kernel_poly_coef0", 1.0),
    )
    if options.get("kid_kernel", "poly") == "rbf":
        form = kernel.GaussianKernel(options.get("kid_kernel_rbf_sigma", 10.0))
    if "kid_subsets" not in options and "kid_subset_size" not in options:
        biased = str(options.get("estimator", "")).startswith("biased")
        return {"value": kernel.kernel_distance(a, b, kernel=form, biased=biased).value}
    return kernel.kernel_distance_subsets(
        a,
        b,
        subsets=options.get("kid_subsets", 100),
        subset_size=options.get("kid_subset_size", 1000),
        kernel=form,
        rng_seed=options.get("rng_seed", 2020),
    )._asdict()


def _precision_recall(inputs: Inputs, options: Mapping[str, Any], call: Call) -> Result:
    comparison: manifold.Comparison = "<" if str(options.get("comparison", "<=")) in ("<", "strict <") else "<="
    k = options.get("neighborhood", 3)
    return manifold.precision_recall(inputs["generated"], inputs["real"], k, comparison)._asdict()


def _cmmd(inputs: Inputs, options: Mapping[str, Any], call: Call) -> Result:
    a, b = _rows(inputs, options)
    biased = not str(options.get("estimator", "biased")).startswith("unbiased")
    sigma, scale = options.get("sigma", 10.0), options.get("scale", 1000.0)
    return {"value": kernel.clip_maximum_mean_discrepancy(a, b, sigma=sigma, scale=scale, biased=biased).value}


def _sliced_wasserstein(inputs: Inputs, options: Mapping[str, Any], call: Call) -> Result:
    a, b = _rows(inputs, options)
    directions = inputs["directions"]
    if directions.shape[0] != a.shape[1]:
        directions = directions.T
    return {"mean_squared": kernel.sliced_wasserstein(a, b, directions)}


def _rows(inputs: Inputs, options: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    rows = options.get("rows")
    return inputs["features_1"][:rows], inputs["features_2"][:rows]


JUDGE_KINDS = ("clip", "clip-features", "clip-tokens", "clip-preprocess", "resize", "pick", "pick-features")

KINDS: dict[str, Callable[[Inputs, Mapping[str, Any], Call], Result]] = {
    "mmhm": _mmhm,
    "fid": _fid,
    "fid-statistics": _fid_statistics,
    "is": _inception_score,
    "kid": _kid,
    "prc": _precision_recall,
    "cmmd": _cmmd,
    "sliced-wasserstein": _sliced_wasserstein,
}
