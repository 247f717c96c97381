"""Every setting of a training acts: another value gives other weights, or other images."""

import numpy as np
import pytest
import torch
from helpers.short_trainings import TREE, build, config, fit, squares
from PIL import Image
from safetensors.torch import load_file

from hlnet.data.sampling import Seeded
from hlnet.data.tree_data import train_transform
from hlnet.errors import UsageError
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.transform import InputTransform
from hlnet.training.loop import train
from hlnet.training.train_config import TrainConfig

#: Setting, another value than the base's, and what else a setting needs to matter.
ACTING = [
    ("batch_size", 4, {}),
    ("loss", "bce", {}),
    ("smoothing", 0.3, {}),
    ("smoothing", 0.3, {"loss": "bce"}),
    ("hierarchical_alpha", 2.0, {"loss": "hierarchical"}),
    ("soft_labels_beta", 1.0, {"loss": "soft-labels"}),
    ("mixup", 0.8, {}),
    ("cutmix", 1.0, {}),
    ("cue_aware", True, {}),
    ("cue_share", 1.0, {"cue_aware": True}),
    ("cue_reliability", (0.9, 0.95), {"cue_aware": True}),
    ("opt", "sgd", {}),
    ("lr", 1e-4, {}),
    ("momentum", 0.5, {"opt": "sgd", "lr": 0.1}),
    ("weight_decay", 5.0, {}),
    ("layer_decay", 0.2, {}),
    ("sched", "step", {}),
    ("min_lr", 2e-3, {}),
    ("warmup_epochs", 1, {}),
    ("decay_epochs", 1, {"sched": "step"}),
    ("decay_rate", 0.5, {"sched": "step", "decay_epochs": 1}),
    ("clip_grad", 0.01, {"opt": "sgd"}),
    ("ema_decay", 0.9, {}),
    ("frozen_trunk", True, {}),
    ("unfreeze_epochs", 1, {"frozen_trunk": True}),
    ("epochs", 3, {}),
    ("seed", 1, {}),
]
#: Settings that do not change a training on plain images by one process on a CPU, with the test that covers them.
ELSEWHERE = {
    "cache_views": "tests/data/test_features.py",
    "aa": "below", "scale": "below", "hflip": "below", "reprob": "below",
    "skip_unreadable": "tests/data/test_sampling.py",
    "mixed_precision": "tests/training/test_optimizers.py",
    "workers": "tests/data/test_features.py",
    "rows_loss": "tests/training/test_loop_rows.py",
}  # fmt: skip
_trained: dict[str, dict[str, torch.Tensor]] = {}


def weights(folder, **settings):
    """The weights after the last epoch."""
    key = repr(sorted(settings.items()))
    if key not in _trained:
        fit(build(), config(**settings), out=folder / str(len(_trained)))
        _trained[key] = load_file(folder / str(len(_trained)) / "last.safetensors")
    return _trained[key]


@pytest.mark.parametrize(("name", "value", "needs"), ACTING, ids=[f"{name}={value}" for name, value, _ in ACTING])
def test_another_value_gives_other_weights(tmp_path, name, value, needs):
    base, other = weights(tmp_path, **needs), weights(tmp_path, **needs, **{name: value})
    assert any(not torch.equal(base[key], tensor) for key, tensor in other.items())


def test_no_setting_is_left_out():
    assert {name for name, *_ in ACTING} | {*ELSEWHERE} == {*TrainConfig.model_fields}


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
SIZE = InputTransform(input_size=(3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)


class Views(torch.utils.data.Dataset):
    """One augmented image."""

    def __init__(self, **settings):
        self.transform = train_transform(SIZE, **settings)

    def __len__(self):
        return 1

    def __getitem__(self, position):
        return self.transform(PHOTO), 0


def view(seed=0, **settings):
    return Seeded(Views(**settings), seed)[0][0]


def test_a_flip_is_a_mirror_image():
    plain, flipped = (view(scale=(1.0, 1.0), hflip=p) for p in (0.0, 1.0))
    assert torch.allclose(flipped, plain.flip(2), atol=1e-6)


def test_scale_is_the_share_of_the_area_that_is_kept():
    small, large = (view(scale=(share, share), hflip=0.0) for share in (0.05, 0.25))
    assert small.diff(dim=2).abs().mean() < 0.7 * large.diff(dim=2).abs().mean()  # enlarged, and so smoother


def test_an_erased_rectangle_is_noise_and_the_rest_stays():
    for seed in range(5):
        plain, erased = (view(seed, scale=(1.0, 1.0), hflip=0.0, reprob=p) for p in (0.0, 1.0))
        changed = (plain != erased).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero().flatten(), changed.any(dim=0).nonzero().flatten()
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 0.01 < changed.float().mean() < 0.4  # timm erases 2 to 33 % of the area


def test_a_policy_changes_the_image():
    plain, augmented = (view(scale=(1.0, 1.0), hflip=0.0, aa=aa) for aa in ("none", "rand-m9-mstd0.5"))
    assert not torch.equal(plain, augmented)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (2, 1)])
def test_batches_of_one_train_or_say_what_to_do(count, batch_size):
    net = build()
    fit(net, config(epochs=1, batch_size=batch_size), count=count)  # 2 x 2 pixels are enough
    net.head = HierarchicalNet(NetworkConfig(backbone="test_resnet", widths=(4, 4), strides=(1, 2)), TREE).head
    with pytest.raises(UsageError, match="batch_size 2 or more"):
        train(net, squares(count), squares(4), config(epochs=1, batch_size=batch_size), device="cpu")
