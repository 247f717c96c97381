"""hlnet as a library, on the embedded digits: train a little, cut an expert, cue a class.

python examples/cut_and_cue.py
"""

import torch

import hlnet
from hlnet.cues.effect import gains_for

# A tree: inner nodes are mappings; classes are names with their index in the data set.
tree = hlnet.ClassTree.from_nested(
    {
        "round": {"closed": {"0": 0, "6": 6, "8": 8, "9": 9}, "open": {"2": 2, "3": 3, "5": 5}},
        "straight": {"1": 1, "4": 4, "7": 7},
    }
)

# A network: the early stages of any timm model, and one small block per node.
torch.manual_seed(0)
net = hlnet.create_model("resnet10t", tree=tree, split_point=1, widths=(32, 16, 16), strides=(2, 1, 2))
net.transform = net.transform.adjusted(img_size=32)

train_data = hlnet.TreeData(
    hlnet.load_data("digits", "train"), tree, hlnet.train_transform(net.transform, hflip=0, scale=(0.7, 1))
)
val_data = hlnet.TreeData(hlnet.load_data("digits", "val"), tree, hlnet.eval_transform(net.transform))
hlnet.train(net, train_data, val_data, hlnet.TrainConfig(epochs=3, lr=2e-3, workers=0), device="cpu")
print("full network:", hlnet.evaluate(net, val_data).neutral.top1)

# Cut: keep only the branches of these classes. Their logits do not change.
expert = hlnet.cut_expert(net, "round/closed")
print("expert for", expert.tree.classes, "- largest change of a logit:", hlnet.verify_expert(expert, net))
hlnet.save_checkpoint(expert, "closed.safetensors")

# Cue: outside information says "eight"; scale the features of that branch.
images, labels = next(iter(hlnet.loader(val_data, 8)))
eight = torch.full((8,), tree.classes.index("8"))
with torch.no_grad():
    change = net(images, gains_for(tree, eight, signal=3.0)) - net(images)
print("logits that the cue changed:", {tree.classes[i] for i in change.abs().amax(0).nonzero().flatten().tolist()})
