import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from bench.metrics import manifold
from bench.metrics.halfsamples import splits
from bench.metrics.manifold import balls, precision_recall, precision_recall_halves
from results.statistics import influences


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


def halves(split, blocks):
    return [np.flatnonzero(split[blocks] == sign) for sign in (1, -1)]


@pytest.mark.parametrize("comparison", ["<=", "<"])
@pytest.mark.parametrize(("k", "count", "real_count"), [(3, 8, 8), (5, 6, 12), (1, 7, 5)])
def test_the_error_is_that_of_measuring_the_halves(k, count, real_count, comparison):
    generated, real = pair()
    real[10:14] = real[0]  # ties
    generated[5] = real[20]
    blocks, real_blocks = np.arange(len(generated)) % count, np.arange(len(real)) % real_count
    found = precision_recall_halves(generated, real, blocks, k, comparison, balls(real, k), real_blocks)
    assert found.whole == precision_recall(generated, real, k, comparison)
    apart = np.linalg.norm(generated[:, None].astype(float) - real[None], axis=2)
    within = np.less if comparison == "<" else np.less_equal
    radius = np.sqrt(balls(real, k).squared_radius), np.sqrt(found.held.radius)[:, None]
    inside, covers = within(apart, radius[0] * (1 - 1e-12)), within(apart, radius[1] * (1 - 1e-12))
    assert (found.held.radius == balls(generated, k).squared_radius).all()
    assert (found.held.around >= inside.sum(axis=1)).all()
    for marked, holder in ((covers, found.held.reached), (inside, found.held.covering)):
        nearest = np.where(marked, apart, np.inf).min(axis=0)
        known = marked.any(axis=0)
        assert (apart[holder[known], np.flatnonzero(known)] == nearest[known]).all()
    number = min(count, real_count) - 1
    own, theirs = [], []
    for split, real_split in zip(splits(count, number), splits(real_count, number), strict=True):
        (aa, ab), (ba, bb) = [
            [np.array(precision_recall(generated[one], real[other], k, comparison))
             for other in halves(real_split, real_blocks)]
            for one in halves(split, blocks)
        ]  # fmt: skip
        own.append((aa + ab - ba - bb) / 4 * np.sqrt(abs(split[blocks]).mean()))
        theirs.append((aa - ab + ba - bb) / 4 * np.sqrt(abs(real_split[real_blocks]).mean()))
    for stands, differences in ((found.without, own), (found.without_real, theirs)):
        assert len(stands) == number + 1
        variance = (influences(np.array(stands).T) ** 2).sum(axis=1)
        assert variance == pytest.approx((np.array(differences) ** 2).mean(axis=0), abs=1e-12)
        assert np.array(stands).mean(axis=0) == pytest.approx(np.array(found.whole))


def test_a_reference_that_is_not_sampled_stays_whole():
    generated, real = pair()
    blocks = np.arange(len(generated)) % 8
    found = precision_recall_halves(generated, real, blocks, 3)
    expected = [
        (np.array(precision_recall(generated[one], real)) - np.array(precision_recall(generated[other], real))) / 2
        for one, other in (halves(split, blocks) for split in splits(8, 7))
    ]
    assert found.without_real == []
    assert (influences(np.array(found.without).T) ** 2).sum(axis=1) == pytest.approx(
        (np.array(expected) ** 2).mean(axis=0), abs=1e-12
    )


def test_halves_of_no_more_than_k_samples_have_no_error():
    generated, real = pair(n=10, m=150)
    found = precision_recall_halves(generated, real, np.arange(10) % 5, 5, real_blocks=np.arange(150) % 5)
    assert found.without == found.without_real == [] and found.whole == precision_recall(generated, real, 5)


@pytest.mark.parametrize("count", [4, 5, 6, 10, 12, 16, 20, 50])
def test_splits_are_balanced_and_nearly_orthogonal(count):
    wanted = min(count - 1, 19)
    found = splits(count, wanted).astype(int)
    assert found.shape == (wanted, count) and not found.sum(axis=1).any()
    alike = found @ found.T
    assert np.diag(alike).tolist() == [count - count % 2] * wanted
    assert (alike[np.triu_indices(wanted, 1)] ** 2).mean() <= (0 if count in (4, 12, 20) else count)
    with pytest.raises(ValueError, match=f"1 to {count - 1} splits"):
        splits(count, count)


def test_too_few_samples_for_k_are_refused():
    with pytest.raises(ValueError, match="at least 4 samples"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
