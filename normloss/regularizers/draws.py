"""Random draws of a method: identical on all processes and independent of the caller's generators."""

from typing import Any

import torch


class Draws:
    """A generator for each device, started from `seed`; None: torch's default generators, as in version 0.1.0."""

    def __init__(self, seed: int | None) -> None:
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Return the generator for functions of torch that draw on this device; None: torch's default."""
        if self.seed is None:
            return None
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each generator by its device; a method without its own has none."""
        return {str(device): generator.get_state() for device, generator in self.generators.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.seed is not None:  # else torch's generators, which the caller restores
            self.generators = {torch.device(d): torch.Generator(d) for d in state}
            for device, drawn in state.items():
                self.generators[torch.device(device)].set_state(drawn)
