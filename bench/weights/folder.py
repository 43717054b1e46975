"""The folder of a diffusers pipeline on the hub: many files that are one thing, fetched and found together."""

from __future__ import annotations

from pathlib import Path

from bench.weights.cache import FileCache
from bench.weights.fetch import hub_faults, hub_key, keep, refuse_offline
from results.errors import BenchError

FORMAT = "diffusers"
"""What a card calls weights of this kind."""
INDEX = "model_index.json"
"""The file that names a pipeline's components."""
WANTED = (INDEX, "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja")
UNWANTED = ("*.fp16.*", "*.non_ema.*", "*onnx*", "*openvino*", "safety_checker/*", "pe/*", "pe_tokenizer/*")
"""Second copies, what other programs read, and components that a benchmark switches off."""


def added_folder(cache: FileCache, repository: str, revision: str | None) -> Path:
    """Return where a folder lies that a person added."""
    return cache.place("pipelines", repository, revision or "main")


def find_folder(cache: FileCache, repository: str, revision: str | None) -> Path | None:
    """Return the folder of a pipeline when all of it is on this machine, else None. Never downloads."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    added = added_folder(cache, repository, revision)
    if added.exists():
        return added
    commit = cache.pinned(hub_key(repository, INDEX, revision)).get("commit")
    try:
        found = Path(snapshot_download(repository, revision=commit or revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return None
    return found if not lacking(found) else None


def lacking(folder: Path) -> list[str]:
    """Return what a pipeline's folder lacks: its index, folders of components, shards that an index names."""
    from results.documents import read_object

    try:
        index = read_object(folder / INDEX, "index")
        parts = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    except (BenchError, IndexError):
        return [INDEX]
    off = {pattern.partition("/")[0] for pattern in UNWANTED if pattern.endswith("/*")}
    missing = [part for part in parts if part not in off and not (folder / part).is_dir()]
    for path in folder.glob("*/*.safetensors.index.json"):
        if ".fp16." in path.name:
            continue
        try:
            shards = sorted(set(read_object(path, "index")["weight_map"].values()))
            missing += [f"{path.parent.name}/{shard}" for shard in shards if not (path.parent / shard).exists()]
        except (BenchError, KeyError, AttributeError, TypeError, ValueError):
            missing.append(f"{path.parent.name}/{path.name}")
    return missing


def fetch_folder(cache: FileCache, repository: str, revision: str | None, title: str) -> Path:
    """Return the folder of a pipeline, downloaded first if need be into the hub client's cache, and pinned.

    Raises BenchError, one line, for whatever stands in the way: a gate names the page where its terms are accepted.
    """
    from huggingface_hub import snapshot_download

    key = hub_key(repository, INDEX, revision)
    with cache.lock(key):
        folder, commit = find_folder(cache, repository, revision), cache.pinned(key).get("commit")
        if folder is None:
            refuse_offline(title, repository)
            with hub_faults(title, repository, repository):
                path = snapshot_download(
                    repository, revision=commit or revision, allow_patterns=[*WANTED], ignore_patterns=[*UNWANTED]
                )
            folder = Path(path)
            commit = folder.name
            missing = lacking(folder)
            if missing:
                raise BenchError(f"{title}: {repository} is not the folder of a pipeline (no {', '.join(missing[:3])})")
        return keep(cache, key, folder, None, title, repository=repository, file=INDEX, commit=commit)
