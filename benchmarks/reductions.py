"""The reductions behind `evaluation.py --algebra`, `--reductions` and `--fid`: ours, scipy's and torch-fidelity's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def algebra(dimension: int = 2048) -> None:
    """Print the trace at full rank and one class of 50 against 50, ours and by scipy's sqrtm."""
    from scipy.linalg import sqrtm

    from bench.metrics.frechet import FrechetReference, Moments, frechet_distance_from_features

    random = np.random.default_rng(0)
    spectrum = np.linspace(1, dimension, dimension) ** -0.5
    a, b = (random.standard_normal((2 * dimension, dimension)) * spectrum + shift for shift in (0.0, 0.02))

    def timed(work: Callable[[], float], repeats: int) -> tuple[float, float]:
        seconds = []
        for _ in range(repeats):
            began = time.process_time()
            value = work()
            seconds.append(time.process_time() - began)
        return float(np.median(seconds)), value

    def by_root(m1: np.ndarray, s1: np.ndarray, m2: np.ndarray, s2: np.ndarray) -> float:
        return float((m1 - m2) @ (m1 - m2) + np.trace(s1) + np.trace(s2) - 2 * np.trace(sqrtm(s1 @ s2)).real)

    def by_ridge(x: np.ndarray, y: np.ndarray) -> float:
        s1, s2 = (np.cov(part, rowvar=False) + 1e-6 * np.eye(dimension) for part in (x, y))
        return by_root(x.mean(axis=0), s1, y.mean(axis=0), s2)

    reference = FrechetReference.of(a)
    _ = reference.root
    moments = Moments.of(b, shift=reference.mu)
    facts = (reference.mu, reference.sigma, moments.mean, moments.covariance)
    few_a, few_b = a[:50].astype(np.float32), b[:50].astype(np.float32)
    rows = {
        "distance from moments, ours (factor kept)": timed(lambda: reference.distance(moments), 3),
        "distance from moments, scipy sqrtm": timed(lambda: by_root(*facts), 1),
        "class of 50 against 50, ours": timed(lambda: frechet_distance_from_features(few_a, few_b), 20),
        "class of 50 against 50, ridge and sqrtm": timed(lambda: by_ridge(few_a, few_b), 1),
    }
    print(f"\nd = {dimension}\n\n| what | processor seconds | value |\n|---|---|---|")
    for name, (seconds, value) in rows.items():
        print(f"| {name} | {seconds:.5f} | {value:.6f} |")


