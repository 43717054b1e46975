import dataclasses
import json
from pathlib import Path

import pytest

from bench.judges.base import judge_specs
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
        ("steps = [16]", "steps = [0]", "sampling.sweeps[2].steps[0]' must be an integer in 1 to"),
        ("cfg = [1.0, 1.1", "cfg = [nan, 1.1", "sampling.sweeps[2].cfg[0]' must be a finite number, found nan"),
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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_samples = 2000", 'num_samples = "5"', "sampling.num_samples' must be an integer, found '5'"),
        ("num_samples = 2000", "num_samples = true", "sampling.num_samples' must be an integer, found True"),
        (
            "num_samples = 2000",
            "num_samples = 2147483648",
            "of at most 2147483647, found 2147483648",
        ),
        (
            "seed = 2026",
            "seed = 9223372036854775808",
            "sampling.seed' must be an integer of at most 9223",
        ),
        ("seed = 2026", "seed = -1", "sampling.seed' must be an integer of at least 0"),
        ("levels = 17", "levels = 257", "sampling.levels' must be an integer of at most 256"),
        ("batch_size = 100", "batch_size = 0", "sampling.batch_size' must be an integer of at least 1"),
        ("thumbnails = 20", "thumbnails = 1e3", "sampling.thumbnails' must be an integer, found 1000.0"),
        ("resolution = 8", "resolution = 65537", "resolution' must be an integer of at most 65536"),
        ("blocks = 20", "blocks = 1", "metrics.blocks' must be an integer of at least 2"),
        ("steps = [16]", "steps = 16", "sampling.sweeps[2].steps' must be a list of positive integers, found 16"),
        ("steps = [16]", "steps = [1000001]", "sampling.sweeps[2].steps[0]' must be an integer in 1 to 1000000"),
        ('models = ["digits-dmd"]', "models = [3]", "sampling.sweeps[1].models[0]' must be text, found 3"),
        ('models = ["digits-dmd"]', 'models = ["a", "a"]', "sampling.sweeps[1].models' contains 'a' twice"),
        ('models = ["digits-dmd"]', 'models = ["a"]\noptions = { t = nan }', "sweeps[1].options.t' must be a finite"),
        ('plan = "balanced"', 'plan = "balancd"', "uniform, found 'balancd'; did you mean balanced?"),
        (
            'plan = "balanced"',
            'plan = "balanced"\nnames_file = "x"',
            "labels.names_file' cannot be used together with names",
        ),
        ('"zero", "one"', '"zero", 1', "labels.names[1]' must be text, found 1"),
        ('names = ["fid", "is"', 'names = ["fid", "fid"', "metrics.names' contains 'fid' twice; keep one of them"),
        ("is_splits = 10", "is_splits = inf", "metrics.options.is_splits' must be a finite number, found inf"),
        ('part = "test"', 'part = "test"\nkind = "folder"', "reference.kind' cannot be used together with source"),
        ('path = "digits/preference"', "path = 1979-05-27", "judges.pick.path' must be text, a number"),
        ("[judges.pick]", '["judges"."a.b"]', "judges.a.b' must be a name of letters, digits"),
        (
            "fid = [0.0513, 13.88]",
            "fid = [0.0513]",
            "composite.bounds.fid' must be two numbers [low, high], low < high",
        ),
        (
            "fid = [0.0513, 13.88]",
            "fid = [13.88, 0.0513]",
            "composite.bounds.fid' must be two numbers",
        ),
        ("fid = [0.0513, 13.88]", 'fid = ["a", 1]', "composite.bounds.fid[0]' must be a number, found 'a'"),
        ("fid = [0.0513, 13.88], ", "", "composite.bounds.fid' is missing"),
        (
            "fid = [0.0513, 13.88]",
            "fit = [0.0513, 13.88]",
            "fit' is not known, and 'composite.bounds.fid'",
        ),
        ("eps = 1e-3", 'eps = "small"', "composite.eps' must be a number, found 'small'"),
        ("eps = 1e-3", "eps = 0", "composite.eps' must be a number above 0"),
        ("eps = 1e-3", 'metrics = ["fid"]', "composite.metrics' is not known; the keys here are bounds, clip, eps"),
        ("clip = true", "clip = 1", "composite.clip' must be true or false, found 1"),
        ('name = "digits"', 'name = "a/b"', "name' must be a printable name"),
        ('name = "digits"', "name = []", "name' must be text, found []"),
    ],
)
def test_a_wrong_value_at_any_depth_names_file_key_found_and_allowed(tmp_path, old, new, message):
    assert old in DIGITS
    path = write(tmp_path, DIGITS.replace(old, new, 1))
    with pytest.raises(ProtocolError) as error:
        load_protocol(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"protocol {path}: key '") and "\n" not in str(error.value)


