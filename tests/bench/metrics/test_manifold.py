import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from bench.metrics import manifold
from bench.metrics.manifold import balls, precision_recall, precision_recall_leave_one_out


def pair(n=120, m=150, d=6):
    random = np.random.default_rng(2)
    return (1.2 * random.normal(size=(n, d))).astype(np.float32), random.normal(size=(m, d)).astype(np.float32)


def by_hand(generated, real, k, strict):
    x, y = generated.astype(np.float64), real.astype(np.float64)

    def distances(a, b):
        return ((a[:, None] - b) ** 2).sum(axis=-1)

    inner, outer = (np.sort(distances(s, s), axis=1)[:, k] for s in (y, x))
    cross = distances(x, y)
    inside = cross < inner if strict else cross <= inner
    around = cross < outer[:, None] if strict else cross <= outer[:, None]
    return inside.any(axis=1).mean(), around.any(axis=0).mean(), inside.sum() / k / len(x), inside.any(axis=0).mean()


def test_agrees_with_torch_fidelity():
    generated, real = pair()
    expected = prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=3, verbose=False
    )
    result = precision_recall(generated, real)
    assert result.precision == pytest.approx(expected["precision"], abs=1e-6)
    assert result.recall == pytest.approx(expected["recall"], abs=1e-6)
    assert result.f_score == pytest.approx(expected["f_score"], abs=1e-6)


@pytest.mark.parametrize("comparison", ["<=", "<"])
@pytest.mark.parametrize("tile", [16, 2048])
def test_duplicates_and_ties_are_decided_exactly(monkeypatch, comparison, tile):
    monkeypatch.setattr(manifold, "TILE", tile)
    random = np.random.default_rng(3)
    generated = (random.integers(0, 3, size=(60, 3)) / 10 + 7).astype(np.float32)  # a lattice: ties everywhere
    real = (random.integers(0, 4, size=(50, 3)) / 10 + 7).astype(np.float32)
    for k in (1, 4):
        result = precision_recall(generated, real, k, comparison)
        expected = by_hand(generated, real, k, comparison == "<")
        assert (result.precision, result.recall, result.density, result.coverage) == pytest.approx(expected, abs=1e-12)


def test_only_the_weak_comparison_counts_a_sample_on_the_surface():
    real = np.array([[0.0], [1.0], [-5.0]])
    generated = np.array([[2.0], [2.0]])
    assert precision_recall(generated, real, 1, "<=").precision == 1.0
    assert precision_recall(generated, real, 1, "<").precision == 0.0


@pytest.mark.parametrize("k", [3, 5])
def test_leave_one_out_equals_measuring_without_the_block(k):
    generated, real = pair()
    blocks = np.arange(len(generated)) % 6
    whole, left, _, held = precision_recall_leave_one_out(generated, real, blocks, k, real_balls=balls(real, k))
    apart = np.linalg.norm(generated[:, None].astype(float) - real[None], axis=2)
    inside, covers = apart <= np.sqrt(balls(real, k).squared_radius), apart <= np.sqrt(held.radius)[:, None]
    assert (held.around == inside.sum(axis=1)).all() and (held.radius == balls(generated, k).squared_radius).all()
    for marked, holder in ((covers, held.reached), (inside, held.covering)):
        nearest = np.where(marked, apart, np.inf).argmin(axis=0)
        assert (holder == np.where(marked.any(axis=0), nearest, -1)).all()
    assert whole == precision_recall(generated, real, k)
    for g, figures in enumerate(left):
        assert figures == pytest.approx(precision_recall(generated[blocks != g], real, k))


def test_too_few_samples_for_k_are_refused():
    with pytest.raises(ValueError, match="at least 4 samples"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
