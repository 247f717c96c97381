"""What fusing leaves apart: what is used elsewhere, and sums that would overwrite what is needed."""

import pytest
import torch
import torch.nn.functional as F
from helpers import kernel_paths
from helpers.crafted_nets import Net, activations, assert_near, check, conv, images, norm, parts
from helpers.random_nets import run
from torch import nn

from hlnet.model.fast.fuse import fuse
from hlnet.model.fast.kernels import Conv

both_paths, path = kernel_paths.both_paths, kernel_paths.path


def test_activation_of_an_output_that_is_used_twice_stays():
    found = check(Net(lambda net, x: torch.cat([F.relu(y := net.a(x)), y], 1), a=conv()))
    assert activations(found) == ["none"]


def test_norm_of_an_output_that_is_used_twice_stays():
    found = check(Net(lambda net, x: net.norm(y := net.a(x)) * y, a=conv(), norm=norm()))
    assert len(parts(found, nn.BatchNorm2d)) == 1


def test_two_norms_of_one_convolution_stay():
    found = check(Net(lambda net, x: net.n(y := net.a(x)) * net.m(y), a=conv(), n=norm(), m=norm()))
    assert len(parts(found, nn.BatchNorm2d)) == 2


def test_norm_before_its_convolution_stays():
    found = check(nn.Sequential(norm(), nn.ReLU(), conv()))
    assert len(parts(found, nn.BatchNorm2d)) == 1


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_weight_that_is_read_elsewhere_stays(name):
    first = nn.Conv2d(4, 4, 1)
    torch.nn.init.ones_(first.bias)
    found = check(Net(lambda net, x: net.n(net.a(x)) * getattr(net.a, name).sum() + x, a=first, n=norm()))
    assert len(parts(found, nn.BatchNorm2d)) == 1


def test_norm_without_statistics_stays_alone():
    """The others are folded all the same."""
    batchwise = nn.BatchNorm2d(4, track_running_stats=False)
    found = check(nn.Sequential(conv(), norm(), nn.ReLU(), conv(), batchwise, conv(), norm()))
    assert len(parts(found, nn.BatchNorm2d)) == 1
    assert len(parts(found, Conv)) == 3 and activations(found) == ["none", "none", "relu"]


# ---------------------------------------------------------------------- sums


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: (y := net.a(x)) * (y + net.b(x)),
        lambda net, x: torch.cat([(y := net.a(x)) + net.b(x), y], 1),
        lambda net, x: (y := net.pool(x)) * F.relu(net.b(x) + y),
        lambda net, x: ((y := net.pool(x)) + net.b(x)) * net.a(y),
        lambda net, x: ((y := net.a(x)) + net.b(x)) * net.pool(y),
        lambda net, x: ((y := net.a(x)).mT + net.b(x)) * net.pool(y),
    ],
    ids=["multiplied", "concatenated", "pooled", "convolved later", "pooled later", "itself a view"],
)
def test_other_part_of_a_sum_is_not_overwritten_while_it_is_needed(forward):
    check(Net(forward, a=conv(), b=conv(), pool=nn.MaxPool2d(3, 1, 1)))


@pytest.mark.parametrize(
    "view",
    [
        lambda net, y: y[:, :1],
        lambda net, y: y[:, [0]],
        lambda net, y: y.mT,
        lambda net, y: y.flatten(2).unflatten(2, (6, 6)),
        lambda net, y: y.view(2, 4, 6, 6),
        lambda net, y: y.chunk(4, 1)[2],
        lambda net, y: net.same(y),
        lambda net, y: net.drop(y),
        lambda net, y: net.relu(y),
        lambda net, y: net.flat(y).unflatten(1, (4, 6, 6)),
    ],
    ids=[
        "slice",
        "choice",
        "transposed",
        "flattened",
        "view",
        "part",
        "identity",
        "dropout",
        "in place",
        "flat module",
    ],
)
def test_other_part_of_a_sum_is_not_overwritten_while_a_view_of_it_is_needed(view):
    def forward(net, x):
        y = net.a(x)
        part = view(net, y)
        return (y + net.b(x)) * 3 + part * 2

    more = {"same": nn.Identity(), "drop": nn.Dropout(), "relu": nn.ReLU(inplace=True), "flat": nn.Flatten()}
    check(Net(forward, a=conv(), b=conv(), **more), probe=torch.zeros(2, 4, 6, 6))


