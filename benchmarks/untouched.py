"""The pretrained classifier itself as a control: its logits restricted to a data set's classes, without any training.

    python benchmarks/untouched.py --data PHOTOS --weights mobilenetv2_100.safetensors

PHOTOS holds ``imagenette`` and ``imagewoof``, each with a ``test`` folder of one folder a class, named by WordNet ids.
Printed is top-1 with a 95 % interval over images (Wilson), at the weights' own size of 224 pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from scipy.stats import binomtest

import hlnet
from hlnet.model.transform import InputTransform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    args = parser.parse_args()
    model = timm.create_model("mobilenetv2_100", pad_type="same", checkpoint_path=str(args.weights)).eval()
    column = {leaf.id: leaf.index for leaf in hlnet.read_tree("preset:imagenet1k").leaves}
    prepare = hlnet.eval_transform(InputTransform(mean=(0.5,) * 3, std=(0.5,) * 3))
    for name in ("imagenette", "imagewoof"):
        images = hlnet.load_data(args.data / name, "test")
        columns = torch.tensor([column[identifier] for identifier in images.classes])
        data = hlnet.TreeData(images, hlnet.ClassTree.from_nested(list(images.classes)), prepare)
        right = 0
        with torch.inference_mode():
            for batch, labels in hlnet.loader(data, 32):
                right += int((model(batch)[:, columns].argmax(1) == labels).sum())
        low, high = binomtest(right, len(data)).proportion_ci(method="wilson")
        print(f"{name}: {100 * right / len(data):.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {len(data)} images")


if __name__ == "__main__":
    main()
