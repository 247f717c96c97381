"""What ``import hlnet`` promises: names, lazy and known to timm; and the frame around the commands."""

import ast
import errno
import os
import pydoc
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import hlnet
from hlnet.cli import main as cli
from hlnet.cli.shared import output

COMMANDS = (
    *("demo", "build-tree", "train", "calibrate", "eval", "attend", "predict", "show", "app"),
    *("make-expert", "merge", "graft", "export", "profile"),
)
TREE_COMMANDS = ("tree show", "tree check", "tree compare", "tree convert", "tree match", "tree rename")
TREE = '{"animal": {"pet": {"cat": None, "dog": None}}}'


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


STUB = Path(hlnet.__file__).with_suffix(".pyi")
HOMES = {
    alias.name: f"hlnet.{node.module}"
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


@pytest.mark.parametrize("name", sorted(HOMES.keys() - {"__version__"}))
def test_name_resolves_and_is_documented(name):
    found = getattr(hlnet, name)
    assert found is getattr(import_module(HOMES[name]), name)
    assert found.__module__ == HOMES[name]
    assert found.__doc__ and found.__doc__.strip() and not found.__doc__.startswith(f"{name}(")
    assert f"``{name}``" in hlnet.__doc__


def test_stub_exports_what_it_imports():
    space = {}
    body = ast.parse(STUB.read_text(encoding="utf-8")).body
    exec(ast.unparse(next(node for node in body if isinstance(node, ast.Assign))), space)
    assert space["__all__"] == sorted(HOMES) == sorted(hlnet.__all__)


def test_help_reads_well():
    text = pydoc.render_doc(hlnet, renderer=pydoc.plaintext)
    assert text.startswith("Python Library Documentation: package hlnet") and hlnet.__doc__.splitlines()[0] in text
    assert all(name in text for name in HOMES.keys() - {"__version__"})


def test_dir_and_unknown_names():
    assert set(hlnet.__all__) <= set(dir(hlnet)) and "__version__" in dir(hlnet)
    with pytest.raises(AttributeError, match="hlnet attribute nope"):
        _ = hlnet.nope
    space = {}
    exec("from hlnet import *", space)
    assert set(hlnet.__all__) <= space.keys()


def test_import_alone_is_light():
    heavy = run("-c", "import sys, hlnet; print(sorted({'torch', 'timm', 'numpy', 'typer'} & set(sys.modules)))")
    assert heavy.strip() == "[]"


def test_presets_are_timm_models_in_either_order_and_prediction_is_light(tmp_path):
    script = f"""
import os, sys, torch  # which both take with them, and which takes longest
first = os.fork()
if first:
    import hlnet, timm
else:
    import timm, hlnet
from hlnet.model.presets import PRESETS
assert all(timm.is_model(name) for name in PRESETS)
with torch.device("meta"):
    net = timm.create_model("n3hl_resnet50", tree={TREE})
assert isinstance(net, hlnet.HierarchicalNet) and net.tree.counts == (1, 1, 2) and net.config.widths == (128, 64, 32)
if not first:
    sys.exit()
assert os.waitpid(first, 0)[1] == 0
# Prediction imports no more than it needs: torch and timm take most of the command's time already.
from PIL import Image
from hlnet.cli.main import app
from typer.testing import CliRunner
small = hlnet.create_model("test_resnet", tree=["cat", "dog"], widths=[4], strides=[1])
hlnet.save_checkpoint(small, "{tmp_path}/net.safetensors")
Image.new("RGB", (64, 64)).save("{tmp_path}/photo.png")
line = ["predict", "{tmp_path}/net.safetensors", "{tmp_path}/photo.png", "--device", "cpu"]
assert CliRunner().invoke(app, line).exit_code == 0
heavy = {{"accelerate", "datasets", "matplotlib", "pandas", "polars", "scipy", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    run("-c", script)


def test_module_runs_and_tells_its_version():
    assert run("-m", "hlnet", "--version") == f"hlnet {hlnet.__version__}\n"


def test_help_needs_no_heavy_import():
    script = f"""
import sys
from typer.testing import CliRunner
from hlnet.cli.main import app
for command in [[], *(name.split() for name in {COMMANDS + TREE_COMMANDS})]:
    result = CliRunner().invoke(app, [*command, "--help"], env={{"COLUMNS": "200"}})
    assert result.exit_code == 0 and "Usage: " in result.output, command
    assert command == [] or "Examples" in result.output and f"hlnet {{' '.join(command)}}" in result.output, command
assert CliRunner().invoke(app, ["train", "--list-recipes"]).exit_code == 0
heavy = {{"torch", "timm", "numpy", "PIL", "sklearn", "scipy", "matplotlib"}} & set(sys.modules)
sys.exit(f"imported: {{sorted(heavy)}}" if heavy else 0)
"""
    run("-c", script)


def test_list_of_commands_does_not_wait_for_settings():
    """Models of pydantic take longer to import than all of the command line."""
    script = """
import sys
from typer.testing import CliRunner
from hlnet.cli.main import app
result = CliRunner().invoke(app, ["--help"])
assert result.exit_code == 0 and "Train one classifier" in result.output
sys.exit("imported" if "pydantic" in sys.modules else 0)
"""
    run("-c", script)


@pytest.fixture
def failing(capsys, monkeypatch):
    """Run ``main()`` on arguments that must fail; its exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["hlnet", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / "pets.txt"
    path.write_text("cat\ndog\n")
    return str(path)


@pytest.mark.parametrize("where", [0, 1, 4])
def test_debug_shows_the_traceback(failing, where):
    line = ["eval", "nope.safetensors", "--data", "digits"]
    told = (
        "hlnet: there is no model file 'nope.safetensors'; expected a .safetensors file, a run or model folder, or "
        "hf-hub:OWNER/NAME\n"
    )
    assert failing(*line) == (2, "", told)
    code, out, err = failing(*line[:where], "--debug", *line[where:])
    assert code == 2 and out == "" and err.startswith("Traceback") and err.endswith(told)


@pytest.mark.parametrize(
    "error, code, told",
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),  # `hlnet … | head`
        (KeyError("a\nb"), 1, "hlnet: KeyError: 'a\\nb' (run again with --debug for the traceback)\n"),
    ],
)
def test_what_no_command_foresees(failing, tree, tmp_path, monkeypatch, error, code, told):
    def stop(*_):
        raise error

    monkeypatch.setattr(output, "show_tree", stop)
    monkeypatch.setattr(sys.stderr, "close", lambda: None, raising=False)
    found, _, err = failing("build-tree", tree, "--out", str(tmp_path / "t.json"))
    assert (found, err.removeprefix("list read: a flat list, one class a line; classes: 2\n")) == (code, told)


