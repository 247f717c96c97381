"""Names of models, model folders and the Hub: against a server on loopback that speaks huggingface_hub's language."""

import copy
import json
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers.hub_server import TOKEN, hub_instead
from helpers.naive import randomise
from huggingface_hub import constants
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from hlnet.cli.main import app
from hlnet.errors import CheckpointError, HlnetError, RunError, UsageError
from hlnet.expert.cut import cut_checkpoint, cut_expert
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.model.transform import InputTransform
from hlnet.store.checkpoint import load_checkpoint, read_header, save_checkpoint
from hlnet.store.hub import push_to_hub, write_model_folder
from hlnet.store.locate import locate_model
from hlnet.tree.class_tree import ClassTree

TREE = ClassTree.from_nested({"beast": {"cat": ["tabby", "siamese"], "dog": ["beagle"]}, "été": ["saw"]}, levels=3)
FILES = ["README.md", "config.json", "model.safetensors"]
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(kind="full"):
    torch.manual_seed(0)
    if kind == "plain":
        net = PlainNet(PlainConfig(backbone="test_resnet"), TREE)
    else:
        config = NetworkConfig(backbone="test_resnet", widths=(8, 4, 4), strides=(1, 1, 2))
        net = HierarchicalNet(config, TREE)
        randomise(net.head)
    net.transform = InputTransform(input_size=(3, 32, 32))
    net.provenance.recipe = {"data": "digits", "train": {"lr": 0.1, "tags": ["a", None]}}
    net.provenance.metrics = {"val_top1": 0.9}
    return net.eval() if kind != "expert" else cut_expert(net, "cat")


def logits(net):
    with torch.no_grad():
        return net(IMAGES)


