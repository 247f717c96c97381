"""Losses of training, against loops over the paths of the classes, and against torch and timm."""

import itertools
import math

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from helpers.trees import trees
from hypothesis import given, settings
from hypothesis import strategies as st

from hlnet.errors import UsageError
from hlnet.training.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    HierarchicalCrossEntropy,
    SoftLabels,
    TrainingLoss,
    make_loss,
    prior_logit,
)
from hlnet.training.train_config import TrainConfig
from hlnet.tree.class_tree import ClassTree

#: Classes at depths 1, 2 and 4, and a node with a single child that is not merely continued.
UNEVEN = ClassTree.from_nested(
    {"animal": {"cat": ["tabby", "siamese"], "dog": {"hound": {"small": ["beagle", "basset"]}}, "owl": {}}, "saw": {}}
)
LOSSES = {
    "cross-entropy": lambda tree: CrossEntropy(0.1),
    "bce": lambda tree: BinaryCrossEntropy(0.1),
    "hierarchical": lambda tree: HierarchicalCrossEntropy(tree, 0.7),
    "soft-labels": lambda tree: SoftLabels(tree, 3.0),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
seeds, alphas, betas = st.integers(0, 999), st.sampled_from([0.0, 0.1, 1.0, 5.0]), st.sampled_from([0.1, 4.0, 30.0])


def batch(classes, size=5, seed=0, dtype=torch.float64, spread=3.0):
    """Logits, positions of classes, and shares of classes that sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(size, classes, generator=generator, dtype=dtype)
    targets = torch.randint(classes, (size,), generator=generator)
    shares = torch.rand(size, classes, generator=generator, dtype=dtype)
    return logits, targets, shares / shares.sum(1, keepdim=True)


def parts(tree):
    return [leaf.path.split("/") for leaf in tree.leaves]


def naive_hierarchical(logits, target, tree, alpha):
    """One image: the paper's sum of conditionals from level 1 down to the class."""
    paths = parts(tree)
    largest = max(logits)
    exponentials = [math.exp(logit - largest) for logit in logits]

    def below(node):
        return math.fsum(e for e, path in zip(exponentials, paths, strict=True) if path[: len(node)] == node)

    own = paths[target]
    return math.fsum(
        -math.exp(-alpha * (depth - 1)) * math.log(below(own[:depth]) / below(own[: depth - 1]))
        for depth in range(1, len(own) + 1)
    )


def naive_soft_labels(tree, beta):
    paths = parts(tree)

    def distance(one, other):
        """Height of the deepest node above both: the longest way from there to a class."""
        shared = [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]
        return max(len(path) - len(shared) for path in paths if path[: len(shared)] == shared)

    distances = [[distance(one, other) for other in paths] for one in paths]
    largest = max(map(max, distances)) or 1
    weights = [[math.exp(-beta * d / largest) for d in row] for row in distances]
    return torch.tensor([[w / math.fsum(row) for w in row] for row in weights], dtype=torch.float64)


# ---------------------------------------------------------------------- cross-entropy and one against all


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_timms_and_smooths_only_positions(smoothing):
    logits, targets, shares = batch(7)
    loss = CrossEntropy(smoothing)
    torch.testing.assert_close(loss(logits, targets), timm.loss.LabelSmoothingCrossEntropy(smoothing)(logits, targets))
    torch.testing.assert_close(loss(logits, shares), timm.loss.SoftTargetCrossEntropy()(logits, shares))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_is_the_sum_of_detectors_each_a_mean_over_the_batch(smoothing):
    logits, targets, shares = batch(7)
    loss = BinaryCrossEntropy(smoothing)
    smoothed = F.one_hot(targets, 7).double() * (1 - smoothing) + smoothing / 7
    for given_targets, expected in ((targets, smoothed), (shares, shares)):
        detectors = [
            sum(
                -t * math.log(1 / (1 + math.exp(-z))) - (1 - t) * math.log(1 / (1 + math.exp(z)))
                for z, t in zip(logits[:, j].tolist(), expected[:, j].tolist(), strict=True)
            )
            / len(logits)
            for j in range(7)
        ]
        assert float(loss(logits, given_targets)) == pytest.approx(sum(detectors), rel=1e-12)


def test_a_detector_learns_the_same_however_many_others_there_are():
    logits, targets, _ = batch(1000)
    targets = targets % 3
    gradients = []
    for classes in (3, 1000):
        some = logits[:, :classes].clone().requires_grad_()
        BinaryCrossEntropy()(some, targets).backward()
        gradients.append(some.grad[:, :3])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_at_the_prior_a_detector_is_pushed_neither_up_nor_down(classes, smoothing):
    logits = torch.full((classes, classes), prior_logit(classes), dtype=torch.float64).requires_grad_()
    BinaryCrossEntropy(smoothing)(logits, torch.arange(classes)).backward()  # each class once
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(classes, dtype=torch.float64), rtol=0, atol=1e-12)
    assert prior_logit(1) == 0


