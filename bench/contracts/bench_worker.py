"""The worker's half of the out-of-process protocol of fewstep-bench: one file that needs numpy alone (Python >= 3.8).

Copy it beside your script, or write it there with `bench adapter new NAME --worker`. Your script is

    from bench_worker import serve

    class Model:
        latent_shape, resolution, num_classes, guidance = (4, 32, 32), 256, 1000, "classifier-free"
        counted = "forward hook on the transformer"

        def __init__(self, job):            # job.card, job.files, job.random_seed, job.device, job.dtype
            ...

        def sample(self, batch):            # batch.labels, batch.prompts, batch.steps, batch.cfg, batch.settings
            with batch.counting(self.network):
                x = batch.normal(self.latent_shape)
                ...
            return images                   # float32 [B, 3, resolution, resolution] in [-1, 1]

    serve(Model)

A message is MAGIC, its length (8 bytes, little-endian) and as many bytes of a safetensors file: arrays are its tensors,
words are JSON under `message` of its metadata. Nothing is pickled. The two ends of the pipes are file descriptors named
in the environment, so that whatever a library prints to standard output cannot damage a message.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import numpy as np

PROTOCOL = 1
MAGIC = b"FSBW"
PIPES = "BENCH_WORKER_PIPES"
"""Environment variable: the descriptors that the worker reads and writes, as `3,4`."""
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
WORDS = 1 << 20
"""Most bytes that words and names of a message take."""


class ProtocolError(Exception):
    """What came is no message of this protocol."""


def encode(message: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> bytes:
    """Return a message as bytes: `message` is what JSON holds, `arrays` are numpy arrays by name."""
    header: dict[str, Any] = {"__metadata__": {"message": json.dumps(message)}}
    parts, offset = [], 0
    for name, array in (arrays or {}).items():
        array = np.asarray(array)
        kind = next((kind for kind, code in TYPES.items() if np.dtype(code) == array.dtype), None)
        if kind is None:
            raise ProtocolError(f"array '{name}' is of type {array.dtype}; send one of {', '.join(TYPES)}")
        data = np.ascontiguousarray(array, dtype=TYPES[kind]).tobytes()
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
        parts.append(data)
    words = json.dumps(header).encode("utf-8")
    words += b" " * (-len(words) % 8)
    body = 8 + len(words) + offset
    return b"".join([MAGIC, struct.pack("<Q", body), struct.pack("<Q", len(words)), words, *parts])


def decode(body: bytes | bytearray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (message, arrays) of the bytes after a message's length. Raises ProtocolError for anything else."""
    if len(body) < 8:
        raise ProtocolError(f"a message of {len(body)} bytes")
    size = struct.unpack("<Q", body[:8])[0]
    if size > min(WORDS, len(body) - 8):
        raise ProtocolError(f"a header of {size} bytes in a message of {len(body)}")
    try:
        header = json.loads(bytes(body[8 : 8 + size]).decode("utf-8"))
        message = json.loads(header.pop("__metadata__")["message"])
        data, arrays = memoryview(body)[8 + size :], {}
        for name, facts in header.items():
            first, last = facts["data_offsets"]
            shape = tuple(facts["shape"])
            if not all(type(number) is int and number >= 0 for number in (*shape, first, last)) or last > len(data):
                raise ValueError(f"array '{name}' lies outside of the message")
            if len(shape) > 8:
                raise ValueError(f"array '{name}' has {len(shape)} axes")
            arrays[name] = np.frombuffer(data[first:last], dtype=TYPES[facts["dtype"]]).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"{type(error).__name__}: {str(error)[:200]}") from None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ProtocolError("a message without a kind")
    return message, arrays


class Job:
    """What the worker is to be: the card, its files, the device.

    Attributes:
        card: name, family, resolution, num_classes, latent_shape, architecture and guidance of the card, a dict.
        files: paths of the card's weights by role (`network` and the card's extra_weights), verified by the harness.
        random_seed: the seed of random weights where the user asked for those, else None.
        device: `cpu`, `cuda` ...
        dtype: `float32`, `bfloat16` or `float16`.
    """

    def __init__(self, words: Mapping[str, Any]) -> None:
        self.card, self.files = words["card"], words["files"]
        self.random_seed, self.device, self.dtype = words["random_seed"], words["device"], words["dtype"]


