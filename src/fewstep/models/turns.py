"""Networks that take turns on a GPU that has no room for all of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

CPU = torch.device("cpu")


class Turns:
    """One group of networks is on the device. The others wait in the computer's memory."""

    def __init__(self, device: torch.device, groups: Mapping[str, Sequence[nn.Module]]) -> None:
        """groups: by name. All are on the CPU now."""
        self.device, self._groups = device, groups
        self._there: str | None = None

    def take(self, name: str) -> None:
        """Bring this group to the device, after another has made room."""
        if name == self._there:
            return
        if self._there is not None:
            self._move(self._there, CPU)
        self._there = None  # in case there is no room for the next
        self._move(name, self.device)
        self._there = name

    def _move(self, name: str, device: torch.device) -> None:
        for network in self._groups[name]:
            network.to(device)
