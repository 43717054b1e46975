"""Signatures of bundles, made and checked by the system's own tools: ssh-keygen (OpenSSH 8.1 or later) or minisign.

A signature tells that the holder of a key vouches for every byte of the bundle, not whose key it is: readers see its
fingerprint, and a file of allowed signers (ssh-keygen(1), ALLOWED SIGNERS) gives it a name.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results.errors import StoreError, one_line
from results.files import read_regular, real_path

NAMESPACE = "fewstep-bench"
"""What a signature is for: one made for another purpose does not verify."""
TOOLS = {"ssh": "ssh-keygen", "minisign": "minisign"}
SECONDS = 120.0
"""How long a tool may take: it may ask for a passphrase."""
LARGEST_KEY = 1 << 20
"""Bytes of a file of a key, or of allowed signers."""
LONGEST = 20_000
"""Letters of a signature or of a public key."""


def sign(payload: bytes, key: Path) -> dict[str, str]:
    """Return the signature of `payload` under a private SSH or minisign key, as `verify` takes it.

    Raises StoreError when the key cannot be read, the tool is not installed or it refuses.
    """
    start = _readable(key, "give a private key with --sign")[:200]
    kind = "minisign" if start.startswith(b"untrusted comment:") else "ssh"
    with tempfile.TemporaryDirectory(prefix="bench-sign-") as folder:
        message, public = Path(folder) / "bundle.json", Path(folder) / "key.pub"
        message.write_bytes(payload)
        if kind == "ssh":
            _run(key, kind, "-Y", "sign", "-q", "-f", str(real_path(key)), "-n", NAMESPACE, str(message))
            return {"kind": kind, "signature": (Path(folder) / "bundle.json.sig").read_text("utf-8")}
        made = Path(folder) / "bundle.json.minisig"
        _run(key, kind, "-S", "-s", str(real_path(key)), "-m", str(message), "-x", str(made), "-t", NAMESPACE)
        _run(key, kind, "-R", "-s", str(real_path(key)), "-p", str(public))
        return {"kind": kind, "signature": made.read_text("utf-8"), "public_key": public.read_text("utf-8")}


def verify(payload: bytes, signature: Mapping[str, Any], allowed: Path | None = None) -> str | None:
    """Return who signed `payload`: kind and fingerprint of the key, with the name that `allowed` signers give it.

    None: the tool that could tell is not installed, and no `allowed` signers were asked for. Raises StoreError for a
    signature that is none, is of other bytes, or is by nobody among the `allowed` signers (a file of ssh-keygen's).
    """
    kind = signature.get("kind")
    texts = [signature.get("signature"), signature.get("public_key", "")]
    if (
        not isinstance(kind, str)
        or kind not in TOOLS
        or not all(isinstance(text, str) and len(text) <= LONGEST for text in texts)
    ):
        raise StoreError("its signature is none that ssh-keygen or minisign makes")
    if shutil.which(TOOLS[kind]) is None:
        if allowed is None:
            return None
        raise StoreError(f"its signature cannot be checked: {TOOLS[kind]} is not installed")
    if allowed is not None:
        _readable(allowed, "give a file of ALLOWED SIGNERS, see ssh-keygen(1)")
    if allowed is not None and kind != "ssh":
        raise StoreError("--allowed-signers holds SSH keys, and it is signed with minisign")
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as folder:
        message, made, public = (Path(folder) / name for name in ("bundle.json", "signature", "key.pub"))
        message.write_bytes(payload)
        made.write_text(str(texts[0]), "utf-8")
        if kind == "minisign":
            public.write_text(str(texts[1]), "utf-8")
            _checked(kind, b"", "-V", "-p", str(public), "-m", str(message), "-x", str(made))
            key = re.search(r"^RW[0-9A-Za-z+/=]{54}$", str(texts[1]), re.M)
            if key is None:
                raise StoreError("its signature has no minisign key with it")
            return f"minisign {key[0]}"
        said = _checked(kind, payload, "-Y", "check-novalidate", "-n", NAMESPACE, "-s", str(made))
        found = re.search(r"with ([\w-]+) key (SHA256:[0-9A-Za-z+/]{43})", said)
        if found is None:
            raise StoreError("its signature does not verify: ssh-keygen names no key")
        signer = f"ssh {found[1]} {found[2]}"
        if allowed is None:
            return signer
        names = _checked(kind, b"", "-Y", "find-principals", "-f", str(real_path(allowed)), "-s", str(made)).split("\n")
        name = names[0].strip()
        arguments = ("-Y", "verify", "-f", str(real_path(allowed)), "-I", name, "-n", NAMESPACE, "-s", str(made))
        _checked(kind, payload, *arguments)
        return f"{one_line(name, 80)} ({signer})"


def _readable(path: Path, remedy: str) -> bytes:
    try:
        return read_regular(path, LARGEST_KEY)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from error


def _checked(kind: str, payload: bytes, *arguments: str) -> str:
    done = _tool(kind, payload, *arguments)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace") or done.stdout.decode("utf-8", "replace")
        raise StoreError(f"its signature does not verify ({one_line(said, 120)})")
    return done.stdout.decode("utf-8", "replace")


def _run(key: Path, kind: str, *arguments: str) -> None:
    done = _tool(kind, None, *arguments)
    if done.returncode:
        said = one_line(done.stderr.decode("utf-8", "replace"), 160)
        raise StoreError(f"{key}: {TOOLS[kind]} cannot sign with it ({said})")


def _tool(kind: str, payload: bytes | None, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run([TOOLS[kind], *arguments], input=payload, capture_output=True, timeout=SECONDS)
    except FileNotFoundError as error:
        raise StoreError(f"{TOOLS[kind]} is not installed; install it, or leave the signature out") from error
    except subprocess.TimeoutExpired as error:
        raise StoreError(f"{TOOLS[kind]} did not end within {SECONDS:g} s") from error
