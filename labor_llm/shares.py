"""What each of several devices has of the careers that they train on or score together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labor_llm.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """The part of one device among several."""

    device: int = 0
    devices: int = 1

    def of(self, careers: NDArray[np.int64]) -> NDArray[np.int64]:
        """One career in as many as there are devices; a ConfigError if some device would have none."""
        self._check(len(careers))
        return careers[self.device :: self.devices]

    def even(self, careers: int) -> int:
        """As many of so many careers as all devices can have equal parts of; a ConfigError if that is none."""
        self._check(careers)
        return careers // self.devices * self.devices

    def _check(self, careers: int) -> None:
        if careers < self.devices:
            raise ConfigError(
                f"trainer.devices times trainer.nodes is {self.devices}, but there are {careers} careers to share "
                "among them: in an optimizer step (trainer.batch_size), for validation, or at all. Use fewer."
            )


WHOLE = Share()
"""All there is, for the only device."""
