import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save

from bench.contracts.card import ModelCard, WeightsSource
from bench.models.adding import add_file
from bench.models.files import fetch_model, verify_model, weights_digest
from bench.weights.file import locate, read_state
from results.errors import BenchError

CONTENT = save({"w": torch.arange(50_000.0)})
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SOURCE = WeightsSource(format="safetensors", repo="owner/repository", file="folder/model.safetensors")


def card(source=SOURCE, **facts):
    return ModelCard("model", "none", "A model", 8, 10, (1, 8, 8), weights=source, **facts)


@pytest.fixture
def repository(hub):
    hub.files["folder/model.safetensors"] = CONTENT
    return hub


def files_in(cache):
    """Every file of the cache but its tables and locks; of the hub client's the snapshots and what none links to."""
    own = [path for path in cache.rglob("*") if path.is_file() and path.suffix not in (".json", ".lock")]
    client = cache.with_name("hub-client")
    snapshots = [path for path in client.glob("models--*/snapshots/*/**/*") if path.is_file()]
    linked = {path.resolve() for path in snapshots}
    return own + snapshots + [path for path in client.glob("models--*/blobs/*") if path not in linked]


def remove(state):
    """Remove a file of the hub client's cache with its content."""
    state.path.resolve().unlink()
    state.path.unlink()


def refused(source=SOURCE):
    with pytest.raises(BenchError) as raised:
        fetch_model(card(source))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_fetched_file_is_whole_pinned_and_read(repository, cache):
    with pytest.raises(BenchError, match="not on this machine; fetch with 'bench fetch --model model'"):
        locate(SOURCE, "model")
    (state,) = fetch_model(card())
    assert state.state == "fetched"
    assert files_in(cache) == [state.path]
    assert read_state(locate(SOURCE, "model"), SOURCE, "model")["w"].shape == (50_000,)
    (pin,) = json.loads((cache / "pins.json").read_text()).values()
    expected = {"repository": "owner/repository", "file": SOURCE.file, "commit": repository.commit, "sha256": SHA256}
    assert expected.items() <= pin.items()
    assert fetch_model(card())[0].state == "here"
    assert len(repository.content_requests()) == 1
    assert weights_digest(card()) == SHA256


def test_a_dropped_connection_is_resumed_within_a_fetch(repository, cache):
    repository.drop_after = [70_000]
    (state,) = fetch_model(card())
    assert state.path.read_bytes() == CONTENT
    assert [request.headers.get("Range") for request in repository.content_requests()] == [None, "bytes=70000-"]


def test_an_interrupted_fetch_is_continued_by_the_next(repository, cache):
    repository.drop_after = [70_000, None]
    assert "the same command continues where it stopped" in refused()
    with pytest.raises(BenchError, match="not on this machine"):
        locate(SOURCE, "model")
    (state,) = fetch_model(card())
    assert state.path.read_bytes() == CONTENT
    assert repository.content_requests()[-1].headers["Range"] == "bytes=70000-"
    assert files_in(cache) == [state.path]


def test_a_killed_fetch_is_continued_by_the_next(hub, tmp_path):
    content = bytes(25 * 2**20)
    hub.files["large.bin"], hub.stall_after = content, 22 * 2**20
    card_file = tmp_path / "large.toml"
    card_file.write_text(
        'name = "large"\nfamily = "sit"\ntitle = "t"\nresolution = 8\nnum_classes = 3\nlatent_shape = [4, 4, 4]\n'
        '[weights]\nformat = "torch"\nrepo = "owner/repository"\nfile = "large.bin"\n'
    )
    command = [sys.executable, "-m", "bench", "weights", "fetch", str(card_file)]
    client = tmp_path / "hub-client"
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(client), "HF_HUB_OFFLINE": "0"}
    settings["BENCH_CACHE_DIR"] = str(tmp_path / "cache")
    environment = os.environ | settings
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    assert hub.stalled.wait(60)
    (partial,) = wait_for(lambda: [path for path in client.glob("models--*/blobs/*.part") if path.stat().st_size])
    first.kill()
    first.wait()
    kept = partial.stat().st_size
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "weights of large: fetched, 25 MiB" in done.stderr
    assert hub.content_requests()[-1].headers["Range"] == f"bytes={kept}-"
    repository = client / "models--owner--repository"
    assert (repository / "snapshots" / hub.commit / "large.bin").read_bytes() == content
    assert [path.name for path in (repository / "blobs").iterdir()] == [hashlib.sha256(content).hexdigest()]
    assert (repository / "refs" / "main").read_text() == hub.commit  # so that diffusers and transformers find it


def wait_for(condition):
    for _ in range(600):
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("nothing was written in 30 seconds")


def test_two_fetches_at_once_download_once(repository, cache):
    with ThreadPoolExecutor(2) as pool:
        states = [future.result() for future in [pool.submit(fetch_model, card()) for _ in range(2)]]
    assert states[0][0].path == states[1][0].path
    assert len(repository.content_requests()) == 1


