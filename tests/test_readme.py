"""README.md and docs/: each command exists with every option that is shown, and each link leads somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from hlnet.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    """The lines of fenced bash blocks that start with ``hlnet``; continued lines are joined."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|console|shell)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("hlnet ")]


def test_readme_shows_commands():
    assert commands(ROOT / "README.md")


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands(page)])
def test_command_parses(line):
    group = typer.main.get_command(app)
    arguments = re.split(r"\s(?:\||>|>>|&&|;)\s", line)[0]
    _, *words = shlex.split(arguments, comments=True)
    if words[0].startswith("-"):
        known = {option for parameter in group.params for option in parameter.opts} | {"--help", "-h"}
        assert set(words) <= known
        return
    command = group.commands[words[0]]
    while hasattr(command, "commands"):  # hlnet tree show
        words = words[1:]
        command = command.commands[words[0]]
    command.make_context(f"hlnet {words[0]}", [word for word in words[1:] if word != "--debug"])  # parses, runs nothing


def anchors(page):
    """The anchors of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    for name, _, anchor in (link.partition("#") for link in links):
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {name}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {name}#{anchor}"


def test_pages_that_the_code_names_exist():
    for folder in ("hlnet", "benchmarks", "scripts", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r"\bdocs/[\w-]+\.md", file.read_text(encoding="utf-8")):
                assert (ROOT / name).exists(), f"{file}: {name}"
