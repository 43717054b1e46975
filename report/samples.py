"""Sample grids: rows are models, columns are sample indices decided in advance; equal latent shape, equal noise."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping, Sequence

import pandas as pd

from report.markup import Markup, element, escape
from results.numbers import counted

RealImages = Callable[[str, Collection[int]], Mapping[int, Sequence[bytes]]]
"""A protocol's name and labels to PNG files of real images of each label."""
LARGEST = 5_000_000
"""Characters that the pictures of a page may take; beyond it later sample indices are left out."""
TAG = 250
"""Characters around a picture."""


def grids(cells: pd.DataFrame, thumbnails: pd.DataFrame, share: int = 1) -> Markup:
    """Return one grid for each step count, the first one shown, and the selector between them.

    `cells`: the rows to show, at most one of each model and step count, with model, variant, steps, latent_shape;
    `share`: how many rankings share the page.
    """
    cells = cells[cells.index.isin(thumbnails["cell_id"])]
    thumbnails = within_budget(thumbnails[thumbnails["cell_id"].isin(cells.index)], share)
    options, blocks = [], []
    steps = sorted(cells["steps"].dropna().unique()) + ([None] if cells["steps"].isna().any() else [])
    for position, count in enumerate(steps):
        rows = cells[cells["steps"].isna()] if count is None else cells[cells["steps"] == count]
        name = "image folders" if count is None else counted(int(count), "step")
        options.append(element("option", name, value=position))
        blocks.append(
            element(
                "div", _grid(rows, thumbnails), class_="scroll", tabindex=0, data_grid=position, hidden=position > 0
            )
        )
    selector = element("label", "sampler steps ", element("select", options, id="grid-steps", data_state=True))
    return escape([element("div", selector, class_="controls"), blocks])


def within_budget(thumbnails: pd.DataFrame, share: int = 1) -> pd.DataFrame:
    """Drop the last sample indices until the images fit one of `share` equal parts of what a page may carry."""
    sizes = thumbnails["png"].map(lambda png: 4 * len(png) // 3 + TAG)
    sizes = sizes.groupby(thumbnails["sample_index"]).sum().sort_index().cumsum()
    kept = sizes.index[sizes <= LARGEST / share]
    return thumbnails[thumbnails["sample_index"].isin(kept if len(kept) else sizes.index[:1])]


def _grid(rows: pd.DataFrame, thumbnails: pd.DataFrame) -> Markup:
    images = thumbnails[thumbnails["cell_id"].isin(rows.index)]
    indices = sorted(images["sample_index"].unique())
    classes = images.drop_duplicates("sample_index").set_index("sample_index")["class_name"]
    head = element(
        "tr", element("th", "model"), [element("th", classes[index], title=f"sample {index}") for index in indices]
    )
    by_place = {(row.cell_id, row.sample_index): row for row in images.itertuples()}
    body = []
    shapes = rows["latent_shape"].value_counts(sort=True).index
    for shape in shapes:
        group = rows[rows["latent_shape"] == shape]
        alone = len(shapes) > 1 and len(group) == 1
        note = "labels only: its own noise" if alone else f"same noise and labels, noise of shape {shape}"
        body.append(element("tr", element("th", note, colspan=len(indices) + 1, class_="group", scope="rowgroup")))
        for cell, row in group.iterrows():
            places = [element("td", _image(by_place.get((cell, index)), row["model"])) for index in indices]
            body.append(
                element(
                    "tr",
                    element("th", ", ".join(part for part in (row["model"], row["variant"]) if part), scope="row"),
                    places,
                )
            )
    return element("table", element("thead", head), element("tbody", body), class_="samples")


def _image(thumbnail: object, model: str) -> Markup:
    if thumbnail is None:
        return Markup("")
    source = base64.b64encode(bytes(thumbnail.png)).decode()  # type: ignore[attr-defined]
    return element(
        "img",
        src=f"data:image/png;base64,{source}",
        alt=f"{model}, sample {thumbnail.sample_index}, {thumbnail.class_name}",  # type: ignore[attr-defined]
        width=thumbnail.width,  # type: ignore[attr-defined]
        height=thumbnail.height,  # type: ignore[attr-defined]
        data_cell=thumbnail.cell_id,  # type: ignore[attr-defined]
        data_index=thumbnail.sample_index,  # type: ignore[attr-defined]
        data_label=thumbnail.label,  # type: ignore[attr-defined]
        data_name=thumbnail.class_name,  # type: ignore[attr-defined]
        class_="tiny" if thumbnail.width < 48 else None,  # type: ignore[attr-defined]
    )
