"""Latency, measured in turns, so that a drift of the machine meets all models alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hlnet.model.cost import Latency, Profile, with_reductions
from hlnet.model.fast.optimize import optimize
from hlnet.model.hierarchical import HierarchicalNet, NetworkConfig
from hlnet.model.plain import PlainConfig, PlainNet
from hlnet.tree.class_tree import ClassTree


def measure_latency(
    models: dict[str, nn.Module],
    input_size: tuple[int, int, int],
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 3.0,
    on_round: Callable[[], None] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, list[Latency]]:
    """Time the models in turn, round by round, so that a drift of the machine meets all of them alike.

    Args:
        models: by name, all on one device; images come to them channels last.
        input_size: of an image.
        batch_sizes, threads: every combination is measured; threads matter on a CPU only.
        seconds: to spend on each combination, at least 5 rounds.
        on_round: called after each round.

    Returns:
        for each model, one :class:`Latency` a combination.
    """
    found: dict[str, list[Latency]] = {name: [] for name in models}
    for count in threads:
        for batch in batch_sizes:
            images = torch.randn(batch, *input_size, device=device).to(memory_format=torch.channels_last)
            times: dict[str, list[float]] = {name: [] for name in models}
            with _threads(count), torch.inference_mode():
                for model in models.values():
                    model.eval()(images)  # warm up
                until = time.perf_counter() + seconds
                while len(times[next(iter(models))]) < 5 or time.perf_counter() < until:
                    for name, model in models.items():
                        times[name].append(_time(model, images))
                    if on_round:
                        on_round()
            for name, values in times.items():
                low, median, high = (1000 * q for q in statistics.quantiles(values, n=4))
                found[name].append(Latency(batch_size=batch, threads=count, median_ms=median, low_ms=low, high_ms=high))
    return found


def with_latency(
    found: Profile,
    model: HierarchicalNet,
    expert: HierarchicalNet | None = None,
    batch_sizes: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    on_round: Callable[[], None] | None = None,
    dtype: torch.dtype | str = torch.float32,
) -> Profile:
    """Add latencies to a profile: of the plain network, of ``model``, and of an expert.

    All are timed in their inference form (:func:`hlnet.optimize`), the plain network too.

    Args:
        found: the profile.
        model: the full network; or an expert, if it is all there is.
        expert: a cut of ``model``.
        batch_sizes, threads, on_round: as :func:`measure_latency` takes them.
        dtype: to compute in, as :func:`hlnet.optimize` takes it.
    """
    config = model.config
    plain_config = PlainConfig(
        backbone=config.backbone, split_point=config.split_point, backbone_args=config.backbone_args
    )
    plain = PlainNet(plain_config, ClassTree.balanced((found.plain.classes,))).to(model.device)
    plain.transform = plain.transform.model_copy(update={"input_size": found.input_size})
    models: dict[str, nn.Module] = {"plain": optimize(plain, dtype)}
    if expert is not None:
        models["expert"] = optimize(expert, dtype)
    if model.tree.counts == found.full.nodes:
        models["full"] = optimize(model, dtype)
    elif expert is None:  # the model is itself an expert
        models["expert"] = optimize(model, dtype)
    latencies = measure_latency(models, found.input_size, batch_sizes, threads, on_round=on_round, device=model.device)
    costs = {name: getattr(found, name).model_copy(update={"latency": value}) for name, value in latencies.items()}
    return with_reductions(found.model_copy(update=costs))


def random_network(config: NetworkConfig, tree: ClassTree) -> HierarchicalNet:
    """The network with arbitrary weights, quickly: for timing only."""
    model = HierarchicalNet(config, tree, empty=True).eval()
    model.head.to_empty(device="cpu")
    for tensor in model.head.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.01, 0.02)
    return model


def _time(model: nn.Module, images: Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
