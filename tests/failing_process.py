"""A command of two processes, of which one fails: started by torchrun in a test."""

import os
import signal
import sys
from typing import Any

from labor_llm import __main__ as command_line
from labor_llm.errors import RunError
from labor_llm.processes import joined


def fail(_: Any) -> None:
    """The process of that rank fails while the other waits for it."""
    import torch

    rank, way = os.environ["FAILS"].split()
    with joined(2, 1, on_gpu=False) as processes:
        if processes.rank != int(rank):
            torch.distributed.all_reduce(torch.zeros(1))
        elif way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RunError("the model mixes careers")


if __name__ == "__main__":
    command_line.VERBS["run"] = "failing_process:fail"
    sys.exit(command_line.main())
