"""Tasks of a developer, in the environment that is active: `nox -l` lists them."""

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "docs", "tests", "baseline"]


@nox.session
def lint(session: nox.Session) -> None:
    """Rules, format and imports."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Types."""
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated pages, or compare them with --check."""
    session.run("python", "docs/generate.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, or those named after `--`."""
    session.run("pytest", "-q", *session.posargs)


@nox.session
def baseline(session: nox.Session) -> None:
    """Measure the digits baseline again."""
    session.run("bench", "check", "--baseline", "tests/baselines/digits.json", "--accept", "judge")
