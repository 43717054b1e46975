import pytest

from bench.cli import main
from bench.cli.parsing import check_words, parse_option, parse_scales, parse_steps
from results.errors import BenchError


def test_duplicates_collapse_and_minus_zero_is_zero():
    assert parse_steps("2,1,2,2") == (2, 1)
    assert [str(scale) for scale in parse_scales("-0.0,0,1.5,1.50")] == ["0.0", "1.5"]


@pytest.mark.parametrize("text", ["1_0", "٣", "1e1", "0x2", "4.0", "99999999", "9" * 40, "-1", "0"])
def test_steps_that_nobody_means_are_refused(text):
    with pytest.raises(BenchError, match="--steps: "):
        parse_steps(text)


@pytest.mark.parametrize("text", ["1_0.5", "nan", "-inf", "1e300", "٣", "1e999"])
def test_scales_that_nobody_means_are_refused(text):
    with pytest.raises(BenchError, match="--cfg: "):
        parse_scales(text)


@pytest.mark.parametrize("text", ["1_0", "nan", "inf", "1e999", "9" * 40])
def test_options_are_finite_numbers_or_words(text):
    with pytest.raises(BenchError, match="--option: "):
        parse_option(text)
    assert parse_option("heun_2") == "heun_2"
    assert parse_option("-1.5e-3") == -0.0015


def test_words_in_pythons_spelling_of_numbers_are_refused():
    for words in (["--num-samples", "1_0"], ["--seed=2_0"]):
        with pytest.raises(BenchError, match="is not a number here; write"):
            check_words(words)
    check_words(["--model", "a_1", "1_a"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["leaderboard", "--runs-dir", ""], "--runs-dir is an empty path"),
        (["parity", "a", ""], "CASES... is an empty path"),
    ],
)
def test_an_empty_path_is_not_the_working_directory(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_option_of_one_value_that_is_given_twice_says_which_counts(capsys):
    with pytest.raises(SystemExit):
        main(["show", "--runs-dir", "a", "nothing", "--runs-dir=b"])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Warning: --runs-dir is given 2 times, and the last counts (a list has commas)"
    assert len(said) == 2
