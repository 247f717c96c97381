"""A sound narrows what the camera looks for: on "meow", a network of 1000 classes becomes one of five house cats.

    python examples/meow.py                                       # untrained weights: the costs are right, labels not
    python examples/meow.py --model imagenet.safetensors --image photo.jpg --sound meow

After Kelm et al., Sec. 4.3, where a sound's label picks ImageNet's five house cats out of 1000 classes.
"""

import argparse

import torch

import hlnet
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

# The nodes that it speaks of: by their names, a table of common sounds, and WordNet where that is installed.
heard = hlnet.cues_from_text(args.sound, net.tree)
if not heard:
    parser.error(f"nothing in the tree is known to sound like '{args.sound}'")
selection = ",".join(cue.node for cue in heard)
print(f"'{args.sound}' means {selection}")

# What listening saves. The same as `hlnet profile MODEL --classes "other mammal/house cats"`.
costs = hlnet.profile(net.config, net.tree, net.transform, classes=selection)
for name, cost in (("plain", costs.plain), ("full", costs.full), ("expert", costs.expert)):
    print(f"{name:>6}: {cost.classes:4} classes, {cost.params / 1e6:7.3f} M parameters, {cost.gmacs:6.3f} GMACs")

# On a small device, keep the expert alone; where sounds come and go, let the loaded network serve a part of itself.
image = open_image(args.image) if args.image else None
batch = hlnet.eval_transform(net.transform)(image)[None] if image else torch.randn(1, *net.transform.input_size)
expert = hlnet.cut_expert(net, selection)
listening = hlnet.optimize(net).select(selection)
with torch.inference_mode():
    cut, chosen = expert(batch)[0], listening(batch)[0]
print("largest difference between the cut expert and the network that listens:", float((cut - chosen).abs().max()))
if args.image:
    for share, name in sorted(zip(cut.softmax(0).tolist(), expert.tree.classes, strict=True), reverse=True)[:3]:
        print(f"{100 * share:6.2f} %  {name}")
