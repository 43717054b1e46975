"""Tables of README.md and docs/digits.md, written from the runs that docs/data/ keeps: no figure is copied by hand."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.catalog import FACTS as METRIC_FACTS
from results.numbers import number, rank, with_interval

if TYPE_CHECKING:
    import pandas as pd

DATA = Path(__file__).parent / "data"
METRICS = ("fid", "is", "clip", "pick", "accuracy", "mmhm")
"""What a stored run keeps and the tables show."""
SETTING = ("cell_id", "model", "steps", "cfg", "nfe", "num_samples", "seed")
COUNTS = (1, 2, 4, 8, 16, 32)
BLOCK = r"(?P<indent>[ ]*)<!-- stored run: {name} -->\n.*?[ ]*<!-- end of {name} -->"
WIDTH = 120


def store(runs: Path, protocol: str) -> Path:
    """Write what `runs` holds of a protocol to docs/data/PROTOCOL-run.csv, a line a row, and return the file."""
    from datetime import date

    import bench
    from bench import api
    from bench.run.provenance import device_name
    from protocols import find_protocol

    (standing,) = api.leaderboard(runs, protocol=protocol, every=True).standings
    table = api.frame(standing.rows)
    table["options"] = [" ".join(f"{k}={v}" for k, v in row.cell["options"].items()) for row in standing.rows]
    columns = [name + end for name in METRICS for end in ("", "_low", "_high")] + ["mmhm_rank_low", "mmhm_rank_high"]
    table = table[[*SETTING, "options", *columns]].sort_values(["model", "options", "cfg", "steps"])
    path = DATA / f"{protocol}-run.csv"
    path.parent.mkdir(exist_ok=True)
    today = date.today()
    head = f"# protocol {find_protocol(protocol).digest}; fewstep-bench {bench.__version__}; "
    head += f"{today.day} {today:%B %Y}; {device_name('cpu')}\n"
    path.write_text(head + table.to_csv(index=False, float_format="%.7g", lineterminator="\n"), encoding="utf-8")
    return path


@cache
def stored(protocol: str) -> pd.DataFrame:
    """Return the stored run of a protocol. Exits where it was measured under another version of the protocol."""
    import pandas as pd

    from protocols import find_protocol

    path = DATA / f"{protocol}-run.csv"
    if facts(protocol)[0] != f"protocol {find_protocol(protocol).digest}":
        raise SystemExit(
            f"{path}: measured under another version of '{protocol}'; run 'bench run --protocol {protocol}' and then "
            f"'python docs/generate.py --store runs {protocol}'"
        )
    return pd.read_csv(path, comment="#")


def facts(protocol: str) -> list[str]:
    """Return what a stored run says of itself: protocol and digest, version, day, device."""
    head = (DATA / f"{protocol}-run.csv").read_text(encoding="utf-8").partition("\n")[0]
    return head.removeprefix("# ").split("; ")


def with_tables(text: str) -> str:
    """Return a page with its blocks written from the stored runs."""
    for name, written in BLOCKS.items():

        def block(found: re.Match[str], name: str = name, written: Callable[[], str] = written) -> str:
            lines = [f"<!-- stored run: {name} -->", "", written(), "", f"<!-- end of {name} -->"]
            return textwrap.indent("\n".join(lines), found["indent"], lambda line: bool(line.strip()))

        text = re.sub(BLOCK.format(name=re.escape(name)), block, text, flags=re.S)
    return text


def best_settings() -> str:
    """The best setting of each model by MMHM."""
    from bench.models.cards import find_card

    run = stored("digits")
    best = run.sort_values("mmhm", ascending=False).drop_duplicates("model")
    lines = []
    for row in best.to_dict("records"):
        mark = " *" if find_card(row["model"]).off_regime(row["steps"]) else ""
        ranks = rank(row["mmhm_rank_low"], row["mmhm_rank_high"])
        setting = [f"`{row['model']}`{mark}", str(row["steps"]), f"{row['cfg']:g}", f"{row['nfe']:g}"]
        lines.append([ranks, *setting, *(_measured(row, metric) for metric in METRICS)])
    return _table(["rank", "model", "steps", "cfg", "NFE", *(METRIC_FACTS[metric].short for metric in METRICS)], lines)


def few_steps() -> str:
    """What the best settings do not show, in words."""
    run, (_, _, day, device) = stored("digits"), facts("digits")
    fid = {(row["model"], row["nfe"]): row["fid"] for row in run.to_dict("records")}
    flow = {nfe: value for (model, nfe), value in fid.items() if model == "digits-flow"}
    heun = fid["digits-flow-heun", 3]
    level = min(nfe for nfe, value in flow.items() if value < heun + 0.1)
    return _paragraph(
        f"The best setting of each model by MMHM, from a run of the first command ({day}, {device}). Ranks are 95% "
        f"rank sets over all {len(run)} rows; `*` marks step counts that the checkpoint was not trained for. FID shows "
        "the few-step story more clearly than the composite: at 1 evaluation `digits-ucgm-few` has "
        f"{fid['digits-ucgm-few', 1]:.1f} and the flow it was trained from {flow[1]:.1f}. How soon the flow catches up "
        f"depends on its solver: with the same weights, Euler needs {level:g} evaluations and Heun's third-order "
        f"method 3 (FID {heun:.1f}). [docs/digits.md](docs/digits.md) has the whole table and its limitations."
    )


def by_steps() -> str:
    """FID by step count, and the accuracy."""
    run = stored("digits")
    names = ["flow", "ucgm-multi", "ucgm-few", "consistency", "meanflow", "shortcut", "dmd"]
    lines = []
    for name in names:
        rows = {row["steps"]: row for row in run[run["model"] == f"digits-{name}"].to_dict("records")}
        cells = [
            f"{_plain(rows[count], 'fid')} ({100 * rows[count]['accuracy']:.1f})" if count in rows else ""
            for count in COUNTS
        ]
        lines.append([name, *cells])
    return _table(["model", *map(str, COUNTS[:-1]), "32 steps"], lines)


def solvers() -> str:
    """FID of one network by the solver and its evaluations."""
    run = stored("digits")
    models = {"Euler": "digits-flow", "midpoint": "digits-flow-midpoint", "Heun, third order": "digits-flow-heun"}
    counts = sorted({nfe for nfe in run[run["model"].isin(models.values())]["nfe"] if nfe > 1})
    lines = [[title, *_by(run[run["model"] == model], "nfe", counts)] for title, model in models.items()]
    return _table(["solver", *(f"{count:g}" for count in counts[:-1]), f"{counts[-1]:g} evaluations"], lines)


def guidance() -> str:
    """FID and accuracy of the weak network by guidance scale."""
    run = stored("digits")
    rows = run[run["model"] == "digits-flow-small"].sort_values("cfg").to_dict("records")
    best = min(row["fid"] for row in rows)
    shown = [f"**{_plain(row, 'fid')}**" if row["fid"] == best else _plain(row, "fid") for row in rows]
    lines = [["FID", *shown], ["accuracy, %", *(f"{100 * row['accuracy']:.1f}" for row in rows)]]
    return _table(["scale, 16 steps", *(f"{row['cfg']:g}" for row in rows)], lines)


FIELD = {
    "digits-scm": "sCD on TrigFlow, tangent normalisation (arXiv 2410.11081)",
    "digits-ayf": "AYF-EMD (arXiv 2506.14603), MeanFlow's sampler",
    "digits-progressive": "guided, then progressive distillation (arXiv 2210.03142, 2202.00512), a network per count",
    "digits-split-meanflow": "SplitMeanFlow (arXiv 2507.16884), no derivative",
    "digits-bifm": "BiFM, MeanFlow in both directions (arXiv 2603.24942), its generation half",
    "digits-ism": "shortcut with guidance as an input (arXiv 2510.21250), w = 1",
    "digits-multi-student": "two DMD students, the label picks one (arXiv 2410.23274)",
    "digits-caf": "CAF (arXiv 2411.00322): n steps are n + 1 evaluations",
    "digits-analog-bits": "Bit Diffusion with self-conditioning (arXiv 2208.04202)",
    "digits-low-diff": "LowDiff, half of the steps at 4x4 (arXiv 2509.15342), Euler",
    "digits-low-diff solver=heun2": "the same by Heun's second-order method, 2 evaluations per step",
    "digits-flow-boss": "Euler on Bellman's grids (arXiv 2312.16414), no training",
    "digits-flow": "the baseline: rectified flow by Euler",
    "digits-flow-midpoint": "the baseline by the midpoint rule, 2 evaluations per step",
    "digits-flow-heun2": "the baseline by Heun's second-order method, 2 evaluations per step",
    "digits-flow-heun": "the baseline by Heun's third-order method, 3 evaluations per step",
}
"""What the models of `digits-field` were trained for, and how they are sampled."""


def field() -> str:
    """FID of the systems without public weights by evaluations."""
    run = stored("digits-field")
    counts = (1, 2, 3, 4, 6, 8, 12, 16, 32)
    lines = []
    for name, objective in FIELD.items():
        model, _, options = name.partition(" ")
        rows = run[(run["model"] == model) & (run["options"].fillna("") == options)]
        shown = f"`{model}`" + (f", {options}" if options else "")
        lines.append([shown, objective, *_by(rows, "nfe", counts)])
    return _table(["model", "objective", *(f"{count}" for count in counts[:-1]), "32 evaluations"], lines)


def field_guidance() -> str:
    """FID by guidance scale of the systems of `digits-field` that take one."""
    run = stored("digits-field")
    models = {
        "digits-guided": "distilled into one evaluation",
        "digits-autoguidance": "autoguidance by the small flow",
        "digits-autoguidance-small": "the small flow, autoguidance by a barely trained one",
    }
    scales = (1.0, 1.25, 1.5, 2.0)
    lines = [[f"`{name}`", how, *_by(run[run["model"] == name], "cfg", scales)] for name, how in models.items()]
    return _table(["model", "guidance", *(f"{scale:g}" for scale in scales)], lines)


def source(protocol: str) -> str:
    """Where a stored run was measured."""
    run, (_, version, day, device) = stored(protocol), facts(protocol)
    (count,), (seed,) = run["num_samples"].unique(), run["seed"].unique()
    return _paragraph(
        f"{len(run)} rows of {count:,} samples with noise seed {seed}, {version}, {day}, {device}; "
        f"[docs/data/{protocol}-run.csv](data/{protocol}-run.csv) has them all, with intervals."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "best settings": best_settings,
    "few steps": few_steps,
    "by steps": by_steps,
    "solvers": solvers,
    "guidance": guidance,
    "digits": lambda: source("digits"),
    "field": field,
    "field guidance": field_guidance,
    "digits-field": lambda: source("digits-field"),
}
"""What a page may hold between `<!-- stored run: NAME -->` and `<!-- end of NAME -->`."""


def _by(rows: pd.DataFrame, axis: str, places: Sequence[float]) -> list[str]:
    found = {row[axis]: row for row in rows.to_dict("records")}
    return [_plain(found[place], "fid") if place in found else "" for place in places]


def _plain(row: Any, metric: str) -> str:
    return number(row[metric], row[f"{metric}_low"], row[f"{metric}_high"])


def _measured(row: Any, metric: str) -> str:
    ends = (None if row[metric + end] != row[metric + end] else row[metric + end] for end in ("_low", "_high"))
    return with_interval(row[metric], *ends, METRIC_FACTS[metric].digits)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    written = [[cell if cell == "---" else f" {cell} " if cell else " " for cell in line] for line in lines]
    return "\n".join(f"|{'|'.join(line)}|" for line in written)


def _paragraph(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
