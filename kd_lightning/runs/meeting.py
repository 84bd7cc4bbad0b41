"""Where processes that another program started meet: a store, and what Lightning asks of them."""

import os
from datetime import timedelta

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import (
    LightningEnvironment as LightningEnvironment,
)
from torch.distributed import (
    DistNetworkError,
    DistStoreError,
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)

from kd_lightning.runs.ranks import Place, Ranks, found_in
from kd_lightning.utils.errors import UserError

PATIENCE = timedelta(minutes=10)  # for the processes of all nodes to start
MOMENT = timedelta(seconds=10)  # for a failure of the first process, if it has the same reason


class Meeting:
    """Values by name, which the first process sets and all of them read.

    Args:
        place: of this process.

    Raises:
        UserError: if the first process cannot be reached.
    """

    def __init__(self, place: Place) -> None:
        # torchrun's agent has a store of its own on the port.
        by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        is_host = place.rank == 0 and not by_agent
        # The host waits for all, or one that starts later would look for it in vain if it fails.
        size = None if by_agent else place.size
        try:
            store = TCPStore(place.address, place.port, size, is_host, PATIENCE, not by_agent)
        except DistNetworkError as error:
            raise UserError(
                f"the first process, at {place.address}:{place.port}, was not found: set "
                "MASTER_ADDR and MASTER_PORT to its host and a free port there"
            ) from error
        self.store = PrefixStore("kd_lightning", store)

    def set_once(self, name: str, value: str) -> None:
        """Set a value, unless it has one."""
        if not self.store.check([name]):
            self.store.set(name, value)

    def get(self, name: str) -> str:
        """Return a value; wait for the first process, which may train a teacher for days.

        Raises:
            UserError: if it has ended.
        """
        while True:
            try:
                self.store.wait([name], PATIENCE)
            except DistNetworkError as error:
                raise UserError("the first process of the run has ended") from error
            except DistStoreError:  # it is still at work
                continue
            return self.store.get(name).decode()

    def is_set_soon(self, name: str) -> bool:
        """Whether a value is set within a moment, or the first process has ended."""
        try:
            self.store.wait([name], MOMENT)
        except DistNetworkError:
            return True
        except DistStoreError:
            return False
        return True


class Started(ClusterEnvironment):
    """Tells Lightning the place of a process that another program started."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        assert ranks.place is not None
        self.ranks, self.place = ranks, ranks.place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.place.address

    @property
    def main_port(self) -> int:
        return self.ranks.next_port()  # read once for each process group

    @staticmethod
    def detect() -> bool:
        return found_in(os.environ).place is not None

    def world_size(self) -> int:
        return self.place.size

    def global_rank(self) -> int:
        return self.place.rank

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node

    def set_world_size(self, size: int) -> None:
        """Do nothing: :meth:`Ranks.check` has compared the size."""

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the rank is given."""
