import types

import pytest

from adapters.digits.recipes import RECIPES
from bench.contracts.card import WEIGHT_FORMATS
from bench.contracts.plugins import Plugin
from bench.models import cards as module
from bench.models.cards import cards, find_card, load_card
from bench.models.registry import family_class
from bench.weights.formats import READERS
from protocols import load_protocol, protocol_files
from results.errors import BenchError

MINIMAL = """
name = "a"
family = "f"
title = "A"
resolution = 8
num_classes = 10
latent_shape = [1, 8, 8]
"""


def write(tmp_path, text):
    path = tmp_path / "card.toml"
    path.write_text(text)
    return path


def test_a_minimal_card_loads(tmp_path):
    card = load_card(write(tmp_path, MINIMAL))
    assert (card.latent_shape, card.guidance.kind, card.weights) == ((1, 8, 8), "none", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("family = ", "famly = "), "key 'famly' is not known"),
        (('title = "A"', "title = 3"), "key 'title' must be text, found 3"),
        (('title = "A"\n', ""), "key 'title' is missing"),
        (("resolution = 8", "resolution = true"), "key 'resolution' must be an integer"),
        (("[1, 8, 8]", "[1, 8"), "not valid TOML"),
    ],
)
def test_a_malformed_card_says_which_key_and_why(tmp_path, change, message):
    path = write(tmp_path, MINIMAL.replace(*change))
    with pytest.raises(BenchError) as error:
        load_card(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('[guidance]\nkind = "strong"', "guidance.kind"),
        ('[guidance]\nkind = "none"\nscale = 2', "guidance.scale"),
        ('[weights]\nfile = "x"', "weights.format"),
        ("[[presets]]\nsettings = {}", "presets\\[0\\].steps"),
        ('[[members]]\nmodel = "x"', "members"),
        ('[[published]]\nmetric = "fid"', "published"),
    ],
)
def test_a_malformed_table_is_named(tmp_path, extra, message):
    with pytest.raises(BenchError, match=message):
        load_card(write(tmp_path, MINIMAL + extra))


