"""Downloads, from the Hugging Face hub or a plain address: resumed, verified, and in place only when whole."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from bench.weights.cache import FileCache, sha256_of
from results.errors import BenchError


class Unreachable(BenchError):
    """The file cannot be downloaded at present; it may be had otherwise."""


class NotOnHub(Unreachable):
    """The hub answers, but has no such file."""


class Remote(NamedTuple):
    """One version of a file on a server."""

    url: str
    size: int | None
    etag: str | None
    """What changes with the content; for large files of the hub it is their sha256."""
    commit: str | None = None
    send_token: bool = False


def hub_key(repository: str, file: str, revision: str | None) -> str:
    """Return the name under which a file of the hub is pinned."""
    return f"hub:{repository}@{revision or 'main'}/{file}"


def hub_path(cache: FileCache, repository: str, file: str, revision: str | None) -> Path:
    """Return where a file of the hub lies in the cache once it is fetched; a repository's files lie together."""
    return cache.place("hub", repository, revision or "main", file)


def find_hub(cache: FileCache, repository: str, file: str, revision: str | None) -> Path | None:
    """Return a file of the hub that is on this machine, in this cache or in one of the hub client's, else None."""
    from huggingface_hub import try_to_load_from_cache

    own = hub_path(cache, repository, file, revision)
    if own.exists():
        return own
    commit = cache.pinned(hub_key(repository, file, revision)).get("commit")
    for directory in (cache.root / "huggingface", None):
        found = try_to_load_from_cache(repository, file, cache_dir=directory, revision=commit or revision)
        if isinstance(found, str):
            return Path(found)
    return None


def fetch_hub(
    cache: FileCache, repository: str, file: str, revision: str | None, published: str | None, title: str
) -> Path:
    """Return a file of the hub, downloaded first if need be.

    HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE count as everywhere. What was downloaded once is asked for by its commit
    and must have the pinned digest. Raises BenchError, one line, for whatever stands in the way.
    """
    key = hub_key(repository, file, revision)
    with cache.lock(key):
        path, commit = find_hub(cache, repository, file, revision), cache.pinned(key).get("commit")
        if path is None:
            path = hub_path(cache, repository, file, revision)
            _refuse_offline(f"{title}: {repository}/{file}")
            remote = _ask_hub(repository, file, commit or revision, title)
            commit = remote.commit
            _download(cache, remote, path, published or cache.pinned(key).get("sha256"), title)
        return _keep(cache, key, path, published, title, repository=repository, file=file, commit=commit)


def fetch_url(cache: FileCache, url: str, path: Path, published: str | None, title: str) -> Path:
    """Return the file of a plain address at `path`, downloaded first if need be. Raises BenchError likewise."""
    with cache.lock(url):
        if not path.exists():
            _refuse_offline(f"{title}: {url}")
            _download(cache, _ask_server(url, title), path, published or cache.pinned(url).get("sha256"), title)
        return _keep(cache, url, path, published, title, url=url)


def _keep(cache: FileCache, key: str, path: Path, published: str | None, title: str, **facts: Any) -> Path:
    cache.verify(title, path, key, published)
    if not cache.pinned(key):
        cache.pin(key, path, **facts)
    return path


def _refuse_offline(what: str) -> None:
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise Unreachable(f"{what} is not here and HF_HUB_OFFLINE is set; unset it")


def _ask_hub(repository: str, file: str, revision: str | None, title: str) -> Remote:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    where = f"{repository}/{file}" + (f" at revision {revision}" if revision else "")
    try:
        facts = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
    except errors.GatedRepoError as error:
        raise BenchError(
            f"{title}: {repository} is gated; accept its terms on the hub and set HF_TOKEN to your token"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BenchError(f"{title}: the hub has no {repository}, or it is private; set HF_TOKEN if it is") from error
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
        raise NotOnHub(f"{title}: the hub has no {where}; correct its name or revision") from error
    except Exception as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
            raise BenchError(f"{title}: the hub refuses {where}; set HF_TOKEN to a token that may read it") from error
        raise _unreachable(title, where, error) from error
    # Asked for by its commit, so that the bytes are those of the metadata even if the branch moves meanwhile.
    url = hf_hub_url(repository, file, revision=facts.commit_hash or revision)
    return Remote(url, facts.size, facts.etag, facts.commit_hash, send_token=True)


def _ask_server(url: str, title: str) -> Remote:
    from huggingface_hub.utils import get_session

    try:
        answer = get_session().head(url, headers={"Accept-Encoding": "identity"}, follow_redirects=True)
        if answer.status_code in (403, 405, 501):  # servers that know no HEAD; what they send can still be had whole
            return Remote(url, None, None)
        answer.raise_for_status()
    except Exception as error:
        raise _unreachable(title, url, error) from error
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise Unreachable(f"{title}: {url} answers with a page, not with a file; open it in a browser")
    size = answer.headers.get("Content-Length")
    return Remote(url, int(size) if size else None, answer.headers.get("ETag"))


def _download(cache: FileCache, remote: Remote, path: Path, expected: str | None, title: str) -> None:
    """Download into `partial/`, continue what an earlier call left there, verify, and move to `path`."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    version = hashlib.sha256(f"{remote.url} {remote.etag} {remote.size}".encode()).hexdigest()[:24]
    partial = cache.root / "partial" / version
    partial.parent.mkdir(parents=True, exist_ok=True)
    if remote.etag is None or remote.size is None:
        partial.unlink(missing_ok=True)
    done = partial.stat().st_size if partial.exists() else 0
    free = shutil.disk_usage(partial.parent).free
    if remote.size is not None and remote.size - done > free:
        raise BenchError(
            f"{title}: needs {(remote.size - done) / 2**30:.1f} GiB, {cache.root} has {free / 2**30:.1f}; make room or "
            "choose another place with BENCH_CACHE_DIR"
        )
    headers = build_hf_headers(token=None if remote.send_token else False)
    try:
        with partial.open("ab") as file:
            http_get(
                remote.url, file, resume_size=done, headers=headers, expected_size=remote.size,
                displayed_filename=path.name,
            )  # fmt: skip
    except Exception as error:
        raise _unreachable(title, remote.url, error) from error
    found = sha256_of(partial)
    if expected is None and remote.etag is not None and len(remote.etag) == 64:
        expected = remote.etag
    if expected is not None and not found.startswith(expected):
        partial.unlink()
        raise BenchError(
            f"{title}: {remote.url} has sha256 {found[:12]}..., expected {expected[:12]}...; nothing was kept, fetch "
            "it again or tell the card's maintainers that the published file changed"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(path)


def _unreachable(title: str, where: str, error: Exception) -> Unreachable:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return Unreachable(f"{title}: cannot download {where} ({reason}); the same command continues where it stopped")
