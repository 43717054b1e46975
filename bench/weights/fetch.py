"""Files of the hub, in the hub client's own cache, and of plain addresses, in ours: found, fetched, pinned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.weights.cache import FileCache
from bench.weights.download import Progress, Remote, Unreachable, download, quiet, unreachable
from results.errors import BenchError, one_line


class NotOnHub(Unreachable):
    """The hub answers, but has no such file."""


def hub_key(repository: str, file: str, revision: str | None) -> str:
    """Return the name under which a file of the hub is pinned."""
    return f"hub:{repository}@{revision or 'main'}/{file}"


def hub_path(cache: FileCache, repository: str, file: str, revision: str | None) -> Path:
    """Return where a file of the hub lies that a person added; a repository's files lie together."""
    return cache.place("hub", repository, revision or "main", file)


def find_hub(cache: FileCache, repository: str, file: str, revision: str | None) -> Path | None:
    """Return a file of the hub that is on this machine, else None.

    Looked at are what a person added, the hub client's own cache, and the places of earlier versions of this program.
    Raises BenchError for what can be no repository.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    added = hub_path(cache, repository, file, revision)
    if added.exists():
        return added
    commit = cache.pinned(hub_key(repository, file, revision)).get("commit")
    for directory in (None, cache.root / "huggingface", cache.root / "judges" / "huggingface"):
        try:
            found = try_to_load_from_cache(repository, file, cache_dir=directory, revision=commit or revision)
        except HFValidationError as error:
            raise BenchError(
                f"'{one_line(repository, 100)}' is not the name of a repository of the hub; correct the card"
            ) from error
        if isinstance(found, str):
            return Path(found)
    earlier = cache.place("judges", "hub", repository, revision or "main", file)
    return earlier if earlier.exists() else None


def fetch_hub(
    cache: FileCache,
    repository: str,
    file: str,
    revision: str | None,
    published: str | None,
    title: str,
    progress: Progress = quiet,
) -> Path:
    """Return a file of the hub, downloaded first if need be into the hub client's cache.

    HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE count as everywhere. What was downloaded once is asked for by its
    commit and must have the pinned digest. Raises BenchError, one line, for whatever stands in the way.
    """
    key = hub_key(repository, file, revision)
    with cache.lock(key):
        path, commit = find_hub(cache, repository, file, revision), cache.pinned(key).get("commit")
        if path is None:
            remote = ask_hub(repository, file, commit or revision, title)
            expected = published or cache.pinned(key).get("sha256") or remote.sha256
            path = _into_hub_cache(remote, repository, file, commit or revision, expected, title, progress)
            cache.verify(title, path, key, expected)
            commit = remote.commit
        return keep(cache, key, path, published, title, repository=repository, file=file, commit=commit)


def fetch_url(
    cache: FileCache, url: str, path: Path, published: str | None, title: str, progress: Progress = quiet
) -> Path:
    """Return the file of a plain address at `path`, downloaded first if need be. Raises BenchError likewise."""
    with cache.lock(url):
        if not path.exists():
            remote = ask_server(url, title)
            version = hashlib.sha256(f"{url} {remote.etag} {remote.size}".encode()).hexdigest()[:24]
            expected = published or cache.pinned(url).get("sha256")
            download(remote, cache.root / "partial" / version, path, expected, title, "BENCH_CACHE_DIR", progress)
        return keep(cache, url, path, published, title, url=url)


def keep(cache: FileCache, key: str, path: Path, published: str | None, title: str, **facts: Any) -> Path:
    """Return `path` once it is the published or pinned file; a file that is new here is pinned with its `facts`."""
    cache.verify(title, path, key, published)
    if not cache.pinned(key):
        cache.pin(key, path, **facts)
    return path


def _into_hub_cache(
    remote: Remote,
    repository: str,
    file: str,
    revision: str | None,
    expected: str | None,
    title: str,
    progress: Progress,
) -> Path:
    """Bring a file into the hub client's cache, which diffusers and transformers read too, and return its path.

    The client keeps contents under `blobs/ETAG` and links them where they belong. It takes a blob that is there for
    its own; only the transfer is ours, because the client's begins anew after a kill (see `bench.weights.download`).
    """
    from huggingface_hub import constants, hf_hub_download

    blob = None
    if remote.etag is not None and remote.size is not None:
        blobs = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
        blob = blobs / remote.etag
        if not blob.exists():
            download(remote, blobs / f"{remote.etag}.part", blob, expected, title, "HF_HOME", progress)
    with hub_faults(title, f"{repository}/{file}", repository):
        path = Path(hf_hub_download(repository, file, revision=revision))
    if blob is not None and not path.is_symlink():  # a file system without links: the client has made a copy
        blob.unlink(missing_ok=True)
    return path


def ask_hub(repository: str, file: str, revision: str | None, title: str) -> Remote:
    """Return what the hub says of a file, without downloading it. Raises BenchError, one line, when it does not."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    where = f"{repository}/{file}" + (f" at revision {revision}" if revision else "")
    refuse_offline(title, f"{repository}/{file}")
    with hub_faults(title, where, repository):
        facts = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
    # Asked for by its commit, so that the bytes are those of the metadata even if the branch moves meanwhile.
    url = hf_hub_url(repository, file, revision=facts.commit_hash or revision)
    return Remote(url, facts.size, facts.etag, facts.commit_hash, build_hf_headers())


def ask_server(url: str, title: str) -> Remote:
    """Return what a server says of the file at `url`. Raises Unreachable when it has none."""
    from huggingface_hub import get_session

    refuse_offline(title, url)
    try:
        answer = get_session().head(url, headers={"Accept-Encoding": "identity"}, follow_redirects=True)
        if answer.status_code in (403, 405, 501):  # servers that know no HEAD; what they send can still be had whole
            return Remote(url, None, None)
        answer.raise_for_status()
    except Exception as error:
        raise unreachable(title, url, error) from error
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise Unreachable(f"{title}: {url} returned a web page instead of a file; open it in a browser")
    size = answer.headers.get("Content-Length")
    return Remote(url, int(size) if size else None, answer.headers.get("ETag"))


def refuse_offline(title: str, where: str) -> None:
    """Raise Unreachable where the hub client is set to stay offline."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise Unreachable(f"{title}: {where} is not here and HF_HUB_OFFLINE is set; unset it")


@contextmanager
def hub_faults(title: str, where: str, repository: str) -> Iterator[None]:
    """Turn what the hub client raises into one line that says what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise BenchError(
            f"{title}: {repository} is gated; accept its terms at {constants.ENDPOINT}/{repository} and set HF_TOKEN "
            "to your token"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BenchError(f"{title}: the hub has no {repository}, or it is private; set HF_TOKEN if it is") from error
    except (errors.RemoteEntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise NotOnHub(f"{title}: the hub has no {where}; correct its name or revision") from error
    except errors.HFValidationError as error:
        raise BenchError(f"{title}: {repository} is not the name of a repository; correct it") from error
    except Exception as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
            raise BenchError(f"{title}: the hub refuses {where}; set HF_TOKEN to a token that may read it") from error
        raise unreachable(title, where, error) from error