def contents(path):
    """What a file holds; of safetensors, whose metadata come in any order, as plain data."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """A network of each kind, and the file that each is saved in."""
    root = tmp_path_factory.mktemp("nets")
    nets = {kind: network(kind) for kind in ("full", "plain", "expert")}
    for kind, net in nets.items():
        save_checkpoint(net, root / f"{kind}.safetensors")
    return nets, {kind: root / f"{kind}.safetensors" for kind in nets}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_instead(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def published(hub, nets):
    """The Hub with a repository of each kind of network, and some that are none."""
    files = nets[1]
    for kind in files:
        hub.put(f"me/{kind}", {"model.safetensors": files[kind].read_bytes()})
    hub.put("me/full", {"model.safetensors": files["expert"].read_bytes()}, "refs/pr/1")
    hub.put("me/empty", {"README.md": b"# nothing\n", "config.json": b"[3]"})
    hub.put("me/garbage", {"model.safetensors": b"garbage"})
    foreign = files["full"].parent / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    hub.put("me/foreign", {"model.safetensors": foreign.read_bytes()})
    hub.refused["me/gated"] = (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted"})
    hub.refused["me/disabled"] = (403, {"X-Error-Message": "Access to this resource is disabled."})
    hub.refused["me/badtoken"] = (401, {"X-Error-Message": "Invalid credentials in Authorization header"})
    hub.refused["me/nohub"] = (200, {})
    hub.put("me/private", hub.repos["me/full"]["main"])
    hub.private.add("me/private")
    return hub


def refused(call, error, *words):
    """The call must fail like this, with one line that names these words."""
    with pytest.raises(HlnetError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error and "\n" not in message and len(message) < 500
    assert all(word in message for word in words), message
    return caught.value


# ---------------------------------------------------------------------- names on this machine


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
@pytest.mark.parametrize("kind", [str, Path])
def test_folder_stands_for_its_model_and_else_for_its_run(tmp_path, prefix, kind):
    name = kind(f"{prefix}{tmp_path}")
    (tmp_path / "other.safetensors").touch()
    refused(lambda: locate_model(name), UsageError, str(tmp_path), "neither model.safetensors nor best.safetensors")
    (tmp_path / "best.safetensors").touch()
    assert locate_model(name) == tmp_path / "best.safetensors"
    (tmp_path / "model.safetensors").touch()
    assert locate_model(name) == tmp_path / "model.safetensors"


def test_file_stands_for_itself_whatever_lies_beside_it(tmp_path, monkeypatch):
    for name in ("a.safetensors", "model.safetensors", "ümlaut ☃"):
        (tmp_path / name).touch()
        assert locate_model(tmp_path / name) == locate_model(str(tmp_path / name)) == tmp_path / name
    monkeypatch.chdir(tmp_path)
    assert locate_model("a.safetensors") == Path("a.safetensors")
    assert locate_model(".") == locate_model("local-dir:.") == Path("model.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate_model("local-dir:~") == tmp_path / "model.safetensors"  # which no shell expands


@pytest.mark.parametrize(
    "name, words",
    [
        ("", ["no model file ''"]),
        ("absent.safetensors", ["no model file 'absent.safetensors'"]),
        ("me/pets", ["no model file 'me/pets'", "'hf-hub:me/pets'"]),
        ("local-dir:", ["local-dir:", "local-dir:FOLDER"]),
        ("local-dir:absent", ["'local-dir:absent'", "no folder 'absent'"]),
        ("local-dir:model.safetensors", ["no folder 'model.safetensors'"]),
        *((f"hf-hub:{name}", ["hf-hub:OWNER/NAME"]) for name in ("", "pets", "/pets", "me/", "a/b/c", "me/pets@")),
        *((f"hf-hub:{name}", [name]) for name in ("https://huggingface.co/me/pets", "me/p ts", "me/-", "mé/pets")),
        *((f"hf-hub:{name}", [name, "OWNER/NAME"]) for name in ("me/a--b", "me/a..b", "me/pets.git", "me/pets.")),
    ],
)
def test_names_that_name_nothing(hub, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    refused(lambda: locate_model(name), UsageError, *words)
    assert hub.asked == []  # what cannot be a name is not asked for


# ---------------------------------------------------------------------- from the Hub


def test_model_on_the_hub_comes_back_bit_by_bit(published, nets, tmp_path):
    for kind, net in nets[0].items():
        again = load_checkpoint(f"hf-hub:me/{kind}")
        assert type(again) is type(net) and not again.training and again.tree == net.tree
        assert torch.equal(logits(again), logits(net)) and again.provenance == net.provenance
    assert len(published.downloads()) == 3
    assert read_header("hf-hub:me/full").fingerprint == read_header(nets[1]["full"]).fingerprint
    assert torch.equal(logits(cut_expert("hf-hub:me/full", "cat")), logits(nets[0]["expert"]))
    cut_checkpoint(Path("hf-hub:me/full"), "cat", tmp_path / "cut.safetensors")  # a Path keeps the name as it is
    cut_checkpoint(nets[1]["full"], "cat", tmp_path / "same.safetensors")
    assert contents(tmp_path / "cut.safetensors") == contents(tmp_path / "same.safetensors")
    assert len(published.downloads()) == 3  # the cache has it


def test_revision(published, nets):
    expert = load_checkpoint("hf-hub:me/full@refs/pr/1")
    assert torch.equal(logits(expert), logits(nets[0]["expert"]))
    assert load_checkpoint("hf-hub:me/full").tree == TREE


def test_new_commit_is_fetched(published, nets):
    assert load_checkpoint("hf-hub:me/full").tree == TREE
    published.put("me/full", {"model.safetensors": nets[1]["expert"].read_bytes()})
    assert load_checkpoint("hf-hub:me/full").tree == nets[0]["expert"].tree


REFUSALS = [
    ("me/absent", UsageError, ["no model 'me/absent'", "HF_TOKEN"]),
    ("me/private", UsageError, ["no model 'me/private'", "private", "HF_TOKEN"]),
    ("me/gated", RunError, ["'me/gated' is gated", "HF_TOKEN"]),
    ("me/disabled", RunError, ["me/disabled", "403", "resource is disabled"]),
    ("me/badtoken", RunError, ["me/badtoken", "401", "Invalid credentials", "HF_TOKEN"]),
    ("me/nohub", RunError, ["me/nohub", "FileMetadataError"]),
    ("me/empty", UsageError, ["'me/empty' holds no model.safetensors"]),
    ("me/full@v2", UsageError, ["'me/full' has no revision 'v2'"]),
    ("me/garbage", CheckpointError, ["me/garbage", "not an intact safetensors file"]),
    ("me/foreign", CheckpointError, ["me/foreign", "not one of hlnet's"]),
]


def cut_cats(name):
    return cut_expert(name, "cat")


@pytest.mark.parametrize("load", [load_checkpoint, read_header, cut_cats])
@pytest.mark.parametrize("name, error, words", REFUSALS)
def test_what_the_hub_refuses(published, monkeypatch, load, name, error, words):
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}_of_somebody_else")
    found = refused(lambda: load(f"hf-hub:{name}"), error, *words)
    assert TOKEN not in "".join(traceback.format_exception(found))


@pytest.mark.parametrize("token", [f"{TOKEN}\nx", f" {TOKEN}\0", f"{TOKEN}é"])
def test_token_is_not_told_though_the_http_library_quotes_it(hub, nets, token):
    found = refused(lambda: push_to_hub(nets[0]["plain"], "me/new", token=token), RunError, "me/new")
    assert TOKEN not in "".join(traceback.format_exception(found))


def test_token_opens_a_private_repository(published, monkeypatch, nets):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert torch.equal(logits(load_checkpoint("hf-hub:me/private")), logits(nets[0]["full"]))


def test_offline_takes_what_the_cache_has(published, monkeypatch, nets):
    load_checkpoint("hf-hub:me/full")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = list(published.asked)
    assert torch.equal(logits(load_checkpoint("hf-hub:me/full")), logits(nets[0]["full"]))
    refused(lambda: load_checkpoint("hf-hub:me/plain"), RunError, "me/plain", "HF_HUB_OFFLINE")
    refused(lambda: push_to_hub(network(), "me/new", token=TOKEN), RunError, "me/new", "HF_HUB_OFFLINE")
    assert published.asked == asked


def test_hub_that_does_not_answer(hub, monkeypatch):
    # Without the waits between its attempts, which go on for 20 seconds.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    refused(lambda: load_checkpoint("hf-hub:me/full"), RunError, "me/full", "ConnectError", "refused")


# ---------------------------------------------------------------------- model folders


@pytest.mark.parametrize("kind", ["full", "expert", "plain"])
def test_model_folder_holds_what_the_hub_wants(nets, tmp_path, kind):
    net = nets[0][kind]
    folder = tmp_path / "new" / "folder"
    write_model_folder(net, folder, license="mit")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert contents(folder / "model.safetensors") == contents(nets[1][kind])
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert described["library_name"] == "hlnet" and described["kind"] == (
        "plain" if kind == "plain" else "hierarchical"
    )
    assert described["config"] == net.config.model_dump(mode="json")
    assert described["transform"] == net.transform.model_dump(mode="json")
    assert described["provenance"] == net.provenance.model_dump(mode="json")
    assert described["fingerprint"] == read_header(folder).fingerprint
    assert "été" in (folder / "config.json").read_text(encoding="utf-8") or kind == "expert"
    assert huggingface_hub.ModelCard.load(folder / "README.md").data.license == "mit"
    assert torch.equal(logits(load_checkpoint(folder)), logits(net))


def test_model_folder_replaces_its_three_files_and_no_other(nets, tmp_path):
    for name in [*FILES, "notes.txt"]:
        (tmp_path / name).write_text("old")
    write_model_folder(nets[0]["full"], tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "old"
    assert not any((tmp_path / name).read_bytes() == b"old" for name in FILES)


def test_wrong_facts_leave_no_folder(nets, tmp_path):
    with pytest.raises(TypeError, match="lisence"):
        write_model_folder(nets[0]["full"], tmp_path / "new", lisence="mit")
    assert not (tmp_path / "new").exists()


def test_folder_that_cannot_be_made(nets, tmp_path):
    (tmp_path / "file").touch()
    refused(lambda: write_model_folder(nets[0]["plain"], tmp_path / "file"), RunError, "file", "no folder")


# ---------------------------------------------------------------------- to the Hub


@pytest.mark.parametrize("kind", ["full", "plain"])
def test_push_and_fetch_again(hub, nets, tmp_path, kind):
    net = nets[0][kind]
    url = push_to_hub(net, "me/pushed", token=TOKEN, private=True, license="mit")
    assert str(url).startswith(f"{hub.url}/me/pushed/commit/")
    write_model_folder(net, tmp_path, license="mit", repo_id="me/pushed")
    pushed = {name: data for name, data in hub.repos["me/pushed"]["main"].items() if name != ".gitattributes"}
    assert sorted(pushed) == FILES
    for name, data in pushed.items():
        (tmp_path / f"pushed {name}").write_bytes(data)
        assert contents(tmp_path / f"pushed {name}") == contents(tmp_path / name)
    assert torch.equal(logits(load_checkpoint("hf-hub:me/pushed")), logits(net))


def test_push_to_a_branch(hub, nets):
    push_to_hub(nets[0]["full"], "me/pets", token=TOKEN, branch="b")
    assert set(FILES) <= hub.repos["me/pets"]["b"].keys()


def test_push_that_the_hub_refuses(hub, nets):
    net = nets[0]["plain"]
    found = refused(lambda: push_to_hub(net, "me/pushed", token=f"{TOKEN}x"), RunError, "me/pushed", "401", "HF_TOKEN")
    assert TOKEN not in "".join(traceback.format_exception(found))
    refused(lambda: push_to_hub(net, "a/b/c", token=TOKEN), UsageError, "'a/b/c'", "OWNER/NAME")
    with pytest.raises(TypeError, match="lisence"):
        push_to_hub(net, "me/pushed", token=TOKEN, lisence="mit")
    assert hub.repos == {}


# ---------------------------------------------------------------------- networks as such


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["full", "plain"])
def test_networks_are_copied_pickled_and_traced_as_before(nets, kind):
    net = nets[0][kind]
    for again in (copy.deepcopy(net), copy.copy(net), pickle.loads(pickle.dumps(net))):
        assert type(again) is type(net) and torch.equal(logits(again), logits(net))
    assert torch.equal(logits(torch.jit.trace(net, IMAGES)), logits(net))
    assert torch.allclose(logits(torch.export.export(net, (IMAGES,)).module()), logits(net), atol=1e-6)
    if kind == "plain":
        assert torch.equal(logits(torch.fx.symbolic_trace(net)), logits(net))


def test_import_waits_for_the_first_use():
    script = (
        "import sys, hlnet, hlnet.cli.main; print(sorted({'huggingface_hub', 'jinja2', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# ---------------------------------------------------------------------- every command


@pytest.fixture(scope="module")
def places(nets, tmp_path_factory):
    """A model folder of the full network, a run folder of the same, images, and one photo."""
    root = tmp_path_factory.mktemp("places")
    write_model_folder(nets[0]["full"], root / "pets")
    (root / "run").mkdir()
    (root / "run" / "best.safetensors").write_bytes(nets[1]["full"].read_bytes())
    for name in TREE.classes:
        (root / "photos" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 36), (len(name) * 20, 99, 0)).save(root / "photos" / "val" / name / "0.png")
    return root


COMMANDS = {
    "eval": "eval {model} --data {root}/photos --workers 0 --device cpu --json",
    "predict": "predict {model} {root}/photos/val/saw/0.png --device cpu --json",
    "profile": "profile {model} --no-latency --json",
    "make-expert": "make-expert {model} --classes cat --out {out} --verify --json",
}


def run(line, **names):
    return CliRunner().invoke(app, line.format(**names).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_every_name(command, places, published, nets, tmp_path):
    names = ["{root}/pets", "{root}/run", "local-dir:{root}/pets", "hf-hub:me/full", "hf-hub:me/full@main"]
    names = [str(nets[1]["full"]), *(name.format(root=places) for name in names)]
    told = []
    for name in names:
        result = run(COMMANDS[command], model=name, root=places, out=tmp_path / "expert.safetensors")
        assert result.exit_code == 0, result.stderr or result.exception
        told.append(result.stdout)
    found = [json.loads(one) for one in told]
    if command == "make-expert":
        size = nets[1]["full"].stat().st_size
        assert [one.pop("fetched_bytes") for one in found] == [0, 0, 0, 0, size, 0]
    assert found[0] and all(other == found[0] for other in found[1:])
    assert len(published.downloads()) == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["hf-hub:me/absent", "hf-hub:me", "local-dir:absent", "photos"])
def test_commands_say_what_a_name_does_not_name(command, name, places, published, tmp_path, monkeypatch):
    monkeypatch.chdir(places)
    result = run(COMMANDS[command], model=name, root=places, out=tmp_path / "expert.safetensors")
    assert isinstance(result.exception, UsageError) and name.partition(":")[2] in str(result.exception)
    assert "\n" not in str(result.exception) and not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["{root}/pets", "local-dir:{root}/pets", "{root}/pets/model.safetensors"])
def test_expert_never_replaces_its_model(name, places):
    before = (places / "pets" / "model.safetensors").read_bytes()
    out = f"{places}/run/../pets/model.safetensors"
    result = run(COMMANDS["make-expert"], model=name.format(root=places), out=out)
    assert isinstance(result.exception, UsageError) and "is the model itself" in str(result.exception)
    assert (places / "pets" / "model.safetensors").read_bytes() == before


def test_command_line_asks_the_hub_that_the_environment_names(published, places, tmp_path):
    """The real way, in a process of its own, where huggingface_hub reads the environment by itself."""
    environment = {**os.environ, "HF_ENDPOINT": published.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
    environment["HF_HUB_OFFLINE"] = "0"

    script = f"""
import os, sys, torch, timm  # which both processes need
from hlnet.cli.main import main
sys.argv = ["hlnet", "predict", "hf-hub:me/private", "{places}/photos/val/saw/0.png", "--json"]
if not os.fork():
    main()
assert os.wait()[1] == 0
sys.argv[2] = "hf-hub:me/absent"
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert json.loads(done.stdout)["labels"], done.stderr
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("hlnet: ")
    assert "HF_TOKEN" in line and TOKEN not in line
