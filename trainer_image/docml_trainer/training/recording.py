"""The work of a model's layers as CUDA graphs: recorded once for a few numbers of tokens, then replayed.

A fast GPU is done with a step before the processor has named its thousand kernels one by one. A replay names all of a pass at once. What
lies before and after the layers stays as it is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# Recordings, and the share of one's size that the next smaller has: a step computes a tenth too much on average.
SIZES, SHRINK = 10, 0.8
MULTIPLE = 64  # tokens: matrix products are slow at odd lengths
WARM_UP = 3  # passes before one is recorded: compilers and libraries choose their kernels in them

Layers = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Recording:
    """One pass forth and one back over so many tokens, with the memory that they read and write."""

    tokens: torch.Tensor  # [1, size, width]
    bounds: torch.Tensor  # int32[documents]
    states: torch.Tensor
    forth: torch.cuda.CUDAGraph
    states_gradient: torch.Tensor
    tokens_gradient: torch.Tensor
    back: torch.cuda.CUDAGraph


class Recordings:
    """The layers' work on at most `documents` documents of at most `longest` tokens, replayed where there is a recording.

    layers: (tokens [1, size, width], ends of documents int32[bounds]) -> states like the tokens. parameters: of the layers. Their gradients
    are added up by the recordings themselves, in memory that does not move.
    """

    def __init__(
        self, layers: Layers, parameters: Iterable[torch.nn.Parameter], *, documents: int, longest: int
    ) -> None:
        self.layers = layers
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.documents = documents + 1  # a micro-batch may hold one more, rather than one alone
        self.sizes = sizes(documents * longest)
        filling = max(-step for step in np.diff([*self.sizes, 0]))
        self.bounds = self.documents + -(-filling // longest) + 1
        self.recorded: dict[int, Recording] = {}
        self.pool: Any = None

    def size_for(self, tokens: int, documents: int) -> int | None:
        """The smallest size that takes so many; None if there are more than were foreseen."""
        fitting = [size for size in self.sizes if size >= tokens]
        return min(fitting, default=None) if documents <= self.documents else None

    def take(self, tokens: torch.Tensor, bounds: torch.Tensor) -> bool:
        """Whether these can be replayed."""
        return tokens.shape[1] in self.sizes and len(bounds) == self.bounds

    def __call__(self, tokens: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """The layers' states. The first time all sizes are recorded."""
        if not self.recorded:
            self.recorded = {size: self.record(tokens.detach()[:, :1].expand(-1, size, -1)) for size in self.sizes}
        if not tokens.requires_grad:  # embeddings that are not trained: the layers' own gradients are wanted anyway
            tokens = tokens.detach().requires_grad_()
        self.keep_gradients()
        states: torch.Tensor = _Replay.apply(tokens, bounds, self.recorded[tokens.shape[1]])
        return states

    def keep_gradients(self) -> None:
        """Let the parameters' gradients be those that the recordings add to, whoever has set them anew."""
        moved = [pair for pair in zip(self.parameters, self.gradients, strict=True) if pair[0].grad is not pair[1]]
        cleared = [gradient for parameter, gradient in moved if parameter.grad is None]
        if cleared:
            torch._foreach_zero_(cleared)
        for parameter, gradient in moved:
            if parameter.grad is not None:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient

    def record(self, like: torch.Tensor) -> Recording:
        """A recording over tokens like these, whatever they and the bounds are."""
        tokens = torch.zeros_like(like, memory_format=torch.contiguous_format).requires_grad_()
        bounds = torch.linspace(0, like.shape[1], self.bounds, device=like.device).to(torch.int32)
        inputs = [tokens, *self.parameters]

        def pass_back(states: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
            first, *rest = torch.autograd.grad(states, inputs, gradient)
            torch._foreach_add_(self.gradients, rest)
            return first

        self.keep_gradients()
        kept = [gradient.clone() for gradient in self.gradients]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                states = self.layers(tokens, bounds)
                pass_back(states, torch.zeros_like(states))
        torch.cuda.current_stream().wait_stream(stream)
        del states
        forth, back = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # The thread that collates goes on allocating pinned memory meanwhile.
        with torch.cuda.graph(forth, pool=self.pool, capture_error_mode="thread_local"):
            states = self.layers(tokens, bounds)
        self.pool = forth.pool()  # one for all: of two sizes never both are under way
        gradient = torch.zeros_like(states)
        with torch.cuda.graph(back, pool=self.pool, capture_error_mode="thread_local"):
            tokens_gradient = pass_back(states, gradient)
        torch._foreach_copy_(self.gradients, kept)
        return Recording(tokens, bounds, states.detach(), forth, gradient, tokens_gradient, back)


class _Replay(torch.autograd.Function):
    """A recording's passes, as autograd sees them."""

    @staticmethod
    def forward(context: Any, tokens: torch.Tensor, bounds: torch.Tensor, recording: Recording) -> torch.Tensor:
        context.recording = recording
        with torch.no_grad():
            recording.tokens.copy_(tokens)
            recording.bounds.copy_(bounds)
        recording.forth.replay()
        return recording.states.detach()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        recording = context.recording
        recording.states_gradient.copy_(gradients[0])
        recording.back.replay()
        return recording.tokens_gradient.detach(), None, None


def sizes(largest: int) -> list[int]:
    """Numbers of tokens that are recorded, the largest first."""
    wanted = (largest * SHRINK**index for index in range(SIZES))
    return sorted({-(-int(size) // MULTIPLE) * MULTIPLE for size in wanted}, reverse=True)
