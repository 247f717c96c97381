"""Running single lines of the command line, in this process."""

import json
import shlex
import sys

import pytest
from typer.testing import CliRunner

from hlnet.cli import main as cli


def invoke(line, **places):
    """Run one command line that must succeed; what it prints to stdout, and to stderr."""
    result = CliRunner().invoke(cli.app, [part.format(**places) for part in shlex.split(line)])
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout, result.stderr


def as_json(line, **places):
    return json.loads(invoke(f"{line} --json", **places)[0])


@pytest.fixture
def failing(at, capsys, monkeypatch, tmp_path):
    """Run ``main()`` on one line that must fail, in an empty folder; its exit code, stdout and stderr."""

    def run(line):
        words = [part.format(**at, new=tmp_path / "new.json") for part in shlex.split(line)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["hlnet", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run
