"""A static site from bundles: a report for each protocol, a page for each model, an index, and the same as JSON.

    index.html                     protocols with their leaders, models, and the bundles that it was made from
    protocols/<name>.html          the report
    models/<name>.html             every row of a model
    data/index.json                what index.html says
    data/protocols/<name>.json     the rows of a protocol with metrics, intervals and ranks
    bundles/<digest>.zip           the bundles themselves, so that a reader can audit them

Names that are no file names are spelled out with a digest behind them. The directory is put in place as a whole.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from report import text
from report.markup import Markup, command, element, escape, kept
from report.page import write as write_page
from report.tables import TRAINED_TIP, definitions, plain_table
from results.bundles import Bundle, read_bundle
from results.catalog import FACTS
from results.database import dictionaries
from results.digests import digest_of
from results.errors import BenchError, BenchWarning, ReportError, one_line
from results.files import disk_error, read_regular, writing
from results.leaderboard import best_of_each, by_ranking, headline, measured_facts, missing_metrics, rows, sorted_rows
from results.marks import INTERVALS, RANKS, caveats, marks_of
from results.moving import merge
from results.names import versions
from results.numbers import with_interval
from results.records import parsed
from results.rows import Row
from results.spaces import agreements, disputed, leaders
from results.store import connect

MARK = "fewstep-bench site"
"""Stands in the `data/index.json` of a site; a directory without it is not replaced."""
COLUMNS = (
    "cell_id", "model", "checkpoint", "ranking", "steps", "cfg", "sampler", "dtype", "seed", "num_samples", "nfe",
    "images_per_second", "device", "weights_sha256", "command", "signed_by",
)  # fmt: skip
"""What of a row's cell the data hold."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"
"""What the pages that run no script may load: nothing."""
LARGEST_AUDITS = 64 << 20
"""Bytes of a file of audits."""


class Written(NamedTuple):
    """What a site holds."""

    rows: int
    models: int
    protocols: int


class _Source(NamedTuple):
    """A bundle of the site, and where it lay."""

    path: Path
    bundle: Bundle

    @property
    def name(self) -> str:
        return f"{self.bundle.digest[:16]}.zip"


def write_site(
    directory: Path,
    bundles: Sequence[Path],
    *,
    audits: Sequence[Path] = (),
    title: str = "Few-step generators compared",
    allowed: Path | None = None,
) -> Written:
    """Write the site of some bundles, in place of an earlier one.

    Args:
        directory: where the pages go; absent, empty, or a site of this program.
        bundles: bundles, or directories whose `*.zip` are bundles.
        audits: files that `bench audit --json` wrote; their outcomes stand beside the rows.
        title: the name of the site.
        allowed: signers whose bundles are taken; see `results.bundles.read_bundle`.

    Raises:
        BenchError: a bundle or a file of audits that cannot be taken, or a directory that holds something else.
    """
    _check_target(directory)
    sources = _sources(bundles, allowed)
    outcomes = _outcomes(audits)
    with tempfile.TemporaryDirectory(prefix="bench-site-") as folder:
        runs = Path(folder)
        for fault in merge(runs, [source.path for source in sources], allowed).faults:
            warnings.warn(f"left out of the site: {fault.cell}: {fault.reason}", BenchWarning, stacklevel=2)
        try:
            with writing(directory.absolute()) as made:
                made.mkdir(parents=True)
                return _write(made, runs / "bench.duckdb", sources, outcomes, one_line(title, 120))
        except OSError as error:
            raise disk_error(directory, error, "DIR") from error


def _check_target(directory: Path) -> None:
    if not directory.exists():
        return
    if directory.is_symlink() or not directory.is_dir():
        raise ReportError(f"{directory}: is not a directory; choose another for the site")
    if not any(directory.iterdir()):
        return
    try:
        mine = json.loads(read_regular(directory / "data" / "index.json", LARGEST_AUDITS)).get("format") == MARK
    except (OSError, ValueError, AttributeError, RecursionError):
        mine = False
    if not mine:
        raise ReportError(f"{directory}: holds something else than a site of 'bench site'; give an empty directory")