def test_closed_pipe_is_silent(tree, tmp_path):
    read, write = os.pipe()
    os.close(read)
    line = [sys.executable, "-m", "hlnet", "build-tree", tree, "--out", str(tmp_path / "t.json"), "--json"]
    done = subprocess.run(line, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("line", ["", "nonsense", "--nonsense", "eval", "eval x --dta x", "demo --epochs 0"])
def test_wrong_usage_exits_with_2(failing, line):
    assert failing(*line.split())[0] == 2


def test_train_options_have_the_defaults_of_the_library():
    """Without a recipe, what ``--help`` shows holds."""
    from typer.main import get_command

    from hlnet.training.run_config import NetworkSettings, RunConfig

    command = get_command(cli.app).commands["train"]
    options = {parameter.name: parameter for parameter in command.get_params(typer.Context(command))}
    tables = {"network": NetworkSettings, "train": hlnet.TrainConfig}
    fields = {name: field for name, field in RunConfig.model_fields.items() if name not in {*tables, "transform"}}
    fields |= {name: field for table in tables.values() for name, field in table.model_fields.items()}
    renamed, own = {"backbone_args": "backbone_arg"}, {"img_size", "mean", "std", "help"}
    where_and_how = {
        *("out", "config", "list_recipes", "resume", "overwrite", "save_minutes"),
        *("cache_dir", "cache_size", "log_with", "device", "as_json"),
    }
    assert {renamed.get(name, name) for name in fields} | own == options.keys() - where_and_how | {"help"}
    for name, field in fields.items():
        option, default = options[renamed.get(name, name)], field.get_default(call_default_factory=True)
        assert not option.default and option.default is not False, name  # the recipe's holds
        if default is None or default == {} or name in ("data", "tree"):
            shown = False
        elif isinstance(default, bool):
            assert not default
            shown = f"no-{name.replace('_', '-')}"
        elif isinstance(default, tuple):
            shown = ",".join(f"{value:g}" for value in default)
        else:
            shown = str(default)
        assert option.show_default == shown, name


def test_train_shows_its_defaults():
    env = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    text = " ".join(CliRunner().invoke(cli.app, ["train", "--help"], env=env).output.replace("│", " ").split())
    for name, default in hlnet.TrainConfig().model_dump().items():
        option = f"--{name.replace('_', '-')}"
        assert option in text
        if isinstance(default, str | int | float) and not isinstance(default, bool):
            described = [part.split(" --")[0] for part in text.split(f"{option} ")[1:]]
            assert any(f"[default: ({default})]" in part for part in described), name
