"""Settings are declared once: the page of settings, the docstrings and the options agree with the models."""

import doctest
import importlib.util
import inspect
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hlnet
from hlnet.cli import main as cli
from hlnet.training.run_config import NetworkSettings, RunConfig, TransformSettings, run_settings
from hlnet.training.settings import PANELS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    """The script that writes the page's tables."""
    spec = importlib.util.spec_from_file_location("settings_tables", ROOT / "scripts" / "make_settings_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_as_it_would_be_made(script, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["make_settings_tables.py", "--check"])
    assert script.main() == 0
    changed = tmp_path / "training.md"
    changed.write_text(script.PAGE.read_text(encoding="utf-8").replace("`0.05`", "`0.06`"), encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", changed)
    assert "not as it would be made: training.md" in script.main()
    monkeypatch.setattr(sys, "argv", ["make_settings_tables.py"])
    assert script.main() == 0
    assert changed.read_bytes() == (ROOT / "docs" / "training.md").read_bytes()


def test_values_are_told_in_words(script):
    found = doctest.testmod(script)
    assert found.attempted == 1 and found.failed == 0
    (batch_size,) = (setting for setting in run_settings() if setting.name == "batch_size")
    assert script.values(batch_size.type, batch_size.bounds) == "whole number, or `auto`"


def test_the_page_has_every_setting_and_its_default():
    """Read back as a recipe, the page's defaults are those of the models."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("<!-- settings")[2]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| `" in line]
    found = {row[1]: row[2] for row in rows}
    models = {"train": hlnet.TrainConfig, "network": NetworkSettings, "transform": TransformSettings}
    top = {"data", "tree", "data_root", "allow_missing"}
    assert found.keys() == top | {f"{table}.{name}" for table, model in models.items() for name in model.model_fields}
    written = {"on": "true", "off": "false"}
    for name, default in hlnet.TrainConfig().model_dump().items():
        shown = found[f"train.{name}"]
        if default is None:
            assert shown == ""
        elif isinstance(default, str):
            assert shown == default
        else:
            value = tomllib.loads(f"x = [{written.get(shown, shown)}]")["x"]
            assert value == list(default) if isinstance(default, tuple) else value == [default], name


def test_attributes_are_documented():
    for model in (hlnet.TrainConfig, RunConfig, NetworkSettings, TransformSettings):
        lines = inspect.getdoc(model).partition("Attributes:\n")[2].splitlines()
        described = dict(line.strip().split(": ", 1) for line in lines)
        assert list(described) == list(model.model_fields)
        assert all(text[-1] in ".…" for text in described.values())


def test_settings_have_panels_in_order():
    panels = [setting.panel for setting in run_settings()]
    assert panels == sorted(panels, key=PANELS.index) and set(panels) == set(PANELS)
    assert len({setting.option for setting in run_settings()}) == len(panels)


def test_options_stand_in_their_panels_with_their_descriptions():
    env = {"COLUMNS": "250", "TERM": "dumb", "NO_COLOR": "1"}
    text = CliRunner().invoke(cli.app, ["train", "--help"], env=env).output
    panels = {part.split(" ")[1]: part for part in text.split("╭")[1:]}
    for setting in run_settings():
        shown = panels[setting.panel or ("Arguments" if setting.name == "data" else "Options")]
        name = "[DATA]" if setting.name == "data" else f"--{setting.option.replace('_', '-')} "
        (line,) = [line for line in shown.splitlines() if line.startswith(("│ " + name, "│   " + name))]
        assert setting.description in line


def test_bounds_are_those_of_the_models():
    """Each number is taken at a limit that belongs to its values, and refused beyond any limit."""
    checked = 0
    for setting in run_settings():
        if setting.table != "train" or setting.type not in (int, float):
            continue
        step = 1 if setting.type is int else 1e-3
        for name, limit in setting.bounds.items():
            inwards = step if name in ("gt", "ge") else -step
            good = setting.type(limit if name in ("ge", "le") else limit + inwards)
            bad = setting.type(limit - inwards if name in ("ge", "le") else limit)
            needed = {"frozen_trunk": True} if setting.name in ("cache_views", "unfreeze_epochs") else {}
            assert getattr(hlnet.TrainConfig(**{setting.name: good, **needed}), setting.name) == good
            with pytest.raises(ValueError, match=setting.name):
                hlnet.TrainConfig(**{setting.name: bad, **needed})
            checked += 1
    assert checked > 20
