"""WebDataset shards, written with tarfile."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def write_shard(path, files, format=tarfile.PAX_FORMAT):
    """A tar file of ``(name, content)`` pairs, in this order; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def image_bytes(shade=0):
    written = io.BytesIO()
    Image.new("L", (8, 8), shade).save(written, "png")
    return written.getvalue()


def samples(*labels, start=0):
    """One small image for each label; its shade tells the sample's number."""
    pairs = []
    for number, label in enumerate(labels, start):
        pairs += [(f"{number:06}.png", image_bytes(number)), (f"{number:06}.cls", str(label).encode())]
    return pairs


def shades(images):
    """What the images show, one number each, and their classes' names."""
    return [(images.load(i).getpixel((0, 0)), images.classes[label]) for i, label in enumerate(images.labels)]


def pack(folder, root, per_shard=3, label=lambda name: name):
    """The class folders of ``folder``'s splits as shards in ``root``, in the order in which folders are read."""
    for split in Path(folder).iterdir():
        files = sorted(split.rglob("*.png"), key=lambda path: (path.parent.name, path.name))
        for start in range(0, len(files), per_shard):
            pairs = []
            for number, file in enumerate(files[start : start + per_shard], start):
                pairs += [(f"{number:06}.cls", str(label(file.parent.name)).encode())]
                pairs += [(f"{number:06}.json", json.dumps({"from": file.name}).encode())]
                pairs += [(f"{number:06}.png", file.read_bytes())]
            write_shard(Path(root) / f"photos-{split.name}-{start // per_shard:04}.tar", pairs)


def noise_bytes():
    """An image whose file is as long as its pixels."""
    written = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)).save(written, "png")
    return written.getvalue()
