"""The interface of a generator, for the beam search, the training loop and the export."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from service.core.sid import SidSpec

M = TypeVar("M", bound=nn.Module)

State = Any  # a NamedTuple of tensors, first dimension batch; each generator has its own


class Modules(nn.ModuleList, Generic[M]):
    """An nn.ModuleList with the type of its modules."""

    if TYPE_CHECKING:

        def __getitem__(self, place: int) -> M: ...  # type: ignore[override]  # no slices

        def __iter__(self) -> Iterator[M]: ...


class Scorer(Protocol):
    """What scores codes level by level: a generator, or one opinion of it. See Generator for the methods."""

    spec: SidSpec

    def start(self, history: Tensor) -> State:
        """Read histories of codes [batch, position, level]."""

    def step(self, level: int, state: State, prefix: Tensor) -> tuple[Tensor, State]:
        """Score the codes of `level` after each prefix [batch, beam]."""

    def reorder(self, state: State, parent: Tensor) -> State:
        """Give each new beam the state of its parent [batch, beam]."""


class Generator(nn.Module, ABC):
    """A model that reads a history and scores the next code, level by level, given the codes so far.

    Scores are log-probabilities over all codes of the level, dead or alive, or sums of several of these. So
    the score of an item does not depend on the filter or on the rest of the catalog. A score never rises
    along a path, so the score of a prefix bounds the scores of all its completions.
    """

    spec: SidSpec
    # True: `loss` learns from every position of a window. False: it learns from the last item only, and the
    # training loop makes one window for each target.
    learns_every_position: bool

    @abstractmethod
    def start(self, history: Tensor) -> State:
        """Read histories of codes [batch, position, level], oldest first, with PADDING (-1) on the left."""

    @abstractmethod
    def step(self, level: int, state: State, prefix: Tensor) -> tuple[Tensor, State]:
        """Score the codes of `level` after each prefix.

        prefix [batch, beam] holds the codes so far as one integer; at level 0 it is [batch, 1] of zeros.
        Returns log-probabilities [batch, beam, code] in float32, and the state for `reorder`.
        """

    @abstractmethod
    def reorder(self, state: State, parent: Tensor) -> State:
        """Give each new beam the state of its parent. parent [batch, beam] is the index of an old beam."""

    @abstractmethod
    def loss(self, window: Tensor) -> Tensor:
        """The mean negative log-likelihood in nats per item.

        `window`: codes [batch, position, level], with PADDING on the left.
        """
