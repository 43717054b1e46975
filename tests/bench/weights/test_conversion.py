"""Conversions to safetensors: by command, and on fetch from a pickle served locally to a row of a leaderboard."""

import hashlib
import json
import os
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pickled_networks import dumps, network, persistence
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from bench.cli import app
from bench.contracts.card import WeightsSource
from bench.contracts.noise import PhiloxNoise
from bench.models.cards import load_card
from bench.models.files import fetch_model, verify_model, weights_digest
from bench.models.loading import build_adapter
from bench.weights.cache import FileCache
from bench.weights.file import locate, read_state
from bench.weights.formats import read_file
from results.errors import BenchError

GOLDEN = Path(__file__).parents[2] / "golden"
RUNNER = CliRunner()
ARCHITECTURE = """
model_type = "DhariwalUNet"
img_resolution = 8
img_channels = 3
label_dim = 10
model_channels = 8
channel_mult = [1]
num_blocks = 1
attn_resolutions = []
"""
WORDS = {"img_resolution": 8, "label_dim": 10, "model_channels": 8, "channel_mult": [1], "model_type": "DhariwalUNet"}
CARD = """
name = "tiny-edm"
family = "edm"
title = "A tiny EDM"
resolution = 8
num_classes = 10
latent_shape = [3, 8, 8]
licence = "CC BY-NC-SA 4.0: non-commercial use only"
natural_steps = 2
[architecture]
{architecture}
[weights]
format = "pickle"
file = "tiny.pkl"
url = "{url}/content/tiny.pkl"
tree = "ema"
[guidance]
kind = "none"
"""


def bench(*words, code=0):
    done = RUNNER.invoke(app, [str(word) for word in words])
    error = done.exception
    if isinstance(error, BenchError):
        assert code == 2, str(error)
        assert "\n" not in str(error)
        return str(error)
    assert done.exit_code == code, f"{done.output} {error!r}"
    return done.output


def tiny_weights(seed=0):
    """The state dict of the card's network, with seeded weights."""
    from adapters.edm import build_network

    generator = torch.Generator().manual_seed(seed)
    state = build_network(tomllib.loads(ARCHITECTURE), "tiny").state_dict()
    return {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in state.items()}


@pytest.fixture
def served(hub, tmp_path):
    """A card, and a server that has its pickled network."""
    hub.files["tiny.pkl"] = dumps({"ema": network(tiny_weights(), kwargs=WORDS, source="raise SystemExit"), "step": 7})
    path = tmp_path / "tiny-edm.toml"
    path.write_text(CARD.format(architecture=ARCHITECTURE, url=hub.url))
    return path


def test_a_pickle_goes_from_a_server_to_a_row_of_the_leaderboard(served, hub, cache, tmp_path):
    runs = tmp_path / "runs"
    bench("weights", "fetch", served, "--accept-licence")
    (form,) = (cache / "converted").iterdir()
    assert sorted(load_file(form)) == sorted(tiny_weights())
    said = bench("weights", "verify", served)
    assert "here" in said
    small = ["--protocol", "digits", "--steps", "2", "--num-samples", "20", "--workers", "1"]
    said = bench("run", "--model", served, *small, "--runs-dir", runs)
    assert said.count("Not for commercial use: tiny-edm (CC BY-NC-SA 4.0: non-commercial use only)") == 1
    (row,) = json.loads(bench("leaderboard", "--json", "--all", "--runs-dir", runs))
    assert row["model"] == "tiny-edm" and row["nfe"] == 3
    assert row["licence"].startswith("CC BY-NC-SA")
    assert row["weights_sha256"] == hashlib.sha256(hub.files["tiny.pkl"]).hexdigest()
    page = tmp_path / "report.html"
    bench("report", "--runs-dir", runs, "--output", page)
    assert "CC BY-NC-SA 4.0: non-commercial use only" in page.read_text()


