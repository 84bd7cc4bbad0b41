"""What a network costs: parameters, bytes, multiply-adds, and the time of one answer."""

import time
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kd_lightning.nets.taps import dry_run, evaluating

PASSES, SECONDS = 30, 0.2  # of the timing: so many, or as many as fit


def costs(net: nn.Module, sample: Tensor) -> dict[str, float]:
    """What a network costs on the device it lies on.

    - ``parameters``: their number.
    - ``bytes``: of parameters and buffers, as they lie in memory.
    - ``multiply_adds``: for one sample, of convolutions and products of matrices.
    - ``latency_ms``: median time of an answer to one sample, in milliseconds; on this machine
      and beside whatever else it does.

    Args:
        net: the network; it stays in the mode it is in.
        sample: a batch of inputs, of any content.
    """
    kept = [*net.parameters(), *net.buffers()]
    return {
        "parameters": count_parameters(net),
        "bytes": sum(tensor.nbytes for tensor in kept),
        "multiply_adds": multiply_adds(net, sample)[""],
        "latency_ms": round(latency(net, sample[:1]), 4),
    }


def count_parameters(net: nn.Module) -> int:
    """Number of a network's parameters."""
    return sum(p.numel() for p in net.parameters())


def multiply_adds(net: nn.Module, sample: Tensor) -> dict[str, int]:
    """Multiply-adds of each module for one sample, by path; the whole network's at ``""``."""
    counter = FlopCounterMode(display=False)
    with counter:
        dry_run(net, sample, ())
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    per_sample = {name: count // (2 * len(sample)) for name, count in counts.items()}
    prefix = f"{type(net).__name__}."
    return {"": per_sample["Global"], **{k.removeprefix(prefix): v for k, v in per_sample.items()}}


@torch.inference_mode()
def latency(net: nn.Module, inputs: Tensor) -> float:
    """Median time of a pass in evaluation mode, in milliseconds."""
    seconds = []
    with evaluating(net):
        net(inputs)  # the first one allocates
        while len(seconds) < PASSES and sum(seconds) < SECONDS:
            start = time.perf_counter()
            net(inputs)
            if inputs.is_cuda:
                torch.cuda.synchronize(inputs.device)
            seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)
