"""Checkpoints of other types than float32: they predict and evaluate, near to what the float32 weights say."""

import copy

import numpy as np
import pytest
import torch
from helpers.naive import randomise
from PIL import Image

import hlnet
from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData, eval_transform, loader
from hlnet.evaluation.logits import logits_of
from hlnet.store.checkpoint import load_checkpoint, save_checkpoint

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), np.uint8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("fast", [False, True])
def test_a_checkpoint_of_any_type_is_used(tmp_path, dtype, fast):
    torch.manual_seed(0)
    net = hlnet.create_model("test_resnet", tree={"a": ["b", "c"], "d": ["e"]}, widths=[4, 4], strides=[1, 1]).eval()
    randomise(net.head)
    net.transform = net.transform.adjusted(img_size=32)
    save_checkpoint(copy.deepcopy(net).to(dtype), tmp_path / "net.safetensors")
    found = load_checkpoint(tmp_path / "net.safetensors")
    assert next(found.parameters()).dtype == dtype
    reference = copy.deepcopy(net)
    reference.load_state_dict({name: tensor.float() for name, tensor in found.state_dict().items()})
    images = LabelledImages("noise", ("b", "c", "e"), (0, 1, 2) * 2, lambda i: Image.fromarray(PIXELS[i]))
    data = TreeData(images, net.tree, eval_transform(net.transform))
    used = hlnet.optimize(found) if fast else found
    (logits,), _ = logits_of(used, loader(data, 6))
    (expected,), _ = logits_of(reference, loader(data, 6))
    near = {torch.bfloat16: 0.1, torch.float16: 0.01, torch.float64: 1e-5}[dtype]
    near = 1e-5 if fast else near  # which computes in float32
    assert float((logits - expected).abs().max()) <= near * float(expected.abs().max())
    report = hlnet.evaluate(used, data, batch_size=6).neutral
    assert 0 <= report.top1 <= 1
    files = [tmp_path / f"{i}.png" for i in range(6)]
    for file, pixels in zip(files, PIXELS, strict=True):
        Image.fromarray(pixels).save(file)
    probabilities = logits.softmax(1)
    for row, one in zip(probabilities, hlnet.predict(used, files, top=3), strict=True):
        assert {label.name: label.probability for label in one.labels} == pytest.approx(
            dict(zip(net.tree.classes, row.tolist(), strict=True)), abs=2e-2
        )