@both_paths
@pytest.mark.parametrize("kernel", [1, 3])
def test_input_of_a_convolution_is_not_overwritten_by_its_sum(kernel):
    check(Net(lambda net, x: x + net.a(x), a=conv(kernel)))
    check(Net(lambda net, x: (y := net.pool(x)) + net.a(y), a=conv(kernel), pool=nn.MaxPool2d(3, 1, 1)))
    check(Net(lambda net, x: F.relu(net.a(y := net.b(x)) + y), a=conv(kernel), b=conv(kernel)))


def test_input_of_a_convolution_is_not_overwritten_before_it_runs():
    """Its sum or activation comes later than another sum onto that input."""

    def late_sum(net, x):
        y = net.stem(x)
        b, a = net.b(y), net.a(y)
        return a + (b + y)

    def late_activation(net, x):
        y = net.stem(x)
        a = net.a(y)
        z = net.b(y) + y
        return F.relu(a) * z

    for forward in (late_sum, late_activation):
        check(Net(forward, stem=conv(), a=conv(), b=conv()))


@pytest.mark.parametrize(
    "forward",
    [lambda y, a, relu: relu(y) + a, lambda y, a, relu: a + relu(y), lambda y, a, relu: relu(y) * F.relu(a)],
    ids=["sum", "sum the other way", "activation"],
)
def test_model_that_overwrites_what_a_convolution_has_read(forward):
    """Such a one may run as it is."""
    net = Net(
        lambda net, x: forward(y := net.stem(x), net.a(y), net.relu),
        stem=conv(),
        a=conv(),
        relu=nn.ReLU(inplace=True),
    ).eval()
    x = images(2, 6, channels=4)
    assert_near(run(fuse(net, torch.zeros(1, 4, 6, 6)), x), run(net, x))


def test_sum_with_factors_is_another_sum():
    for forward in (
        lambda net, x: torch.add(net.a(x), net.b(x), alpha=0.5),
        lambda net, x: torch.add(x, net.b(x), alpha=-2),
        lambda net, x: net.a(x) + 3,
    ):
        check(Net(forward, a=conv(), b=conv()))
    assert len(parts(check(Net(lambda net, x: (y := net.a(x)) + y, a=conv())), Conv, nn.Conv2d)) == 1


@both_paths
def test_broadcast_sums_stay():
    for forward in (
        lambda net, x: net.a(x.mean((2, 3), keepdim=True)) + x,
        lambda net, x: x + net.a(net.b(x).mean((2, 3), keepdim=True)),
        lambda net, x: net.b(x) + net.a(net.b(x).mean((2, 3), keepdim=True)),
        lambda net, x: net.a(x.mean(3, keepdim=True)) + x,
        lambda net, x: x + net.a(x.mean(2, keepdim=True)),
        lambda net, x: net.a(x) + x.mean((2, 3), keepdim=True),
        lambda net, x: net.a(x) + x.mean(1, keepdim=True),
        lambda net, x: net.a(x)[0] + net.b(x),
    ):
        check(Net(forward, a=conv(1), b=conv()))


def test_sum_with_what_holds_for_every_image():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.positions = conv(), nn.Parameter(torch.zeros(1, 4, 6, 6))

        def forward(self, x):
            return F.relu(self.conv(x) + self.positions)

    net = Positions()
    torch.nn.init.normal_(net.positions)
    found = check(net, probe=torch.zeros(1, 4, 6, 6))
    one = images(1, 6, channels=4)
    for _ in range(2):
        assert_near(run(found, one), run(net, one))


def test_broadcast_sum_is_known_where_the_map_is_a_single_pixel():
    net = Net(lambda net, x: net.b(x) + net.a(x.mean((2, 3), keepdim=True)), a=conv(1), b=conv())
    check(net, probe=torch.zeros(1, 4, 1, 1))


@both_paths
def test_image_itself_is_not_overwritten():
    check(Net(lambda net, x: F.relu(x + net.a(x)) + x, a=conv()))
    check(Net(lambda net, x: F.relu(net.n(net.a(x)) + x), a=conv(), n=norm()))
    check(Net(lambda net, x: net.b(net.a(x)) + x, a=conv(), b=conv()))
