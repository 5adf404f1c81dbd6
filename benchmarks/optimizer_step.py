"""Times a step of LearnedOptimizer beside torch's AdamW and PyLO, on ten million parameters.

    python benchmarks/optimizer_step.py [rule ...] [--threads N] [--rounds N] [--pylo]

CPU milliseconds of a step (of all threads), and the ratio to AdamW(foreach=True) with its 95%
interval over the rounds, in which the optimizers take turns. Weight decay and the check for
gradients that are not finite are on, as they are by default or in AdamW.

``--pylo`` adds the optimizers of PyLO (github.com/Belilovsky-Lab/pylo) that need no CUDA:
small_fc_lopt (AdafacLO_naive, the one with the features of CoordinateMLP) and CELO2_naive, without
orthogonalisation, with random weights, as theirs are on a hub and the time does not depend on
them. PyLO is not on PyPI, where the name belongs to a program for microscopes:

    pip install --no-deps git+https://github.com/Belilovsky-Lab/pylo && pip install mup
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from lightning_evolve import meta_learners
from lightning_evolve.optim import LearnedOptimizer

LAYER = [(256, 256), (256,)] * 4 + [(1024, 256), (1024,), (256, 1024), (256,)] + [(256,)] * 4


def parameters() -> list[torch.Tensor]:
    """A transformer's tensors: an embedding and ten layers, each with a gradient."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=generator) for s in [(8000, 256), (128, 256), *LAYER * 10]]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def steps_of_pylo() -> dict[str, Callable[[], object]]:
    """PyLO's optimizers in plain torch."""
    try:
        from pylo.models.Meta_MLP import MetaMLP
        from pylo.optim import AdafacLO_naive, CELO2_naive
    except ImportError as error:
        raise SystemExit(f"--pylo: {error}; the head of this file says how to get it") from error
    MetaMLP.from_pretrained = classmethod(lambda cls, *_: cls(39, 32, 1))
    small = AdafacLO_naive(parameters(), lr=1e-3, weight_decay=0.01)
    celo2 = CELO2_naive(parameters(), weight_decay=0.01, orthogonalize=False, hf_key=None)
    return {"PyLO small_fc_lopt": small.step, "PyLO CELO2": celo2.step}


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Returns the median with its 95% interval by bootstrap."""
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def main(arguments: list[str] | None = None) -> None:
    """Prints CPU milliseconds, and the ratio to AdamW, of each optimizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rules", nargs="*", help="rules (default: Adam Gains CoordinateMLP)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each (default: 15)")
    parser.add_argument("--pylo", action="store_true", help="PyLO's optimizers too")
    options = parser.parse_args(arguments)
    unknown = [r for r in options.rules if r not in meta_learners.__all__]
    if unknown or options.rounds < 2 or options.threads < 1:
        parser.error(
            f"there is no rule {unknown[0]}"
            if unknown
            else "give at least 2 rounds, for an interval, and 1 thread"
        )
    torch.set_num_threads(options.threads)
    steps: dict[str, Callable[[], object]] = {
        "AdamW, foreach": torch.optim.AdamW(parameters(), foreach=True).step,
        "AdamW, fused": torch.optim.AdamW(parameters(), fused=True).step,
    }
    for name in options.rules or ["Adam", "Gains", "CoordinateMLP"]:
        rule = getattr(meta_learners, name)
        steps[name] = LearnedOptimizer(parameters(), rule, weight_decay=0.01).step
        if rule.compiled is not None:
            compiled = LearnedOptimizer(parameters(), rule, weight_decay=0.01, compile=True)
            steps[f"{name}, compiled"] = compiled.step
    if options.pylo:
        steps |= steps_of_pylo()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            times[name].append(1e3 * (time.process_time() - start))
    count = sum(p.numel() for p in parameters())
    print(f"{options.threads} threads, {count:,} parameters, {options.rounds} rounds")
    reference = np.array(times["AdamW, foreach"][1:])  # the first steps allocate
    for name, values in times.items():
        middle, low, high = interval(np.array(values[1:]) / reference)
        cpu = np.median(values[1:])
        print(f"{name:23} {cpu:8.1f} ms {middle:7.2f}  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