WEIGHTS = '[weights]\nformat = "torch"\nrepo = "a/b"\nfile = "c"\n'
FIGURE = '[[published]]\nmetric = "fid"\nvalue = 2.5\nsteps = 1\nsource = "paper"\n'


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('[guidance]\nkind = "none"\nnatural = "big"', "key 'guidance.natural' must be a number, found 'big'"),
        ('[guidance]\nkind = "none"\nnatural = nan', "key 'guidance.natural' must be a finite number, found nan"),
        ('[guidance]\nkind = "none"\nrange = 3', "key 'guidance.range' must be a list, found 3"),
        ('[guidance]\nkind = "none"\nrange = [1.0, "x"]', "key 'guidance.range[1]' must be a number, found 'x'"),
        ('[guidance]\nkind = "none"\nrange = [2.0, 1.0]', "key 'guidance.range' must be two numbers [low, high]"),
        ('[guidance]\nkind = "classifer-free"', "autoguidance, found 'classifer-free'; did you mean classifier-free?"),
        (WEIGHTS.replace('"a/b"', "5"), "key 'weights.repo' must be text, found 5"),
        (
            WEIGHTS.replace("torch", "zip"),
            "torch, flax-msgpack, orbax, pickle, diffusers, found 'zip'",
        ),
        (WEIGHTS + 'sha256 = "beef"', "key 'weights.sha256' must be the 64 hexadecimal digits of a SHA-256"),
        (WEIGHTS + 'path = "x"', "key 'weights' must have one of path, repo and url, found path and repo"),
        (WEIGHTS.replace('repo = "a/b"\n', ""), "key 'weights' must have one of path, repo and url, found none"),
        (WEIGHTS.replace('file = "c"\n', ""), "key 'weights.file' is missing"),
        (WEIGHTS + 'flie = "d"', "key 'weights.flie' is not known; did you mean file?"),
        ('[extra_weights.guide]\nformat = 1\nurl = "https://x"', "key 'extra_weights.guide.format' must be one of"),
        ("extra_weights = { guide = 7 }", "key 'extra_weights.guide' must be a table, found 7"),
        ("[[presets]]\nsteps = 2\nsettings = 3", "key 'presets[0].settings' must be a table, found 3"),
        ("[[presets]]\nsteps = 2\nsettings = { a = inf }", "key 'presets[0].settings.a' must be a finite number"),
        ("[[presets]]\nsteps = [4, 2]", "key 'presets[0].steps' must be [first, last] with first <= last"),
        ("[[presets]]\nsteps = true", "key 'presets[0].steps' must be a step count, [first] or [first, last]"),
        ("[[presets]]\nsteps = 1\n[[presets]]\nsteps = 0", "key 'presets[1].steps' must be a step count"),
        ("supported_steps = [1, 2.5]", "key 'supported_steps[1]' must be an integer, found 2.5"),
        ("supported_steps = [1, 2, 1]", "key 'supported_steps' contains 1 twice"),
        ("natural_steps = 1_000_001", "key 'natural_steps' must be an integer of at most 1000000, found 1000001"),
        ('natural_steps = "5"', "key 'natural_steps' must be an integer, found '5'"),
        ("parameters = -1", "key 'parameters' must be an integer of at least 0"),
        (FIGURE.replace("2.5", '"low"'), "key 'published[0].value' must be a number, found 'low'"),
        (FIGURE.replace('"fid"', '"fidd"'), "found 'fidd'; did you mean fid?"),
        (FIGURE.replace("2.5", "inf"), "key 'published[0].value' must be a finite number, found inf"),
        (FIGURE + "nfe = true", "key 'published[0].nfe' must be a number, found True"),
        (
            FIGURE + FIGURE.replace("steps = 1", "steps = 0"),
            "key 'published[1].steps' must be an integer of",
        ),
        ('[[members]]\nmodel = "a"\nsteps = [1]', "key 'members[0].model' must name another card"),
        (
            '[[members]]\nmodel = "b"\nsteps = [1]\n[[members]]\nmodel = "c"\nsteps = 4',
            "'members[1].steps' must not",
        ),
        (WEIGHTS + '[[members]]\nmodel = "b"\nsteps = [1]', "key 'members' cannot be used together with weights"),
        ("architecture = { born = 1979-05-27 }", "key 'architecture.born' must be text, a number, true or false"),
        ("sampler = { a = [0, { b = -inf }] }", "key 'sampler.a[1].b' must be a finite number"),
        ('home = ""', "key 'home' must not be empty"),
        ('teacher = "a"', "key 'teacher' must name another card, found this card"),
    ],
)
def test_a_wrong_value_at_any_depth_names_file_key_found_and_allowed(tmp_path, extra, message):
    path = write(tmp_path, MINIMAL + extra)
    with pytest.raises(BenchError) as error:
        load_card(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"card {path}: key '") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[1, 8, 8]", "[]"), "key 'latent_shape' must not be empty, found []"),
        (("[1, 8, 8]", "[1, true, 8]"), "key 'latent_shape[1]' must be an integer, found True"),
        (("[1, 8, 8]", "8"), "key 'latent_shape' must be a list, found 8"),
        (('"a"', '"a,b"'), "key 'name' must be a printable name"),
        (('"a"', '".."'), "key 'name' must be a name that is no option and no folder"),
        (('"a"', '"--help"'), "key 'name' must be a name that is no option and no folder"),
        (("[1, 8, 8]", "[1000000, 1000000, 1000000]"), "key 'latent_shape' must hold at most 1,073,741,824 values"),
        (("resolution = 8", "resolution = 0"), "key 'resolution' must be an integer of at least 1, found 0"),
    ],
)
def test_shapes_and_names_are_checked(tmp_path, change, message):
    with pytest.raises(BenchError) as error:
        load_card(write(tmp_path, MINIMAL.replace(*change)))
    assert message in str(error.value)