def test_a_body_shorter_than_announced_is_no_file(repository, cache, monkeypatch):
    repository.files["short.safetensors"] = CONTENT[:1000]
    source = replace(SOURCE, file="short.safetensors")
    original = repository.RequestHandlerClass._end

    def longer(self, status, headers):
        original(self, status, headers | ({"X-Linked-Size": "2000"} if "X-Linked-Size" in headers else {}))

    monkeypatch.setattr(repository.RequestHandlerClass, "_end", longer)
    assert "should have 2000 bytes but has 1000" in refused(source)
    with pytest.raises(BenchError, match="not on this machine"):
        locate(source, "model")


def test_a_wrong_digest_leaves_nothing(repository, cache):
    assert "expected aaaaaaaaaaaa" in refused(replace(SOURCE, sha256="a" * 64))
    assert files_in(cache) == []
    repository.announced_sha256 = "b" * 64
    assert "expected bbbbbbbbbbbb" in refused()
    assert files_in(cache) == []
    assert not (cache / "pins.json").exists()


def test_a_file_that_changed_on_the_hub_is_not_taken_for_the_pinned_one(repository, cache):
    remove(fetch_model(card())[0])
    repository.files["folder/model.safetensors"] = save({"w": torch.zeros(3)})
    assert f"expected {SHA256[:12]}" in refused()
    assert files_in(cache) == []


def test_a_pinned_file_is_asked_for_by_its_commit(repository, cache):
    remove(fetch_model(card())[0])
    fetch_model(card())
    heads = dict.fromkeys(request.path for request in repository.requests if request.method == "HEAD")
    assert list(heads) == [
        f"/owner/repository/resolve/{name}/folder/model.safetensors" for name in ("main", repository.commit)
    ]


def test_the_cards_revision_is_asked_for(repository, cache):
    fetch_model(card(replace(SOURCE, revision="v1")))
    assert repository.requests[0].path == "/owner/repository/resolve/v1/folder/model.safetensors"
    assert "no owner/repository/folder/model.safetensors at revision v9" in refused(replace(SOURCE, revision="v9"))


