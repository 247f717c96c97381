"""A sound selects the classes: on "meow", only the five house cats of a network of 1000 classes run.

    python examples/meow.py                                       # untrained weights: the costs are right, labels not
    python examples/meow.py --model imagenet.safetensors --image photo.jpg --sound meow

After Kelm et al., Sec. 4.3, where a sound's label picks ImageNet's five house cats out of 1000 classes.
"""

import argparse

import torch

import hlnet
from hlnet.cues.words import cues_from_text
from hlnet.data.images import open_image

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", help="a trained network with the classes of preset:imagenet1k")
parser.add_argument("--image")
parser.add_argument("--sound", default="meow", help="any words, such as a sound classifier's label: bark, siren")
args = parser.parse_args()

if args.model:
    net = hlnet.load_checkpoint(args.model)
else:
    torch.manual_seed(0)
    net = hlnet.create_model("n3hl_convnextv2_tiny", tree="preset:imagenet1k").eval()

# The nodes that the words name: by the names of nodes, a table of common sounds, and WordNet if it is installed.
heard = cues_from_text(args.sound, net.tree)
if not heard:
    parser.error(f"nothing in the tree is known to sound like '{args.sound}'")
selection = ",".join(cue.node for cue in heard)
print(f"'{args.sound}' means {selection}")

# The saving. The same as `hlnet profile MODEL --classes "other mammal/house cats"`.
costs = hlnet.profile(net.config, net.tree, net.transform, classes=selection)
for name, cost in (("plain", costs.plain), ("full", costs.full), ("expert", costs.expert)):
    print(f"{name:>6}: {cost.classes:4} classes, {cost.params / 1e6:7.3f} M parameters, {cost.gmacs:6.3f} GMACs")

# On a small device, keep only the expert. If sounds change, select classes of the loaded network at run time.
image = open_image(args.image) if args.image else None
batch = hlnet.eval_transform(net.transform)(image)[None] if image else torch.randn(1, *net.transform.input_size)
expert = hlnet.cut_expert(net, selection)
selected = hlnet.optimize(net).select(selection)
with torch.inference_mode():
    cut, run = expert(batch)[0], selected(batch)[0]
print(
    "largest difference between the cut expert and the network with selected classes:", float((cut - run).abs().max())
)
if args.image:
    for probability, name in sorted(zip(cut.softmax(0).tolist(), expert.tree.classes, strict=True), reverse=True)[:3]:
        print(f"{100 * probability:6.2f} %  {name}")
