"""The harness from Python: what the command line does, with typed results and tables of pandas.

    from bench import api

    done = api.run("digits-flow", steps=(1, 4), num_samples=500)
    api.leaderboard().frame()
    api.compare("digits-flow@1", "digits-flow@4").frame()
    api.score("images/", name="mine")

`bench run`, `score`, `leaderboard` and `compare` call these functions and add words. Names, defaults and errors are the
commands': a `BenchError` is one line that says what to do. docs/api.ipynb shows all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.comparing import Comparison, compare_settings
from results.errors import BenchError
from results.files import runs_directory
from results.leaderboard import rows
from results.rows import Row
from results.seeds import Repeated
from results.standings import Leaderboard, Standing, View
from results.standings import leaderboard as _query
from results.store import connect

if TYPE_CHECKING:
    import pandas as pd

    from bench.run.interface import Progress, Summary
    from bench.run.plan import Cell, Request
    from protocols import Protocol

__all__ = [
    "BenchError", "Board", "Comparison", "Comparisons", "Measured", "Row", "View", "compare", "frame", "leaderboard",
    "measure", "requests", "run", "runs_directory", "score",
]  # fmt: skip
FACTS = (
    "cell_id", "model", "checkpoint", "family", "protocol", "ranking", "steps", "cfg", "sampler", "dtype", "seed",
    "num_samples", "nfe", "images_per_second", "latency_seconds", "parameters", "flops", "device", "licence",
)  # fmt: skip
"""Columns of a frame that every row has, before its metrics."""
NAMES = str | Sequence[str]
NUMBERS = float | Sequence[float]


class Silent:
    """Progress that shows nothing."""

    def wait(self, runs: Path) -> None:
        """Say nothing of another run in the directory."""

    def plan(self, cells: int, reused: int, samples: int, cost: float) -> None:
        """Say nothing of the plan."""

    def shard(self, cell: Cell, done: int, total: int, samples: int) -> None:
        """Say nothing of a shard."""

    def shares(self, ended: int, jobs: int, done: int, total: int) -> None:
        """Say nothing of jobs elsewhere."""

    def timing(self, done: int, total: int) -> None:
        """Say nothing of the timing."""

    def cell(self, cell: Cell, status: str, reason: str | None) -> None:
        """Say nothing of a cell."""


@dataclass(frozen=True)
class Measured:
    """What a run did.

    Attributes:
        runs: the runs directory.
        rows: the finished rows of the plan, measured now or before.
        reused: ids of those that were there already.
        failed: (setting, reason) of cells whose adapter broke.
        unsupported: (setting, reason) of settings that a model cannot take.
    """

    runs: Path
    rows: tuple[Row, ...]
    reused: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    unsupported: tuple[tuple[str, str], ...]

    def frame(self) -> pd.DataFrame:
        """Return the rows as a table; see `frame`."""
        return frame(self.rows)


@dataclass(frozen=True)
class Board:
    """A leaderboard: rows by ranking, best first. Rows of different rankings are never comparable.

    Attributes:
        board: all that the command line prints; see `results.standings.Leaderboard`.
    """

    board: Leaderboard

    @property
    def standings(self) -> list[Standing]:
        """The rankings."""
        return list(self.board.standings)

    @property
    def rows(self) -> list[Row]:
        """The rows of all rankings, each ranking's best first."""
        return [row for standing in self.standings for row in standing.rows]

    @property
    def repeated(self) -> list[Repeated]:
        """Settings that were measured on several seeds, with the spread over them."""
        return list(self.board.repeated)

    def frame(self) -> pd.DataFrame:
        """Return the rows as a table; see `frame`."""
        return frame(self.rows)


