"""Frechet distances without small blocks, from one decomposition, and the algebra of an accelerator."""

import numpy as np
import pytest
import torch

from bench.metrics import algebra, downdates, root_traces
from bench.metrics.frechet import FrechetReference, distances_to_sides, sides_without_blocks
from bench.metrics.interactions import frechet_interactions
from bench.metrics.kernel import UnitGaussianKernel, kernel_distance
from bench.metrics.manifold import precision_recall_halves
from bench.metrics.measure import ReferenceFeatures, measure

DIMENSION, SAMPLES = 512, 1300


def samples(seed, n=SAMPLES, d=DIMENSION, shift=0.0):
    random = np.random.default_rng(seed)
    return (random.standard_normal((n, d)) * np.linspace(1, d, d) ** -0.5 + shift).astype(np.float32)


BLOCKS = np.arange(SAMPLES) % 20


def promised(decomposed):
    """What a distance without a block may err by: 1e-9 of tr (S1 S2)^(1/2), which it holds twice, and rounding."""
    return 2e-9 * decomposed.root_trace / np.sqrt(decomposed.blocks.size - 1) + 1e-10


def test_distances_without_blocks_of_either_side_are_those_of_their_own_eigenvalues():
    real, made = samples(0), samples(1, shift=0.02)
    reference = FrechetReference.of(real)
    value, left, decomposed = downdates.leave_one_out(reference, made, BLOCKS)
    assert decomposed is not None
    expected, expected_left = reference.leave_one_out(made, BLOCKS)
    assert value == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(left, expected_left, rtol=0, atol=1e-9)
    sides = downdates.reference_blocks_out(reference, real, BLOCKS)
    found = decomposed.without_reference_blocks(sides)
    expected = distances_to_sides(made, sides_without_blocks(real, BLOCKS))
    np.testing.assert_allclose(found, expected, rtol=0, atol=promised(decomposed))
    pairs = frechet_interactions(reference, made, BLOCKS, real, BLOCKS)
    for given in ((decomposed, sides), (decomposed, None)):
        for ours, theirs in zip(
            frechet_interactions(reference, made, BLOCKS, real, BLOCKS, *given), pairs, strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
    with algebra.on(torch.device("cpu")):
        _, _, there = downdates.leave_one_out(reference, made, BLOCKS)
        found = frechet_interactions(reference, made, BLOCKS, real, BLOCKS, there, sides)
    for ours, theirs in zip(found, pairs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e10, 1e16])
def test_the_integral_holds_for_any_condition(condition):
    random = np.random.default_rng(2)
    x = random.standard_normal((300, 120)) * np.geomspace(1, condition**-0.5, 120)
    values, vectors = np.linalg.eigh(x.T @ x)
    kept = values > 0
    z = (x[:15] @ vectors)[:, kept] / np.sqrt(values[kept])
    least = np.linalg.eigvalsh(np.eye(15) - z @ z.T)[0]
    rest = np.linalg.eigvalsh(x[15:].T @ x[15:])
    expected = np.sqrt(np.clip(values, 0, None)).sum() - np.sqrt(np.clip(rest, 0, None)).sum()
    (found,) = root_traces.root_trace_drops(values[kept], lambda *_: z, least, [0])
    assert found == pytest.approx(expected, rel=1e-8, abs=3e-7)


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e6, 1e14, 1e22])
@pytest.mark.parametrize("error", [1e-3, 1e-5, 1e-12])
def test_a_rule_for_the_inverse_root_errs_by_no_more_than_it_says_with_the_fewest_nodes(condition, error):
    nodes, weights, found, _ = root_traces.rule(0.3, 0.3 * condition, error)
    assert found <= error
    x = np.random.default_rng(0).uniform(np.log(0.3), np.log(0.3 * condition), 4000)
    x = np.exp(x)[:, None]
    relative = np.sqrt(x[:, 0]) * (weights / (x + nodes)).sum(axis=1) - 1
    assert np.abs(relative).max() <= found * 1.01 + 1e-15
    assert (nodes > 0).all() and (weights > 0).all()
    # Zolotarev's bound, 4 exp(-pi^2 N / log(4 sqrt(k))), of one node fewer exceeds the error up to a factor of 4.
    before = 4 * np.exp(-(np.pi**2) * (len(nodes) - 1) / np.log(4 * np.sqrt(max(condition, 2.0))))
    assert before > error / 4


SETTINGS = [("COARSEST", 0.5), ("TOLERANCE", 0.0), ("SINGLE_SERVES", 2.0)]


