"""What other systems lack is not needed: the default runs without POSIX modules, signals and /proc."""

import subprocess
import sys

WITHOUT = """
import os, signal, sys
from pathlib import Path

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
BLOCKED = {"resource", "pwd", "grp"}


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise ModuleNotFoundError(f"No module named '{name}'")


sys.meta_path.insert(0, Blocked())
for owner, names in (
    (signal, ("SIGALRM", "setitimer", "ITIMER_REAL", "pthread_sigmask")),
    (os, ("getloadavg", "sched_getaffinity", "posix_fallocate")),
):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
real = Path.read_text


def read_text(self, *arguments, **named):
    if str(self).startswith("/proc"):
        raise FileNotFoundError(str(self))
    return real(self, *arguments, **named)


Path.read_text = read_text
from bench.cli import main

words = ["run", "--model", "digits-flow-small", "--steps", "1", "--num-samples", "40", "--workers", "1"]
main([*words, "--runs-dir", sys.argv[1]])
"""


def test_the_default_runs_without_what_windows_lacks(tmp_path):
    script = tmp_path / "without.py"
    script.write_text(WITHOUT, encoding="utf-8")
    done = subprocess.run([sys.executable, script, tmp_path / "runs"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 measured" in done.stderr


def test_no_module_imports_what_only_posix_has():
    import ast
    from pathlib import Path

    def unparse(node):
        return " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type)

    root = Path(__file__).parent.parent
    posix = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "crypt"}
    found = []
    for package in ("results", "report", "protocols", "bench", "adapters"):
        for path in (root / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            tries = [node for node in ast.walk(tree) if isinstance(node, ast.Try) and "ImportError" in unparse(node)]
            guarded = {inner for node in tries for statement in node.body for inner in ast.walk(statement)}
            for node in set(ast.walk(tree)) - guarded:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                found += [f"{path}: {name}" for name in names if name.split(".")[0] in posix]
    assert found == []
