"""Several families of tasks in one stream, to learn one update rule on."""

from __future__ import annotations

import inspect
from functools import partial
from itertools import chain, zip_longest
from typing import Any

from torch.utils.data import DataLoader

from lightning_evolve.data.checks import at_least
from lightning_evolve.errors import UsageError
from lightning_evolve.streams.held_out_classes import HeldOutClassesStream
from lightning_evolve.streams.loaders import EvaluationTasks
from lightning_evolve.streams.shared_out import SharedOut
from lightning_evolve.tasks import DataSpec, Task

# What is the mixture's to say, for all of its streams.
_OWN = ("tasks_per_step", "steps_per_epoch", "seed", "num_workers")


class MixtureStream(SharedOut):
    """Task ``i`` of the training belongs to family ``i mod n`` of the n families.

    It is task ``i`` of that family's own stream, so that two families on the same data never play
    the same one. Where ``tasks_per_step`` is a multiple of n, every outer step has as many tasks of
    each family. Validation and test have the tasks of all families, in turns.

    Args:
        streams: the stream of each family, by the family's name; of each family as many tasks as
            its stream says are validated and tested on.
        tasks_per_step: tasks of an outer step, over all families and ranks.
        steps_per_epoch: outer steps of an epoch.
        seed: what decides which tasks are drawn, and in which order.
        num_workers: processes that prepare batches ahead of the training.

    Attributes:
        streams: as given.

    Raises:
        UsageError: fewer than two families, a name that cannot be logged, or an option of a stream
            that the mixture would not heed.
    """

    def __init__(
        self,
        streams: dict[str, HeldOutClassesStream],
        tasks_per_step: int = 4,
        steps_per_epoch: int = 100,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(tasks_per_step, seed, num_workers)
        at_least(1, steps_per_epoch=steps_per_epoch)
        if len(streams) < 2:
            raise UsageError(
                f"streams has {len(streams)} families: give two or more, or use the stream itself"
            )
        for family, stream in streams.items():
            if not family.isidentifier():
                raise UsageError(
                    f"streams: a family is called {family!r}; use letters, digits and _ alone"
                )
            for option in _OWN:
                value = getattr(stream, option)
                if value != _default(type(stream), option):
                    raise UsageError(
                        f"streams.{family}: {option} is {value}, which the mixture says for all "
                        f"families; leave it out there and give --data.{option}"
                    )
            stream.seed = seed
        self.streams = streams
        self.steps_per_epoch = steps_per_epoch

    def prepare_data(self) -> None:
        """Fill the cache on one rank, so that the others find all of it there."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read and encode the data of all families; does nothing the second time.

        Args:
            stage: which part of the trainer asks.

        Raises:
            UsageError: what is wrong with a source.
        """
        for stream in self.streams.values():
            stream.setup(stage)
        families = {family: stream.spec for family, stream in self.streams.items()}
        self.spec = DataSpec(max(s.num_classes for s in families.values()), families=families)
        self._training = partial(_in_turns, self.streams)

    def tasks(self, family: str, split: str, count: int, offset: int = 0) -> list[Task]:
        """Tasks of a family, in the order and with the indices that its own stream gives them.

        Args:
            family: its name.
            split: ``"train"``, ``"validation"`` or ``"test"``.
            count: how many.
            offset: index of the first one.
        """
        drawn = self.streams[family].tasks(split, count, offset)
        return [task._replace(family=family) for task in drawn]

    def train_dataloader(self) -> DataLoader[list[Task]]:
        """This rank's tasks of one outer step a batch."""
        return self._training_loader(self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader[list[Task]]:
        """Tasks of the validation classes of all families, one a batch."""
        return self._evaluation_of("validation", 0)

    def test_dataloader(self) -> DataLoader[list[Task]]:
        """Tasks of the test classes of all families, one a batch."""
        return self._evaluation_of("test", 1)

    def predict_dataloader(self) -> Any:
        """There is none.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "a MixtureStream is there to learn a rule on and has no rows to predict; use the rule "
            "in a run on your data"
        )

    def _evaluation_of(self, split: str, place: int) -> DataLoader[list[Task]]:
        counts = [range(stream.evaluated[place]) for stream in self.streams.values()]
        # In turns, so that a limited evaluation has something of each family too.
        order = [
            (family, index)
            for row in zip_longest(*counts)
            for family, index in zip(self.streams, row, strict=True)
            if index is not None
        ]

        rank, world = self._ranks()
        task = partial(_held_out, self.streams, split, order)
        return self._evaluation_loader(EvaluationTasks(task, len(order), rank, world))


# Not methods: a worker that is spawned gets a copy, and the trainer cannot be copied.


def _in_turns(streams: dict[str, HeldOutClassesStream], index: int) -> Task:
    """The training task of a global index."""
    family = list(streams)[index % len(streams)]
    return streams[family].training_task(index)._replace(family=family)


def _held_out(
    streams: dict[str, HeldOutClassesStream], split: str, order: list[tuple[str, int]], number: int
) -> Task:
    """The task of a place in the order of families and indices."""
    family, index = order[number]
    return streams[family].tasks(split, 1, index)[0]._replace(family=family)


def _default(cls: type, option: str) -> Any:
    """What an option is where nobody gives it, for a class that may leave it to the one above."""
    parameters = chain(*(inspect.signature(c).parameters.items() for c in cls.__mro__[:-1]))
    return next(p.default for name, p in parameters if name == option and p.default is not p.empty)
