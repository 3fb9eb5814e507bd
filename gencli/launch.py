"""Which of several processes this one is, as the launcher's environment says: torchrun, accelerate launch, mpirun."""

from __future__ import annotations

import os
from dataclasses import dataclass

from gencli.errors import GencliError

RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
ASKED = ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT")  # accelerate sets them together for more than one


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process speaks and writes."""
        return self.rank == 0


def launched() -> World:
    """What the launcher said; one process without a launcher.

    Raises:
        GencliError: several processes were asked for and one was started, as accelerate does on a CPU without mpirun.
    """
    size = next((int(os.environ[key]) for key in SIZES if os.environ.get(key, "").isdigit()), 0)
    if not size and all(key in os.environ for key in ASKED):
        raise GencliError(
            "accelerate was asked for several processes and started one: on a CPU it needs mpirun for more",
            "torchrun --nproc-per-node N -m gencli …, or accelerate launch --multi_gpu --num_processes N -m gencli …",
        )
    if size < 2:
        return World()
    return World(next((int(os.environ[key]) for key in RANKS if os.environ.get(key, "").isdigit()), 0), size)
