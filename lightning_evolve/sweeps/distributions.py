"""What a parameter of a sweep is drawn from: the distributions of W&B's schema.

Source: https://docs.wandb.ai/guides/sweeps/sweep-config-keys (Distribution options).
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate
from typing import Any

from lightning_evolve.errors import UsageError

_BOUNDS = ("min", "max")
# Required keys, and optional ones with what they are when left out.
_KEYS: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    "constant": (("value",), {}),
    "categorical": (("values",), {}),
    "categorical_w_probabilities": (("values", "probabilities"), {}),
    "int_uniform": (_BOUNDS, {}),
    "uniform": (_BOUNDS, {}),
    "q_uniform": (_BOUNDS, {"q": 1}),
    "log_uniform": (_BOUNDS, {}),
    "log_uniform_values": (_BOUNDS, {}),
    "q_log_uniform": (_BOUNDS, {"q": 1}),
    "q_log_uniform_values": (_BOUNDS, {"q": 1}),
    "inv_log_uniform": (_BOUNDS, {}),
    "inv_log_uniform_values": (_BOUNDS, {}),
    "normal": ((), {"mu": 0.0, "sigma": 1.0}),
    "q_normal": ((), {"mu": 0.0, "sigma": 1.0, "q": 1}),
    "log_normal": ((), {"mu": 0.0, "sigma": 1.0}),
    "q_log_normal": ((), {"mu": 0.0, "sigma": 1.0, "q": 1}),
    "beta": ((), {"a": 1, "b": 1}),
    "q_beta": ((), {"a": 1, "b": 1, "q": 1}),
}
_LISTED = ("constant", "categorical", "categorical_w_probabilities")
# Beyond this exponent e^x leaves what a double holds.
_LARGEST_EXPONENT = 700


@dataclass(frozen=True)
class Distribution:
    """A distribution by W&B's name and options.

    With U a quantile in [0, 1], F^-1 the inverse distribution function and q the step:

    - ``constant``, ``categorical``: one of the values, each as likely;
      ``categorical_w_probabilities``: each with its own probability;
    - ``int_uniform``: a whole number from ``min`` to ``max``, both included; ``uniform``: a real;
    - ``log_uniform_values``: exp of a uniform number from ln ``min`` to ln ``max``;
      ``log_uniform``: the same with ``min`` and ``max`` being the logarithms themselves;
    - ``inv_log_uniform_values`` and ``inv_log_uniform``: such a number's reciprocal lies between
      1/``max`` and 1/``min``, and between e^``min`` and e^``max``;
    - ``normal``, ``log_normal`` (``mu`` and ``sigma`` of the logarithm), ``beta``;
    - with ``q_`` before it: round(x / q) q, which may leave the bounds by half a step, whole
      where q is whole.

    Args:
        name: as in W&B's schema.
        options: its keys, complete: ``value``, or ``values`` and ``probabilities``, or ``min``,
            ``max``, ``mu``, ``sigma``, ``a``, ``b``, ``q``.

    Example:
        >>> rate = Distribution("log_uniform_values", {"min": 0.01, "max": 100.0})
        >>> round(rate.at(0.5), 6), round(rate.quantile(10.0), 6)
        (1.0, 0.75)
    """

    name: str
    options: Mapping[str, Any]

    def at(self, quantile: float) -> Any:
        """Returns the value at a quantile: the inverse distribution function.

        Args:
            quantile: in [0, 1]; at the ends, the normal distributions are infinite.
        """
        assert 0 <= quantile <= 1
        if self.name in _LISTED:
            values, edges = self._values(), self._edges()
            # A value of probability 0 has an empty interval; the last one is closed.
            index = bisect_right(edges, quantile, 1, edges.index(edges[-1])) - 1
            return values[index]
        law = self._law()
        low, high = law.support()
        # Rounding in exp and log could leave the bounds in the last digit.
        value = min(max(float(law.ppf(quantile)), float(low)), float(high))
        if self.name == "int_uniform":
            return int(value)
        step = self._step()
        if step is None or math.isinf(value):
            return value
        stepped = round(value / step) * step
        return int(stepped) if isinstance(step, int) else float(stepped)

    def quantile(self, value: Any) -> float:
        """Returns a quantile at which :meth:`at` gives the value: the middle one of several.

        Args:
            value: one that :meth:`at` gave.
        """
        if self.name in _LISTED:
            index, edges = self.index(value), self._edges()
            return (edges[index] + edges[index + 1]) / 2
        law = self._law()
        if self.name == "int_uniform":
            return float(law.cdf(value - 1) + law.cdf(value)) / 2
        half = (self._step() or 0) / 2
        return float(law.cdf(value - half) + law.cdf(value + half)) / 2

    def choices(self) -> Sequence[Any] | None:
        """Returns the values that a grid goes through, as W&B takes them; None for a continuum.

        ``q_uniform`` starts at ``min`` and leaves out ``max``; the other distributions with steps
        are no part of a grid.
        """
        if self.name in _LISTED:
            return self._values()
        if self.name == "int_uniform":
            return range(self.options["min"], self.options["max"] + 1)
        if self.name == "q_uniform":
            import numpy as np

            values: list[Any] = np.arange(
                self.options["min"], self.options["max"], self.options["q"]
            ).tolist()
            return values
        return None

    def index(self, value: Any) -> int:
        """Returns the place of a categorical value among the choices.

        Args:
            value: one of them; True is not 1 here, as it would be to ``list.index``.
        """
        for index, other in enumerate(self._values()):
            if type(other) is type(value) and other == value:
                return index
        raise AssertionError(f"{value!r} is none of {self._values()!r}")

    @property
    def varies(self) -> bool:
        """Whether there is more than one value."""
        return self.name not in _LISTED or len(self._values()) > 1

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return self.name not in _LISTED or all(
            isinstance(value, int | float) and not isinstance(value, bool)
            for value in self._values()
        )

    @property
    def ordered(self) -> bool:
        """Whether neighbouring quantiles have neighbouring values: all but the categorical ones."""
        return self.name not in _LISTED

    @property
    def logarithmic(self) -> bool:
        """Whether it is even on a logarithmic axis."""
        return "log" in self.name

    def _values(self) -> list[Any]:
        return [self.options["value"]] if self.name == "constant" else list(self.options["values"])

    def _edges(self) -> list[float]:
        """Returns where the values' intervals of quantiles begin, and the end of the last."""
        values = self._values()
        if self.name == "categorical_w_probabilities":
            edges = [0.0, *accumulate(float(p) for p in self.options["probabilities"])]
            return [edge / edges[-1] for edge in edges]
        return [index / len(values) for index in range(len(values) + 1)]

    def _step(self) -> float | None:
        step: float | None = self.options.get("q")
        return step

    def _law(self) -> Any:
        """Returns the distribution, before steps, as SciPy has it."""
        from scipy import stats

        o = self.options
        match self.name.removeprefix("q_"):
            case "int_uniform":
                return stats.randint(o["min"], o["max"] + 1)
            case "uniform":
                return stats.uniform(o["min"], o["max"] - o["min"])
            case "log_uniform":
                return stats.loguniform(math.exp(o["min"]), math.exp(o["max"]))
            # 1 / x is log-uniform where x is, so that the bounds are all that differs.
            case "log_uniform_values" | "inv_log_uniform_values":
                return stats.loguniform(o["min"], o["max"])
            case "inv_log_uniform":
                return stats.loguniform(math.exp(-o["max"]), math.exp(-o["min"]))
            case "normal":
                return stats.norm(o["mu"], o["sigma"])
            case "log_normal":
                return stats.lognorm(o["sigma"], scale=math.exp(o["mu"]))
            case "beta":
                return stats.beta(o["a"], o["b"])
        raise AssertionError(self.name)


