"""Checkpoints written straight to their file: Lightning's own way holds a second copy of them in memory."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO


class StraightToFile(TorchCheckpointIO):
    """Writes beside the file and renames, so that a reader never sees half of a checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one tensor after another."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            torch.save(checkpoint, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
