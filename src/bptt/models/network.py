"""The plainest network that reads a sequence: recurrent layers, and a linear readout at each step."""

from typing import Any

from torch import Tensor, nn

from bptt.models.layers import State, layers_of, zeros


class Network(nn.Module):
    """Recurrent layers and a linear readout, such as for the tasks of `bptt.data.tasks`.

        h_t = cell(x_t, h_{t-1}),  o_t = V h_t + b                                             (1)

    Arguments:
        inputs, outputs: numbers per step. hidden: units of a layer. layers: layers on top of each other.
        cell: "rnn", "gru" or "lstm", on the kernels of `bptt.nn`.

    Call: (T, B, inputs), state -> (T, B, outputs), state; resets and weights of boundaries are taken into the call.
    Raises ValueError for a cell that doesn't exist.

    >>> import bptt
    >>> from bptt.data.tasks import DelayedCopy
    >>> task = DelayedCopy(delay=3)
    >>> model = Network(task.inputs, 8, task.outputs, "gru")
    >>> stream = [next(task.stream(batch=2, length=20))]
    >>> [update.t1 for update in bptt.unroll(model, task.loss, stream, strategy=bptt.TruncatedBPTT(10))]
    [10, 20]
    """

    state_batch_dim = 1

    def __init__(self, inputs: int, hidden: int, outputs: int, cell: str = "lstm", layers: int = 1) -> None:
        super().__init__()
        self.recurrent = layers_of(cell, inputs, hidden, layers)
        self.decoder = nn.Linear(hidden, outputs)

    def zero_state(self, inputs: Tensor) -> State:
        """Where a sequence starts: zeros, for as many rows as `inputs` (T, B, ...) have."""
        return zeros(self.recurrent, inputs.shape[1])

    def forward(
        self,
        inputs: Tensor,
        state: State | None = None,
        is_start: Tensor | None = None,
        cotangent_weight: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Outputs (T, B, outputs), and the state."""
        hidden, last = self.recurrent(inputs, state, is_start=is_start, cotangent_weight=cotangent_weight)
        return self.decoder(hidden), last
