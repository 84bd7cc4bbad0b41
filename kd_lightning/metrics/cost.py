"""Costs of a network: parameters, bytes, multiply-adds, and latency."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kd_lightning.utils.networks import Inputs, apply, call, evaluating, size_of

PASSES, SECONDS = 30, 0.2  # timed forward passes: at most so many, and no new one after so long


def costs(net: nn.Module, sample: Inputs) -> dict[str, float]:
    """Return the costs of a network on its current device.

    - ``parameters``: number of parameters.
    - ``bytes``: memory of parameters and buffers as stored.
    - ``multiply_adds``: multiply-adds of convolutions and matrix products for one sample.
    - ``latency_ms``: median time of a forward pass of one sample, in milliseconds. It depends
      on the machine and its load.

    Args:
        net: the network; its training mode is restored.
        sample: a batch of inputs, of any content.
    """
    # Buffers count: the statistics of batch normalisation are shipped with the weights.
    kept = [*net.parameters(), *net.buffers()]
    return {
        "parameters": count_parameters(net),
        "bytes": sum(tensor.nbytes for tensor in kept),
        "multiply_adds": multiply_adds(net, sample)[""],
        "latency_ms": round(latency(net, apply(sample, lambda x: x[:1])), 4),
    }


def count_parameters(net: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(p.numel() for p in net.parameters())


def multiply_adds(net: nn.Module, sample: Inputs) -> dict[str, int]:
    """Return the multiply-adds of each module for one sample.

    Args:
        net: the network.
        sample: a batch of inputs, of any content.

    Returns:
        Multiply-adds by module path; ``""`` is the whole network.
    """
    counter = FlopCounterMode(display=False)
    with counter, counted_attention(), evaluating(net), torch.no_grad():
        call(net, sample)
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    # torch counts FLOPs, two per multiply-add, and over the whole batch
    per_sample = {name: count // (2 * size_of(sample)) for name, count in counts.items()}
    prefix = f"{type(net).__name__}."
    return {"": per_sample["Global"], **{k.removeprefix(prefix): v for k, v in per_sample.items()}}


@contextmanager
def counted_attention() -> Iterator[None]:
    """Compute attention from matrix products, which the counter sees, and not in one kernel.

    The fused kernels of ``nn.MultiheadAttention`` and of ``scaled_dot_product_attention`` are
    not counted: a ViT-B/16 would have 11.3 G multiply-adds instead of 17.6 G.
    """
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)


@torch.inference_mode()
def latency(net: nn.Module, inputs: Inputs) -> float:
    """Return the median time of a forward pass in evaluation mode, in milliseconds.

    Args:
        net: the network; its training mode is restored.
        inputs: a batch of inputs.
    """
    # the median, because a mean is dominated by the few passes that the scheduler interrupts
    seconds = []
    is_cuda = any(p.is_cuda for p in net.parameters())
    with evaluating(net):
        call(net, inputs)  # not timed: the first pass allocates memory and selects kernels
        while len(seconds) < PASSES and sum(seconds) < SECONDS:
            start = time.perf_counter()
            call(net, inputs)
            # kernels run asynchronously: without this only their launch would be timed
            if is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)
