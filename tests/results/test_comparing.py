"""Rows against rows, and rows against what was published."""

import json

import numpy as np
import pytest

from bench.cli import main
from results.cells import CellDirectory
from results.claims import published_claims
from results.comparing import compare_cells, compare_settings
from results.errors import BenchError
from results.matrix import compare_several

LEFT = np.linspace(-1, 1, 20)


def test_a_paired_difference_forgets_what_both_rows_share(synthetic):
    database = synthetic()
    database.add("one", {"fid": 3.0}, {"fid": 3.0 + LEFT})
    database.add("other", {"fid": 2.9}, {"fid": 2.9 + LEFT + 0.001 * LEFT[::-1]})
    (difference,) = compare_cells(database.write(), "one", "other").differences
    assert difference.difference == pytest.approx(0.1)
    assert difference.high - difference.low < 0.06
    assert difference.verdict == "b is better"


def test_rows_of_other_rankings_are_not_compared_and_a_seed_tells_two_apart(synthetic):
    database = synthetic()
    for seed in (0, 7):
        for model in ("one", "other"):
            database.add(model, {"fid": 3.0}, {"fid": 3.0 + LEFT}, seed=seed, ranking=f"k{seed}")
    path = database.write()
    with pytest.raises(
        BenchError,
        match=r"'one' matches 2 rows: .* seed 0\); .* seed 7\); use one cell id, .* or "
        "--seed",
    ):
        compare_cells(path, "one", "other")
    assert "seed 7" in compare_cells(path, "one@1", "other@1@1.0", seed=7).title_a
    with pytest.raises(BenchError, match="were not measured alike"):
        compare_cells(path, "0" * 20, "0" * 19 + "3")
    with pytest.raises(BenchError, match="no finished row 'one' of seed 9"):
        compare_cells(path, "one", "other", seed=9)


def test_scores_of_single_images_have_a_win_rate_with_wilsons_interval(synthetic, capsys, tmp_path):
    database = synthetic(num_samples=100)
    for model in ("one", "other"):
        database.add(model, {"fid": 3.0, "pick": 20.0}, {"fid": 3.0 + LEFT, "pick": 20.0 + LEFT})
    path = database.write()
    scores = np.arange(100, dtype=np.float32)
    others = np.where(scores < 60, scores - 1, np.where(scores < 80, scores, scores + 1)).astype(np.float32)
    assert {d.win_rate for d in compare_cells(path, "one", "other").differences} == {None}  # no directories here
    for index, values in enumerate((scores, others)):
        directory = CellDirectory(path.parent, f"{index:020d}").path
        directory.mkdir(parents=True)
        np.save(directory / "pick.score.npy", values)
    fid, pick = compare_cells(path, "one", "other").differences
    assert fid.win_rate is None
    assert pick.win_rate == pytest.approx(0.7)  # 60 wins and half of 20 ties
    assert (pick.win_low, pick.win_high) == pytest.approx((0.6042, 0.7811), abs=1e-4)
    with pytest.raises(SystemExit):
        main(["compare", "one", "other", "--runs-dir", str(path.parent)])
    assert "pick: a's image scores above b's in 70.0% of pairs (60.4% to 78.1%)" in capsys.readouterr().out


def test_a_measured_row_is_held_against_its_card_in_half_widths(synthetic):
    database = synthetic(reference="adm-imagenet-256", num_samples=50_000)
    database.add("meanflow-b-4", {"fid": 11.65, "is": 200.0})
    (claim,) = published_claims(database.write(), "meanflow-b-4").claims  # the collected 11.4 gives way to the card
    assert (claim.metric, claim.published) == ("fid", 11.35)
    assert claim.half_widths == pytest.approx(3.0)
    assert "meanflow" in claim.source
    assert claim.not_comparable == ()


def test_figures_of_another_n_reference_or_protocol_are_said_not_to_compare(synthetic):
    database = synthetic(num_samples=2000, reference="imagenet-val-256-adm-crop")
    database.add("imf-xl", {"fid": 1.9, "is": 282.0}, cfg=8.0, sampler="plain")
    claims = published_claims(database.write(), "imf-xl").claims
    by_metric = {claim.metric: claim.not_comparable for claim in claims}
    assert "N is 2,000, published figures use 50,000" in by_metric["is"]
    assert any("the reference is 'imagenet-val-256-adm-crop'" in line for line in by_metric["fid"])
    assert not any("reference" in line for line in by_metric["is"])  # it needs none
    assert any("the sampler is 'plain'" in line for line in by_metric["fid"])
    assert {claim.published for claim in claims} == {1.72, 1.7, 282.0, 279.9}  # every source, the 1-step figures only


def test_figures_of_other_steps_and_scales_are_named_not_compared(synthetic):
    database = synthetic()
    database.add("imf-xl", {"fid": 1.9}, cfg=1.0, steps=4)
    found = published_claims(database.write(), "imf-xl")
    assert found.claims == [] and "fid 1.54 at 2 steps, cfg 4" in found.elsewhere


