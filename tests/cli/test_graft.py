"""``hlnet graft``: what it writes and prints is the library's, and every error is one line."""

import pytest
import torch
from helpers import command_line
from helpers.command_line import as_json, invoke
from helpers.runs import write_images

import hlnet
from hlnet.expert.graft import graft, graft_config
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.store.checkpoint import load_checkpoint, read_header, save_checkpoint
from hlnet.tree.class_tree import ClassTree

failing = command_line.failing


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """Images of four colours, and networks of two of them."""
    root = tmp_path_factory.mktemp("graft")
    write_images(root, train=4, val=3)
    torch.manual_seed(0)
    tree = ClassTree.from_nested({"warm": ["red"], "cold": ["green"]})
    net = hlnet.create_model("test_resnet", tree=tree, widths=[4, 4], strides=[1, 1])
    net.transform = net.transform.adjusted(img_size=32)
    net.provenance.recipe = {"train": {"aa": "none", "hflip": 0.0}}
    save_checkpoint(net, root / "net.safetensors")
    save_checkpoint(PlainNet(PlainConfig(backbone="test_resnet"), tree), root / "plain.safetensors")
    return {
        "data": f"{root}/data",
        "net": f"{root}/net.safetensors",
        "plain": f"{root}/plain.safetensors",
        "root": root,
    }


SMALL = "--data {data} --epochs 1 --views 1 --workers 0 --batch-size 4 --device cpu"


def test_command_writes_what_the_library_makes(at, tmp_path):
    line = f"graft {{net}} {SMALL} --classes yellow=lemon,blue --under lemon=warm --under / --lr 0.01 --seed 3"
    line += f" --cache-dir {tmp_path}/cache --cache-size 1MB"
    found = as_json(f"{line} --out {tmp_path}/grown.safetensors", **at)
    net = load_checkpoint(at["net"])
    images = [hlnet.load_data(at["data"], split) for split in ("train", "val")]
    settings = {"epochs": 1, "cache_views": 1, "workers": 0, "batch_size": 4, "lr": 0.01, "seed": 3}
    under = {"lemon": "warm", "blue": "/"}
    grown, report = graft(net, {"yellow": "lemon", "blue": "blue"}, *images, under, graft_config(net, **settings))
    assert {name: found[name] for name in report.model_dump()} == report.model_dump(mode="json")
    written = load_checkpoint(tmp_path / "grown.safetensors")
    assert written.tree == grown.tree and written.provenance.metrics == grown.provenance.metrics
    weights = grown.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in written.state_dict().items())
    for name, made in (("before", net), ("after", grown)):
        cost = found["cost"][name]
        assert cost["params"] == sum(tensor.numel() for tensor in made.parameters())
        assert (
            cost["nodes"] == list(made.tree.counts)
            and cost["gmacs"] == hlnet.profile(made.config, made.tree, made.transform).full.gmacs
        )
    (record,) = written.provenance.recipe["grafts"]
    assert record["fingerprint"] == read_header(at["net"]).fingerprint and record["data"] == at["data"]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    out, err = invoke(f"{line} --out {tmp_path}/again.safetensors", **at)
    assert "features are read from" in err
    assert "lemon" in out and "top-1, all" in out and "verified" in out and "epoch   1/1" in err
    assert "4 new" not in err and "8 old and 8 new training images" in out


ERRORS = """
2 | --classes bleu --out new.safetensors | has no class 'bleu'. Did you mean 'blue'
2 | --classes red --out new.safetensors | class 'red' is in the tree already
2 | --classes blue --out new.bin | --out 'new.bin' & .safetensors
2 | --classes blue --out {net} | is the model itself
1 | --classes blue --out {net}/new.safetensors | cannot write into
2 | --classes blue= --out new.safetensors | --classes 'blue='
2 | --classes blue,blue --out new.safetensors | --classes 'blue,blue'
2 | --classes , --out new.safetensors | no new class is named
2 | --classes blue --out new.safetensors --under warm --under cold | --under 'warm' and 'cold'
2 | --classes blue --out new.safetensors --under wram | no inner node 'wram'. Did you mean 'warm'
2 | --classes blue --out new.safetensors --under bleu=warm | no new class is called 'bleu'
2 | --classes blue --out new.safetensors --lr 0 | lr 0
2 | --classes blue --out new.safetensors --cache-size 1e3 | --cache-size '1e3' & 20GB
2 | --classes blue --out new.safetensors --device warp | --device 'warp'
2 | --classes blue --out new.safetensors --data nowhere | no data folder 'nowhere'
"""


@pytest.mark.parametrize("case", ERRORS.strip().splitlines(), ids=str)
def test_errors_are_one_line_and_nothing_is_written(failing, tmp_path, case):
    code, line, words = case.split(" | ")
    found, out, err = failing(f"graft {{net}} {SMALL} {line}")
    assert (found, out) == (int(code), "") and all(word in err for word in words.split(" & ")), err
    *hints, err = err.splitlines()
    assert err.startswith("hlnet: ") and not any("hlnet: " in hint for hint in hints) and not list(tmp_path.iterdir())


def test_features_beyond_the_limit_are_refused(failing, tmp_path):
    code, out, err = failing(f"graft {{net}} {SMALL} --classes blue --out new.safetensors --cache-size 100")
    last = err.splitlines()[-1]
    assert (code, out) == (2, "") and last.startswith("hlnet: features of 12 images in 1 view") and "100B" in last
    assert not list(tmp_path.iterdir())


def test_plain_network_is_refused(failing):
    code, _, err = failing(f"graft {{plain}} {SMALL} --classes blue --out new.safetensors")
    assert code == 2 and "is a plain network" in err


def test_a_class_may_hold_a_comma_or_sign(at):
    from hlnet.cli.graft import _names, _parents

    known = ("tench, Tinca tinca", "a=b", "owl")
    assert _names("tench, Tinca tinca", known) == {"tench, Tinca tinca": "tench, Tinca tinca"}
    assert _names("a=b, owl=Eule", known) == {"a=b": "a=b", "owl": "Eule"}
    assert _parents(["Eule=x=y", "a"], {"a=b": "a=b", "owl": "Eule"}) == {"a=b": "a", "Eule": "x=y"}
    assert _parents(["owl=/"], {"owl": "Eule"}) == {"Eule": "/"}  # by its folder, too
    assert _parents([], {"Eule": "Eule"}) is None
