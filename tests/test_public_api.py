"""The names that ``import hlnet`` promises: all there, documented, lazy, and known to timm."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hlnet

TREE = '{"animal": {"pet": {"cat": None, "dog": None}}}'


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", hlnet.__all__)
def test_name_resolves_and_is_documented(name):
    found = getattr(hlnet, name)
    assert found is getattr(import_module(f"hlnet.{hlnet._HOME[name]}"), name)
    if inspect.isclass(found) or inspect.isroutine(found):
        assert found.__module__ == f"hlnet.{hlnet._HOME[name]}"
        assert found.__doc__ and found.__doc__.strip() and not found.__doc__.startswith(f"{name}(")
    else:  # a constant has a comment in its module
        source = Path(inspect.getfile(import_module(f"hlnet.{hlnet._HOME[name]}"))).read_text(encoding="utf-8")
        assert any(
            line.startswith("#:") and after.startswith(name) for line, after in zip(*_pairs(source), strict=False)
        )


def _pairs(source):
    lines = source.splitlines()
    return lines, lines[1:]


def test_names_for_type_checkers_agree():
    body = ast.parse(Path(hlnet.__file__).read_text(encoding="utf-8")).body
    (block,) = [node for node in body if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"]
    typed = {node.module.removeprefix("hlnet."): tuple(alias.name for alias in node.names) for node in block.body}
    assert typed == hlnet._MODULES and hlnet.__all__ == sorted(name for names in typed.values() for name in names)
    assert list(typed) == sorted(typed) and all(list(names) == sorted(names) for names in typed.values())


def test_dir_and_unknown_names():
    assert set(hlnet.__all__) <= set(dir(hlnet)) and "__version__" in dir(hlnet)
    with pytest.raises(AttributeError, match="module 'hlnet' has no attribute 'nope'"):
        _ = hlnet.nope
    space = {}
    exec("from hlnet import *", space)
    assert set(hlnet.__all__) <= space.keys()


def test_import_alone_is_light():
    heavy = run("-c", "import sys, hlnet; print(sorted({'torch', 'timm', 'numpy', 'typer'} & set(sys.modules)))")
    assert heavy.strip() == "[]"


@pytest.mark.parametrize("order", ["import hlnet, timm", "import timm, hlnet"])
def test_presets_are_timm_models_in_either_order(order):
    script = f"""
{order}
import sys
from hlnet.presets import PRESETS
assert all(timm.is_model(name) for name in PRESETS)
net = timm.create_model("n3hl_resnet50", tree={TREE})
assert isinstance(net, hlnet.HierarchicalNet) and net.tree.counts == (1, 1, 2) and net.config.widths == (128, 64, 32)
"""
    run("-c", script)


def test_module_runs_and_tells_its_version():
    assert run("-m", "hlnet", "--version") == f"hlnet {hlnet.__version__}\n"