def _sources(bundles: Sequence[Path], allowed: Path | None) -> list[_Source]:
    paths: list[Path] = []
    for path in bundles:
        paths += sorted(path.glob("*.zip")) if path.is_dir() else [path]
    if not paths:
        raise ReportError(f"{bundles[0] if bundles else 'site'}: no bundles (*.zip) there; 'bench bundle' makes them")
    found: dict[str, _Source] = {}
    for path in paths:
        if not path.is_file():
            raise ReportError(f"{path}: no such bundle; 'bench bundle ROWS -o FILE' makes one")
        bundle = read_bundle(path, allowed)
        found.setdefault(bundle.digest, _Source(path, bundle))
    return list(found.values())


def _outcomes(audits: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return the outcome of each audited row by cell id; of several the worst."""
    order = ("contradicted", "cannot tell", "consistent")
    found: dict[str, dict[str, Any]] = {}
    for path in audits:
        try:
            listed = parsed(read_regular(path, LARGEST_AUDITS))
        except OSError as error:
            raise ReportError(f"{path}: cannot be read ({error.strerror or error})") from error
        except BenchError as error:
            raise ReportError(f"{path}: {error}") from error
        if not isinstance(listed, list):
            raise ReportError(f"{path}: not what 'bench audit --json' writes")
        for one in listed:
            if (
                not isinstance(one, Mapping)
                or one.get("outcome") not in order
                or not isinstance(one.get("cell_id"), str)
                or not isinstance(one.get("reasons") or [], list)
            ):
                raise ReportError(f"{path}: not what 'bench audit --json' writes")
            before = found.get(one["cell_id"])
            if before is None or order.index(one["outcome"]) < order.index(before["outcome"]):
                reasons = [one_line(str(reason), 300) for reason in one.get("reasons") or []]
                found[one["cell_id"]] = {"outcome": one["outcome"], "reasons": reasons}
    return found


def slug(name: str) -> str:
    """Return a file name for a name of anything: itself where it can be one, else spelled with a digest behind it."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-")[:80]
    return plain if plain == name else f"{plain or 'name'}-{digest_of(name)[:8]}"


def _write(
    made: Path, database: Path, sources: Sequence[_Source], outcomes: Mapping[str, Mapping[str, Any]], title: str
) -> Written:
    with connect(database) as connection:
        found = rows(connection)
        lacking = {ranking: missing_metrics(connection, group) for ranking, group in by_ranking(found).items()}
        cards = {row["model"]: row for row in dictionaries(connection, "SELECT * FROM models")}
    if not found:
        raise ReportError("the bundles contain no finished rows; 'bench bundle' makes one of finished rows")
    protocols: dict[str, list[Row]] = {}
    models: dict[str, list[Row]] = {}
    for row in found:
        protocols.setdefault(row.cell["protocol"], []).append(row)
        models.setdefault(row.cell["model"], []).append(row)
    for folder in ("protocols", "models", "bundles", "data/protocols"):
        (made / folder).mkdir(parents=True)
    for source in sources:
        shutil.copyfile(source.path, made / "bundles" / source.name)
    (made / ".nojekyll").touch()
    for name, members in protocols.items():
        write_page(database, made / "protocols" / f"{slug(name)}.html", name)
        _json(made / "data" / "protocols" / f"{slug(name)}.json", [_plain(row, outcomes) for row in members])
    origin = {cell: source for source in reversed(sources) for cell in source.bundle.cells}  # the first, as in a merge
    for name, members in models.items():
        page = _model_page(name, members, cards, outcomes, origin)
        _page(made / "models" / f"{slug(name)}.html", f"{name} · {title}", page, "../")
    _json(made / "data" / "index.json", _index_data(title, protocols, models, sources))
    _page(made / "index.html", title, _index(title, protocols, models, sources, outcomes, lacking), "")
    return Written(len(found), len(models), len(protocols))


