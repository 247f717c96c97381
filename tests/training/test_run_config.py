"""Recipes: each runs, options replace their settings, a run's own file repeats it, and mistakes are named."""

import json
import sys
import tomllib
from importlib import resources

import pytest
import torch
from helpers.runs import SMALL, assert_same_run, figures, weights, write_images
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import hlnet
from hlnet.cli import main as cli
from hlnet.model.hierarchical import NetworkConfig
from hlnet.model.trunk import create_backbone
from hlnet.training import loop
from hlnet.training.run_config import read_run_config, run_settings, shipped_recipes
from hlnet.training.run_folder import RunFolder
from hlnet.training.run_parts import build_network

RECIPES = {
    file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
    for file in resources.files("hlnet.training").joinpath("recipes").iterdir()
}
TINY = "--img-size 32 --no-pretrained --epochs 1 --workers 0 --device cpu"


def invoke(line, *more):
    """A command that must succeed; what it prints, and what it tells a person."""
    result = CliRunner().invoke(cli.app, [*line.split(), *more])
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout, result.stderr


@pytest.fixture
def failing(capsys, monkeypatch):
    """Run a command that must fail: its exit code and its one line, behind what it told before."""

    def run(line):
        monkeypatch.setattr(sys, "argv", ["hlnet", *line.split()])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        *before, told = err.splitlines()
        assert out == "" and told.startswith("hlnet: ") and "hlnet: " not in "".join(before), err
        return stop.value.code, told

    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four colours, a tree of three levels, weights of a trunk."""
    root = tmp_path_factory.mktemp("recipes")
    write_images(root)
    nested = json.loads((root / "tree.json").read_text())
    hlnet.write_tree(hlnet.ClassTree.from_nested(nested, 3), root / "three.tree.json")
    torch.manual_seed(3)
    save_file(create_backbone("test_resnet").state_dict(), root / "trunk.safetensors")
    return root


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_runs(root, tmp_path, name):
    """With small images and, but for the laptop's, another trunk; all else is the recipe's."""
    written, data, more = tomllib.loads(RECIPES[name]), root / "data", ""
    if "tree" in written:
        data, leaves = tmp_path / "data", hlnet.read_tree(written["tree"]).leaves[:4]
        data.mkdir()
        for split in ("train", "val"):
            (data / split).mkdir()
            for leaf, colour in zip(leaves, sorted((root / "data" / split).iterdir()), strict=True):
                (data / split / leaf.id).symlink_to(colour)  # by WordNet's ids, of which the tree has more
        more = "--allow-missing"
    else:
        more = f"--tree {root / 'three.tree.json'}"
    if name != "laptop":
        more += " --backbone test_resnet --widths 8,4,4"
    _, told = invoke(f"train {data} --config {name} {more} {TINY} --out {tmp_path / 'run'}")
    assert "20 training images and 8 validation images" in told and len(figures(tmp_path / "run")) == 1
    run = read_run_config(tmp_path / "run" / "config.toml")
    found = {"batch_size": 32} if written["train"]["batch_size"] == "auto" else {}
    expected = hlnet.TrainConfig(**written["train"] | {"epochs": 1, "workers": 0} | found)
    assert run.train == expected != hlnet.TrainConfig(epochs=1, workers=0)
    net = hlnet.load_checkpoint(tmp_path / "run")
    assert net.tree.counts == hlnet.read_tree(written.get("tree", root / "three.tree.json")).counts
    if name == "laptop":
        assert run.network.backbone == "mobilenetv2_100" and run.network.widths == (64, 32, 16)


def test_recipes_are_listed_and_read():
    assert set(RECIPES) == {"laptop", "one-gpu", "eight-gpus", "paper-10", "paper-100", "paper-1000"}
    out, _ = invoke("train --list-recipes")
    for name, text in RECIPES.items():
        assert shipped_recipes()[name] == text.splitlines()[0].removeprefix("# ") and f"│ {name} " in out
        run = read_run_config(name)
        given = run.model_dump(exclude_unset=True)
        assert json.loads(json.dumps(given)) == tomllib.loads(text)
    paper = {name: read_run_config(name) for name in RECIPES if name.startswith("paper")}
    stated = {"paper-10": (1000, 32, 10), "paper-100": (300, 56, 100), "paper-1000": (300, 46, 1000)}  # Sec. 4.1
    for name, run in paper.items():
        classes = len(hlnet.read_tree(run.tree).classes)
        assert (run.train.epochs, run.train.batch_size, classes) == stated[name]
        assert run.network.backbone == "n3hl_resnet50" and run.train.aa.startswith("rand-")


# ---------------------------------------------------------------------- options and files

# Each unlike the library's default and unlike the recipe's value.
FLAGS = (
    "--data-root {root}/x --allow-missing --backbone test_resnet --plain --split-point 2 --trunk-weights {root}/trunk"
    ".safetensors --no-pretrained --backbone-arg drop_rate=0.25 --img-size 48 --mean 0.5 --std 0.1,0.2,0.3 --epochs 7 "
    "--batch-size auto --opt lamb --lr 0.25 --momentum 0.5 --weight-decay 0.125 --layer-decay 0.75 --sched step "
    "--min-lr 0.001 --warmup-epochs 4.5 --decay-epochs 11 --decay-rate 0.5 --loss bce --smoothing 0.25 "
    "--rows-loss 0.75 --cue-share 0.25 --cue-reliability 0.6,0.8 "
    "--hierarchical-alpha 0.5 --soft-labels-beta 4.5 --mixup 0.75 --cutmix 0.5 --clip-grad 2.5 --ema-decay 0.875 "
    "--mixed-precision no --aa none --scale 0.25,0.75 --hflip 0.25 --reprob 0.75 --skip-unreadable --frozen-trunk "
    "--unfreeze-epochs 3 --workers 5 --seed 9"
)


class Captured(Exception):  # noqa: N818
    """Instead of a run."""


@pytest.fixture
def captured(monkeypatch):
    """What a command would train with."""

    def stop(net, train_data, val_data, settings, *_, described, **rest):
        raise Captured(net, settings, described, rest)

    monkeypatch.setattr(loop, "train", stop)

    def run(line, *more):
        result = CliRunner().invoke(cli.app, [*line.split(), *more])
        assert isinstance(result.exception, Captured), result.stderr or result.exception
        return result.exception.args

    return run


@pytest.mark.parametrize("recipe", ["", "--config one-gpu", "--config eight-gpus"])
def test_options_replace_a_recipe(root, captured, recipe):
    data = f"train {root}/data --tree {root}/tree.json --out {root}/none {recipe}"
    net, settings, described, _ = captured(f"{data} {FLAGS.format(root=root)}")
    given = dict(pair.split(" ") for pair in FLAGS.format(root=root).removeprefix("--").split(" --") if " " in pair)
    for name, default in hlnet.TrainConfig().model_dump().items():
        value = getattr(settings, name)
        if name in ("cache_views", "cue_aware"):  # which do not go with the others
            continue
        assert value != default, name
        if isinstance(value, bool):
            continue
        wanted = given[name.replace("_", "-")]
        assert value == tuple(map(float, wanted.split(","))) if "," in wanted else str(value) == wanted, name
    assert net.config.backbone_args == {"drop_rate": 0.25} and net.config.split_point == 2
    transform = net.transform.model_dump(include={"input_size", "mean", "std"})
    assert transform == {"input_size": (3, 48, 48), "mean": (0.5,) * 3, "std": (0.1, 0.2, 0.3)}
    network = {"pretrained": False, "trunk_weights": given["trunk-weights"]}
    assert described == {"data": f"{root}/data", "data_root": given["data-root"], "allow_missing": True} | {
        "network": network
    }
    loaded, found = load_file(root / "trunk.safetensors"), net.trunk_module.state_dict()
    assert all(torch.equal(found[name], loaded[name]) for name in net.trunk_names)


def test_every_setting_has_an_option_and_reaches_a_run():
    words = {word.removeprefix("--no-").removeprefix("--") for word in FLAGS.split() if word.startswith("--")}
    settings = {*hlnet.TrainConfig.model_fields, *hlnet.training.run_config.NetworkSettings.model_fields}
    settings -= {*NetworkConfig.model_fields} - {"backbone", "split_point"}  # of branches
    settings -= {"cache_views", "cue_aware"}  # see above
    assert {name.replace("_", "-") for name in settings} <= words
    assert words <= {setting.option.replace("_", "-") for setting in run_settings()}


def test_what_is_shared_has_options_too(root, captured):
    given = "--shared-width 4 --shared-blocks 2 --shared-stride 2 --class-rows --sharing reduce --rank-leaves"
    run = f"train {root}/data --tree {root}/tree.json --out {root}/none --backbone test_resnet"
    plain, lean = (captured(f"{run} {more}")[0].config for more in ("", given))
    wanted = {"shared_width": 4, "shared_blocks": 2, "shared_stride": 2, "class_rows": True, "sharing": "reduce"}
    assert lean.model_dump() == plain.model_dump() | wanted | {"rank_leaves": True}


def test_what_a_recipe_says_stays_without_an_option(root, captured):
    data = f"train {root}/data --tree {root}/three.tree.json --out {root}/none --config laptop --no-pretrained"
    net, settings, *_ = captured(data)
    assert settings == read_run_config("laptop").train and net.transform.input_size == (3, 160, 160)
    assert net.config.widths == (64, 32, 16) and net.transform.mean == create(net.config.backbone).mean
    _, settings, *_ = captured(f"{data} --cache-views 0 --no-frozen-trunk --lr 1e-4")
    wanted = {"cache_views": 0, "frozen_trunk": False, "lr": 1e-4}
    assert settings == read_run_config("laptop").train.model_copy(update=wanted)
    _, settings, *_ = captured(f"{data} --cue-aware --cue-reliability 0.6,0.8")
    assert settings.cue_aware and settings.cue_reliability == (0.6, 0.8) and settings.cue_share == 0.5


def create(backbone):
    return hlnet.create_model(backbone, ["cat", "dog"]).transform


# ---------------------------------------------------------------------- replays


@pytest.mark.parametrize(
    "settings",
    [
        "--widths 8,4 --block convnext --trunk-weights trunk.safetensors --frozen-trunk --cache-views 2",
        "--plain --loss bce --backbone-arg drop_rate=0.5 --mean 0.5 --opt sgd --seed 3",
    ],
)
def test_a_run_is_repeated_from_its_config(root, tmp_path, monkeypatch, settings):
    """From another folder, where files of the same names lie."""
    monkeypatch.chdir(root)
    first = f"train data --tree tree.json --workers 0 --epochs 2 {SMALL} {settings}"
    invoke(f"{first} --out {tmp_path}/first")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "data").mkdir(parents=True)
    (elsewhere / "classes.tree.json").write_text("{}")
    (elsewhere / "trunk.safetensors").write_text("no weights")
    monkeypatch.chdir(elsewhere)
    for config, out in (("../first/config.toml", "second"), (f"{elsewhere}/second/config.toml", "third")):
        invoke(f"train --config {config} --out {out} --device cpu")
        assert_same_run_but_for_paths(elsewhere / out, tmp_path / "first")
    monkeypatch.chdir(root)
    invoke(f"{first} --out {tmp_path}/fourth")
    assert_same_run(tmp_path / "fourth", tmp_path / "first")


def assert_same_run_but_for_paths(found, expected):
    """Provenance has paths as they were given."""
    assert figures(found) == figures(expected)
    for name in ("best.safetensors", "last.safetensors"):
        assert weights(found / name)[1] == weights(expected / name)[1]
    configs = [(folder / "config.toml").read_text() for folder in (found, expected)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(
    "given",
    [
        {"backbone": "phl_resnet50"},
        {"backbone": "n3hl_convnextv2_tiny", "split_point": 1},
        {"backbone": "vit_tiny_patch16_224", "widths": [8, 8, 4], "strides": [1, 1, 1]},
        {"backbone": "test_resnet", "backbone_args": {"in_chans": 1}},
        {"backbone": "resnet18", "plain": True, "split_point": -2},
    ],
)
def test_config_of_any_network_builds_it_again(root, tmp_path, given):
    transform = {"input_size": 64, "mean": 0.5, "crop_pct": 0.9, "interpolation": "bilinear"}
    settings = {"network": given, "transform": transform, "train": {"seed": 5, "clip_grad": 0.5}}
    run, tree = read_run_config(given=settings), hlnet.read_tree(root / "three.tree.json")
    net = build_network(run, tree)
    RunFolder(tmp_path, run.train, {"data": "digits"}).write_config(net)
    found = read_run_config(tmp_path / "config.toml")
    again = build_network(found, hlnet.read_tree(found.tree))
    assert again.config == net.config and again.tree == net.tree and again.transform == net.transform
    assert found.train == run.train and found.data == "digits" and found.tree == str(tmp_path / "classes.tree.json")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in net.state_dict().items())


def test_paths_in_a_file_are_relative_to_it_and_sources_are_no_paths(root, tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere, home / "digits", elsewhere / "digits", home / "photos"):
        folder.mkdir()
    for name in ("x.json", "w.pth"):
        (home / name).touch()
        (elsewhere / name).touch()
    (elsewhere / "y.json").touch()
    text = 'data = "{}"\ntree = "{}"\ndata_root = "photos"\nnetwork.trunk_weights = "w.pth"\n'
    monkeypatch.chdir(elsewhere)
    for data, tree, found_data, found_tree in (
        ("photos", "x.json", str(home / "photos"), str(home / "x.json")),
        ("digits", "y.json", "digits", "y.json"),
        ("hfds/photos", "preset:cifar10", "hfds/photos", "preset:cifar10"),
    ):
        (home / "run.toml").write_text(text.format(data, tree))
        run = read_run_config(home / "run.toml")
        assert (run.data, run.tree) == (found_data, found_tree)
        assert (run.data_root, run.network.trunk_weights) == (str(home / "photos"), str(home / "w.pth"))
    net = hlnet.create_model("test_resnet", ["cat", "dog"])
    described = {"data": "digits", "network": {"trunk_weights": "w.pth"}}
    RunFolder(tmp_path, hlnet.TrainConfig(), described).write_config(net)  # although there is such a folder here
    written = tomllib.loads((tmp_path / "config.toml").read_text())
    assert written["data"] == "digits" and written["network"]["trunk_weights"] == str(elsewhere / "w.pth")


# ---------------------------------------------------------------------- mistakes

# What a file says (";" ends a line), and what the message must name.
MISTAKES = """
epochs = 3 | unknown setting 'epochs'
trian = {} | unknown setting 'trian'. Did you mean 'train'
train.epoch = 3 | unknown setting 'train.epoch'. Did you mean 'epochs'
network.width = [3] | unknown setting 'network.width'. Did you mean 'widths'
transform.sdt = 1 | transform has no setting 'sdt'. Did you mean 'std'
train = 3 | train & 3:
network = "resnet18" | network & 'resnet18':
data = 3 | data & 3:
tree = ["a"] | tree & ['a']:
train.lr = -1 | lr & -1: & greater than 0
train.lr = "fast" | lr & 'fast': & number
train.batch_size = "big" | batch_size & 'big':
train.batch_size = 0 | batch_size & 0:
train.loss = "ce" | loss & 'ce': & 'soft-labels'
train.loss = "soft-label" | loss & Did you mean 'soft-labels'
train.cue_aware = true;network.plain = true | cue_aware & leave cue_aware or plain out
train.scale = [2, 1] | scale & 2:
train.scale = [0.9, 0.1] | scale (0.9, 0.1) must be low, high
train.cache_views = 2 | cache_views & needs frozen_trunk
train.mixup = 1;train.batch_size = 1 | mixup & batch_size must be at least 2
train.sched = "plateau" | sched 'plateau'
train.sched = "nonsense" | sched 'nonsense'
train.sched = "wsd";train.epochs = 3 | sched 'wsd' & decay_epochs
train.opt = "nonsens" | optimizer 'nonsens'
train.opt = "adahessian" | optimizer 'adahessian' & adamw
train.aa = "nonsense" | policy 'nonsense'
transform = 3 | transform & 3:
transform.mean = [0.1, 0.2] | mean (0.1, 0.2): expected 3 numbers, or one
transform.mean = [] | mean
transform.std = 0 | std & above 0
transform.crop_pct = "x" | crop_pct & 'x':
transform.crop_pct = 0 | crop_pct 0.0 & above 0
transform.crop_mode = "x" | crop_mode 'x' & squash
transform.interpolation = "x" | interpolation 'x' & bilinear
transform.input_size = 0 | input_size (3, 0, 0) must be above 0
transform.input_size = [3, 32] | input_size & [3, 32]:
network.widths = ["a"] | widths & 'a':
network.widths = [8] | widths (8,) & 2 levels
network.strides = [1, 0] | strides & greater than 0
network.block = "x" | block 'x'
network.backbone = "test_resnt" | 'test_resnt' & Did you mean 'test_resnet'
network.split_point = 9 | split point 9
network.backbone_args = {nonsense = 1} | 'nonsense'
network.plain = true;network.widths = [8, 4] | widths & plain
network.pretrained = true;network.trunk_weights = "x" | pretrained and trunk_weights
network.trunk_weights = "nowhere.pth" | nowhere.pth
tree = "nowhere.json" | nowhere.json
data = "nowhere" | data folder 'nowhere'
this is no TOML | c.toml' is no TOML
"""


@pytest.mark.parametrize("case", MISTAKES.strip("\n").splitlines(), ids=str)
def test_mistakes_in_a_file_are_one_line_that_names_them(root, tmp_path, failing, monkeypatch, case):
    text, words = case.split(" | ")
    lines = text.split(";")
    keys = {line.split("=")[0].strip() for line in lines}
    tables = {key.split(".")[0] for key in keys if "." not in key}
    lines += [f'data = "{root}/data"'] if "data" not in keys else []
    lines += [f'tree = "{root}/tree.json"'] if "tree" not in keys else []
    if "network" not in tables and "network.backbone" not in keys:
        lines.append('network.backbone = "test_resnet"')
    if "transform" not in tables and "transform.input_size" not in keys:
        lines.append("transform.input_size = 32")
    lines += ["train.workers = 0"] if "train" not in tables else []
    (tmp_path / "c.toml").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    code, told = failing("train --config c.toml --out run --device cpu")
    assert code == 2 and all(word in told for word in words.split(" & ")), told
    assert "--debug" not in told and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "line, words",
    [
        ("--config laptp", "no recipe or file 'laptp'. Did you mean 'laptop' & paper-1000"),
        ("--config .", "no recipe or file '.'"),
        ("--config binary.toml", "'binary.toml' cannot be read: not a text file"),
        ("--config paper-10", "DATA is needed"),
        ("{root}/data", "--tree & needed"),
        ("{root}/data --tree {root}/tree.json --resume --overwrite", "--resume & --overwrite & give one"),
        ("{root}/data --tree {root}/tree.json --batch-size 8,16", "--batch-size '8,16'"),
        ("{root}/data --tree {root}/tree.json --widths 8;4", "--widths '8;4'"),
        ("{root}/data --tree {root}/tree.json --lr 0 --config laptop", "lr & 0.0: & greater than 0"),
        ("{root}/data --tree {root}/tree.json --cache-size 9x --backbone test_resnet --img-size 32", "'9x'"),
    ],
)
def test_mistakes_in_a_command_are_one_line(root, tmp_path, failing, monkeypatch, line, words):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00\x9c")
    monkeypatch.chdir(tmp_path)
    code, told = failing(f"train {line.format(root=root)} --out run")
    assert code == 2 and all(word in told for word in words.split(" & ")), told


def test_an_out_folder_with_a_run_is_left_alone(root, tmp_path, failing):
    line = f"train {root}/data --tree {root}/tree.json --out {tmp_path}"
    for name in ("last.ckpt", "metrics.csv"):  # killed in its first epoch, it has no figures yet
        (tmp_path / name).touch()
        code, told = failing(line)
        assert code == 2 and "already holds a run; give --resume, --overwrite" in told
        (tmp_path / name).unlink()
