"""What a run needs and this machine lacks: which files, how large, from where, and the one command that gets them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from bench.contracts.card import ModelCard
from bench.judges.base import judge_files, judge_specs
from bench.models.cards import find_card
from bench.models.files import model_files
from bench.references.stored import build_command, built_references
from bench.run.plan import Request, make_plan, stated_home
from bench.weights.cache import FileCache, cache_directory
from bench.weights.file import NETWORK, NeededFile, size_text
from protocols import Protocol
from results.errors import MissingError


class ReferenceSet(NamedTuple):
    """A data set that only the user has, to be judged once."""

    name: str
    data: str
    """What the user needs a copy of."""
    command: str
    """What builds it."""


@dataclass(frozen=True)
class Needs:
    """Files and references of one or more plans; `what` names the plans."""

    what: str
    files: tuple[NeededFile, ...]
    references: tuple[ReferenceSet, ...]
    fetch: str
    """The command that fetches all that a client can fetch."""

    def __bool__(self) -> bool:
        return bool(self.files or self.references)

    def lacking(self) -> Needs:
        """Return what of it is not on this machine."""
        cache = FileCache(cache_directory())
        absent = tuple(file for file in self.files if file.find(cache) is None)
        return replace(
            self, files=absent, references=tuple(ref for ref in self.references if not built_references(ref.name))
        )

    def table(self, sizes: Mapping[NeededFile, int] | None = None) -> list[str]:
        """Return one line for each source of files and each reference: what, how large, from where.

        `sizes` are those that a server told; for other files the card's or nothing.
        """
        rows = []
        for (owner, origin, by_hand), group in groupby(
            self.files, lambda file: (file.owner, file.origin, file.by_hand)
        ):
            files = list(group)
            known = [(sizes or {}).get(file, file.size) for file in files]
            counted = [size for size in known if size is not None]
            about = "" if all(file in (sizes or {}) for file in files) else "about "
            size = about + size_text(sum(counted)) if counted else "size unknown"
            roles = [file.role for file in files]
            title = f"{', '.join(roles) if len(roles) < 3 else f'{len(roles)} files'} of {owner}"
            rows.append((title, "" if by_hand else size, files[0].remedy() if by_hand else origin))
        rows += [
            (f"reference {name}", "", f"your copy of the data ({data}): {command}")
            for name, data, command in self.references
        ]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)] if rows else [0, 0]
        return [f"  {title:{widths[0]}}  {size:>{widths[1]}}  {origin}" for title, size, origin in rows]

    def fetchable(self) -> tuple[NeededFile, ...]:
        """Return the files that a client can get."""
        return tuple(file for file in self.files if not file.by_hand)

    def block(self) -> str:
        """Return all that is missing and what gets it, to be printed at once."""
        fetchable = self.fetchable()
        counts = []
        if self.files:
            total = sum(file.size or 0 for file in fetchable)
            size = f" (at least {size_text(total)} to fetch)" if total else ""
            counts.append(f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}{size}")
        if self.references:
            counts.append(" and ".join(f"reference {reference.name}" for reference in self.references))
        lines = [f"missing for {self.what}: {' and '.join(counts)}", *self.table()]
        if fetchable:
            rest = "all of it" if len(fetchable) == len(self.files) and not self.references else "what can be fetched"
            lines.append(f"Get {rest} with: {self.fetch}    (or add --fetch to 'bench run')")
        return "\n".join(lines)


def needs_of_run(requests: Sequence[Request]) -> Needs:
    """Return what the plans of `requests` need. Raises BenchError for what no plan can be made of."""
    files: list[NeededFile] = []
    for request in requests:
        if not request.random_weights:
            drawn = make_plan(replace(request, random_weights=True), "")
            cards = {cell.card.name: cell.card for cell in drawn}
            own = [file for card in cards.values() for file in model_files(card)]
            files += [file for file in own if file.role != NETWORK or request.weights is None]
        files += files_of_judges(request.protocol)
    return _needs([request.protocol for request in requests], [request.models for request in requests], files)


def cards_of(requests: Sequence[Request]) -> list[ModelCard]:
    """Return the cards that `requests` measure, each of a pair's members."""
    cards: dict[str, ModelCard] = {}
    for request in requests:
        names = request.models or [name for sweep in request.protocol.sweeps for name in sweep.models]
        for card in map(find_card, names):
            cards |= {member.model: find_card(member.model) for member in card.members} or {card.name: card}
    return list(cards.values())


