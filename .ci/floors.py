"""Print `name==floor`, the lowest version that pyproject.toml admits, for every package that the tests need."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["test"], *extras["ode"], *extras["orbax"]]:
    match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?(?:>=([\w.]+))?", requirement)
    if match is None or not (match[2] or match[1] == project["name"]):
        raise SystemExit(f"pyproject.toml: '{requirement}' names no lowest version; write it as name>=version")
    if match[1] != project["name"]:
        print(f"{match[1]}=={match[2]}")