def parse(name: str, entry: object) -> Distribution:
    """Returns the distribution of one parameter of a sweep file.

    Without ``distribution`` it follows from the keys, as with W&B: ``value`` is a constant,
    ``values`` are categorical, whole bounds are ``int_uniform`` and other bounds ``uniform``.

    Args:
        name: of the parameter, for messages.
        entry: what the file says of it.

    Raises:
        UsageError: naming the parameter, what is wrong and the remedy.

    Example:
        >>> parse("depth", {"min": 1, "max": 3}).name
        'int_uniform'
    """
    at = f"parameters.{name}"
    if not isinstance(entry, dict):
        raise UsageError(f"{at} is {entry!r}; write a mapping, such as {{value: {entry!r}}}")
    if "parameters" in entry:
        raise UsageError(
            f"{at} holds parameters of its own, which would reach the command as one text; "
            f"write flat names with dots, such as {name}.{next(iter(entry['parameters'] or 'x'))}"
        )
    kind = entry.get("distribution", _inferred(entry))
    if kind is None:
        raise UsageError(f"{at} has no distribution; give it value, values, or min and max")
    if not isinstance(kind, str) or kind not in _KEYS:
        close = get_close_matches(str(kind), _KEYS, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(_KEYS)}"
        raise UsageError(f"{at}: there is no distribution {kind!r}; {remedy}")
    required, optional = _KEYS[kind]
    options = {key: value for key, value in entry.items() if key != "distribution"}
    for key in options:
        if key not in required and key not in optional:
            known = ", ".join((*required, *optional))
            raise UsageError(f"{at}: {kind} takes no {key!r}; it takes {known}")
    for key in required:
        if key not in options:
            raise UsageError(f"{at}: {kind} needs {key}; add it")
    options = {**optional, **options}
    if kind in _LISTED:
        _check_values(at, kind, options)
    else:
        _check_numbers(at, kind, options)
    return Distribution(kind, options)


