"""A real Ray cluster of two nodes on the loopback interface."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on 127.0.0.1, not on the machine's own address
    "RAY_AUTH_MODE": "disabled",  # no token in the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}

# Runs until its standard input is closed.
NODES = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
cluster.add_node(num_cpus=2)
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@dataclass(frozen=True)
class RayCluster:
    """Where the cluster listens, and the settings of commands that use it."""

    address: str
    settings: dict[str, str]


@contextmanager
def started(environment: dict[str, str]) -> Iterator[RayCluster]:
    """Start the two nodes, and stop them in the end."""
    # The workers get no more than this from the node; the rest is the preset's to send.
    kept = {name: value for name, value in environment.items() if not name.startswith("KD_")}
    process = subprocess.Popen(
        [sys.executable, "-c", NODES],
        cwd=os.sep,  # not the clone: relative paths are the driver's
        env={**kept, **SETTINGS},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = (line.split() for line in process.stdout)
        address = next(words[1] for words in lines if words[:1] == ["address"])
        yield RayCluster(address, SETTINGS)
    finally:
        process.communicate("", timeout=60)
