"""The shipped protocols hold together: judges, models, references, and their smoke variants."""

import pytest

from bench.judges.base import judge_files, judge_specs
from bench.metrics.registry import check_metrics
from bench.models.cards import cards
from bench.models.registry import family_class
from bench.references.source import POLICIES
from protocols import find_protocol, load_protocol, protocol_files
from results.catalog import CATALOG
from results.errors import ProtocolError

PROTOCOLS = {name: load_protocol(path) for name, path in protocol_files().items()}
DATA_SETS = {name: protocol for name, protocol in PROTOCOLS.items() if "kind" in protocol.reference}
WANTED = (
    "fair-imagenet-256", "fair-imagenet-256-v2", "fair-imagenetv2-256", "fair-imagenetv2-256-v2", "fair-relaionet-256",
    "fair-relaionet-256-v2", "imagenet-256-adm", "imagenet-512-adm", "imagenet-64", "text-to-image",
    "text-to-image-rewards",
    "cifar10", "cifar10-uncond", "lsun-bedroom-256", "lsun-cat-256", "ffhq-64", "afhqv2-64", "imagenet-512-uncond",
)  # fmt: skip


def class_models(protocol):
    """The models that a protocol sweeps but for those that take prompts, at a size of their own."""
    models = {model for sweep in protocol.sweeps for model in sweep.models}
    return {model for model in models if not family_class(cards()[model].family).takes_prompts}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_judges_are_of_known_kinds_with_known_options(name):
    protocol = PROTOCOLS[name]
    for spec in judge_specs(protocol):
        assert all(file.path or file.repo or file.url for file in judge_files(spec, root=protocol.path.parent))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_metrics_are_known_and_have_their_judges(name):
    protocol = PROTOCOLS[name]
    assert [metric for metric in protocol.metrics if not set(CATALOG[metric].judges) <= set(protocol.judges)] == []
    check_metrics(protocol.metrics, protocol.metric_options)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_models_have_cards_of_the_protocols_size(name):
    models = class_models(PROTOCOLS[name])
    assert {model: cards()[model].resolution for model in models} == dict.fromkeys(models, PROTOCOLS[name].resolution)


@pytest.mark.parametrize("name", [name for name in WANTED if name.startswith("fair-")])
def test_class_protocols_sweep_text_models_at_what_they_take(name):
    few, many = {1, 2, 4, 8}, {1, 2, 4, 8, 16, 28, 50}
    protocol = PROTOCOLS[name]
    swept = {}
    for sweep in protocol.sweeps:
        for model in set(sweep.models) - class_models(protocol):
            swept.setdefault(model, set()).update(sweep.steps)
            card = cards()[model]
            assert set(sweep.steps) <= set(card.supported_steps or sweep.steps)
            assert all(card.guidance.range[0] <= cfg <= card.guidance.range[1] for cfg in sweep.cfg)
    if name.endswith("-v2"):
        assert swept["sd3.5-large"] == swept["flux1-dev"] == many
        assert all(few >= swept[model] for model in swept if cards()[model].teacher)
    else:
        assert swept == {"flux1-dev": {1, 25}, "sd3.5-large": {25}, "scale-rae-released": {25}}


@pytest.mark.parametrize("name", [name for name, one in PROTOCOLS.items() if one.reference.get("kind") != "none"])
def test_models_without_classes_are_asked_in_a_label_space_of_one(name):
    protocol = PROTOCOLS[name]
    for model in class_models(protocol):
        assert max(cards()[model].num_classes, 1) == len(protocol.class_names), model


@pytest.mark.parametrize("name", DATA_SETS)
def test_references_are_cut_by_a_known_policy_and_mean_one_thing(name):
    protocol = DATA_SETS[name]
    assert protocol.reference.get("resize", "none") in POLICIES
    for other in DATA_SETS.values():
        if other.reference["name"] == protocol.reference["name"] and protocol.reference["kind"] != "none":
            assert (other.reference, other.resolution) == (protocol.reference, protocol.resolution)


@pytest.mark.parametrize("name", WANTED)
def test_every_protocol_has_a_smoke_variant_that_never_ranks_with_it(name):
    full, smoke = PROTOCOLS[name], PROTOCOLS[f"{name}-smoke"]
    assert smoke.smoke and not full.smoke
    assert smoke.num_samples <= 200 and smoke.num_samples < full.num_samples
    assert smoke.measurement_digest != full.measurement_digest
    assert smoke.judges == full.judges and smoke.metrics == full.metrics and smoke.notes != full.notes


def test_class_names_follow_the_protocol():
    published, ours = PROTOCOLS["fair-imagenet-256"], PROTOCOLS["fair-imagenet-256-v2"]
    assert published.prompts[2] == "a photo of a great_white_shark"
    assert published.prompts[134] == published.prompts[517]
    assert ours.prompts[2][0] == "a photo of a great white shark"
    assert len(ours.prompts[0]) == 4 and len(set(ours.class_names)) == 1000
    assert len(PROTOCOLS["text-to-image"].prompts) == 64


def test_a_protocol_extends_another_by_replacing_what_it_says(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'extends = "fair-imagenet-256-v2"\nname = "mine"\ntitle = "Mine"\n[sampling]\nnum_samples = 10000\n'
    )
    mine, base = load_protocol(path), find_protocol("fair-imagenet-256-v2")
    assert (mine.num_samples, mine.seed, mine.judges) == (10000, base.seed, base.judges)
    assert mine.class_names == base.class_names and mine.measurement_digest == base.measurement_digest


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('extends = "mine"', "leads in a circle"),
        ('extends = "nothing"', "neither beside it nor shipped"),
        ('extends = "fair-imagenet-256"\nsmoke = 1', "'smoke' must be true or false"),
        ('extends = "fair-imagenet-256"\n[reference]\ncrop = "adm"', "reference.crop' is not known"),
        ('extends = "fair-imagenet-256"\n[labels]\nnames_column = "nom"', "names_column' is not a column"),
    ],
)
def test_a_malformed_extension_names_its_key(tmp_path, text, reason):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ProtocolError, match=reason):
        load_protocol(path)