def test_collected_figures_answer_where_the_card_has_none(synthetic, monkeypatch):
    from results.published import figures_of

    known = figures_of({"soflow-xl-2"})
    monkeypatch.setattr("results.claims.figures_of", lambda models: known if models == {"digits-flow"} else [])
    database = synthetic()
    database.protocol["resolution"] = 256  # as the figures'
    database.add("digits-flow", {"fid": 3.0}, steps=2)
    (claim,) = published_claims(database.write(), "digits-flow").claims
    assert claim.published == 2.6606 and "zlab-princeton/SoFlow" in claim.source and "ADM evaluator" in claim.source


def test_the_command_says_when_nothing_was_published(synthetic, capsys, tmp_path):
    database = synthetic(num_samples=2000)
    database.add("digits-flow", {"fid": 3.0})
    database.add("soflow-xl-2", {"fid": 3.0})
    database.write()

    def bench(*words):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--runs-dir", str(tmp_path / "runs")])
        return stop.value.code, *capsys.readouterr()

    code, out, _ = bench("compare", "digits-flow", "--published")
    assert code == 0 and out == "digits-flow: no published figure for the measured metrics\n"
    code, out, _ = bench("compare", "soflow-xl-2", "--published")
    assert code == 0 and "2.9617" in out and "+0.4" in out and "Not comparable: N is 2,000" in out
    code, out, _ = bench("compare", "soflow-xl-2", "--published", "--json")
    assert json.loads(out)[0]["published"] == 2.9617
    for words in (("compare", "digits-flow"), ("compare", "digits-flow", "soflow-xl-2", "--published")):
        code, _, err = bench(*words)
        assert code == 2 and err == "Error: compare: name two or more rows, or one row and --published\n"


def several(synthetic, count=12):
    database = synthetic()
    noise = np.random.default_rng(0).normal(size=(count, 20))
    for index in range(count):
        value = 3.0 if index < count - 1 else 9.0
        database.add(
            f"model-{index}", {"fid": value + index / 1000}, {"fid": value + index / 1000 + 0.1 * noise[index]}
        )
    return database.write()


def test_several_rows_make_a_matrix_that_names_ties(synthetic, capsys):
    path = several(synthetic)
    names = [f"model-{index}" for index in range(12)]
    outcome = compare_several(path, names)
    assert len(outcome.pairs) == 66
    leading, rest = outcome.leading("fid")
    assert [row.cell["model"] for row in leading] == names[:-1] and [row.cell["model"] for row in rest] == names[-1:]
    assert outcome.verdict("fid", outcome.rows[0], outcome.rows[11]) == "better"
    assert outcome.verdict("fid", outcome.rows[11], outcome.rows[0]) == "worse"
    wide = next(pair for pair in outcome.pairs if (pair.a, pair.b) == ("0" * 20, f"{1:020d}"))
    (single,) = compare_cells(path, *names[:2]).differences
    assert wide.difference == pytest.approx(single.difference)
    assert wide.high - wide.low > 1.3 * (single.high - single.low)
    with pytest.raises(SystemExit):
        main(["compare", *names, "--runs-dir", str(path.parent)])
    printed = capsys.readouterr().out
    assert "a, b and 9 more lead, tied" in printed and "row compared with column: > better" in printed


def test_a_row_is_not_compared_with_itself(synthetic):
    path = several(synthetic, 3)
    with pytest.raises(BenchError, match=r"are the same row, 0{20}: there is nothing to compare"):
        compare_cells(path, "model-0", "model-0@1")
    with pytest.raises(BenchError, match="'model-1' and 'model-1@1' are the same row"):
        compare_several(path, ["model-0", "model-1", "model-1@1"])


def test_two_models_are_compared_at_every_step_count_in_common(synthetic, capsys):
    database = synthetic()
    for model, counts in (("one", (1, 2, 4)), ("other", (2, 4, 8))):
        for steps in counts:
            database.add(model, {"fid": 3.0}, {"fid": 3.0 + LEFT / steps}, steps=steps)
    path = database.write()
    assert [outcome.rows[1].cell["steps"] for outcome in compare_settings(path, "one", "other")] == [2, 4]
    with pytest.raises(SystemExit):
        main(["compare", "one", "other", "--json", "--runs-dir", str(path.parent)])
    assert [entry["steps"] for entry in json.loads(capsys.readouterr().out)] == [2, 4]
    with pytest.raises(BenchError, match="are the same rows"):
        compare_settings(path, "one", "one")
    both = {"pair": [("one", (1, 2)), ("other", (3, 9))]}
    assert [o.rows[0].cell["model"] for o in compare_settings(path, "pair", "other", members=both)] == ["one"]


def test_pairs_that_fids_bias_puts_in_order_are_named(synthetic, capsys):
    database = synthetic()
    for model, value, corrected in (("varied", 3.0, 2.0), ("collapsed", 2.9, 2.5), ("bad", 9.0, 8.0)):
        database.add(model, {"fid": value}, {"fid": value + LEFT})
        database.records[-1]["metrics"][0]["corrected"] = corrected
    path = database.write()
    for words in (["leaderboard"], ["compare", "varied", "collapsed"], ["compare", "varied", "collapsed", "bad"]):
        with pytest.raises(SystemExit):
            main([*words, "--runs-dir", str(path.parent)])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Without FID's bias")]
        assert "varied" in line and "collapsed" in line and "bad" not in line
    with pytest.raises(SystemExit):
        main(["compare", "varied", "bad", "--runs-dir", str(path.parent)])
    assert "Without FID's bias" not in capsys.readouterr().out
