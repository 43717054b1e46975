"""HPSv2 (arXiv 2306.09341): a fine-tuned CLIP ViT-H/14 by open_clip; the score is the cosine.

Images keep their aspect ratio: the longer side becomes 224 pixels, the rest black bars. The checkpoint is an
open_clip one, so neither the authors' package nor its pinned dependencies are needed.
Options: `weights` (a local file; default the hub's HPS v2.1), `scale` (default 1), `batch_size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bench.judges import open_clip as open_clip_judge
from bench.judges.base import JudgeKind, check_options
from bench.judges.costs import tower_cost
from bench.judges.files import option_path
from bench.judges.judge import Judge, JudgeSpec
from bench.judges.towers import AlignmentJudge
from bench.weights.file import NeededFile

REPOSITORY = "xswu/HPSv2"
WEIGHTS = "HPS_v2.1_compressed.pt"
MODEL = "ViT-H-14"


def required_files(spec: JudgeSpec, root: Path) -> list[NeededFile]:
    """Return the checkpoint."""
    check_options(spec, ("weights", "scale", "batch_size"))
    weights = option_path(spec.options, "weights", root)
    if weights is not None:
        return [NeededFile("weights", path=weights)]
    return [NeededFile("weights", repo=REPOSITORY, names=(WEIGHTS,))]


def build(spec: JudgeSpec, root: Path, files: Sequence[Path], device: torch.device) -> Judge:
    """Return the preference judge, given the path of its checkpoint."""
    options = {"scale": 1.0, **spec.options, "model": MODEL, "geometry": "longest"}
    return open_clip_judge.build(replace(spec, options=options), root, files, device)


KIND = JudgeKind(AlignmentJudge, required_files, build, partial(tower_cost, default=REPOSITORY, numbers=1))
