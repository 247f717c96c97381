"""Only Insecta: cut 27 of ImageNet's 1000 classes for an insect trap with a small computer.

    python examples/only_insecta.py                                # untrained weights: the costs are right, labels not
    python examples/only_insecta.py --model imagenet.safetensors   # a trained one, or hf-hub:owner/name

With a trained network, one command does the same:

    hlnet make-expert imagenet.safetensors --classes @examples/insecta.txt --out insecta.safetensors --verify
"""

import argparse
import tempfile
from pathlib import Path

import torch

import hlnet

INSECTA = f"@{Path(__file__).parent / 'insecta.txt'}"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", help="a trained network with the classes of preset:imagenet1k")
parser.add_argument("--out", default="insecta.safetensors", help="the expert's file")
args = parser.parse_args()

model = args.model
if model is None:
    torch.manual_seed(0)
    model = Path(tempfile.mkdtemp()) / "untrained.safetensors"
    hlnet.save_checkpoint(hlnet.create_model("n3hl_resnet50", tree="preset:imagenet1k"), model)
hlnet.cut_checkpoint(model, INSECTA, args.out)

insecta = hlnet.load_checkpoint(args.out)
for node in insecta.tree.levels[-2]:
    kinds = [insecta.tree.classes[i] for i in insecta.tree.leaves_under(node.path)]
    print(f"{node.path}: {len(kinds)} classes, {', '.join(kinds[:3])} …")
counts = insecta.provenance.parent_counts
costs = hlnet.profile(insecta.config, insecta.tree, insecta.transform, parent_counts=counts)
for name, cost in (("plain", costs.plain), ("full", costs.full), ("expert", costs.expert)):
    print(f"{name:>6}: {cost.classes:4} classes, {cost.params / 1e6:7.3f} M parameters, {cost.gmacs:6.3f} GMACs")
print(f"{Path(args.out).stat().st_size / 1e6:.0f} MB in {args.out}")
