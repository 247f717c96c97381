"""Five parts on a conveyor: a network of ten parts, an expert for today's five, and "none of these" for all others.

    python examples/conveyor.py

The script makes everything: drawings of ten kinds of parts, a network trained on them (a minute on one core), an expert
for today's five, a threshold for "none of these", and a belt that sometimes carries another part.
"""

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

import hlnet

TREE = hlnet.ClassTree.from_nested(
    {
        "fastener": {"bolt": {}, "nail": {}, "pin": {}},
        "ring": {"nut": {}, "washer": {}, "gear": {}, "spring ring": {}},
        "plate": {"bracket": {}, "strip": {}, "disc": {}},
    }
)
TODAY = "bolt,nut,washer,gear,bracket"
SIZE = 64


def polygon(corners, radius, phase=0.0):
    steps = (2 * math.pi * i / corners + phase for i in range(corners))
    return [(64 + radius * math.cos(angle), 64 + radius * math.sin(angle)) for angle in steps]


def part(name, draw, generator):
    """One part in the middle of 128 x 128 pixels."""
    metal = tuple(int(v) for v in generator.integers(120, 220) + generator.integers(-15, 15, 3))
    hole = (35, 35, 40)
    length, thick = generator.uniform(38, 50), generator.uniform(6, 9)
    if name in ("bolt", "nail", "pin"):
        draw.rectangle([64 - length, 64 - thick, 64 + length, 64 + thick], fill=metal)
        if name == "bolt":
            draw.rectangle([64 + length - 14, 64 - 20, 64 + length, 64 + 20], fill=metal)
        if name == "nail":
            draw.polygon([(64 - length - 16, 64), (64 - length, 64 - thick), (64 - length, 64 + thick)], fill=metal)
    elif name == "nut":
        draw.polygon(polygon(6, 40), fill=metal)
        draw.ellipse([44, 44, 84, 84], fill=hole)
    elif name == "washer":
        draw.ellipse([24, 24, 104, 104], fill=metal)
        draw.ellipse([44, 44, 84, 84], fill=hole)
    elif name == "gear":
        for tooth in range(12):
            x, y = polygon(12, 40)[tooth]
            draw.ellipse([x - 8, y - 8, x + 8, y + 8], fill=metal)
        draw.ellipse([26, 26, 102, 102], fill=metal)
        draw.ellipse([52, 52, 76, 76], fill=hole)
    elif name == "spring ring":
        draw.arc([24, 24, 104, 104], 20, 340, fill=metal, width=12)
    elif name == "bracket":
        draw.rectangle([24, 24, 44, 104], fill=metal)
        draw.rectangle([24, 84, 104, 104], fill=metal)
    elif name == "strip":
        draw.rectangle([14, 50, 114, 78], fill=metal)
        for x in (32, 64, 96):
            draw.ellipse([x - 6, 58, x + 6, 70], fill=hole)
    else:  # a disc
        draw.ellipse([26, 26, 102, 102], fill=metal)


def photograph(name, generator):
    """A part on the belt: turned, shifted, blurred, under changing light."""
    belt = Image.new("RGB", (128, 128), (35, 35, 40))
    part(name, ImageDraw.Draw(belt), generator)
    shift = tuple(int(v) for v in generator.integers(-8, 8, 2))
    turned = belt.rotate(generator.uniform(0, 360), translate=shift, fillcolor=(35, 35, 40), resample=Image.BILINEAR)
    pixels = np.asarray(turned.filter(ImageFilter.GaussianBlur(generator.uniform(0.5, 2)))).astype(float)
    pixels = pixels * generator.uniform(0.6, 1.2) + generator.normal(0, 8, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((SIZE, SIZE))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=12)
args = parser.parse_args()

folder = Path(tempfile.mkdtemp())
generator = np.random.default_rng(0)
for split, count in (("train", 60), ("val", 40), ("test", 30)):
    for name in TREE.classes:
        (folder / split / name).mkdir(parents=True)
        for number in range(count):
            photograph(name, generator).save(folder / split / name / f"{number}.png")

# One network for all ten parts.
torch.manual_seed(0)
net = hlnet.create_model("resnet10t", tree=TREE, split_point=1, widths=(32, 16), strides=(2, 2))
net.transform = net.transform.adjusted(img_size=SIZE)
augmented = hlnet.train_transform(net.transform, scale=(0.8, 1))
data = {
    "train": hlnet.TreeData(hlnet.load_data(folder, "train"), TREE, augmented),
    "val": hlnet.TreeData(hlnet.load_data(folder, "val"), TREE, hlnet.eval_transform(net.transform)),
}
settings = hlnet.TrainConfig(epochs=args.epochs, batch_size=32, lr=2e-3, workers=0)
history = hlnet.train(net, data["train"], data["val"], settings, device="cpu")
print(f"ten parts: {100 * max(epoch.val_top1 for epoch in history):.1f} % top-1 on validation images")

# Cut an expert for today's five. Fit its threshold for "none of these": accept at most 5 % of other parts.
expert = hlnet.cut_expert(net, TODAY)
prepare = hlnet.eval_transform(expert.transform)
known = hlnet.TreeData(hlnet.load_data(folder, "val"), expert.tree, prepare, outside=True)
hlnet.calibrate(expert, known, max_false_positive=0.05)
hlnet.save_checkpoint(expert, folder / "today.safetensors")  # with the threshold

# Run the belt.
fast = hlnet.optimize(hlnet.load_checkpoint(folder / "today.safetensors"))
belt = [folder / "test" / name / f"{generator.integers(30)}.png" for name in generator.choice(TREE.classes, 12)]
for found in hlnet.predict(fast, belt, top=1):
    truth = Path(found.image).parent.name
    best = found.labels[0]
    said = "none of these" if found.rejected else f"{best.name}, {best.probability:.2f}"
    print(f"{truth:>12} on the belt: {said}")
fresh = hlnet.TreeData(hlnet.load_data(folder, "test"), expert.tree, prepare, outside=True)
measured = hlnet.evaluate(fast, fresh).detection
print(
    f"of 150 fresh images of today's parts {100 * measured.own_accepted:.0f} % are accepted, "
    f"of 150 images of other parts {100 * measured.outside_accepted:.0f} % (at most 5 requested)"
)