def _plain(row: Row, outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    metrics = {
        name: {"value": value.value, "low": value.low, "high": value.high, "n": value.n}
        for name, value in row.metrics.items()
    }
    mmhm = {key: row.rank.get(key) for key in ("mmhm", "low", "high", "rank_low", "rank_high")} if row.rank else None
    return {
        **{key: row.cell.get(key) for key in COLUMNS},
        "metrics": metrics,
        "mmhm": mmhm,
        "audit": outcomes.get(row.cell["cell_id"]),
    }


def _index_data(
    title: str,
    protocols: Mapping[str, Sequence[Row]],
    models: Mapping[str, Sequence[Row]],
    sources: Sequence[_Source],
) -> dict[str, Any]:
    return {
        "format": MARK,
        "version": 1,
        "title": title,
        "protocols": [
            {"name": name, "rows": len(members), "page": f"protocols/{slug(name)}.html",
             "data": f"data/protocols/{slug(name)}.json"}
            for name, members in protocols.items()
        ],
        "models": [
            {"name": name, "rows": len(members), "page": f"models/{slug(name)}.html"}
            for name, members in models.items()
        ],
        "bundles": [
            {"digest": source.bundle.digest, "file": f"bundles/{source.name}", "rows": len(source.bundle.cells),
             "signed_by": source.bundle.signed_by}
            for source in sources
        ],
    }  # fmt: skip


def _index(
    title: str,
    protocols: Mapping[str, Sequence[Row]],
    models: Mapping[str, Sequence[Row]],
    sources: Sequence[_Source],
    outcomes: Mapping[str, Mapping[str, Any]],
    lacking: Mapping[str, Sequence[str]],
) -> Markup:
    boards = []
    for name, members in protocols.items():
        boards.append(element("h3", element("a", name, href=f"protocols/{slug(name)}.html")))
        for ranking, group in by_ranking(members).items():
            boards.append(_board(list(group), outcomes, "models/", lacking[ranking]))
    listed = [
        [
            element("a", source.bundle.digest[:16], href=f"bundles/{source.name}"),
            len(source.bundle.cells),
            signer(source.bundle),
            text.listed(sorted({row.record["cell"]["model"] for row in source.bundle.cells.values()}), 6),
        ]
        for source in sources
    ]
    known = [
        [element("a", name, href=f"models/{slug(name)}.html"), len(members),
         text.listed(sorted({row.cell["protocol"] for row in members}))]
        for name, members in sorted(models.items())
    ]  # fmt: skip
    return element(
        "main",
        element("section", element("h2", "Protocols"), boards),
        element("section", element("h2", "Models"), plain_table(("model", "rows", "protocols"), known)),
        element(
            "section",
            element("h2", "Bundles"),
            element(
                "p", "Every number here is in one of these files. To check one on your own machine:", class_="note"
            ),
            command(f"bench audit {sources[0].name}"),
            plain_table(("digest", "rows", "signed by", "models"), listed),
            element("p", "As data: ", element("a", "data/index.json", href="data/index.json"), class_="note"),
        ),
    )


def signer(bundle: Bundle) -> str:
    """Return who signed a bundle, in words."""
    if bundle.signed_by is not None:
        return bundle.signed_by
    return "a key that could not be checked here" if bundle.signed else "nobody"


def _board(
    members: list[Row], outcomes: Mapping[str, Mapping[str, Any]], models: str, lacking: Sequence[str]
) -> Markup:
    """Return the best row of each model of one ranking, best first."""
    facts = [fact for fact in measured_facts(members) if fact.summary]
    metric = headline(members)
    lines, best = [], sorted_rows(best_of_each(members), metric)
    for row in best:
        cell, value = row.cell, row.measured(metric)
        lines.append(
            [
                text.rank(value.rank_low, value.rank_high) if value is not None else text.NOTHING,
                _named(cell["model"], f"{models}{slug(cell['model'])}.html", row),
                text.plain(cell["steps"]),
                text.plain(cell["cfg"]),
                text.plain(cell["nfe"]),
                *(_shown(row, fact.name) for fact in facts),
                _shown(row, "mmhm"),
                _outcome(cell["cell_id"], outcomes),
            ]
        )
    first = members[0].cell
    note = f"{first['num_samples']:,} samples, seed {first['seed']}, ranking {first['ranking'][:8]}"
    headings = ("rank", "model", "steps", "cfg", "NFE", *(fact.short for fact in facts), "MMHM", "audit")
    apart = disputed(agreements(members))
    notes = [] if apart is None else [f"{apart.one.short} and {apart.other.short} disagree: {leaders(apart)}"]
    notes += [INTERVALS, RANKS.format(metric=FACTS["mmhm"].short), *versions(best), *caveats(best), *lacking]
    return element("div", element("p", note, class_="note"), plain_table(headings, lines), _notes(notes))


def _named(name: str, href: str, row: Row) -> Markup:
    return escape([element("a", name, href=href, class_="kept"), marks_of(row)])


def _notes(lines: Sequence[str]) -> Markup:
    return element("ul", [element("li", kept(line)) for line in lines], class_="note notes")


def _shown(row: Row, name: str) -> Markup | str:
    value = row.measured(name)
    if value is None:
        return text.NOTHING
    shown = with_interval(value.value, value.low, value.high)
    return element("span", f"{shown} #", title=TRAINED_TIP) if value.trained_on else shown


def _outcome(cell: str, outcomes: Mapping[str, Mapping[str, Any]]) -> Markup:
    found = outcomes.get(cell)
    if found is None:
        return element("span", "not audited")
    return element("span", found["outcome"], title="; ".join(found["reasons"]) or None)


def _model_page(
    name: str,
    members: list[Row],
    cards: Mapping[str, Mapping[str, Any]],
    outcomes: Mapping[str, Mapping[str, Any]],
    origin: Mapping[str, _Source],
) -> Markup:
    sections = []
    for checkpoint in dict.fromkeys(row.cell["checkpoint"] for row in members):
        card = cards.get(checkpoint, {})
        facts = {
            "title": card.get("title"),
            "family": card.get("family"),
            "licence": card.get("licence"),
            "paper": card.get("paper"),
            "parameters": text.parameters(card.get("parameters")) if card.get("parameters") else None,
        }
        sections += [element("h2", checkpoint), definitions(facts)]
    facts_of_rows = measured_facts(members)
    lines = [
        [
            _named(row.cell["protocol"], f"../protocols/{slug(row.cell['protocol'])}.html", row),
            text.plain(row.cell["steps"]),
            text.plain(row.cell["cfg"]),
            row.cell["sampler"],
            row.cell["dtype"],
            row.cell["seed"],
            f"{row.cell['num_samples']:,}",
            text.plain(row.cell["nfe"]),
            *(_shown(row, fact.name) for fact in facts_of_rows),
            row.cell["device"],
            _outcome(row.cell["cell_id"], outcomes),
            row.cell.get("signed_by") or "nobody",
            element("a", row.cell["cell_id"][:12], href=f"../bundles/{origin[row.cell['cell_id']].name}"),
        ]
        for row in sorted(
            members, key=lambda row: (row.cell["protocol"], row.cell["steps"] or 0, row.cell["cfg"] or 0.0)
        )
    ]
    headings = (
        *("protocol", "steps", "cfg", "sampler", "dtype", "seed", "samples", "NFE"),
        *(fact.short for fact in facts_of_rows),
        *("device", "audit", "signed by", "row, in its bundle"),
    )
    commands = command("\n".join(row.cell["command"] for row in members))
    return element(
        "main",
        element("section", sections),
        element("section", element("h2", "Rows"), plain_table(headings, lines), _notes([INTERVALS, *caveats(members)])),
        element("section", element("h2", "To repeat them"), commands),
    )


def _page(path: Path, title: str, body: Markup, up: str) -> None:
    home = element("a", "all models and protocols", href=f"{up}index.html") if up else None
    head = element("header", element("div", element("h1", title), home, class_="title"))
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<style>{(files('report') / 'assets' / 'page.css').read_text('utf-8')}</style>",
        element("title", title),
        "</head>",
        "<body>",
        head,
        body,
        "</body>",
        "</html>",
        "",
    ]
    path.write_text("\n".join(lines), "utf-8")


def _json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, default=str), "utf-8")