class Batch:
    """The samples of one request.

    Attributes:
        labels: int64 [B].
        prompts: the text of each label under the protocol, a list of B, or None where labels are classes alone.
        steps, cfg, settings: as in the adapter contract; cfg 1.0 is no inference-time guidance.
    """

    def __init__(
        self, words: Mapping[str, Any], arrays: Mapping[str, np.ndarray], ask: Callable[..., np.ndarray]
    ) -> None:
        self.labels, self.steps, self.cfg = arrays["labels"], words["steps"], words["cfg"]
        self.settings, self.prompts = words["settings"], words.get("prompts")
        self.rows = self.guide_rows = 0
        self._ask = ask

    def __len__(self) -> int:
        return len(self.labels)

    def normal(self, shape: Sequence[int], draw: int = 0) -> np.ndarray:
        """Return unit normal noise, float32 [B, *shape]; draw 0 is the initial noise, later ones are 1, 2, ..."""
        return self._ask("normal", shape, draw)

    def uniform(self, shape: Sequence[int], draw: int = 0) -> np.ndarray:
        """Return the same draw as uniform numbers in [0, 1), float64 [B, *shape]."""
        return self._ask("uniform", shape, draw)

    def evaluated(self, rows: int, guide: bool = False) -> None:
        """Say that the network (or the weaker guide) was evaluated on a batch of `rows`."""
        if guide:
            self.guide_rows += int(rows)
        else:
            self.rows += int(rows)

    @contextmanager
    def counting(self, network: Any, guide: Any = None) -> Iterator[Batch]:
        """Count the evaluations of torch modules by a forward hook, by batch rows, for the duration of the block."""

        def hook(weak: bool) -> Callable[..., None]:
            def count(module: Any, inputs: Any, output: Any) -> None:
                first = output[0] if isinstance(output, (tuple, list)) else output
                self.evaluated(first.shape[0], guide=weak)

            return count

        handles = [network.register_forward_hook(hook(False))]
        if guide is not None:
            handles.append(guide.register_forward_hook(hook(True)))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()


class Channel:
    """Messages over two file descriptors."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reader, self.writer = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")

    def receive(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Return the next (message, arrays), or None when the other side hung up."""
        head = self.reader.read(len(MAGIC) + 8)
        if len(head) < len(MAGIC) + 8:
            return None
        if not head.startswith(MAGIC):
            raise ProtocolError("the harness speaks another protocol")
        body = self.reader.read(struct.unpack("<Q", head[len(MAGIC) :])[0])
        return decode(body)

    def send(self, kind: str, arrays: Mapping[str, Any] | None = None, **words: Any) -> None:
        """Send a message of `kind`."""
        self.writer.write(encode(dict(words, kind=kind), arrays))
        self.writer.flush()


def serve(open_model: Callable[[Job], Any]) -> None:
    """Answer the harness until it hangs up; `open_model(job)` returns the model. What it raises is told in a line."""
    if PIPES not in os.environ:
        sys.exit("this is a worker of fewstep-bench: 'bench run' starts it")
    reading, writing = (int(number) for number in os.environ.pop(PIPES).split(","))
    channel = Channel(reading, writing)
    _end_with_parent()
    try:
        _serve(open_model, channel)
    except BrokenPipeError:  # the harness has gone
        os._exit(0)


def _serve(open_model: Callable[[Job], Any], channel: Channel) -> None:
    first = channel.receive()
    if first is None:
        return
    try:
        model = open_model(Job(first[0]))
        facts = {name: getattr(model, name) for name in ("resolution", "num_classes", "guidance", "counted")}
        facts["latent_shape"] = [int(number) for number in model.latent_shape]
        facts["parameters"] = int(getattr(model, "parameters", 0))
        facts["weights"] = str(getattr(model, "weights", ""))
    except Exception as error:
        _tell(channel, error)
        return
    channel.send("ready", protocol=PROTOCOL, numpy=np.__version__, python=sys.version.split()[0], **facts)

    def ask(kind: str, shape: Sequence[int], draw: int) -> np.ndarray:
        channel.send("noise", of=kind, shape=[int(number) for number in shape], draw=int(draw))
        answer = channel.receive()
        if answer is None:
            raise BrokenPipeError
        if answer[0]["kind"] == "error":
            raise ValueError(answer[0]["reason"])
        return answer[1]["noise"].copy()

    while True:
        request = channel.receive()
        if request is None or request[0]["kind"] == "end":
            return
        try:
            batch = Batch(request[0], request[1], ask)
            images = model.sample(batch)
            if hasattr(images, "detach"):
                images = images.detach().float().cpu().numpy()
            arrays = {"images": np.asarray(images)}
            peak = peak_memory()
        except BrokenPipeError:
            raise
        except Exception as error:
            _tell(channel, error)
            continue
        channel.send("images", arrays, rows=batch.rows, guide_rows=batch.guide_rows, peak_memory=peak)


def _tell(channel: Channel, error: Exception) -> None:
    import traceback

    traceback.print_exc()  # the harness keeps standard error
    channel.send("error", reason=f"{type(error).__name__}: {error}"[:2000])


def peak_memory() -> int:
    """Return the most memory that this process took, in bytes (an accelerator's if torch uses one), or 0 if unknown."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:  # ru_maxrss of Linux starts from the peak of the process that started this one; VmHWM does not
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def _end_with_parent() -> None:
    """End this process when its parent is gone, even while it computes."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