def test_every_format_of_weights_that_a_card_may_name_has_a_reader():
    assert (*READERS, "diffusers") == WEIGHT_FORMATS  # the folder of a pipeline is read by its family


def test_presets_apply_to_their_step_counts_only(tmp_path):
    text = MINIMAL + "[sampler]\na = 1\nb = 1\n[[presets]]\nsteps = [2, 4]\nsettings = { b = 2 }\n"
    card = load_card(write(tmp_path, text))
    assert [card.settings(n)["b"] for n in (1, 2, 4, 5)] == [1, 2, 2, 1]
    assert card.settings(2, "plain") == {"a": 1, "b": 1}


def test_a_pair_resolves_by_step_count():
    pair = find_card("ucgm-xl")
    assert pair.member(1) == pair.member(2) == "ucgm-xl-few"
    assert pair.member(40) == "ucgm-xl-multi"


def test_an_unknown_model_suggests_the_nearest():
    with pytest.raises(BenchError, match="did you mean ucgm-xl"):
        find_card("ucgm-x1")


def test_every_installed_card_names_itself_and_its_source():
    for card in cards().values():
        assert card.path.stem == card.name
        assert card.members or card.licence


def test_a_card_is_at_home_in_a_protocol_of_its_images_and_classes():
    shipped = [load_protocol(path) for path in protocol_files().values()]
    fitting = {(protocol.resolution, len(protocol.class_names)) for protocol in shipped}
    homes = {protocol.name: (protocol.resolution, len(protocol.class_names)) for protocol in shipped}
    for card in cards().values():
        if family_class(card.family).takes_prompts:  # labels of any protocol, resized to its images
            assert card.home == "text-to-image", card.name
            continue
        asked = (card.resolution, max(card.num_classes, 1))
        unknown_data = card.num_classes == 0 and card.home is None  # one class says nothing of what the images show
        fits = unknown_data or homes[card.home] == asked if asked in fitting else card.home is None
        assert fits, card.name


def test_a_card_whose_teacher_is_not_installed_is_refused_with_the_nearest_name(tmp_path):
    path = write(tmp_path, MINIMAL + 'teacher = "digits-flwo"')
    with pytest.raises(BenchError) as error:
        find_card(str(path))
    expected = f"card {path}: key 'teacher' must name an installed card, found 'digits-flwo'; did you mean digits-flow"
    assert str(error.value).startswith(expected)
    assert find_card(str(write(tmp_path, MINIMAL + 'teacher = "digits-flow"'))).teacher == "digits-flow"


def test_an_installed_student_without_its_teacher_is_left_out_and_reported(tmp_path, monkeypatch):
    package = types.ModuleType("cards_of_a_test")
    package.__path__ = [str(tmp_path)]
    for name, teacher in (("a", None), ("b", "a"), ("c", "d"), ("e", "c")):
        text = MINIMAL.replace('name = "a"', f'name = "{name}"') + (f'teacher = "{teacher}"' if teacher else "")
        (tmp_path / f"{name}.toml").write_text(text)
    reported = []
    found = [(Plugin("p", "bench.cards", "q", "cards_of_a_test"), package)]
    monkeypatch.setattr(module.CARDS.__class__, "load_all", lambda group: found)
    monkeypatch.setattr(module, "files", lambda package: tmp_path)
    monkeypatch.setattr(module, "report", lambda plugin, reason: reported.append(reason))
    assert list(cards.__wrapped__()) == ["a", "b"]
    assert [line.partition(": ")[2] for line in reported] == [
        "key 'teacher' must name an installed card, found 'd'; known: a, b, e",
        "key 'teacher' must name an installed card, found 'c'; known: a, b",
    ]


def test_every_digits_student_names_what_it_was_trained_from():
    started = {name: recipe.start for name, recipe in RECIPES.items() if recipe.start is not None}
    assert started and {name: cards()[name].teacher for name in started} == started
