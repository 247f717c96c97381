"""Prediction with an exported network, without torch and hlnet: it needs numpy, pillow and onnxruntime.

hlnet export cats.safetensors --out cats.onnx
python examples/onnx_predict.py cats.onnx photo.jpg …
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) < 3:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["hlnet"])
channels, side, _ = about["transform"]["input_size"]
assert about["transform"]["crop_mode"] != "border", "images with a border are left to you"
shorter = int(side / about["transform"]["crop_pct"])
# All inputs other than the images are gains; 1 is neutral.
inputs = {name: np.ones((1, *given["shape"][1:]), np.float32) for name, given in about["inputs"].items()}
for path in sys.argv[2:]:
    # Resize the shorter side, then crop the centre. The graph takes pixels in 0..1 and normalises them.
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")  # upright; transparent pixels on white
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    size = [shorter * length // min(image.size) for length in image.size]
    if about["transform"]["crop_mode"] == "squash":
        size = [shorter, shorter]
    image = image.resize(size, Image.Resampling[about["transform"]["interpolation"].upper()])
    left, top = (round((length - side) / 2) for length in size)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32)
    inputs["images"] = pixels.reshape(1, side, side, channels).transpose(0, 3, 1, 2) / 255
    logits = session.run(None, inputs)[0][0].astype(float)
    scaled = logits / about["temperature"]
    detectors = about["probabilities"] == "sigmoid"  # one-vs-rest; otherwise softmax
    probabilities = 1 / (1 + np.exp(-scaled)) if detectors else np.exp(scaled - np.logaddexp.reduce(scaled))
    scores = {"energy": np.logaddexp.reduce(logits), "max-logit": logits.max()}
    scores["probability"] = 1 / (1 + np.exp(-logits.max()))
    best = about["classes"][logits.argmax()]
    if (stored := about["rejection"]) and scores[stored["score"]] < stored["threshold"]:
        print(f"{path}: none of these")
    elif len(logits) == 1 and not detectors:  # no probability, only a score
        print(f"{path}: {best}, score {scores['energy']:.4f}")
    else:
        print(f"{path}: {best} {probabilities[logits.argmax()]:.4f}")
