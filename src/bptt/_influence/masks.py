"""Which entries of J are kept: SnAp's patterns."""

from typing import Any

import torch
from torch import Tensor

COLUMNS = 1024
"""Of so many at once, so that what is compared takes little memory."""


class Masks:
    """M = pattern((1 + S)^(order-1) M_1), S the pattern of ∂s_t/∂s_{t-1}, M_1 that of ∂F_t/∂θ, parameter by parameter.

    The patterns are the same for all rows. They are first found from random states and inputs, and grow as steps show
    more: where a relu was off, or a row of a table wasn't used.
    """

    DRAWS = 16
    """How many random states and inputs: each relu that is off in one of them must be on in another."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.reaches: Tensor | None = None
        self.writes: list[Tensor | None] = []
        self._masks: list[Tensor | None] = []

    def include(self) -> None:
        """Another parameter."""
        self.writes.append(None)
        self._masks.append(None)

    def see(self, of_state: Tensor, of_theta: list[Tensor | None]) -> None:
        """Add to the patterns what isn't zero in some rows: (g, size, size), and (g, size, numbers) by parameter."""
        reaches = torch.zeros_like(of_state[0], dtype=torch.bool) if self.reaches is None else self.reaches
        self.reaches = reaches
        if _grown(reaches, of_state):
            self._masks = [None] * len(self._masks)
        for i, new in enumerate(of_theta):
            if new is not None:
                written = self.writes[i]
                if written is None:
                    written = self.writes[i] = torch.zeros_like(new[0], dtype=torch.bool)
                if _grown(written, new):
                    self._masks[i] = None

    def keep(self, i: int, jacobian: Tensor) -> None:
        """Set J (g, size, numbers) of a parameter to zero where M has no entry."""
        dropped = self._dropped(i)
        if dropped is None:
            jacobian.zero_()
        else:
            jacobian.masked_fill_(dropped, 0)

    def _dropped(self, i: int) -> Tensor | None:
        written = self.writes[i]
        if written is None or self.reaches is None:
            return None
        found = self._masks[i]
        if found is None:
            step = self.reaches.to(written.device).float()
            found = torch.cat([self._spread(part, step) for part in written.split(COLUMNS, 1)], 1)
            self._masks[i] = found
        return found

    def _spread(self, written: Tensor, step: Tensor) -> Tensor:
        """Where some columns of M have nothing."""
        reached = written.float()
        for _ in range(self.order - 1):
            more = ((reached + step @ reached) > 0).float()
            if torch.equal(more, reached):
                break
            reached = more
        return reached == 0

    def parts(self, names: list[str]) -> dict[str, Any]:
        """The patterns, those of parameters by name."""
        pairs = zip(names, self.writes, strict=True)
        writes = {name: written.clone() for name, written in pairs if written is not None}
        return {"writes": writes, "reaches": None if self.reaches is None else self.reaches.clone()}

    def take(self, parts: dict[str, Any], places: list[tuple[str, torch.device]], device: Any) -> None:
        """The inverse of `parts`, for parameters of these names on these devices."""
        saved, reaches = parts["writes"], parts["reaches"]
        self.writes = [saved[name].to(at, copy=True) if name in saved else None for name, at in places]
        self._masks = [None] * len(places)
        self.reaches = None if reaches is None else reaches.to(device, copy=True)


def _grown(pattern: Tensor, values: Tensor) -> bool:
    """Add the places of nonzero entries to a pattern; return whether any is new. Infinite derivatives don't count."""
    grown = pattern.new_zeros(())
    for known, part in zip(pattern.split(COLUMNS, 1), values.split(COLUMNS, 2), strict=True):
        new = ((part != 0) & part.isfinite()).any(0) & ~known
        known |= new
        grown |= new.any()
    return bool(grown)
