import dataclasses

import pytest

from protocols import find_protocol, load_protocol, protocol_files
from protocols.labels import plan_labels
from results.errors import ProtocolError

DIGITS = protocol_files()["digits"].read_text()


def write(tmp_path, text):
    path = tmp_path / "p.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(protocol_files()))
def test_every_shipped_protocol_loads_and_is_named_by_its_file(name):
    assert find_protocol(name).name == name


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_samples = 2000", "num_samples = 0", "sampling.num_samples' must be an integer of at least 2, found 0"),
        ("num_samples = 2000", "num_sample = 2000", "sampling.num_samples' is missing"),
        ("blocks = 20", "blcoks = 20", "metrics.blcoks' is not known; did you mean blocks?"),
        ('quantise = "round"', 'quantise = "floor"', "sampling.quantise' must be one of round, trunc128, trunc255"),
        ('plan = "balanced"', 'plan = "even"', "labels.plan"),
        ("steps = [16]", "steps = [0]", "sampling.sweeps.steps' must be a list of positive integers"),
        ("cfg = [1.0, 1.1", "cfg = [nan, 1.1", "sampling.sweeps.cfg"),
        ('template = "a handwritten digit {name}"', 'template = "a digit"', "labels.template' must hold {name}"),
        ('kind = "open-clip"', 'knd = "open-clip"', "judges.clip.kind' is missing"),
        ("[labels]", "[labels", "not valid TOML"),
    ],
)
def test_a_malformed_protocol_names_file_key_and_reason(tmp_path, old, new, message):
    path = write(tmp_path, DIGITS.replace(old, new))
    with pytest.raises(ProtocolError) as error:
        load_protocol(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_an_unknown_protocol_suggests_the_nearest():
    with pytest.raises(ProtocolError, match="did you mean digits"):
        find_protocol("digit")


def test_the_digest_ignores_what_cannot_move_a_number(tmp_path):
    same = load_protocol(write(tmp_path, DIGITS.replace("# the digits have 17 grey levels", "")))
    assert same.digest == find_protocol("digits").digest


def test_the_measurement_digest_ignores_the_list_of_cells_but_not_the_quantiser():
    protocol = find_protocol("digits")
    fewer = dataclasses.replace(protocol, sweeps=protocol.sweeps[:1], num_samples=500)
    other = dataclasses.replace(protocol, quantise="trunc255")
    assert fewer.measurement_digest == protocol.measurement_digest != other.measurement_digest


def test_label_plans():
    assert plan_labels("balanced", 5, 3, seed=0).tolist() == [0, 1, 2, 0, 1]
    assert plan_labels("reference", 5, 3, seed=0, reference=[2, 1]).tolist() == [2, 1, 2, 1, 2]
    uniform = plan_labels("uniform", 1000, 3, seed=0)
    assert set(uniform.tolist()) == {0, 1, 2}
    assert (uniform == plan_labels("uniform", 1000, 3, seed=0)).all()
    with pytest.raises(ProtocolError, match="needs a reference with labels"):
        plan_labels("reference", 5, 3, seed=0)


def test_an_extending_protocol_may_take_its_reference_from_another_place(tmp_path):
    mine = 'extends = "digits"\nname = "mine"\n[reference]\nname = "mine"\nkind = "folder"\nimages = 10\n'
    reference = load_protocol(write(tmp_path, mine)).reference
    assert reference == {"name": "mine", "kind": "folder", "images": 10, "resize": "none"}
    other = 'extends = "imagenet-256-adm"\nname = "mine"\n[reference]\nname = "mine"\nsource = "here:images"\n'
    assert load_protocol(write(tmp_path, other)).reference == {"name": "mine", "source": "here:images"}


def test_the_options_of_a_sweep_are_part_of_the_definition(tmp_path):
    plain = 'models = ["digits-dmd"]\nsteps = [1]'
    assert plain in DIGITS
    one, two = (
        load_protocol(write(tmp_path, DIGITS.replace(plain, plain + f"\noptions = {{ shift = {shift} }}")))
        for shift in (1, 2)
    )
    assert one.digest != two.digest and one.measurement_digest == two.measurement_digest
    assert {"shift": 2} in [sweep.get("options") for sweep in two.canonical()["sampling"]["sweeps"]]