def needs_of_models(protocol: Protocol, models: tuple[str, ...] | None) -> Needs:
    """Return what `models` (None: all that the protocol names) need to be measured under `protocol` at any setting."""
    names = models if models is not None else dict.fromkeys(name for sweep in protocol.sweeps for name in sweep.models)
    cards: Iterable[ModelCard] = [find_card(name) for name in names]
    files = [file for card in cards for file in model_files(card)] + files_of_judges(protocol)
    return _needs([protocol], [models], files)


def needs_of_judging(protocol: Protocol) -> Needs:
    """Return what judging images under `protocol` needs: its judges and its reference."""
    command = f"bench weights fetch judges --protocol {protocol.argument}"
    return replace(_needs([protocol], [None], files_of_judges(protocol)), fetch=command)


def files_of_judges(protocol: Protocol) -> list[NeededFile]:
    """Return the files of all judges of a protocol."""
    root = protocol.path.parent
    return [file for spec in judge_specs(protocol) for file in judge_files(spec, root=root)]


def joined(parts: Sequence[Needs]) -> Needs:
    """Return the needs of several plans as one."""
    if len(parts) == 1:
        return parts[0]
    files = [file for part in parts for file in part.files]
    references = dict.fromkeys(reference for part in parts for reference in part.references)
    return Needs(
        ", ".join(part.what for part in parts),
        _unique(files),
        tuple(references),
        " && ".join(dict.fromkeys(part.fetch for part in parts)),
    )


def require(needs: Needs) -> None:
    """Raise MissingError unless all of it is on this machine."""
    lacking = needs.lacking()
    if lacking:
        raise MissingError(lacking.block())


def _needs(
    protocols: Sequence[Protocol], models: Sequence[tuple[str, ...] | None], files: Iterable[NeededFile]
) -> Needs:
    references = dict.fromkeys(
        _reference(protocol)
        for protocol in protocols
        if "source" not in protocol.reference and protocol.reference["kind"] != "none"
    )
    return Needs(_what(protocols, models), _unique(files), tuple(references), _fetch_command(protocols, models))


def _reference(protocol: Protocol) -> ReferenceSet:
    facts = protocol.reference
    images = f", {facts['images']:,} images" if "images" in facts else ""
    return ReferenceSet(str(facts["name"]), f"{facts['kind']}{images}", build_command(protocol))


def _unique(files: Iterable[NeededFile]) -> tuple[NeededFile, ...]:
    """Return the files once each, whoever needs them."""
    cache = FileCache(cache_directory())
    return tuple({(file.path or file.key(cache)): file for file in reversed(list(files))}.values())[::-1]


def _what(protocols: Sequence[Protocol], models: Sequence[tuple[str, ...] | None]) -> str:
    pairs = zip(protocols, models, strict=True)
    return "; ".join(
        f"{', '.join(names)} under {protocol.name}" if names else f"protocol {protocol.name}"
        for protocol, names in pairs
    )


def _fetch_command(protocols: Sequence[Protocol], models: Sequence[tuple[str, ...] | None]) -> str:
    """Return the command that fetches for all plans: by their models where each is at home in its protocol."""
    commands = []
    at_home: list[str] = []
    for protocol, names in zip(protocols, models, strict=True):
        if names is None:
            commands.append(f"bench fetch --protocol {protocol.argument}")
        elif all(stated_home(name) == protocol.argument for name in names):
            at_home += names
        else:
            commands.append(f"bench fetch --model {','.join(names)} --protocol {protocol.argument}")
    if at_home:
        commands.insert(0, f"bench fetch --model {','.join(at_home)}")
    return " && ".join(commands)