@pytest.mark.parametrize("name, setting", SETTINGS, ids=lambda value: str(value))
def test_what_is_not_proven_is_counted_by_a_finer_rule_or_in_double_precision(name, setting, monkeypatch):
    real, made, blocks = samples(0, 900), samples(1, 900, shift=0.02), BLOCKS[:900]
    reference = FrechetReference.of(real)
    sides = downdates.reference_blocks_out(reference, real, blocks)
    decomposed = downdates.by_scatter(reference, made, blocks)
    expected = [decomposed.without_blocks(), decomposed.without_reference_blocks(sides)]
    used, count = [], root_traces._logarithms

    def seen(values, rows, rule, kind, singular):
        used.append((len(rule.nodes), kind.name))
        return count(values, rows, rule, kind, singular)

    monkeypatch.setattr(root_traces, "_logarithms", seen)
    monkeypatch.setattr(root_traces, name, setting)
    found = [decomposed.without_blocks(), decomposed.without_reference_blocks(sides)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=promised(decomposed))
    assert used[0][0] > 10, "a rule that misses much of the first order is not used"
    assert (used[-2][1] == "float64") == (name != "COARSEST"), "of the last block but one, or the last before the check"


def decaying(seed, n, decay):
    x = np.random.default_rng(seed).standard_normal((n, DIMENSION)) * np.geomspace(1, decay, DIMENSION)
    return (x + 0.02 * seed).astype(np.float32)


@pytest.mark.parametrize("decay", [1e-3, 1e-6])
def test_variances_far_below_rounding_of_the_largest_keep_their_part(decay):
    real, made, blocks = decaying(0, 700, decay), decaying(1, 600, decay), BLOCKS[:600]
    reference = FrechetReference.of(real)
    value, left, decomposed = downdates.leave_one_out(reference, made, blocks)
    assert decomposed is not None
    expected, expected_left = reference.leave_one_out(made, blocks)
    assert value == pytest.approx(expected, abs=promised(decomposed))
    np.testing.assert_allclose(left, expected_left, rtol=0, atol=promised(decomposed))


def test_dead_and_doubled_features_go_the_quick_way_with_more_digits_than_their_eigenvalues():
    real, made = samples(3, 900), samples(4, 900)
    made[:, 7:30] = real[:, 7:30] = 0.25
    made[:, 40], real[:, 40] = made[:, 41], real[:, 41]
    reference, blocks = FrechetReference.of(real), BLOCKS[:900]
    value, left, decomposed = downdates.leave_one_out(reference, made, blocks)
    assert decomposed is not None
    expected, expected_left = reference.leave_one_out(made, blocks)
    assert value == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(left, expected_left, rtol=0, atol=1e-6)
    sides = downdates.reference_blocks_out(reference, real, blocks)
    found = decomposed.without_reference_blocks(sides)
    expected = distances_to_sides(made, sides_without_blocks(real, blocks))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    alive = np.delete(np.arange(DIMENSION), np.r_[7:30, 40])
    keep = np.ones(DIMENSION)
    keep[41] = np.sqrt(2)  # a feature and its double have the distance of one sqrt(2) times as wide
    reference = FrechetReference.of(real[:, alive] * keep[alive])
    expected, expected_left = reference.leave_one_out(made[:, alive] * keep[alive], blocks)
    assert value == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(left, expected_left, rtol=0, atol=promised(decomposed))


SIZES = [(600, 1300, 1.0), (600, 1300, 1e-4), (700, 640, 1.0), (640, 700, 1e-2), (640, 640, 1.0), (1300, 640, 1.0)]


@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["processor", "accelerator"])
@pytest.mark.parametrize("n, m, decay", SIZES, ids=str)
def test_a_side_of_few_samples_has_the_distances_of_its_own_singular_values(n, m, decay, device):
    dimension = 800
    spectrum = np.linspace(1, dimension, dimension) ** -0.5 * np.geomspace(1, decay, dimension)
    real, made = (
        (np.random.default_rng(seed).standard_normal((count, dimension)) * spectrum) for seed, count in ((0, m), (1, n))
    )
    blocks, real_blocks = np.arange(n) % 20, np.arange(m) % 20
    reference = FrechetReference.of(real)
    expected = reference.distance_from_features(made)
    expected_left = [reference.distance_from_features(made[blocks != block]) for block in (0, 13)]
    expected_sides = distances_to_sides(made, sides_without_blocks(real, real_blocks)[::13])
    with algebra.on(device):
        value, left, decomposed = downdates.leave_one_out(reference, made, blocks)
        assert decomposed is not None
        sides = decomposed.without_reference_blocks(downdates.reference_blocks_out(reference, real, real_blocks))
    assert value == pytest.approx(expected, abs=promised(decomposed))
    np.testing.assert_allclose(left[::13], expected_left, rtol=0, atol=promised(decomposed))
    np.testing.assert_allclose(sides[::13], expected_sides, rtol=0, atol=promised(decomposed))


