import argparse
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from bench.cli import main
from bench.contracts.card import Guidance, ModelCard, WeightsSource
from bench.contracts.noise import PhiloxNoise
from bench.models.cards import cards
from bench.models.files import fetch_model, model_files, verify_model, weights_digest, weights_digests
from bench.models.loading import build_adapter
from bench.models.registry import family_class
from bench.weights.formats import READERS
from results.errors import BenchError

SMALL_VAE = {"block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 32,
             "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}  # fmt: skip
HUB = {"repo": "owner/repository"}
CARD = ModelCard(
    name="small-sit",
    family="sit",
    title="A small latent model",
    resolution=8,
    num_classes=3,
    latent_shape=(4, 4, 4),
    architecture={
        "latent_size": 4, "patch_size": 2, "in_channels": 4, "hidden_size": 16, "depth": 1, "num_heads": 2,
        "num_classes": 3,
    },
    weights=WeightsSource("torch", file="checkpoints/last.pt", tree="ema?", **HUB),
    autoencoder={
        "kind": "sd-vae-mse",
        "config": SMALL_VAE,
        "downsample": 2,
        "weights": {"format": "safetensors", "file": "vae.safetensors", **HUB},
        "statistics": {"format": "torch", "file": "statistics.pt", **HUB},
    },
    guidance=Guidance("classifier-free"),
)  # fmt: skip


def torch_bytes(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def images(adapter):
    noise = PhiloxNoise(0, [0, 1], adapter.device)
    return adapter.sample(torch.tensor([0, 2]), 2, 1.5, noise=noise)


@pytest.fixture
def published(hub):
    """The adapter that was published, and the hub that holds its files."""
    from diffusers import AutoencoderKL

    adapter = family_class("sit")(CARD).randomise(3)
    torch.manual_seed(0)
    vae = AutoencoderKL(latent_channels=4, **SMALL_VAE)
    adapter.autoencoder.load(
        {"autoencoder": vae.state_dict(), "statistics": {"mean": torch.ones(4), "std": torch.full((4,), 0.5)}}
    )
    ema = {key: value.clone() for key, value in adapter.network.state_dict().items()}
    raw = {key: torch.zeros_like(value) for key, value in ema.items()}
    hub.files["checkpoints/last.pt"] = torch_bytes({"model": raw, "ema": ema, "args": argparse.Namespace(lr=1)})
    hub.files["vae.safetensors"] = save({key: value.contiguous() for key, value in vae.state_dict().items()})
    hub.files["statistics.pt"] = torch_bytes({"mean": torch.ones(1, 4, 1, 1), "std": torch.full((1, 4, 1, 1), 0.5)})
    adapter.to("cpu")
    return adapter


def test_a_latent_model_is_fetched_with_its_autoencoder_and_samples_as_published(hub, published):
    with pytest.raises(BenchError, match="weights of small-sit: not on this machine; fetch with 'bench fetch --model"):
        build_adapter(CARD)
    states = fetch_model(CARD)
    assert [(state.file.role, state.state) for state in states] == [
        ("weights", "fetched"), ("autoencoder", "fetched"), ("statistics", "fetched")
    ]  # fmt: skip
    adapter = build_adapter(CARD)
    assert torch.equal(images(adapter), images(published))
    assert images(adapter).shape == (2, 3, 8, 8)
    states[1].path.unlink()
    with pytest.raises(BenchError, match="autoencoder of small-sit: not on this machine; fetch with"):
        build_adapter(CARD)


def test_the_digest_covers_network_autoencoder_and_statistics(hub, published, tmp_path):
    with pytest.raises(BenchError, match="weights of small-sit: not on this machine"):
        weights_digest(CARD)
    fetch_model(CARD)
    digests = weights_digests(CARD)
    assert digests == {
        role: hashlib.sha256(hub.files[file]).hexdigest()
        for role, file in [
            ("weights", "checkpoints/last.pt"), ("autoencoder", "vae.safetensors"), ("statistics", "statistics.pt")
        ]
    }  # fmt: skip
    other = tmp_path / "other.pt"
    other.write_bytes(torch_bytes({}))
    assert weights_digest(CARD, other) != weights_digest(CARD)
    assert weights_digests(CARD, other)["autoencoder"] == digests["autoencoder"]
    with pytest.raises(BenchError, match=r"--weights: .*gone\.pt does not exist"):
        weights_digest(CARD, tmp_path / "gone.pt")
    assert len(weights_digest(replace(CARD, autoencoder=None))) == 64
    assert weights_digest(replace(CARD, autoencoder=None)) == digests["weights"]


def test_random_weights_need_no_file(cache):
    assert images(build_adapter(CARD, random_weights=True)).isfinite().all()
    assert not cache.exists()


def test_a_local_file_stands_for_the_cards_own(hub, published, tmp_path):
    fetch_model(CARD)
    local = tmp_path / "mine.safetensors"
    local.write_bytes(save({key: value + 1 for key, value in published.network.state_dict().items()}))
    adapter = build_adapter(CARD, weights=local)
    bias = "final_layer.linear.bias"
    assert torch.equal(adapter.network.state_dict()[bias], published.network.state_dict()[bias] + 1)


def test_the_checkpoint_of_another_variant_is_named_with_its_keys(hub, published, tmp_path):
    fetch_model(CARD)
    state = dict(published.network.state_dict())
    state["blocks.0.extra"] = torch.zeros(1)
    state["x_embedder.proj.bias"] = torch.zeros(3)
    del state["final_layer.linear.bias"]
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(BenchError) as raised:
        build_adapter(CARD, weights=tmp_path / "other.pt")
    message = str(raised.value)
    assert "missing: final_layer.linear.bias" in message
    assert "unexpected: blocks.0.extra" in message
    assert "wrong shape: x_embedder.proj.bias (3,) instead of (16,)" in message
    assert str(tmp_path / "other.pt") in message
    hub.files["vae.safetensors"], hub.commit = save({"decoder.conv_in.weight": torch.zeros(1)}), "f" * 40
    other_vae = {
        **CARD.autoencoder,
        "weights": {"format": "safetensors", "file": "vae.safetensors", "revision": "v1", **HUB},
    }
    card = replace(CARD, autoencoder=other_vae)
    fetch_model(card)
    with pytest.raises(BenchError, match=r"autoencoder sd-vae-mse do not fit.*vae\.safetensors"):
        build_adapter(card)


def test_a_family_that_stumbles_over_foreign_arrays_is_one_line(hub, published, tmp_path):
    fetch_model(CARD)
    torch.save({"final_layer.linear.weight": torch.tensor(1.0)}, tmp_path / "odd.pt")
    with pytest.raises(BenchError, match=r"weights of small-sit do not fit .*odd\.pt") as raised:
        build_adapter(CARD, weights=tmp_path / "odd.pt")
    assert "\n" not in str(raised.value)


def test_a_pair_is_its_members_files(monkeypatch):
    assert [file.owner for file in model_files(cards()["digits-ucgm"])] == ["digits-ucgm-few", "digits-ucgm-multi"]


def test_every_card_can_be_read_and_says_where_its_file_is():
    for card in cards().values():
        for source in (card.weights, *card.extra_weights.values()):
            if source is not None:
                assert source.format in (*READERS, "diffusers"), card.name
                assert source.path is not None or source.file or source.url, card.name
                assert source.path is not None or source.repo or source.url, card.name


def command(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        main(["weights", *words])
    captured = capsys.readouterr()
    return stopped.value.code, captured.out, " ".join(captured.err.split())


def test_the_command_line_fetches_verifies_and_adds(capsys, hub, published, tmp_path, monkeypatch):
    card_file = tmp_path / "small.toml"
    card_file.write_text(
        'name = "small"\nfamily = "sit"\ntitle = "t"\nresolution = 8\nnum_classes = 3\nlatent_shape = [4, 4, 4]\n'
        '[weights]\nformat = "torch"\nrepo = "owner/repository"\nfile = "checkpoints/last.pt"\ntree = "ema?"\n'
        "[architecture]\n" + "".join(f"{key} = {value}\n" for key, value in CARD.architecture.items())
    )
    name = str(card_file)
    code, out, _ = command(capsys, "verify", name)
    assert code == 1
    assert "missing" in out
    code, _, err = command(capsys, "fetch", name)
    assert code == 0
    assert "weights of small: fetched" in err
    code, out, _ = command(capsys, "verify", name, "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert row["state"] == "here"
    with Path(row["path"]).open("ab") as file:
        file.write(b"more")
    code, out, _ = command(capsys, "verify", name)
    assert code == 1
    assert "altered" in out
    foreign = tmp_path / "foreign.pt"
    foreign.write_bytes(torch_bytes({"ema": {"x_embedder.proj.bias": torch.zeros(3)}}))
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    for file, reason in ((foreign, "wrong shape: x_embedder.proj.bias (3,)"), (tmp_path / "x.npy", "x.npy")):
        code, _, err = command(capsys, "add", name, str(file), "--replace")
        assert code == 2 and reason in err and len(err.splitlines()) == 1
        assert "altered" in command(capsys, "verify", name)[1]  # what was there is still there
    whole = tmp_path / "last.pt"
    whole.write_bytes(hub.files["checkpoints/last.pt"])
    code, _, err = command(capsys, "add", name, str(whole))
    assert code == 0
    assert command(capsys, "verify", name)[0] == 0
    assert verify_model(CARD)[0].state == "here"


def test_the_command_line_names_what_is_shipped_and_what_is_unknown(capsys, cache):
    code, _, err = command(capsys, "fetch", "digits-flow")
    assert (code, err) == (0, "weights of digits-flow: shipped with the package, nothing to fetch")
    code, _, err = command(capsys, "fetch", "digits-flo")
    assert code == 2
    assert "unknown model 'digits-flo': did you mean digits-flow" in err
    code, out, _ = command(capsys, "list", "--json")
    assert {"digits-flow": "shipped", "sit-xl": "missing"}.items() <= {
        r["model"]: r["state"] for r in json.loads(out)
    }.items()
    assert not cache.exists()
