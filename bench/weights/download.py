"""One file over HTTP: continued where an earlier call stopped, checked for size and digest, in place only when whole.

The hub client's public calls cannot do all of this: `hf_hub_download` of huggingface_hub 2.4 writes to a name of its
own in every process, so that a killed download begins anew (1.0 resumed it), and it compares sizes, not digests.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench.weights.cache import sha256_of
from bench.weights.sniff import kind_of
from results.errors import BenchError
from results.files import is_full

Progress = Callable[[int, int | None], None]
"""Told the bytes that are here and the size of the whole, None where the server does not say."""

ATTEMPTS = 5
"""Connections in a row that may break without having brought a byte."""


class Unreachable(BenchError):
    """The file cannot be downloaded at present; it may be had otherwise."""


class Remote(NamedTuple):
    """One version of a file on a server."""

    url: str
    size: int | None
    etag: str | None
    """What changes with the content; for large files of the hub it is their sha256."""
    commit: str | None = None
    headers: Mapping[str, str] = {}

    @property
    def sha256(self) -> str | None:
        """The digest that the server announces, if it does."""
        return self.etag if self.etag is not None and len(self.etag) == 64 else None


def quiet(done: int, size: int | None) -> None:
    """Show no progress."""


def download(
    remote: Remote,
    partial: Path,
    target: Path,
    expected: str | None,
    title: str,
    place: str,
    progress: Progress = quiet,
) -> None:
    """Download to `partial`, continuing what is there, verify, and move to `target`.

    `expected` is the sha256 or its beginning; `place` names the environment variable that chooses another disk. Raises
    BenchError when the file is not the expected one (nothing is kept) or the disk is full, Unreachable when the server
    does not deliver (what came is kept).
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    if remote.etag is None or remote.size is None:  # nothing tells whether the beginning is of the same file
        partial.unlink(missing_ok=True)
    _check_room(remote, partial, title, place)
    try:
        _transfer(remote, partial, progress)
    except OSError as error:
        if is_full(error):
            raise BenchError(
                f"{title}: {partial.parent} is full; free some space or choose another disk with {place}, and run the "
                "same command to continue"
            ) from error
        raise unreachable(title, remote.url, error) from error
    except Exception as error:
        raise unreachable(title, remote.url, error) from error
    size = partial.stat().st_size
    if remote.size is not None and size != remote.size:
        partial.unlink()
        raise Unreachable(
            f"{title}: {remote.url} should have {remote.size} bytes but has {size}; nothing was kept, try again later"
        )
    if kind_of(partial).name == "html":
        partial.unlink()
        raise Unreachable(f"{title}: {remote.url} returned a web page instead of a file; open it in a browser")
    expected = expected or remote.sha256
    found = sha256_of(partial)
    if expected is not None and not found.startswith(expected):
        partial.unlink()
        raise BenchError(
            f"{title}: {remote.url} has sha256 {found[:12]}..., expected {expected[:12]}...; nothing was kept, fetch "
            "it again or tell the card's maintainers that the published file changed"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(target)


def unreachable(title: str, where: str, error: Exception) -> Unreachable:
    """Return the one-line error for a download that failed on the way."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return Unreachable(f"{title}: cannot download {where} ({reason}); the same command continues where it stopped")


def _check_room(remote: Remote, partial: Path, title: str, place: str) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    free = shutil.disk_usage(partial.parent).free
    if remote.size is not None and remote.size - done > free:
        raise BenchError(
            f"{title}: needs {(remote.size - done) / 2**30:.1f} GiB, {partial.parent} has {free / 2**30:.1f}; make "
            f"room or choose another place with {place}"
        )


def _transfer(remote: Remote, partial: Path, progress: Progress) -> None:
    """Append to `partial` what it lacks; a connection that breaks is taken up again where it broke."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status

    broken = 0
    while True:
        done = partial.stat().st_size if partial.exists() else 0
        if done and done == remote.size:
            return
        headers = {"Accept-Encoding": "identity", **remote.headers, **({"Range": f"bytes={done}-"} if done else {})}
        try:
            with get_session().stream("GET", remote.url, headers=headers, follow_redirects=True) as answer:
                hf_raise_for_status(answer)
                whole = answer.status_code != 206  # a server that knows no ranges begins anew
                with partial.open("wb" if whole else "ab") as file:
                    for chunk in answer.iter_bytes():
                        file.write(chunk)
                        progress(file.tell(), remote.size)
            return
        except Exception as error:
            # The transport errors of the hub's HTTP client, whose package changed its name between versions.
            if not type(error).__module__.startswith("httpx") or remote.size is None or remote.etag is None:
                raise
            broken = 0 if partial.exists() and partial.stat().st_size > done else broken + 1
            if broken == ATTEMPTS:
                raise