@dataclass(frozen=True)
class Comparisons:
    """Paired differences a - b: one comparison, or one for each step count that two models share.

    Attributes:
        comparisons: each with its two rows and a difference, interval and verdict for each metric.
    """

    comparisons: tuple[Comparison, ...]

    def frame(self) -> pd.DataFrame:
        """Return one line a metric: a, b, difference, low, high, verdict ..., with the titles of the two rows."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"a": one.title_a, "b": one.title_b, **difference._asdict()}
                for one in self.comparisons
                for difference in one.differences
            ]
        )


def requests(
    models: NAMES | None = None,
    *,
    protocol: str | Protocol | None = None,
    steps: int | Sequence[int] | None = None,
    cfg: NUMBERS | None = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    seeds: Sequence[int] = (),
    select_on: int | None = None,
    sampler: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    compile: bool = False,
    options: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    random_weights: bool = False,
    elsewhere: bool = False,
) -> list[Request]:
    """Return what `run` measures, one request for each protocol: the one given, else the models' homes, else digits.

    Args:
        models: names of cards; None: the protocol's.
        protocol: a shipped protocol's name, a .toml file, or a loaded one.
        steps: step counts; None: the protocol's.
        cfg: guidance scales, 1.0 is none; None: the protocol's.
        num_samples: images a setting; None: the protocol's.
        batch_size: images at once; moves no number that is printed.
        seed: of the noise; None: the protocol's.
        seeds: several of them, in place of `seed`: every setting is measured on each.
        select_on: a second seed, which alone decides what setting of a model is shown.
        sampler: `native` (the card's) or `plain`.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        dtype: `float32`, `bfloat16` or `float16`.
        compile: run the networks through torch.compile.
        options: the sampler's own settings.
        weights: a local file instead of the card's.
        random_weights: seeded noise as weights: for speed alone, never ranked.
        elsewhere: other machines sample, so that `device` need not be here.

    Raises:
        BenchError: a name, number or combination that cannot be.
    """
    from bench.models.loading import parse_device, parse_dtype
    from bench.run.plan import DEFAULT_PROTOCOL, Request, by_home
    from protocols import Protocol, find_protocol
    from protocols.tables import SAMPLERS

    if random_weights and select_on is not None:
        raise BenchError("--select-on: random weights are never ranked, so there is nothing to choose; leave one out")
    if seed is not None and seeds:
        raise BenchError("--seed measures one seed, --seeds several: use one of the two")
    if sampler is not None and sampler not in SAMPLERS:
        raise BenchError(f"--sampler: '{sampler}' is unknown; choose {' or '.join(SAMPLERS)}")
    names = None if models is None else (models,) if isinstance(models, str) else tuple(models)
    loaded: list[tuple[Protocol, tuple[str, ...] | None]]
    if isinstance(protocol, Protocol):
        loaded = [(protocol, names)]
    elif protocol is not None or names is None:
        loaded = [(find_protocol(protocol or DEFAULT_PROTOCOL), names)]
    else:
        loaded = [(find_protocol(home), chosen) for home, chosen in by_home(names).items()]
    asked = Request(
        protocol=loaded[0][0],
        steps=None if steps is None else (steps,) if isinstance(steps, int) else tuple(steps),
        cfg=None if cfg is None else (float(cfg),) if isinstance(cfg, int | float) else tuple(map(float, cfg)),
        num_samples=num_samples,
        seed=seed,
        seeds=tuple(seeds),
        batch_size=batch_size,
        sampler=sampler,
        select_on=select_on,
        device=parse_device(device, elsewhere=elsewhere),
        dtype=parse_dtype(dtype),
        compile=compile,
        options=dict(options or {}),
        weights=None if weights is None else Path(weights),
        random_weights=random_weights,
    )
    return [replace(asked, protocol=found, models=chosen) for found, chosen in loaded]


def measure(
    asked: Sequence[Request],
    runs: str | Path | None = None,
    *,
    progress: Progress | None = None,
    executor: str = "local",
    workers: int = 0,
    executor_options: Mapping[str, Any] | None = None,
    fresh: bool = False,
    timeout: float | None = None,
    allow_mixed: bool = False,
) -> Iterator[tuple[Request, Summary]]:
    """Measure requests one after the other and yield what became of each; see `bench.run.interface.How`.

    Every fault that can be met before is met before the first sample of the first one.
    """
    from bench.run.executors import batch_of, check_options
    from bench.run.interface import How
    from bench.run.needs import needs_of_run, require
    from bench.run.provenance import typed_command
    from bench.run.readiness import check_surroundings
    from bench.run.runner import run as run_request

    how = How(
        executor=executor,
        workers=workers,
        options=executor_options or {},
        fresh=fresh,
        timeout=timeout,
        allow_mixed=allow_mixed,
        arguments=typed_command(),
    )
    batch = batch_of(executor)
    check_options(executor, how.options)
    place = runs_directory(runs)
    for request in asked:
        check_surroundings(request, place, place / "bench.duckdb")
    require(needs_of_run(asked))
    for request in asked:
        if batch is not None:
            jobs = batch(workers, request.device, **how.options)
            yield request, jobs.run(request, place, how, progress or Silent())
        else:
            yield request, run_request(request, place, progress=progress or Silent(), **vars(how))


def run(
    models: NAMES | None = None,
    *,
    runs: str | Path | None = None,
    progress: Progress | None = None,
    executor: str = "local",
    workers: int = 1,
    executor_options: Mapping[str, Any] | None = None,
    fresh: bool = False,
    timeout: float | None = None,
    allow_mixed: bool = False,
    **settings: Any,
) -> Measured:
    """Measure models under a protocol, as `bench run` does, and return the rows.

    Args:
        models: names of cards; None: the protocol's.
        runs: the runs directory; see `runs_directory`.
        progress: told about every step; None: silence.
        executor: where workers run: `local`, or an installed one.
        workers: worker processes; 1 works in this process, 0 takes one per core (a script then needs the usual
            `if __name__ == "__main__"`).
        executor_options: the executor's own settings.
        fresh: measure again what is already measured.
        timeout: seconds that a batch may take; None: no limit.
        allow_mixed: take shards and workers of other versions of the code or its libraries.
        settings: everything else that `requests` takes.

    Raises:
        BenchError: what stands in the way, before the first sample; or a database that another process holds.
    """
    from bench.run.executors import batch_of

    place = runs_directory(runs)
    asked = requests(models, elsewhere=batch_of(executor) is not None, **settings)
    ids: dict[str, None] = {}
    reused: list[str] = []
    failed: list[tuple[str, str]] = []
    unsupported: list[tuple[str, str]] = []
    work = measure(
        asked, place, progress=progress, executor=executor, workers=workers, executor_options=executor_options,
        fresh=fresh, timeout=timeout, allow_mixed=allow_mixed,
    )  # fmt: skip
    for _, summary in work:
        if summary.behind is not None:
            raise summary.behind
        reused += [cell.cell_id for cell in summary.reused]
        ids |= dict.fromkeys(cell.cell_id for cell in [*summary.measured, *summary.reused])
        failed += [(cell.label, reason) for cell, reason in summary.failed]
        unsupported += [(cell.label, reason) for cell, reason in summary.unsupported]
    with connect(place / "bench.duckdb", retry=True) as connection:
        found = rows(connection, cells=list(ids))
    return Measured(place, tuple(found), tuple(reused), tuple(failed), tuple(unsupported))


def score(
    images: str | Path,
    *,
    protocol: str | Protocol = "digits",
    name: str | None = None,
    nfe: float | None = None,
    first_label: int | None = None,
    device: str = "auto",
    runs: str | Path | None = None,
) -> Row:
    """Judge images made elsewhere, as `bench score` does, and return the row.

    Args:
        images: a folder, a .zip, .tar or .parquet, or an ADM-style .npz.
        protocol: a shipped protocol's name, a .toml file, or a loaded one.
        name: of the row; None: the folder's or file's.
        nfe: network evaluations an image, where they are known.
        first_label: the number of the first class where classes are numbered, 0 or 1; None: 0.
        device: `auto`, `cpu`, `cuda` ...
        runs: the runs directory; see `runs_directory`.

    Raises:
        BenchError: images that cannot be read, or a name that is a model's.
    """
    from bench.models.cards import cards
    from bench.models.loading import parse_device
    from bench.run.score import name_of, score_images
    from protocols import Protocol, find_protocol

    path, place = Path(images), runs_directory(runs)
    name = name_of(path) if name is None else name
    if name in cards():
        raise BenchError(f"score: '{name}' is the name of a model; choose another with --name")
    found = protocol if isinstance(protocol, Protocol) else find_protocol(protocol)
    cell_id = score_images(path, found, place, name=name, nfe=nfe, device=parse_device(device), first_label=first_label)
    with connect(place / "bench.duckdb", retry=True) as connection:
        (row,) = rows(connection, cells=[cell_id])
    return row


def leaderboard(runs: str | Path | None = None, view: View | None = None, **shown: Any) -> Board:
    """Return the rows of each ranking, best first, as `bench leaderboard` does.

    Args:
        runs: the runs directory; see `runs_directory`.
        view: what to show.
        shown: the same by names: protocol, sort, every, nfe, seconds, steps, select_on, without_trained_on.

    Raises:
        BenchError: no database there, or a metric that no row has.
    """
    if view is not None and shown:
        raise BenchError("leaderboard: give a view, or its parts by name")
    with connect(runs_directory(runs) / "bench.duckdb", retry=True) as connection:
        return Board(_query(connection, view or View(**shown)))


def compare(a: str, b: str, *, seed: int | None = None, runs: str | Path | None = None) -> Comparisons:
    """Return the paired differences of two rows, or of two models at every step count they share.

    Args:
        a: a cell id or its beginning, MODEL, MODEL@STEPS, or MODEL@STEPS@CFG; of a card with members, each where it
            answers.
        b: the other.
        seed: only cells of this seed.
        runs: the runs directory; see `runs_directory`.

    Raises:
        BenchError: a name that fits no row or several, or rows that cannot be compared.
    """
    from bench.models.cards import answering, cards

    known = cards()
    members = {
        name: [(member.model, member.steps) for member in known[name].members] for name in (a, b) if name in known
    }
    a, b = (name if members.get(name) else answering(name) for name in (a, b))
    return Comparisons(tuple(compare_settings(runs_directory(runs) / "bench.duckdb", a, b, seed, members)))


def frame(found: Sequence[Row]) -> pd.DataFrame:
    """Return rows as a table, one line a cell.

    Columns are the cell's facts (`model`, `steps`, `cfg`, `nfe` ...), of every metric and of MMHM `NAME`, `NAME_low`
    and `NAME_high` (95%), and of what is ranked `NAME_rank_low` and `NAME_rank_high`. What is not known is missing.
    """
    import pandas as pd

    names = [*dict.fromkeys(name for row in found for name in row.metrics), "mmhm"]
    lines = []
    for row in found:
        line = {fact: row.cell.get(fact) for fact in FACTS}
        for name in names:
            value = row.measured(name)
            if value is None:
                continue
            line |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            line |= {f"{name}_rank_low": value.rank_low, f"{name}_rank_high": value.rank_high}
        lines.append(line)
    return pd.DataFrame(lines, columns=None if lines else list(FACTS))
