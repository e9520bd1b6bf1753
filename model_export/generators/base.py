"""What the one beam search, the one training loop and the export ask of a generator."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor, nn

from service.core.sid import SidSpec

M = TypeVar("M", bound=nn.Module)

State = Any  # a NamedTuple of tensors, first dimension batch; each generator has its own


class Modules(nn.ModuleList, Generic[M]):
    """nn.ModuleList, with a type that says what it holds."""

    if TYPE_CHECKING:

        def __getitem__(self, place: int) -> M: ...  # type: ignore[override]  # no slices

        def __iter__(self) -> Iterator[M]: ...


class Generator(nn.Module, ABC):
    """Reads a history and scores, level by level, the next code given the codes so far.

    Scores are log-probabilities over the codes of the level, dead or alive, or sums of several such. So the
    score of an item depends neither on the filter nor on the rest of the catalog, and never rises along a
    path: that of a prefix bounds all of its completions.
    """

    spec: SidSpec
    # True: `loss` learns from every position of a window. False: from its last item only, so that the
    # training loop makes one window for each target.
    learns_every_position: bool

    @abstractmethod
    def start(self, history: Tensor) -> State:
        """Read histories of codes [batch, position, level], oldest first, PADDING (-1) on the left."""

    @abstractmethod
    def step(self, level: int, state: State, prefix: Tensor) -> tuple[Tensor, State]:
        """Score the codes of `level` after each prefix.

        prefix [batch, beam] is the codes so far as one integer; at level 0 it is [batch, 1] of zeros.
        Returns log-probabilities [batch, beam, code] in float32, and the state for `reorder`.
        """

    @abstractmethod
    def reorder(self, state: State, parent: Tensor) -> State:
        """Keep, for each new beam, the state of the beam it came from: parent [batch, beam]."""

    @abstractmethod
    def loss(self, window: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats per item of windows [batch, position, level], PADDING on the
        left.
        """