def _inferred(entry: dict[str, Any]) -> str | None:
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical_w_probabilities" if "probabilities" in entry else "categorical"
    if "min" in entry and "max" in entry:
        whole = all(isinstance(entry[key], int) for key in _BOUNDS)
        return "int_uniform" if whole else "uniform"
    return None


def _check_values(at: str, kind: str, options: dict[str, Any]) -> None:
    if kind == "constant":
        _check_plain(f"{at}.value", options["value"])
        return
    values = options["values"]
    if not isinstance(values, list) or not values:
        raise UsageError(f"{at}.values is {values!r}; list at least one value")
    for value in values:
        _check_plain(f"{at}.values", value)
    seen = [repr(value) for value in values]
    for value in seen:
        if seen.count(value) > 1:
            raise UsageError(
                f"{at}.values lists {value} twice; list it once (to have it more often, use "
                "categorical_w_probabilities)"
            )
    if kind == "categorical":
        return
    probabilities = options["probabilities"]
    if not isinstance(probabilities, list) or len(probabilities) != len(values):
        found = len(probabilities) if isinstance(probabilities, list) else "no"
        raise UsageError(f"{at} has {len(values)} values and {found} probabilities; give one each")
    for probability in probabilities:
        if _number(f"{at}.probabilities", probability) < 0:
            raise UsageError(f"{at}.probabilities has {probability}; give none below 0")
    total = math.fsum(probabilities)
    if not math.isclose(total, 1, rel_tol=1e-5):
        raise UsageError(f"{at}.probabilities sum to {total:g}; they must sum to 1")


def _check_numbers(at: str, kind: str, options: dict[str, Any]) -> None:
    for key, value in options.items():
        _number(f"{at}.{key}", value)
        if kind == "int_uniform" and not isinstance(value, int):
            raise UsageError(f"{at}.{key} is {value}; int_uniform takes whole numbers")
        if key in ("q", "sigma", "a", "b") and value <= 0:
            raise UsageError(f"{at}.{key} is {value}; it must be above 0")
        if key == "mu" and "log" in kind and abs(value) > _LARGEST_EXPONENT:
            raise UsageError(f"{at}.mu is {value}, an exponent of e; give one nearer to 0")
    if "min" not in options:
        return
    low, high = options["min"], options["max"]
    if low > high:
        raise UsageError(f"{at}: min {low} is above max {high}; exchange them")
    if low == high:
        raise UsageError(f"{at}: min and max are both {low}; write value: {low}")
    if kind.endswith("log_uniform_values") and low <= 0:
        raise UsageError(f"{at}.min is {low}; {kind} needs a bound above 0")
    if kind.endswith("log_uniform") and max(abs(low), abs(high)) > _LARGEST_EXPONENT:
        raise UsageError(
            f"{at}: {kind} takes exponents of e, and {low} to {high} is too far; "
            f"for bounds on the value itself use {kind}_values"
        )


def _check_plain(at: str, value: object) -> None:
    """Refuses what a journal in JSON cannot hold: dates, infinities."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise UsageError(f"{at} has {value}; give finite numbers, or texts in quotes") from None


def _number(at: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise UsageError(f"{at} is {value!r}; give a number") from None
        # YAML 1.1 reads 1e-4 as text.
        raise UsageError(f"{at} is the text {value!r}; write a number, such as {_dotted(number)}")
    raise UsageError(f"{at} is {value!r}; give a finite number")


def _dotted(number: float) -> str:
    text = repr(number)
    mantissa, exponent_sign, exponent = text.partition("e")
    return text if "." in mantissa else f"{mantissa}.0{exponent_sign}{exponent}"
