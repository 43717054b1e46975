"""Prompts become embeddings: each once, under its hash; text encoders are there only while they encode."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapters.hosted.table import Hosting
from bench.contracts.noise import PhiloxNoise
from results.errors import BenchWarning

Conditioning = Mapping[str, Any]
"""Embeddings by argument of a pipeline: a tensor for a batch, or a list of one tensor a sample."""
Embedding = dict[str, Tensor]
"""One prompt's embeddings by argument, without the batch axis."""
Lost = Mapping[str, str]
"""The words of one prompt that were not read, by the tokenizer that cut them off."""
Encoder = Callable[[str, int | None], tuple[Embedding, Lost]]
"""Encodes one prompt, cut at so many tokens (None: the class's own number), and says what was cut off."""
LOST = "lost"
"""What the words cut off are called beside stored embeddings."""
RANDOM_TOKENS = 77
"""Tokens of a padded prompt that no text encoder has read."""


class Prompts:
    """The prompts of a run, which are its labels, and their embeddings.

    Without text encoders (random weights, a count of evaluations) the embedding of a prompt is unit noise that its
    words choose: prompts then differ, and nothing else is meant.
    """

    def __init__(self, hosting: Hosting, config: Mapping[str, Any], model: str) -> None:
        self.hosting, self.config, self.model = hosting, config, model
        self.texts: tuple[str, ...] = ()
        self.open: Callable[[], contextlib.AbstractContextManager[Encoder]] | None = None
        """Opens the text encoders, of a model that has any."""
        self.small = False
        """Whether `open` keeps the text encoders in 8 bits: their embeddings are others."""
        self.store: Path | None = None
        self.kept: dict[str, Embedding] = {}
        self.lost: dict[str, Lost] = {}
        """Of prompts that were cut, under their names in `kept`."""
        self.cut: dict[str, Lost] = {}
        """Of the prompts of the last batch's run that were cut: what was not read."""

    def take(self, prompts: Sequence[str], store: Path | None = None) -> None:
        """Take the prompts, one a label; embeddings are kept in folder `store`."""
        if self.store != store:
            self.kept.clear()
            self.lost.clear()
        self.texts, self.store = tuple(prompts), store

    def batch(
        self, labels: Tensor, *, negative: str | None, tokens: int | None, device: torch.device, dtype: torch.dtype
    ) -> Conditioning:
        """Return the pipeline's arguments for prompts [B]; `negative` is what guidance leads away from, if it acts.

        Padded embeddings are as long as the longest of the run, so that a sample does not depend on its batch.
        """
        wanted = list(self.texts) + ([] if negative is None else [negative])
        self.encode(wanted, tokens)
        self.cut = {text: self.lost[key] for text in self.texts if (key := self.key(text, tokens)) in self.lost}
        chosen = [self.texts[label] for label in labels.tolist()] if labels.device.type != "meta" else None
        rows = [self.kept[self.key(text, tokens)] for text in (chosen or [wanted[0]] * len(labels))]
        longest = self._longest(wanted, tokens)
        found = self._stacked(self._positive(rows), longest)
        if negative is not None:
            other = self._negative(rows, negative, tokens)
            found |= {_negated(name): value for name, value in self._stacked(other, longest).items()}
        return {name: _moved(value, device, dtype) for name, value in found.items()}

    def encode(self, texts: Iterable[str], tokens: int | None) -> None:
        """Encode what is not known yet: read from the store, else by the text encoders, which are then let go."""
        missing = [text for text in dict.fromkeys(texts) if self.key(text, tokens) not in self.kept]
        for text in missing:
            known = self._read(self.key(text, tokens))
            if known is not None:
                self._keep(self.key(text, tokens), *known)
        missing = [text for text in missing if self.key(text, tokens) not in self.kept]
        if not missing:
            return
        if self.open is None:
            for text in missing:
                self.kept[self.key(text, tokens)] = self._random(text, tokens)
            return
        with self.open() as encoder:
            for text in missing:
                found = encoder(text, tokens)
                self._keep(self.key(text, tokens), *found)
                self._write(self.key(text, tokens), *found)

    def _keep(self, key: str, embedding: Embedding, lost: Lost) -> None:
        self.kept[key] = embedding
        if lost:
            self.lost[key] = lost

    def key(self, text: str, tokens: int | None) -> str:
        """Return the name under which a prompt's embeddings are kept."""
        small = "float8\n" if self.small else ""
        return hashlib.sha256(f"{small}{tokens or ''}\n{text}".encode()).hexdigest()

    def _positive(self, rows: Sequence[Embedding]) -> list[Embedding]:
        return [{name: value for name, value in row.items() if not name.startswith("negative_")} for row in rows]

    def _negative(self, rows: Sequence[Embedding], negative: str, tokens: int | None) -> list[Embedding]:
        """Return the negative embeddings: of a class that makes none of its own for "", those of the text."""
        own = [{n.removeprefix("negative_"): v for n, v in row.items() if n.startswith("negative_")} for row in rows]
        if negative == "" and all(own):
            return own
        return self._positive([self.kept[self.key(negative, tokens)]] * len(rows))

    def _longest(self, texts: Iterable[str], tokens: int | None) -> dict[str, int]:
        rows = [self.kept[self.key(text, tokens)] for text in dict.fromkeys(texts)]
        names = self.hosting.masked
        return {name: max(len(row[name]) for row in rows if name in row) for name in names if name in rows[0]}

    def _stacked(self, rows: Sequence[Embedding], longest: Mapping[str, int]) -> dict[str, Any]:
        if self.hosting.listed:
            return {name: [row[name] for row in rows] for name in rows[0]}
        lengths = {**longest, **{self.hosting.masked[name]: length for name, length in longest.items()}}
        return {
            name: torch.stack([_padded(row[name], lengths[name]) if name in lengths else row[name] for row in rows])
            for name in rows[0]
        }

    def _random(self, text: str, tokens: int | None) -> Embedding:
        own_length = self.hosting.listed or self.hosting.masked
        count = min(tokens or self.hosting.tokens, 4 + len(text.split()) if own_length else RANDOM_TOKENS)
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        found: Embedding = {}
        for draw, (name, shape) in enumerate(self.hosting.conditioning(self.config, count).items()):
            found[name] = PhiloxNoise(seed, [0]).normal(shape, draw)[0]
            if name in self.hosting.masked:
                real = torch.zeros if name.endswith("_2") else torch.ones  # no prompt of ours has quoted text
                found[self.hosting.masked[name]] = real(shape[0], dtype=getattr(torch, self.hosting.mask), device="cpu")
            if name.endswith("_embeds_2"):
                found[name].zero_()
        return found

    def _read(self, name: str) -> tuple[Embedding, Lost] | None:
        path = None if self.store is None else self.store / f"{name}.safetensors"
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                lost = json.loads((file.metadata() or {})[LOST])
                return {key: file.get_tensor(key) for key in file.keys()}, lost  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, KeyError, ValueError):
            return None  # cut short by a kill, by a full disk, or of an older version: encoded again

    def _write(self, name: str, embedding: Embedding, lost: Lost) -> None:
        if self.store is None:
            return
        path = self.store / f"{name}.safetensors"
        partial = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {key: value.contiguous() for key, value in embedding.items()}
            save_file(tensors, partial, metadata={LOST: json.dumps(lost)})
            partial.replace(path)
        except (OSError, SafetensorError) as error:  # a store is a saving of time, nothing else
            line = f"{self.model}: embeddings are not kept in {self.store} ({error})"
            warnings.warn(line, BenchWarning, stacklevel=2)


def _negated(name: str) -> str:
    return f"negative_{name}"


def _padded(value: Tensor, length: int) -> Tensor:
    lacking = length - len(value)
    return value if lacking <= 0 else torch.cat([value, value.new_zeros(lacking, *value.shape[1:])])


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_moved(item, device, dtype) for item in value]
    return value.to(device, dtype if value.is_floating_point() else None)


def cut_words(tokenizer: Any, text: str, length: int) -> str:
    """Return the end of `text` that a tokenizer cuts off at `length` tokens; empty where it takes the whole."""
    ids = tokenizer(text, truncation=False, add_special_tokens=True)["input_ids"]
    if len(ids) <= length:
        return ""
    kept = tokenizer(text, truncation=True, max_length=length, add_special_tokens=True)["input_ids"]
    begin = tokenizer.decode(kept, skip_special_tokens=True).split()
    return " ".join(text.split()[len(begin) :]) or text.split()[-1]
