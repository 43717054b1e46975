"""The prompts that the text towers learn and the small byte-pair vocabulary that holds them.

open_clip's `SimpleTokenizer` and transformers' `CLIPTokenizer` read the same list of merges; both number the tokens
256 bytes, 256 bytes that end a word, the merges in order, start of text, end of text. So the two give the same ids.
"""

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from protocols.digits.data import CLASS_NAMES

TEMPLATE = "a handwritten digit {}"
TEMPLATES = (
    TEMPLATE,
    "a photo of the handwritten digit {}",
    "a photo of a handwritten {}",
    "a handwritten {}",
    "the digit {}",
    "the number {} written by hand",
    "a scan of the number {}",
    "an image of the digit {}",
    "a drawing of the number {}",
    "{}",
)
UNSEEN_TEMPLATE = "an image of a handwritten number {}"
CONTEXT_LENGTH = 16
_HEADER = "#version: 0.2"

Merge = tuple[str, str]


def prompt_names(label: int) -> tuple[str, str]:
    """Return the two ways of naming a digit: its word and its numeral."""
    return CLASS_NAMES[label], str(label)


def prompts_of_class(label: int) -> tuple[str, ...]:
    """Return every training prompt of a class: each template with the word, then each with the numeral."""
    return tuple(template.format(name) for name in prompt_names(label) for template in TEMPLATES)


def learn_merges() -> list[Merge]:
    """Return byte-pair merges (Sennrich et al., arXiv 1508.07909) after which each word of the prompts is one token.

    The most frequent pair is merged first, words counted once; ties go to the pair that sorts first.
    """
    text = " ".join(prompt for label in range(10) for prompt in prompts_of_class(label))
    words = [(*word[:-1], word[-1] + "</w>") for word in sorted(set(text.split()))]
    merges: list[Merge] = []
    while counts := Counter(pair for word in words for pair in pairwise(word)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        words = [_merge_pair(word, best) for word in words]
    return merges


def _merge_pair(word: tuple[str, ...], pair: Merge) -> tuple[str, ...]:
    merged: list[str] = []
    position = 0
    while position < len(word):
        if word[position : position + 2] == pair:
            merged.append("".join(pair))
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return tuple(merged)


def vocabulary(merges: list[Merge], start: str, end: str) -> dict[str, int]:
    """Return token -> id, with the two special tokens last, so that the end of text has the largest id."""
    # CLIP writes the bytes that do not print as the characters from 256 on, and lists those after the others.
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = range(256, 256 + 256 - len(printable))
    characters = [chr(code) for code in (*printable, *others)]
    tokens = [*characters, *(f"{character}</w>" for character in characters), *("".join(merge) for merge in merges)]
    return {token: index for index, token in enumerate((*tokens, start, end))}


def write_open_clip_merges(merges: list[Merge], path: Path) -> None:
    """Write the gzip file of merges that `SimpleTokenizer(bpe_path=...)` reads; the bytes depend on the merges only."""
    # A newline after the last merge would add an empty token to open_clip's vocabulary.
    text = "\n".join((_HEADER, *(" ".join(merge) for merge in merges)))
    path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


def write_transformers_tokenizer(merges: list[Merge], directory: Path) -> dict[str, int]:
    """Write `vocab.json`, `merges.txt` and `tokenizer_config.json` for `CLIPTokenizer`; return the vocabulary."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    ids = vocabulary(merges, start, end)
    (directory / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = (_HEADER, *(" ".join(merge) for merge in merges))
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
        "model_max_length": CONTEXT_LENGTH,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return ids