# ---------------------------------------------------------------------- hierarchical cross-entropy


@settings(deadline=None, max_examples=60)
@given(tree=trees(ids=False), alpha=alphas, seed=seeds)
def test_hierarchical_is_the_sum_of_conditionals(tree, alpha, seed):
    logits, targets, shares = batch(len(tree.leaves), seed=seed)
    each = [
        [naive_hierarchical(row, target, tree, alpha) for target in range(len(tree.leaves))] for row in logits.tolist()
    ]
    loss = HierarchicalCrossEntropy(tree, alpha)
    hard = sum(row[target] for row, target in zip(each, targets.tolist(), strict=True)) / len(each)
    soft = float((torch.tensor(each, dtype=torch.float64) * shares).sum(1).mean())
    assert float(loss(logits, targets)) == pytest.approx(hard, rel=1e-10, abs=1e-12)
    assert float(loss(logits, shares)) == pytest.approx(soft, rel=1e-10, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(tree=trees(ids=False), seed=seeds)
def test_hierarchical_with_alpha_0_is_exactly_cross_entropy(tree, seed):
    logits, targets, shares = batch(len(tree.leaves), seed=seed, dtype=torch.float32)
    loss = HierarchicalCrossEntropy(tree, 0.0)
    assert torch.equal(loss(logits, targets), F.cross_entropy(logits, targets))
    assert torch.equal(loss(logits, shares), F.cross_entropy(logits, shares))


@pytest.mark.parametrize("levels", [1, 3])
def test_hierarchical_is_cross_entropy_where_there_is_no_hierarchy(levels):
    tree = ClassTree.parallel(["a", "b", "c", "d"], levels)
    logits, targets, shares = batch(4)
    loss = HierarchicalCrossEntropy(tree, 2.0)
    assert loss.weights == [1.0]  # levels that are alike cost no time either
    for aim in (targets, shares):
        assert torch.equal(loss(logits, aim), F.cross_entropy(logits, aim))


def test_hierarchical_makes_mistakes_within_a_family_cheaper():
    loss, tabby = HierarchicalCrossEntropy(UNEVEN, 0.5), torch.tensor([0])
    costs = [float(loss(5 * F.one_hot(torch.tensor([i]), 6).float(), tabby)) for i in range(6)]
    right, siamese, beagle, basset, owl, saw = costs
    assert right < siamese < min(beagle, basset, owl) and max(beagle, basset, owl) < saw


def test_hierarchical_of_21000_classes():
    tree = ClassTree.balanced((20, 700, 21_000))
    logits, targets, _ = batch(21_000, size=2, dtype=torch.float32)
    expected = [
        naive_hierarchical(row, target, tree, 0.3)
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    loss = HierarchicalCrossEntropy(tree, 0.3)
    assert float(loss(logits, targets)) == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert sum(buffer.numel() for buffer in loss.buffers()) == 21_700  # no matrix of classes by nodes


# ---------------------------------------------------------------------- soft labels


@settings(deadline=None, max_examples=60)
@given(tree=trees(ids=False), beta=betas, seed=seeds)
def test_soft_labels_fall_with_the_height_of_the_common_ancestor(tree, beta, seed):
    logits, targets, shares = batch(len(tree.leaves), seed=seed)
    loss, soft = SoftLabels(tree, beta), naive_soft_labels(tree, beta)
    torch.testing.assert_close(loss.shares.double(), soft, rtol=1e-5, atol=1e-12)
    logs = logits.log_softmax(1)
    by_class = -(soft[targets] * logs).sum(1).mean()
    mixed = -torch.einsum("bi,ij,bj->b", shares, soft, logs).mean()
    torch.testing.assert_close(loss(logits, targets), by_class, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(loss(logits, shares), mixed, rtol=1e-5, atol=1e-12)


def test_soft_labels_by_hand():
    shares = SoftLabels(UNEVEN, 10.0).shares
    # From the cat it is one node down to a class, from the animal four (dog, hound, small, beagle), from the trunk 5.
    away = {"tabby": 0, "siamese": 1, "beagle": 4, "basset": 4, "owl": 4, "saw": 5}
    weights = [math.exp(-10 * height / 5) for height in away.values()]
    assert tuple(away) == UNEVEN.classes
    torch.testing.assert_close(shares[0], torch.tensor([w / sum(weights) for w in weights]))


def test_soft_labels_of_large_beta_are_one_hot():
    logits, targets, shares = batch(len(UNEVEN.leaves))
    loss = SoftLabels(UNEVEN, 1000.0)
    torch.testing.assert_close(loss.shares, torch.eye(len(UNEVEN.leaves)))
    torch.testing.assert_close(loss(logits, targets), F.cross_entropy(logits, targets))
    torch.testing.assert_close(loss(logits, shares), F.cross_entropy(logits, shares))


def test_soft_labels_of_too_many_classes_are_refused():
    SoftLabels(ClassTree.parallel([str(i) for i in range(1000)], levels=1))
    with pytest.raises(UsageError, match=r"10001 classes would take 0\.4 GB"):
        SoftLabels(ClassTree.parallel([str(i) for i in range(10_001)], levels=1))


# ---------------------------------------------------------------------- what holds for all


@every_loss
@pytest.mark.parametrize("soft", [False, True])
def test_gradients(name, soft):
    logits, targets, shares = batch(len(UNEVEN.leaves), size=3)
    loss = LOSSES[name](UNEVEN)
    assert torch.autograd.gradcheck(lambda x: loss(x, shares if soft else targets), logits.requires_grad_())


@settings(deadline=None, max_examples=20)
@given(tree=trees(ids=False), alpha=alphas, seed=seeds)
def test_gradients_of_hierarchical_on_any_tree(tree, alpha, seed):
    logits, targets, shares = batch(len(tree.leaves), size=2, seed=seed)
    loss = HierarchicalCrossEntropy(tree, alpha)
    for aim in (targets, shares):
        assert torch.autograd.gradcheck(lambda x, aim=aim: loss(x, aim), logits.clone().requires_grad_())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(name, dtype):
    classes = len(UNEVEN.leaves)
    loss = LOSSES[name](UNEVEN)
    for hot in range(classes):
        logits = (2e4 * F.one_hot(torch.full((classes,), hot), classes) - 1e4).to(dtype).requires_grad_()
        for aim in (torch.arange(classes), torch.eye(classes)):
            value = loss(logits, aim)
            (gradient,) = torch.autograd.grad(value, logits)
            assert value.isfinite() and value >= 0 and gradient.isfinite().all()


def test_extreme_logits_keep_their_value():
    logits = torch.tensor([[-1e4, -1e4 + 1, 0.0, 0.0, 1e4, -1e4]])
    # An owl for a tabby: right at level 1, wrong by all there is at level 2, and a little wrong within the cats.
    cat = -1e4 + math.log(1 + math.e)
    expected = math.exp(-0.5) * (1e4 - cat) + math.exp(-1.0) * math.log(1 + math.e)
    assert float(HierarchicalCrossEntropy(UNEVEN, 0.5)(logits, torch.tensor([0]))) == pytest.approx(expected, rel=1e-6)


@every_loss
def test_half_precision_is_raised_and_double_is_kept(name):
    logits, targets, shares = batch(len(UNEVEN.leaves), size=16)
    loss = LOSSES[name](UNEVEN)
    for aim in (targets, shares):
        assert loss(logits, aim).dtype == torch.float64
        for dtype in (torch.float16, torch.bfloat16):
            low = logits.to(dtype)
            expected = loss(low.float(), aim)
            assert expected.dtype == torch.float32
            torch.testing.assert_close(loss(low, aim), expected, rtol=0, atol=0)
            with torch.autocast("cpu", dtype):
                torch.testing.assert_close(loss(low, aim), expected, rtol=0, atol=0)


@every_loss
def test_positions_are_one_hot_shares(name):
    logits, targets, _ = batch(len(UNEVEN.leaves))
    loss = {"cross-entropy": CrossEntropy(), "bce": BinaryCrossEntropy()}.get(name) or LOSSES[name](UNEVEN)
    expected = loss(logits, targets)
    torch.testing.assert_close(loss(logits, F.one_hot(targets, len(UNEVEN.leaves))), expected)
    torch.testing.assert_close(loss(logits, targets.to(torch.uint8)), expected)


@every_loss
def test_levels_of_continued_classes_change_nothing(name):
    logits, targets, shares = batch(len(UNEVEN.leaves))
    deeper = ClassTree.from_nested(UNEVEN.to_nested(), UNEVEN.num_levels + 3)
    for aim in (targets, shares):
        torch.testing.assert_close(LOSSES[name](deeper)(logits, aim), LOSSES[name](UNEVEN)(logits, aim))


@every_loss
@pytest.mark.parametrize("levels", [1, 3])
def test_one_class(name, levels):
    tree = ClassTree.from_nested({"cat": {}}, levels)
    value = LOSSES[name](tree)(torch.tensor([[3.0], [-2.0]]), torch.tensor([0, 0]))
    detector = (math.log1p(math.exp(-3)) + math.log1p(math.exp(2))) / 2
    assert float(value) == pytest.approx(detector if name == "bce" else 0.0, rel=1e-6)


@every_loss
def test_buffers_move_and_are_not_saved(name):
    loss = LOSSES[name](UNEVEN)
    assert not loss.state_dict() and not list(loss.parameters())
    assert len(list(loss.buffers())) == (name in {"hierarchical", "soft-labels"})
    assert all(buffer.is_meta for buffer in loss.to("meta").buffers())
    assert not [key for key, value in vars(loss).items() if isinstance(value, torch.Tensor)]


@every_loss
@pytest.mark.parametrize("shapes", [((2, 6), (2, 5)), ((2, 6), (3,)), ((6,), ()), ((6,), (6,)), ((2, 6, 1), (2, 6))])
def test_shapes_that_do_not_go_together(name, shapes):
    with pytest.raises(UsageError, match="a loss takes logits"):
        LOSSES[name](UNEVEN)(torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.long))


@pytest.mark.parametrize("name", ["hierarchical", "soft-labels"])
@pytest.mark.parametrize("classes", [5, 7])
def test_logits_of_another_tree(name, classes):
    with pytest.raises(UsageError, match=f"logits of {classes} classes do not fit a tree of 6"):
        LOSSES[name](UNEVEN)(torch.zeros(2, classes), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    "make",
    [
        *(lambda value=value: HierarchicalCrossEntropy(UNEVEN, value) for value in (-0.1, math.inf, math.nan)),
        *(lambda value=value: SoftLabels(UNEVEN, value) for value in (0.0, -1.0, math.inf, math.nan)),
        *(lambda value=value: CrossEntropy(value) for value in (-0.1, 1.0, math.nan)),
        *(lambda value=value: BinaryCrossEntropy(value) for value in (-0.1, 1.0)),
    ],
)
def test_settings_out_of_range(make):
    with pytest.raises(UsageError, match="must be"):
        make()


# ---------------------------------------------------------------------- make_loss


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, CrossEntropy(0.1)),
        ({"smoothing": 0.3}, CrossEntropy(0.3)),
        ({"loss": "bce", "smoothing": 0.2}, BinaryCrossEntropy(0.2)),
        ({"loss": "hierarchical", "hierarchical_alpha": 0.6, "smoothing": 0.2}, HierarchicalCrossEntropy(UNEVEN, 0.6)),
        ({"loss": "soft-labels", "soft_labels_beta": 7.0, "smoothing": 0.2}, SoftLabels(UNEVEN, 7.0)),
    ],
)
def test_make_loss_takes_the_settings(settings, expected):
    logits, targets, shares = batch(len(UNEVEN.leaves))
    made = make_loss(TrainConfig(**settings), UNEVEN)
    assert type(made) is type(expected) and isinstance(made, TrainingLoss)
    for aim in (targets, shares):
        assert torch.equal(made(logits, aim), expected(logits, aim))
