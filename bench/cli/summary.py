"""What a run ends with: the best setting of each model, where the rows lie, and what comes next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.leaderboard import unreported
from bench.cli.output import console, print_leaderboard, print_lines
from bench.cli.seeds import print_over_seeds
from results.marks import legend

if TYPE_CHECKING:
    from bench.run.interface import Summary


def print_summary(summary: Summary, protocol: str, runs: Path, given: Path | None, select_on: int | None) -> None:
    """Print what a run did: the best setting of each model, where it lies and what comes next."""
    from results.leaderboard import best_of_each, chosen_on, headline, missing_metrics, rankings, rows
    from results.seeds import repeated_settings
    from results.store import connect

    out = console()
    with connect(summary.database, retry=True) as connection:
        wanted = {cell.cell_id for cell in [*summary.measured, *summary.reused]}
        found = [row for row in rows(connection, protocol=protocol) if row.cell["cell_id"] in wanted]
        missing = missing_metrics(connection, found)
        repeated = repeated_settings(connection, sorted(wanted), without=select_on)
        facts = rankings(connection)
    counts = f"{len(summary.measured)} measured, {len(summary.reused)} reused"
    if summary.unsupported:
        counts += f", {len(summary.unsupported)} unsupported"
    if summary.failed:
        counts += f", {len(summary.failed)} failed"
    if found:
        choices = []
        if select_on is not None and any(row.cell["seed"] == select_on for row in found):
            choices = chosen_on(found, select_on)
        reported = [row for row in found if row.cell["seed"] != select_on]
        how, shown = "", best_of_each(reported)
        if choices:
            how = f", chosen on seed {select_on} alone"
            shown = best_of_each([row for choice in choices for row in choice.reported])
        each = " on each seed" if len({row.cell["seed"] for row in reported}) > 1 else ""
        by = found[0].fact(headline(found)).short
        out.print(f"\nBest setting of each model{each} by {by}{how}, ± 95% interval ({counts}):\n")
        print_leaderboard(out, shown)
        lines = unreported([choice.chosen for choice in choices if not choice.reported])
        clip = next((facts[row.cell["ranking"]]["clip"] for row in shown if row.cell["ranking"] in facts), None)
        print_lines(out, [*lines, *legend(shown, clip), *missing])
        if repeated:
            out.print("")
            print_over_seeds(out, repeated)
    else:
        out.print(f"\n{counts}")
    if not wanted:
        out.print("Nothing was measured: no setting of this plan gave a row", markup=False)
        return
    suffix = f" --runs-dir {given}" if given is not None else ""
    out.print(f"\nDatabase: {summary.database}", markup=False, soft_wrap=True)
    sort = " --sort fid" if any("fid" in row.metrics for row in found) else ""
    out.print(f"Next: bench report{suffix}    (or: bench leaderboard{sort}{suffix})", markup=False, soft_wrap=True)