def reductions(count: int, references: int, dimension: int = 2048, classes: int = 1008) -> None:
    """Print the seconds from features of Inception's size to metrics: ours, with intervals, and torch-fidelity's."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    from bench.metrics.measure import ReferenceFeatures
    from bench.metrics.measure import measure as measure_cell

    random = np.random.default_rng(0)
    spectrum = np.linspace(1, dimension, dimension) ** -0.5
    real = (random.standard_normal((references, dimension)) * spectrum).astype(np.float32)
    made = (random.standard_normal((count, dimension)) * spectrum + 0.02).astype(np.float32)
    logits = random.standard_normal((count, classes)).astype(np.float32)
    labels = np.arange(count) % 10
    reference = ReferenceFeatures.of(real, np.arange(references) % 10)
    statistics = fid_features_to_statistics(torch.from_numpy(real))

    def fid() -> None:
        mine = fid_features_to_statistics(torch.from_numpy(made))
        fid_statistics_to_metric(mine, statistics, False)

    a, b = torch.from_numpy(made), torch.from_numpy(real)
    size = min(1000, references, count)
    theirs: dict[str, Callable[[], Any]] = {
        "fid": fid,
        "is": lambda: isc_features_to_metric(torch.from_numpy(logits), 10, True, 2020),
        "kid": lambda: kid_features_to_metric(
            a, b, kid_subsets=100, kid_subset_size=size, kid_kernel="poly", kid_kernel_poly_degree=3,
            kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, kid_kernel_rbf_sigma=10.0, rng_seed=2020,
            verbose=False,
        ),
        "precision, recall": lambda: prc_features_to_metric(
            a, b, prc_neighborhood=3, prc_batch_size=10000, save_cpu_ram=False, verbose=False
        ),
    }  # fmt: skip
    print(f"\n{count} images, {references} reference images, d = {dimension}, 20 blocks\n")
    print("| metric | ours, with interval | torch-fidelity |\n|---|---|---|")
    for name, work in theirs.items():
        names = name.split(", ")
        arrays = {"inception.features": made, "inception.logits": logits}
        options = {"per_class": False}
        measure_cell(
            {key: value[:100] for key, value in arrays.items()}, reference, names, labels=labels[:100], options=options
        )
        began = time.process_time()
        measure_cell(arrays, reference, names, labels=labels, blocks=20, options=options)
        mine, began = time.process_time() - began, time.process_time()
        work()
        print(f"| {name} | {mine:.2f} s | {time.process_time() - began:.2f} s |", flush=True)


def fid(count: int, references: int, dimension: int = 2048, repeats: int = 3) -> None:
    """Print the parts of FID with its interval, torch-fidelity's FID without one, and how far the blocks are off.

    CPU seconds, the median of `repeats`; both take the same features in the same process, alternating. Blocks are held
    against their own eigenvalues, which takes longer than all the rest.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    from bench.metrics import downdates
    from bench.metrics.frechet import FrechetReference, distances_to_sides, sides_without_blocks

    random = np.random.default_rng(0)
    spectrum = np.linspace(1, dimension, dimension) ** -0.5
    real = (random.standard_normal((references, dimension)) * spectrum).astype(np.float32)
    made = (random.standard_normal((count, dimension)) * spectrum + 0.02).astype(np.float32)
    blocks, real_blocks = np.arange(count) % 20, np.arange(references) % 20
    reference = FrechetReference.of(real)
    print(f"\n{count} images, {references} reference images, d = {dimension}, 20 blocks of either side\n")
    if downdates.decompose(reference, made, blocks) is None:
        print("blocks of this size are counted by their own eigenvalues; nothing to compare")
        return
    _ = reference.triangular
    began = time.process_time()
    out = downdates.reference_blocks_out(reference, real, real_blocks)
    kept = time.process_time() - began
    statistics = fid_features_to_statistics(torch.from_numpy(real))
    seconds = []
    for _ in range(repeats):
        clock = [time.process_time()]
        decomposed = downdates.decompose(reference, made, blocks)
        clock.append(time.process_time())
        left = decomposed.without_blocks()
        clock.append(time.process_time())
        left_reference = decomposed.without_reference_blocks(out)
        clock.append(time.process_time())
        theirs = fid_statistics_to_metric(fid_features_to_statistics(torch.from_numpy(made)), statistics, False)
        clock.append(time.process_time())
        seconds.append(np.diff(clock))
    value, own, other, fidelity = np.median(seconds, axis=0)
    rows = {
        "value, and samples in its basis": value,
        "20 blocks of the samples": own,
        "20 blocks of the reference": other,
        "torch-fidelity's FID": fidelity,
        "once for a reference: its samples made white": kept,
    }
    print("| part | CPU s | share of torch-fidelity's |\n|---|---|---|")
    for name, part in rows.items():
        print(f"| {name} | {part:.2f} | {part / fidelity:.2f} |")
    print(f"| *value and the samples' blocks* | {value + own:.2f} | {(value + own) / fidelity:.2f} |")
    print(f"| *all three* | {value + own + other:.2f} | {(value + own + other) / fidelity:.2f} |")
    exact, exact_left = reference.leave_one_out(made, blocks)
    (name,) = theirs
    print(f"\nFID {decomposed.distance:.9f}; {exact:.9f} by eigenvalues; {theirs[name]:.9f} by torch-fidelity")
    half = 2.0 * np.sqrt(19 / 20 * ((exact_left - exact_left.mean()) ** 2).sum())
    differences = {"samples": np.abs(left - exact_left).max()}
    if left_reference is not None:
        expected = distances_to_sides(made, sides_without_blocks(real, real_blocks))
        differences["reference"] = np.abs(left_reference - expected).max()
    facts = ", ".join(f"{side}: {largest:.1e}" for side, largest in differences.items())
    print(f"largest difference of a block from its own eigenvalues, {facts}; half width {half:.1e}")
