"""Training with cues: their reliability is what it says, the gain is the evidence's, and validation stays neutral."""

import math

import pytest
import torch
from helpers.evaluated_nets import TRANSFORM, TREE, build, noise
from PIL import Image

from hlnet.cues.cue import Cue, cue_evidence
from hlnet.cues.cue_aware import TrainingCues, trained_attention
from hlnet.cues.effect import cue_effect
from hlnet.cues.oracle import label_cues
from hlnet.cues.policy import CuePolicy
from hlnet.data.images import LabelledImages
from hlnet.data.tree_data import TreeData, eval_transform
from hlnet.errors import UsageError
from hlnet.store.checkpoint import load_checkpoint
from hlnet.training.loop import train
from hlnet.training.train_config import TrainConfig
from hlnet.tree.class_tree import ClassTree

LEAVES = slice(TREE.offsets[-2], None)


@pytest.mark.parametrize("reliability", [0.3, 0.7, 0.95])
def test_cues_are_as_reliable_as_they_say(reliability):
    torch.manual_seed(0)
    labels = torch.arange(6).repeat(2000)
    gains = TrainingCues(TREE, 0.6, (reliability, reliability))(labels)
    assert (gains[:, : TREE.offsets[-2]] == 1).all()
    gain = math.exp(cue_evidence(reliability, 1, 6) / 4)
    cued = gains[:, LEAVES] != 1
    torch.testing.assert_close(gains[:, LEAVES][cued], torch.full((int(cued.sum()),), gain))
    assert set(cued.sum(1).tolist()) == {0, 1}
    some = cued.any(1)
    assert float(some.float().mean()) == pytest.approx(0.6, abs=0.02)
    named = cued.float().argmax(1)[some]
    assert float((named == labels[some]).float().mean()) == pytest.approx(reliability, abs=0.02)
    others = torch.bincount((named - labels[some]) % 6, minlength=6)[1:].float()
    assert (others / others.sum() - 0.2).abs().max() < 0.05


def test_reliabilities_fill_their_range_and_the_file_holds_the_rule():
    torch.manual_seed(0)
    gains = TrainingCues(TREE, 1.0, (0.5, 0.9))(torch.zeros(4000, dtype=torch.long))[:, LEAVES]
    evidence = 4 * gains.max(1).values.log()
    reliability = 1 / (1 + 5 * torch.exp(-evidence))
    assert float(reliability.min()) == pytest.approx(0.5, abs=0.01)
    assert float(reliability.max()) == pytest.approx(0.9, abs=0.01)
    assert float(reliability.mean()) == pytest.approx(0.7, abs=0.01)
    net = build()
    net.provenance.attention = trained_attention()
    for p in (0.02, 0.5, 0.97):
        found = cue_effect(net, [[Cue(node="saw", reliability=p)]], CuePolicy(mode="gain")).gains[0, LEAVES][4]
        assert float(found) == pytest.approx(math.exp(cue_evidence(p, 1, 6) / 4))


def test_a_gain_becomes_calibrated_evidence(tmp_path):
    """All images are the same and say nothing. Then what is to be believed under a cue is its reliability."""
    grey = Image.new("RGB", (32, 32), (90, 120, 60))
    images = LabelledImages("grey", TREE.classes, tuple(range(6)) * 40, lambda i: grey)
    data = TreeData(images, TREE, eval_transform(TRANSFORM))
    config = TrainConfig(
        epochs=15, lr=5e-3, smoothing=0, warmup_epochs=1, workers=0, batch_size=24, cue_aware=True, aa="none"
    )
    net = build()
    net.freeze_trunk()
    on_features = {"frozen_trunk": True, "cache_views": 1}
    train(net, data, data, config.model_copy(update=on_features), tmp_path, device="cpu")
    net = load_checkpoint(tmp_path / "last.safetensors")
    assert net.provenance.attention == trained_attention() and net.provenance.recipe["train"]["cue_aware"]
    image = data[0][0].expand(6, -1, -1, -1)
    believed = []
    for p in (0.5, 0.7, 0.9):
        cues = label_cues(TREE, range(6))
        with torch.no_grad():
            logits = cue_effect(net, cues, CuePolicy(mode="gain", reliability=p)).logits(net, image)
        believed.append(float(logits.softmax(1).diagonal().mean()))
    assert believed == pytest.approx([0.5, 0.7, 0.9], abs=0.15)
    assert 0.3 < believed[2] - believed[0] < 0.6 and believed == sorted(believed)
    with torch.no_grad():
        assert float(net(image[:1]).softmax(1).max()) < 0.35


def test_what_cannot_be_cued_in_training_is_refused():
    data = noise()
    with pytest.raises(UsageError, match="plain network has no branches"):
        train(build("plain"), data, data, TrainConfig(cue_aware=True), device="cpu")
    with pytest.raises(ValueError, match="images of two"):
        TrainConfig(cue_aware=True, mixup=0.2)
    with pytest.raises(ValueError, match="low, high"):
        TrainConfig(cue_reliability=(0.9, 0.5))
    with pytest.raises(UsageError, match="two classes"):
        TrainingCues(ClassTree.parallel(["only"]), 1.0, (0.5, 0.9))