def test_the_converted_form_is_what_is_loaded_and_an_altered_one_is_refused(served, cache, monkeypatch):
    card = load_card(served)
    (state,) = fetch_model(card)
    assert "converted to safetensors: tree ema (EDMPrecond), " in state.detail
    assert "entries that are not weights: step" in state.detail and "never run" in state.detail
    assert fetch_model(card)[0].detail == ""
    monkeypatch.setattr("bench.weights.torch_file.read_pickle", None)
    found = read_state(locate(card.weights, card.name), card.weights, card.name)
    assert found.class_name == "EDMPrecond" and found.facts["label_dim"] == 10
    assert weights_digest(card) == hashlib.sha256(state.path.read_bytes()).hexdigest()
    (form,) = (cache / "converted").iterdir()
    form.write_bytes(form.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(BenchError, match="is not the file that was first downloaded"):
        read_state(state.path, card.weights, card.name)
    assert [found.state for found in verify_model(card)] == ["here"]


@pytest.mark.parametrize("name", ["edm-adm-tiny", "edm2-autoguidance-tiny", "sid-edm2-a", "pfgmpp-a"])
def test_recorded_pickles_convert_to_their_recorded_weights(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (source,) = [path for path in (GOLDEN / name).iterdir() if path.suffix in (".pkl", ".pt")]
    said = bench("weights", "convert", source)
    found = load_file(tmp_path / f"{source.stem}.safetensors")
    recorded = read_file(GOLDEN / name / "weights.safetensors", WeightsSource("safetensors"))
    assert sorted(found) == sorted(recorded)
    assert all(torch.equal(found[key], recorded[key]) for key in found)
    assert "left out: unknown names, kept as inert data: " in said
    told = json.loads(bench("weights", "convert", source, "--dry-run", "--json"))
    assert (told["tree"], told["tensors"]) == ("ema", len(recorded))
    assert (told["trees"].get("net") == len(recorded)) == (name == "pfgmpp-a")
    assert [path.name for path in tmp_path.iterdir()] == [f"{source.stem}.safetensors"]


def test_a_tree_is_chosen_by_name(tmp_path):
    source, target = GOLDEN / "pfgmpp-a" / "training-state.pt", tmp_path / "net.safetensors"
    bench("weights", "convert", source, "--tree", "net", "-o", target)
    net, ema = (read_file(source, WeightsSource("torch", tree=tree)) for tree in ("net", "ema"))
    found = load_file(target)
    assert all(torch.equal(found[key], net[key]) for key in net)
    assert not all(torch.equal(found[key], ema[key]) for key in ema)
    with safe_open(target, "pt") as file:
        assert json.loads(file.metadata()["network"])["class_name"] == "EDMPrecond"
    assert "no tree 'nowhere' in it" in bench("weights", "convert", source, "--tree", "nowhere", "-o", target, code=2)
    assert load_file(target).keys() == found.keys()  # what was there stays


def test_every_format_that_is_read_is_converted(tmp_path):
    checkpoints = GOLDEN / "checkpoints"
    state = {"layer.w": torch.ones(2, 3, dtype=torch.bfloat16), "layer.b": torch.zeros(3)}
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "optimizer": {"state": {0: state}}},
               tmp_path / "torch.pt")  # fmt: skip
    tied = torch.arange(6.0)
    torch.save({"a": tied, "b": tied, "c": tied[1:4], "d": tied.reshape(2, 3).T}, tmp_path / "tied.pt")
    cases = [
        (checkpoints / "shortcut.pickle", "train_state/params_ema", ["Dense_0/bias", "Dense_0/kernel"]),
        (checkpoints / "flax.msgpack", "ema_params/net", ["Dense_0/bias", "Dense_0/half", "Dense_0/kernel"]),
        (tmp_path / "torch.pt", None, ["layer.b", "layer.w"]),
        (tmp_path / "tied.pt", None, ["a", "b", "c", "d"]),
    ]
    for source, tree, keys in cases:
        target = tmp_path / "out.safetensors"
        bench("weights", "convert", source, "-o", target, *(["--tree", tree] if tree else []))
        assert sorted(load_file(target)) == keys
    assert load_file(target)["c"].tolist() == [1.0, 2.0, 3.0]
    assert load_file(target)["d"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    value = os.umask(0)
    os.umask(value)
    return value


def test_several_trees_without_an_average_ask_for_a_choice(tmp_path):
    weights = {"w": torch.ones(2)}
    (tmp_path / "a.pkl").write_bytes(dumps({"G": network(weights), "D": network(weights), "loss": np.float32(1)}))
    said = bench("weights", "convert", tmp_path / "a.pkl", "--dry-run", code=2)
    assert said.endswith("it holds the trees G (1 arrays), D (1 arrays); choose one with --tree")


def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.pkl").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "none.pkl").write_bytes(dumps({"ema": persistence("P", {}), "a": 1}))
    (tmp_path / "code.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    shutil.copy(GOLDEN / "edm-adm-tiny" / "network.pkl", tmp_path / "whole.pkl")
    (tmp_path / "half.pkl").write_bytes((tmp_path / "whole.pkl").read_bytes()[:9999])
    before = sorted(tmp_path.iterdir())
    assert "is an HTML page" in bench("weights", "convert", "page.pkl", code=2)
    assert "it contains no arrays" in bench("weights", "convert", "none.pkl", code=2)
    assert "names os.system, which is not data" in bench("weights", "convert", "code.pkl", code=2)
    assert "truncated or damaged" in bench("weights", "convert", "half.pkl", code=2)
    assert "neither a file nor a model" in bench("weights", "convert", "nothing.pkl", code=2)
    assert "is the checkpoint itself" in bench("weights", "convert", "whole.pkl", "-o", "whole.pkl", code=2)
    assert "is a folder" in bench("weights", "convert", "whole.pkl", "-o", ".", code=2)
    assert "not on this machine; fetch with" in bench("weights", "convert", "edm-imagenet-64", code=2)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("damage", ["a record's sum", "an encrypted record"])
def test_a_fetched_archive_that_cannot_be_opened_is_one_line(served, hub, tmp_path, damage):
    torch.save(tiny_weights(), tmp_path / "tiny.pt")
    content = bytearray((tmp_path / "tiny.pt").read_bytes())
    if damage == "an encrypted record":
        content[content.find(b"PK\x01\x02") + 8] |= 1
    else:
        content[content.find(b"\x80\x02}") + 4] ^= 0xFF
    hub.files["tiny.pkl"] = bytes(content)
    said = bench("weights", "fetch", served, "--accept-licence", code=2)
    assert said.startswith("weights of tiny-edm: ") and "cannot be read as pickle" in said


def test_a_model_is_converted_by_its_name(served, cache, tmp_path):
    fetch_model(load_card(served))
    bench("weights", "convert", served, "-o", tmp_path / "out.safetensors")
    assert sorted(load_file(tmp_path / "out.safetensors")) == sorted(tiny_weights())


def test_a_network_built_with_other_words_than_the_card_says_is_refused(served, hub, tmp_path):
    other = {**WORDS, "label_dim": 0, "channel_mult": [1, 2]}
    hub.files["tiny.pkl"] = dumps({"net": network(tiny_weights(), kwargs=other)})
    card = load_card(served)
    fetch_model(card)
    with pytest.raises(BenchError, match=r"was built with label_dim 0 where the card says 10, channel_mult \[1, 2\] "):
        build_adapter(card)


def test_a_card_of_another_size_says_which_shapes_differ(served, hub):
    hub.files["tiny.pkl"] = dumps({"ema": network({**tiny_weights(), "out_conv.bias": torch.ones(4)})})
    card = load_card(served)
    fetch_model(card)
    with pytest.raises(BenchError, match=r"wrong shape: out_conv\.bias \(4,\) instead of \(3,\)"):
        build_adapter(card)


def test_a_flag_that_changes_no_shape_is_compared(tmp_path):
    from bench.models.loading import check_facts
    from bench.weights.holders import NetworkState

    card = load_card(Path(__file__).parents[3] / "adapters" / "cards" / "tvm-xl-512-w2p5.toml")
    state = NetworkState()
    state.facts = {"do_scale_param": True, "hidden_size": 1152}
    with pytest.raises(BenchError, match="was built with do_scale_param True where the card says False"):
        check_facts(card, state)
    state.facts = {"do_scale_param": False}
    check_facts(card, state)


@pytest.mark.parametrize("tree", ["ema", "net"])
def test_a_pickled_wrapper_of_imm_loads_from_either_tree(tmp_path, tree):
    from bench.models.registry import skeleton

    card = load_card(Path(__file__).parents[3] / "adapters" / "cards" / "imm-cifar10.toml")
    small = {**card.architecture, "model_channels": 8, "num_blocks": 1, "channel_mult": [1]}
    card = replace(card, architecture=small)
    own = {key: torch.full(value.shape, 0.25) for key, value in skeleton(card).network.state_dict().items()}
    made = network({f"_orig_mod.{key}": value for key, value in own.items()}, "IMMPrecond", T=0.994, eps=0.006)
    (tmp_path / "cifar10.pt").write_bytes(dumps({tree: made}))
    loaded = build_adapter(card, weights=tmp_path / "cifar10.pt")
    assert all(torch.equal(value, own[key]) for key, value in loaded.network.state_dict().items())
    other = network(own, "IMMPrecond", temb_type="stride")
    (tmp_path / "cifar10.pt").write_bytes(dumps({tree: other}))
    with pytest.raises(BenchError, match="was built with temb_type 'stride' where the card says 'identity'"):
        build_adapter(card, weights=tmp_path / "cifar10.pt")


def test_an_unconditional_model_takes_no_label_but_0():
    card = load_card(Path(__file__).parents[3] / "adapters" / "cards" / "imm-cifar10.toml")
    small = {**card.architecture, "model_channels": 8, "num_blocks": 1, "channel_mult": [1]}
    adapter = build_adapter(replace(card, architecture=small), random_weights=True)
    noise, labels = PhiloxNoise(0, [0, 1], "cpu"), torch.tensor([0, 3])
    with pytest.raises(BenchError, match=r"imm-cifar10: is unconditional: its one label is 0, found 3$"):
        adapter.sample(labels, 1, 1.0, noise=noise)
    assert adapter.sample(adapter.own_labels(labels), 1, 1.0, noise=noise).shape == (2, 3, 32, 32)


def test_a_network_added_by_hand_is_looked_at_before_it_is_pinned(cache, tmp_path):
    path = tmp_path / "tiny-edm.toml"
    text = CARD.format(architecture=ARCHITECTURE, url="https://drive.google.com/x").replace("/content/tiny.pkl", "")
    path.write_text(text)
    (tmp_path / "wrong.pkl").write_bytes(dumps({"ema": network({"w": torch.ones(2)})}))
    said = bench("weights", "add", path, tmp_path / "wrong.pkl", code=2)
    assert "do not fit: missing: " in said and "unexpected: " in said
    assert not (cache / "pins.json").exists()
    (tmp_path / "right.pkl").write_bytes(dumps({"ema": network(tiny_weights(), kwargs=WORDS)}))
    assert "converted to safetensors" in bench("weights", "add", path, tmp_path / "right.pkl")
    build_adapter(load_card(path))


def test_licences_that_forbid_commercial_use_are_accepted_once_before_a_download(served, hub, cache, monkeypatch):
    said = bench("weights", "fetch", served, code=2)
    assert "tiny-edm: the licence (CC BY-NC-SA 4.0: non-commercial use only) is not accepted" in said
    assert "--accept-licence" in said
    assert bench("fetch", "--model", served, "--protocol", "digits", code=2) == said
    small = ["--protocol", "digits", "--steps", "2", "--num-samples", "20", "--workers", "1"]
    assert bench("run", "--fetch", "--model", served, *small, code=2) == said
    assert not [request for request in hub.requests if "/content/" in request.path]
    assert not list(cache.rglob("*.pkl"))
    bench("weights", "fetch", served, "--accept-licence")
    (terms, facts) = next(iter(json.loads((cache / "licences.json").read_text()).items()))
    assert terms.startswith("CC BY-NC-SA") and facts["asked_for"] == ["tiny-edm"]
    assert facts["accepted"] == FileCache(cache).accepted(terms)
    next(cache.rglob("tiny.pkl")).unlink()
    bench("weights", "fetch", served)  # asked once, though it is downloaded again


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2), ("", 2)])
def test_on_a_terminal_the_question_is_put(served, hub, cache, monkeypatch, answer, code):
    from bench.cli import licences

    monkeypatch.setattr(licences, "_somebody", lambda: True)
    done = RUNNER.invoke(app, ["weights", "fetch", str(served)], input=answer)
    assert "tiny-edm: CC BY-NC-SA 4.0: non-commercial use only" in done.output
    assert "Do you accept this licence?" in done.output
    assert isinstance(done.exception, BenchError) == (code == 2)
    assert bool(list(cache.rglob("tiny.pkl"))) == (code == 0)


def test_other_licences_are_not_asked_for(served, cache):
    served.write_text(served.read_text().replace("CC BY-NC-SA 4.0: non-commercial use only", "Apache-2.0"))
    bench("weights", "fetch", served)
    assert not (cache / "licences.json").exists()