def test_samples_twice_among_few_go_the_exact_way():
    real, made = samples(0, 1300), samples(1, 500, d=700)
    real, made = samples(0, 1300, d=700), np.concatenate([made, made[:60]])
    reference, blocks = FrechetReference.of(real), np.arange(560) % 20
    value, left, decomposed = downdates.leave_one_out(reference, made, blocks)
    assert decomposed is None
    expected, expected_left = reference.leave_one_out(made, blocks)
    assert value == expected and (left == expected_left).all()


def test_samples_that_do_not_differ_have_a_distance_all_the_same():
    real, made = samples(5, 600), np.full((600, DIMENSION), 0.5, np.float32)
    reference = FrechetReference.of(real)
    value, left, _ = downdates.leave_one_out(reference, made, BLOCKS[:600])
    expected = float(((reference.mu - 0.5) ** 2).sum() + np.trace(reference.sigma))
    np.testing.assert_allclose([value, *left], expected, rtol=1e-6)


def test_large_blocks_and_small_dimensions_are_not_worth_it():
    assert not downdates.pays(64, BLOCKS)
    assert not downdates.pays(512, BLOCKS % 5)
    assert downdates.pays(512, BLOCKS)


def test_a_cell_with_wide_features_takes_the_same_values_either_way(monkeypatch):
    real, made, labels = samples(5), samples(6, shift=0.02), np.arange(SAMPLES) % 10
    names, options = ["fid"], {"per_class": False}

    def fid():
        reference = ReferenceFeatures.of(real, labels)
        (value,) = measure({"inception.features": made}, reference, names, labels=labels, options=options).values
        return value

    quick = fid()
    monkeypatch.setattr(downdates, "pays", lambda *facts: False)
    exact = fid()
    for key in ("value", "low", "high", "jackknife", "jackknife_reference"):
        np.testing.assert_allclose(
            getattr(quick, key), getattr(exact, key), rtol=0, atol={"jackknife": 1e-9, "value": 1e-9}.get(key, 1e-7)
        )


DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_the_algebra_of_an_accelerator_gives_the_same_values(device):
    real, made, blocks = samples(7, 90, 24), samples(8, 80, 24, 0.1), np.arange(80) % 8
    reference = FrechetReference.of(real)

    def reduce():
        few = samples(9, 20, 24)
        return [
            *reference.leave_one_out(made, blocks),
            *reference.leave_one_out(few, np.arange(20) % 4),
            distances_to_sides(made, sides_without_blocks(real, np.arange(90) % 5)),
            *tables(kernel_distance(real, made, blocks=blocks, blocks_1=np.arange(90) % 5)),
            *tables(kernel_distance(real, made, kernel=UnitGaussianKernel(10.0), biased=True, blocks=blocks)),
            np.array(precision_recall_halves(made, real, blocks)[0]),
            np.array(precision_recall_halves(made, real, blocks)[1]),
        ]

    def tables(distance):
        numbers = (part for name, part in distance._asdict().items() if name != "interactions")
        return [*numbers, *(table for table in distance.interactions if table is not None)]

    expected = reduce()
    with algebra.on(device):
        found = reduce()
    assert algebra.device() is None
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_full_accelerator_leaves_the_metrics_to_the_processor(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    matrix = np.diag([1.0, 2.0])
    monkeypatch.setattr(torch.linalg, "eigvalsh", full)
    with algebra.on(torch.device("cpu")), pytest.warns(UserWarning, match="too little free memory"):
        assert algebra.eigvalsh(matrix).tolist() == [1.0, 2.0]


def test_eigenvalues_of_several_matrices_at_once_come_in_their_order(monkeypatch):
    random = np.random.default_rng(3)
    halves = [random.standard_normal((size, size)) for size in (6, 6, 6, 4, 4, 6, 6)]
    matrices = [half @ half.T for half in halves]
    expected = list(algebra.eigenvalues(matrices))
    stacks = []
    alone = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda stack: stacks.append(len(stack)) or alone(stack))
    monkeypatch.setattr(algebra, "AT_ONCE", 2 * 36)
    with algebra.on(torch.device("cpu")):
        found = list(algebra.eigenvalues(iter(matrices)))
    assert stacks == [2, 1, 2, 2], "of one size, one after the other, as many as memory takes"
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [11, 3], ids=["full but one", "few"])
def test_nuclear_norms_keep_their_digits_whatever_the_rank(rank):
    random = np.random.default_rng(4)
    left, right = random.standard_normal((30, rank)), random.standard_normal((rank, 12))
    matrices = [left @ right, (left @ right).T]
    expected = list(algebra.nuclear_norms(matrices))
    with algebra.on(torch.device("cpu")):
        np.testing.assert_allclose(list(algebra.nuclear_norms(matrices)), expected, rtol=1e-12)