def test_the_token_goes_to_the_hub_and_nowhere_else(repository, cache, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_model(card())
    hub_requests = [request for request in repository.requests if "/content/" not in request.path]
    assert {request.headers.get("authorization") for request in hub_requests} == {"Bearer hf_secret"}
    url = f"{repository.url}/content/folder/model.safetensors"
    fetch_model(card(WeightsSource(format="safetensors", file="model.safetensors", url=url)))
    assert "authorization" not in repository.requests[-1].headers


def test_what_the_hub_lacks_or_guards_is_said(repository, cache):
    assert "the hub has no owner/repository/gone.pt" in refused(replace(SOURCE, file="gone.pt"))
    assert "the hub has no owner/other, or it is private; set HF_TOKEN" in refused(replace(SOURCE, repo="owner/other"))
    repository.gated = True
    assert "owner/repository is gated; accept its terms" in refused()
    repository.gated, repository.private = False, True
    assert "the hub refuses owner/repository/folder/model.safetensors; set HF_TOKEN" in refused()
    assert files_in(cache) == []


def test_offline_is_said_at_once_and_what_is_here_still_serves(repository, cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "owner/repository/folder/model.safetensors is not here and HF_HUB_OFFLINE is set" in refused()
    assert repository.requests == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    fetch_model(card())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_model(card())[0].state == "here"


def test_no_connection_is_one_line(repository, cache, monkeypatch):
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert "cannot download owner/repository/folder/model.safetensors" in refused()


def test_files_of_the_hub_clients_own_cache_are_found(repository, cache, tmp_path):
    snapshot = tmp_path / "hub-client" / "models--owner--repository" / "snapshots" / repository.commit
    (snapshot / "folder").mkdir(parents=True)
    (snapshot / "folder" / "model.safetensors").write_bytes(CONTENT)
    references = snapshot.parents[1] / "refs"
    references.mkdir()
    (references / "main").write_text(repository.commit)
    assert locate(SOURCE, "model") == snapshot / "folder" / "model.safetensors"
    assert fetch_model(card())[0].state == "here"
    assert repository.requests == []


def test_a_plain_address_that_ends_in_the_file_is_downloaded(repository, cache):
    url = f"{repository.url}/content/folder/model.safetensors?dl=1"
    repository.files["folder/model.safetensors?dl=1"] = CONTENT
    repository.drop_after = [70_000, None]
    source = WeightsSource(format="safetensors", file="model.safetensors", url=url)
    refused(source)
    (state,) = fetch_model(card(source))
    assert state.path.read_bytes() == CONTENT
    assert repository.requests[-1].headers["Range"] == "bytes=70000-"
    (pin,) = json.loads((cache / "pins.json").read_text()).items()
    assert pin[0] == url
    assert pin[1]["sha256"] == SHA256


def test_a_server_without_head_is_taken_as_it_is_and_a_page_is_no_file(repository, cache):
    url = f"{repository.url}/content/folder/model.safetensors"
    source = WeightsSource(format="safetensors", file="model.safetensors", url=url)
    repository.content_type = "text/html; charset=utf-8"
    assert "returned a web page instead of a file" in refused(source)
    repository.knows_head = False
    assert fetch_model(card(source))[0].path.read_bytes() == CONTENT


def test_a_page_that_says_it_is_a_file_is_refused_by_its_first_bytes(repository, cache):
    url = f"{repository.url}/content/folder/model.safetensors"
    repository.files["folder/model.safetensors"] = b"<!DOCTYPE html>\n<html><body>quota exceeded</body></html>"
    for sha256 in (None, SHA256):
        source = WeightsSource(format="safetensors", file="model.safetensors", url=url, sha256=sha256)
        assert "returned a web page instead of a file" in refused(source)
        assert not [path for path in cache.rglob("*") if path.is_file() and b"quota" in path.read_bytes()]


@pytest.mark.parametrize("name", ["../../outside", "/outside", "folder/../../../../x"])
def test_a_name_that_leads_out_of_the_cache_is_refused(repository, cache, name):
    assert "is not the name of a file to fetch" in refused(replace(SOURCE, file=name))
    assert "is not the name of a file to fetch" in refused(replace(BY_HAND, file=name))


@pytest.mark.parametrize("name", ["\u202e", "a b", "x" * 200, "a//b", "-a/b"])
def test_a_name_of_no_repository_is_refused(repository, cache, name):
    assert "is not the name of a repository of the hub" in refused(replace(SOURCE, repo=name))


def test_an_altered_file_is_refused_on_load_and_named_by_verify(repository, cache):
    (state,) = fetch_model(card())
    assert [found.state for found in verify_model(card())] == ["here"]
    state.path.write_bytes(CONTENT[:-4] + b"\0\0\0\1")
    with pytest.raises(BenchError, match="is not the file that was first downloaded"):
        read_state(state.path, SOURCE, "model")
    (found,) = verify_model(card())
    assert found.state == "altered"
    state.path.unlink()
    assert [found.state for found in verify_model(card())] == ["missing"]


BY_HAND = WeightsSource(format="safetensors", file="model.safetensors", url="https://drive.google.com/file/d/abc")


def test_a_file_for_a_person_names_its_address_and_is_added_with_a_pin(cache, tmp_path):
    assert "download model.safetensors from https://drive.google.com/file/d/abc by hand" in refused(BY_HAND)
    download = tmp_path / "Download (1).safetensors"
    download.write_bytes(CONTENT)
    state = add_file(card(BY_HAND), download)
    assert files_in(cache) == [state.path]
    assert locate(BY_HAND, "model").read_bytes() == CONTENT
    assert weights_digest(card(BY_HAND)) == SHA256
    assert fetch_model(card(BY_HAND))[0].state == "here"
    download.write_bytes(CONTENT[:-8])
    with pytest.raises(BenchError, match=r"is not the file known as weights of model .*--replace"):
        add_file(card(BY_HAND), download)
    assert weights_digest(card(BY_HAND)) == SHA256
    assert add_file(card(BY_HAND), download, another=True).path.read_bytes() == CONTENT[:-8]
    assert weights_digest(card(BY_HAND)) == hashlib.sha256(CONTENT[:-8]).hexdigest()


def test_only_the_published_file_can_be_added_where_its_digest_is_known(cache, tmp_path):
    download = tmp_path / "model.safetensors"
    download.write_bytes(b"another")
    with pytest.raises(BenchError, match=r"sha256 differs\)$"):
        add_file(card(replace(BY_HAND, sha256=SHA256)), download, another=True)
    assert files_in(cache) == []


def test_a_folder_is_added_and_replaced_whole(cache, tmp_path):
    folder = tmp_path / "checkpoint_12"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    source = replace(BY_HAND, file="checkpoint_12")
    first = add_file(card(source), folder)
    assert (first.path / "a").read_bytes() == b"1"
    (folder / "a").write_bytes(b"2")
    assert [found.state for found in verify_model(card(source))] == ["here"]
    with pytest.raises(BenchError, match="sha256 differs"):
        add_file(card(source), folder)
    assert (add_file(card(source), folder, another=True).path / "a").read_bytes() == b"2"
    (first.path / "a").write_bytes(b"3")
    assert [found.state for found in verify_model(card(source))] == ["altered"]


def test_large_files_are_hashed_again_only_when_they_changed(cache, tmp_path, monkeypatch):
    from bench.weights import cache as module
    from bench.weights.cache import FileCache

    monkeypatch.setattr(module, "QUICK_BYTES", 0)
    hashed = []
    monkeypatch.setattr(module, "sha256_of", lambda path: hashed.append(path) or SHA256)
    path = tmp_path / "large"
    path.write_bytes(b"1")
    for _ in range(2):
        assert FileCache(cache).digest(path) == SHA256
    assert len(hashed) == 1
    path.write_bytes(b"22")
    FileCache(cache).digest(path)
    FileCache(cache).digest(path, fresh=True)
    assert len(hashed) == 3
