"""Times a step of LearnedOptimizer beside torch's AdamW, on ten million parameters.

    python benchmarks/optimizer_step.py [rule ...]

Weight decay and the check for gradients that are not finite are on, as they are by default or in
AdamW. The optimizers take turns, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from lightning_evolve import meta_learners
from lightning_evolve.optim import LearnedOptimizer

ROUNDS = 15
LAYER = [(256, 256), (256,)] * 4 + [(1024, 256), (1024,), (256, 1024), (256,)] + [(256,)] * 4


def parameters() -> list[torch.Tensor]:
    """A transformer's tensors: an embedding and ten layers, each with a gradient."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=generator) for s in [(8000, 256), (128, 256), *LAYER * 10]]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def main(names: list[str]) -> None:
    """Prints the median milliseconds of each, and the median ratio to AdamW."""
    steps: dict[str, Callable[[], object]] = {
        "AdamW, foreach": torch.optim.AdamW(parameters(), foreach=True).step,
        "AdamW, fused": torch.optim.AdamW(parameters(), fused=True).step,
    }
    for name in names:
        rule = getattr(meta_learners, name)
        steps[name] = LearnedOptimizer(parameters(), rule, weight_decay=0.01).step
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    times = {name: values[2:] for name, values in times.items()}
    reference = next(iter(times.values()))
    print(f"{torch.get_num_threads()} threads, {sum(p.numel() for p in parameters()):,} parameters")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, reference, strict=True))
        print(f"{name:16} {1e3 * statistics.median(values):7.1f} ms {ratio:6.2f}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["Adam", "Gains"])
