"""LearnedOptimizer: a learned update rule as an ordinary optimizer of torch.

.. code-block:: python

    optimizer = LearnedOptimizer.from_pretrained(model.named_parameters(), "my_rule", lr=1e-3)
"""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self, override

from lightning_evolve.compilation import check_compiler
from lightning_evolve.errors import UsageError
from lightning_evolve.meta_learners import MetaLearner, MetaLearnerFactory, State
from lightning_evolve.pretrained import load_rule, save_rule
from lightning_evolve.tasks import Tensors


class _Entry(NamedTuple):
    """A parameter that has a gradient."""

    name: str
    param: Tensor
    group: int


class LearnedOptimizer(torch.optim.Optimizer):
    r"""Steps along the direction of an update rule, in place of Adam in any training loop.

    .. math:: \theta \leftarrow (1 - \eta \lambda) \, \theta
        + \eta \, g_\phi(\nabla L, \theta, s)

    with the rate eta of the parameter group (``lr``) and its decoupled weight decay lambda
    (Loshchilov and Hutter 2019). With phi = 0 the learned rules take the steps of Adam, and with
    weight decay those of AdamW (`MetaSGD` those of SGD, `RelativeGains` relative ones).

    It is what ``torch.optim.AdamW`` is to who uses it: parameter groups, closures, hooks, LR
    schedulers, ``state_dict``, ``deepcopy`` and pickling work as there, and parameters without a
    gradient are passed over; frozen ones do not count where a rule asks how many layers adapt.
    (``OneCycleLR`` and ``CyclicLR`` want ``cycle_momentum=False``, as there is no momentum to
    cycle.) Steps are counted for each parameter, so one that joins or thaws later begins at step 0.
    Parameters of 16 bits have their state, and are updated, in 32.

    Args:
        params: ``model.named_parameters()``, ``model.parameters()`` or parameter groups. Rules
            that tell tensors apart by their names need the first; without names a parameter goes
            by its position.
        rule: a trained rule, of which a copy is kept, or what builds one: a rule's class or a
            ``functools.partial`` of it.
        lr: the rate eta, in place of the alpha of the inner loop.
        weight_decay: lambda, which counts times ``lr``: with the rules that come with the package,
            whose rate is 0.3, divide what AdamW has at 0.001 by 300.
        error_if_nonfinite: refuse a gradient with NaN or infinite values, which would stay in the
            state for ever, before anything is changed; it takes one read of the gradients, and on
            a GPU waits for them.
        compile: run compiled code where a rule has some: `CoordinateMLP` does, and takes four
            fifths of the time a step once it has been compiled, which takes up to a minute. The
            steps of other rules are a few kernels that torch has fused already.

    Raises:
        UsageError: for a number out of range, a complex parameter, or a rule that is one for other
            tensors than these.

    Example:
        >>> from lightning_evolve.meta_learners import Gains
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = LearnedOptimizer(model.named_parameters(), Gains, lr=0.1)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     loss = (model(torch.eye(2)) - 1).square().sum()
        ...     loss.backward()
        ...     optimizer.step()
        >>> loss.item() < 1e-3
        True
    """

    def __init__(
        self,
        params: Any,
        rule: MetaLearner | MetaLearnerFactory,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        error_if_nonfinite: bool = True,
        compile: bool = False,  # noqa: A002  # torch's own name for it
    ) -> None:
        self.error_if_nonfinite = error_if_nonfinite
        self.compile = compile
        self.trained_on: dict[str, Any] = {}
        self._rule: MetaLearner | None = None
        self._adapting: tuple[str, ...] | None = None
        self._forget()
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        named = self._named()
        if not callable(rule):
            raise UsageError(
                f"rule is {rule!r}; give one, such as Gains, or name a saved one to "
                "LearnedOptimizer.from_pretrained"
            )
        rule = deepcopy(rule) if isinstance(rule, MetaLearner) else _built(rule, named)
        self._rule = rule.requires_grad_(False)
        # What a state belongs to; it is in every group, as that is what a state_dict shows.
        self._fingerprint = _fingerprint(rule)
        self.defaults["rule"] = self._fingerprint
        for group in self.param_groups:
            group["rule"] = self._fingerprint
        self._fit()
        if compile and rule.compiled is None:
            warnings.warn(
                f"compile=True does nothing for {type(rule).__name__}: its step is a few kernels "
                "that torch has fused already",
                stacklevel=2,
            )
        elif compile:
            check_compiler("compile=False")

    @property
    def rule(self) -> MetaLearner:
        """The rule, for the tensors that it was trained on."""
        assert self._rule is not None, "set by __init__"
        return self._rule

    # ---------------------------------------------------------------- on disk

    @classmethod
    def from_pretrained(
        cls,
        params: Any,
        name: str | Path,
        *,
        lr: float | None = None,
        weight_decay: float = 0.0,
        error_if_nonfinite: bool = True,
        compile: bool = False,  # noqa: A002
        **options: Any,
    ) -> Self:
        """Builds an optimizer with a rule that was saved.

        Args:
            params: as of the class.
            name: a folder, or the name of a rule that comes with the package.
            lr: the rate; the alpha that the rule was trained with if not given.
            weight_decay: as of the class.
            error_if_nonfinite: as of the class.
            compile: as of the class.
            **options: options of the rule to have otherwise than in training: a run longer than
                the ``horizon`` of the training may want its schedule stretched.

        Raises:
            UsageError: in one line, if there is no such rule, it is damaged or of another
                version, or it was learned for other tensors.
        """
        rule, config = load_rule(name, **options)
        if lr is None:
            lr = config["alpha"]
        if lr is None:
            raise UsageError(f"{name} does not say which rate its rule was trained with; give lr")
        built = cls(
            params,
            rule,
            lr=lr,
            weight_decay=weight_decay,
            error_if_nonfinite=error_if_nonfinite,
            compile=compile,
        )
        built.trained_on = config["trained_on"]
        return built

    def save_pretrained(
        self, folder: str | Path, *, trained_on: Mapping[str, Any] | None = None
    ) -> None:
        """Saves the rule, not the state, as a folder for :meth:`from_pretrained`.

        Args:
            folder: where to; a rule that is there already is replaced.
            trained_on: what it was trained on; what it was loaded with if not given.
        """
        lr = float(self.defaults["lr"])
        save_rule(
            self.rule,
            folder,
            alpha=lr,
            trained_on=self.trained_on if trained_on is None else trained_on,
        )

    # ---------------------------------------------------------------- stepping

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step.

        Args:
            closure: computes the loss again, and its gradients; its result is returned.

        Raises:
            UsageError: for a gradient that is sparse, or not finite; nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._fit()
        alike: defaultdict[tuple[torch.device, torch.dtype, int], list[_Entry]] = defaultdict(list)
        for entry in self._entries():
            p = entry.param
            step = self.state[p]["step"] if p in self.state else 0
            alike[p.device, _precision(p), step].append(entry)
        gradients = [
            {name: p.grad.to(dtype) for name, p, _ in entries if p.grad is not None}
            for (_, dtype, _), entries in alike.items()
        ]
        if self.error_if_nonfinite:
            for grads in gradients:
                _refuse_nonfinite(grads)
        for ((device, dtype, step), entries), grads in zip(alike.items(), gradients, strict=True):
            params = {name: p.to(dtype) for name, p, _ in entries}
            rule = self._placed(device, dtype, params)
            state = self._state(entries, step) if step else rule.init(params)
            # A rule's network computes in the precision of what it moves.
            with torch.autocast(device.type, enabled=False):
                direction, following = rule(grads, params, state)
            self._keep(entries, following)
            self._move(entries, direction)
        return loss

    def _entries(self) -> Iterable[_Entry]:
        """The parameters that have a gradient; empty ones have nothing to move."""
        index = 0
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names")
            for place, p in enumerate(group["params"]):
                name = names[place] if names else str(index)
                index += 1
                if p.grad is None or not p.numel():
                    continue
                if p.grad.layout != torch.strided:
                    raise UsageError(
                        f"the gradient of {name} is sparse, which the rules do not take; build the "
                        "layer with sparse=False"
                    )
                yield _Entry(name, p, number)

    def _placed(self, device: torch.device, dtype: torch.dtype, params: Tensors) -> MetaLearner:
        """The rule for some of the tensors, with phi on their device and in their precision."""
        key = (device, dtype, tuple(params))
        if key not in self._rules:
            phi = [*self._whole.parameters(), *self._whole.buffers()]
            whole = self._whole
            if any(t.device != device or t.dtype not in (dtype, torch.int64) for t in phi):
                whole = deepcopy(whole).to(device=device, dtype=dtype)
            self._rules[key] = whole.within(params)
            if self.compile and whole.compiled is not None:
                self._rules[key].compiled = True
        return self._rules[key]

    def _state(self, entries: list[_Entry], step: int) -> State:
        """The state of some parameters as a rule takes it."""
        accumulators: defaultdict[str, Tensors] = defaultdict(dict)
        for name, p, _ in entries:
            for kind, value in self.state[p].items():
                if kind != "step":
                    accumulators[kind][name] = value
        return State(step, dict(accumulators), donated=True)

    def _keep(self, entries: list[_Entry], state: State) -> None:
        """The other way round."""
        for _, p, _ in entries:
            self.state[p] = {"step": state.step}
        params = {name: p for name, p, _ in entries}
        for kind, tensors in state.accumulators.items():
            for name, value in tensors.items():
                self.state[params[name]][kind] = value

    def _move(self, entries: list[_Entry], direction: Tensors) -> None:
        for number, group in enumerate(self.param_groups):
            inside = [entry for entry in entries if entry.group == number]
            if not inside:
                continue
            lr, decay = float(group["lr"]), float(group["weight_decay"])
            # One at a time where calls cost little, so that what decays is still in the cache.
            for some in [inside] if inside[0].param.is_cuda else [[entry] for entry in inside]:
                params = [p for _, p, _ in some]
                if decay:
                    # Of 16 bits, a decay by itself would be rounded away: it joins the direction.
                    long = [p for p in params if _precision(p) == p.dtype]
                    if long:
                        torch._foreach_mul_(long, 1 - lr * decay)
                    for name, p, _ in some if len(long) < len(params) else ():
                        if _precision(p) != p.dtype:
                            direction[name] = direction[name] - decay * p
                torch._foreach_add_(params, [direction[name] for name, _, _ in some], alpha=lr)

    # ---------------------------------------------------------------- as of torch's optimizers

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group; see :meth:`torch.optim.Optimizer.add_param_group`.

        Args:
            param_group: ``params``, and its own ``lr`` or ``weight_decay``.

        Raises:
            UsageError: as of the class.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if "param_names" in group:
            group["param_names"] = _unwrapped(group["param_names"])
        try:
            self._check(self.param_groups[-1])
            if self._rule is not None:
                self._fit()
        except UsageError:
            del self.param_groups[-1]
            raise

    def _check(self, group: dict[str, Any]) -> None:
        if theirs := sorted(_OF_RULES & group.keys()):
            raise UsageError(
                f"a parameter group has {theirs[0]}, which is the rule's own; give it to the rule, "
                "where the rule has it"
            )
        if unread := sorted(group.keys() - _READ):
            warnings.warn(
                f"a parameter group has {unread[0]}, which LearnedOptimizer does not read; it "
                "reads lr and weight_decay",
                stacklevel=4,
            )
        for number in ("lr", "weight_decay"):
            try:
                value = math.nan if isinstance(group[number], str) else float(group[number])
            except TypeError:
                value = math.nan
            if math.isnan(value):
                raise UsageError(f"{number} is {group[number]!r}; give a number of at least 0")
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{number} is {value}; give a finite number of at least 0")
        for index, p in enumerate(group["params"]):
            if p.is_complex():
                name = group.get("param_names", range(len(group["params"])))[index]
                raise UsageError(
                    f"parameter {name} is complex, which the rules do not take; keep its real and "
                    "imaginary parts as two parameters"
                )
        names = [name for g in self.param_groups for name in g.get("param_names", ())]
        if len(names) != len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"two parameters are called {twice}; give each a name of its own")

    def _named(self) -> Tensors:
        """All parameters by name, or by position where they have none."""
        params = [p for group in self.param_groups for p in group["params"]]
        names = [n for group in self.param_groups for n in group.get("param_names", ())]
        return dict(zip(names or map(str, range(len(params))), params, strict=True))

    def _fit(self) -> None:
        """Fits the rule to the parameters that adapt: one that is frozen is no part of it."""
        named = self._named()
        adapting = tuple(n for n, p in named.items() if p.requires_grad or p.grad is not None)
        if adapting != self._adapting:
            self._whole = self.rule.over({name: named[name] for name in adapting})
            self._adapting = adapting
            self._forget()

    def _forget(self) -> None:
        self._rules: dict[tuple[torch.device, torch.dtype, tuple[str, ...]], MetaLearner] = {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state of an optimizer with the same rule, and goes on exactly where it was.

        Args:
            state_dict: what :meth:`state_dict` of the other has given.

        Raises:
            UsageError: if it is of another rule.
        """
        for group in state_dict["param_groups"]:
            if (theirs := group.get("rule", "another optimizer")) != self._fingerprint:
                raise UsageError(
                    f"the state is that of {theirs}, and this optimizer has {self._fingerprint}; "
                    "build it with the rule and options that the state was saved with"
                )
        # Torch would take the names in the state, which may be those of the model in a wrapper.
        names = [group.get("param_names") for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, names, strict=True):
            group.pop("param_names", None)
            if own is not None:
                group["param_names"] = own
        # Torch has converted the state of 16-bit parameters to their precision.
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for key, p in zip(keys, params, strict=True):
            if p.dtype != _precision(p):
                for kind, value in state_dict["state"].get(key, {}).items():
                    if kind != "step":
                        at = {"device": p.device, "dtype": _precision(p)}
                        self.state[p][kind] = value.to(**at, copy=True)

    @override
    def __getstate__(self) -> dict[str, Any]:
        kept = ("error_if_nonfinite", "compile", "trained_on")
        fitted = ("_rule", "_fingerprint", "_whole", "_adapting")
        return super().__getstate__() | {name: getattr(self, name) for name in (*kept, *fitted)}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()


# Names of torch's own options of groups that are options of a rule here, and what is read.
_OF_RULES = {"amsgrad", "betas", "dampening", "eps", "maximize", "momentum", "nesterov"}
_READ = {"params", "param_names", "lr", "weight_decay", "rule", "initial_lr", "name"}


def _built(rule: MetaLearnerFactory, named: Tensors) -> MetaLearner:
    """A rule for some parameters, by its class or a partial of it."""
    name = getattr(rule, "__name__", repr(rule))
    foreign = isinstance(rule, type) and not issubclass(rule, MetaLearner)
    if foreign or isinstance(rule, torch.nn.Module):
        raise UsageError(f"rule is {name}, which is no update rule; give one, such as Gains")
    built: object = rule(named)
    if not isinstance(built, MetaLearner):
        raise UsageError(
            f"rule is {name}, which gives {built!r:.60} and no update rule; give one, such as Gains"
        )
    return built


def _unwrapped(names: list[str]) -> list[str]:
    """Names as the model itself has them, without those of a compiled or distributed wrapper.

    Example:
        >>> _unwrapped(["module._orig_mod.head.weight", "module._orig_mod.head.bias"])
        ['head.weight', 'head.bias']
    """
    names = [name.replace("_orig_mod.", "") for name in names]
    if all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def _precision(p: Tensor) -> torch.dtype:
    """What a parameter is updated in: its own precision, but at least 32 bits."""
    return torch.promote_types(p.dtype, torch.float32)


def _refuse_nonfinite(grads: Tensors) -> None:
    """Raises for NaN or infinity, by one number a tensor; a sum is the fastest one on a CPU."""
    values = list(grads.values())
    if values[0].is_cuda:
        totals = list(torch._foreach_norm(values, 1))
    else:
        totals = [g.sum() for g in values]
    if torch.stack(totals).isfinite().all():
        return
    for name, gradient in grads.items():
        # The sum of large finite numbers may overflow.
        if not gradient.isfinite().all():
            raise UsageError(
                f"the gradient of {name} has NaN or infinite values; nothing was changed: lower lr "
                "or clip the gradients, or skip this batch"
            )


def _fingerprint(rule: MetaLearner) -> str:
    """A short name of a rule, its options and its phi."""
    # As JSON, since a tuple that was saved and loaded is a list.
    digest = zlib.crc32(json.dumps(rule.options, sort_keys=True, default=repr).encode())
    for name, tensor in rule.state_dict().items():
        digest = zlib.crc32(name.encode(), digest)
        digest = zlib.crc32(tensor.double().cpu().numpy().tobytes(), digest)
    return f"{type(rule).__name__} {digest:08x}"
