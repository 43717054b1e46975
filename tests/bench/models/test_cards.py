import pytest

from bench.models.cards import cards, find_card, load_card
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
        ("[[presets]]\nsettings = {}", "presets.steps"),
        ('[[members]]\nmodel = "x"', "members"),
        ('[[published]]\nmetric = "fid"', "published"),
    ],
)
def test_a_malformed_table_is_named(tmp_path, extra, message):
    with pytest.raises(BenchError, match=message):
        load_card(write(tmp_path, MINIMAL + extra))


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
        asked = (card.resolution, card.num_classes)
        assert (homes[card.home] == asked) if asked in fitting else (card.home is None), card.name
