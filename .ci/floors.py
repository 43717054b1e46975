"""Print `name==floor`, the lowest version that pyproject.toml admits, for every package that the tests need."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
needed = [*project["dependencies"], *extras["test"]]
for requirement in needed:
    match = re.fullmatch(r"([\w.-]+)(?:\[([\w,-]+)\])?(?:>=([\w.]+))?", requirement)
    if match is not None and match[1] == project["name"]:
        needed += [inner for extra in match[2].split(",") for inner in extras[extra]]
    elif match is None or not match[3]:
        raise SystemExit(f"pyproject.toml: '{requirement}' names no lowest version; write it as name>=version")
    else:
        print(f"{match[1]}=={match[3]}")