def test_the_digests_of_the_shipped_protocols_do_not_move():
    found = {
        name: {"digest": protocol.digest, "measurement": protocol.measurement_digest}
        for name, protocol in ((name, find_protocol(name)) for name in protocol_files())
    }
    assert found == json.loads((Path(__file__).parent / "digests.json").read_text())


def test_only_a_shipped_protocol_is_found_by_its_name(tmp_path):
    copied = write(tmp_path, DIGITS).rename(tmp_path / "digits.toml")
    assert find_protocol("digits").shipped
    assert not load_protocol(copied).shipped


def test_every_path_of_a_judge_belongs_to_the_file_that_states_it(tmp_path):
    base, mine = tmp_path / "a" / "base.toml", tmp_path / "b" / "mine.toml"
    for path in (base, mine):
        path.parent.mkdir()
    (base.parent / "names.txt").write_text("one\ntwo\n")
    base.write_text(
        'extends = "digits"\nname = "base"\n[labels]\nnames_file = "names.txt"\n[judges.pick]\npath = "pick"\n'
    )
    mine.write_text('extends = "../a/base.toml"\nname = "mine"\n[judges.clip]\nmerges = "m.gz"\n')
    protocol = load_protocol(mine)
    specs = {spec.name: spec.options for spec in judge_specs(protocol)}
    assert specs["clip"]["merges"] == str(mine.parent / "m.gz")
    assert specs["pick"]["path"] == str(tmp_path / "b" / ".." / "a" / "pick")
    assert specs["clip"]["weights"] == str(protocol_files()["digits"].parent / "digits/clip/model.safetensors")
    assert protocol.class_names == ("one", "two")


def test_where_a_protocol_lies_is_no_part_of_its_digest(tmp_path):
    one, two = tmp_path / "one.toml", tmp_path / "folder" / "two.toml"
    two.parent.mkdir()
    for path in (one, two):
        path.write_text('extends = "digits"\nname = "mine"\n[sampling]\nnum_samples = 40\n')
    assert load_protocol(one).digest == load_protocol(two).digest
    assert load_protocol(one).measurement_digest == find_protocol("digits").measurement_digest


def test_an_extending_file_replaces_names_by_a_file_of_names(tmp_path):
    (tmp_path / "names.csv").write_text("name\nA\nB\n")
    mine = write(tmp_path, 'extends = "digits"\nname = "mine"\n[labels]\nnames_file = "names.csv"\n')
    assert load_protocol(mine).class_names == ("A", "B")
    again = 'extends = "fair-imagenet-256"\nname = "mine"\n[labels]\nnames = ["A"]\n'
    assert load_protocol(write(tmp_path, again)).class_names == ("A",)


@pytest.mark.parametrize("names", ["nom\nA\n", "", "name\n", "name,b\n,C\n"])
def test_a_table_of_names_without_a_name_is_refused_in_one_line(tmp_path, names):
    (tmp_path / "names.csv").write_text(names)
    mine = write(tmp_path, 'extends = "digits"\nname = "mine"\n[labels]\nnames_file = "names.csv"\n')
    with pytest.raises(ProtocolError, match=r"names\.csv"):
        load_protocol(mine)


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
