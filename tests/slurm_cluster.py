"""A real Slurm of two nodes on the loopback interface, from Debian's packages, not installed."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge"),
    *("libmunge2", "libhwloc15", "libnuma1", "liblz4-1"),
)
NODES = ("n1", "n2")

# The CPUs and the memory are declared, not found, so that small machines run several jobs.
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
# A requeued job waits as long as a credential lives, two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """Runs commands as a user of the cluster does.

    Attributes:
        env: environment variables of a shell on the cluster: Slurm's commands and this Python
            are on its PATH.
        folder: contains the logs of the daemons, and what batch jobs print.
    """

    env: dict[str, str]
    folder: Path

    def __call__(
        self, *words: str | Path, text: str | None = None, timeout: float = 300, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, in the clone; keywords set environment variables."""
        return subprocess.run(
            list(map(str, words)),
            cwd=ROOT,
            env={**self.env, **settings},
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def srun(self, *arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run ``srun`` and wait for it."""
        return self("srun", *arguments, **settings)

    def sbatch(self, script: str, *options: str, **settings: str) -> str:
        """Submit the lines of a script, and return the number of the job at once."""
        output = f"--output={self.folder}/%j.out"
        lines = f"#!/bin/bash\n{script}\n"
        done = self("sbatch", "--parsable", output, *options, text=lines, **settings)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def wait(self, job: str, timeout: float = 180) -> dict[str, str]:
        """Wait until a job has ended, and return its fields in ``scontrol show job`` by name."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            facts = self.job(job)
            if facts["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
                return facts
            time.sleep(0.2)
        raise TimeoutError(f"job {job} has not ended:\n{self.output(job)}")

    def job(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says now: JobState, ExitCode, Restarts, …"""
        shown = self("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in shown.stdout.split() if "=" in word)

    def output(self, job: str) -> str:
        """What a batch job has printed, on stdout and stderr."""
        file = self.folder / f"{job}.out"
        return file.read_text() if file.is_file() else ""


def why_not() -> str:
    """Why this machine cannot run the cluster; empty if it can."""
    missing = [name for name in ("apt-get", "dpkg") if shutil.which(name) is None]
    if missing:
        return f"no {' and no '.join(missing)}, with which Slurm's packages are unpacked"
    return "" if os.geteuid() == 0 else "Slurm's daemons run as root only"


def unpacked(folder: Path) -> str:
    """Unpack Slurm's packages into a folder; return why they cannot be had, or nothing."""
    folder.mkdir()
    done = subprocess.run(
        ["apt-get", "download", *PACKAGES], cwd=folder, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        return f"Slurm's packages cannot be had: {done.stderr.strip().splitlines()[-1]}"
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    for daemon in folder.glob("usr/sbin/*-wlm"):
        daemon.with_name(daemon.name.removesuffix("-wlm")).symlink_to(daemon)
    return ""


@contextmanager
def started(root: Path, folder: Path, environment: dict[str, str]) -> Iterator[Slurm]:
    """Start the daemons, with what they write in a folder, and stop them in the end.

    Args:
        root: contains the unpacked packages.
        folder: for configuration, logs and sockets; its path is short, because of the sockets.
        environment: of the commands.
    """
    (plugins,) = root.glob("usr/lib/*/slurm-wlm")
    _configure(folder, plugins)
    path = [f"{root}/usr/bin", str(Path(sys.executable).parent), environment["PATH"]]
    libraries = [str(plugins.parent), str(plugins), environment.get("LD_LIBRARY_PATH", "")]
    env = {
        **environment,
        "PATH": os.pathsep.join(path),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "SLURM_CONF": str(folder / "slurm.conf"),
        "MASTER_ADDR": "127.0.0.1",  # the names of the nodes do not resolve
    }
    slurm = Slurm(env, folder)
    with ExitStack() as stack:
        for name, words in _daemons(root, folder).items():
            stack.enter_context(_daemon(name, words, slurm))
        _await_nodes(slurm)
        try:
            yield slurm
        finally:
            slurm("scancel", "--user=root", "--full")
            _await(lambda: not slurm("squeue", "--noheader").stdout.strip(), 15)


def _configure(folder: Path, plugins: Path) -> None:
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    controller, *ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
        "CPUs=4 RealMemory=64000 State=UNKNOWN"
        for name, port in zip(NODES, ports, strict=True)
    )
    values = {"controller": controller, "folder": folder, "plugins": plugins, "nodes": nodes}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))


def _daemons(root: Path, folder: Path) -> dict[str, list[str]]:
    """The command line of each daemon, in the order in which they start."""
    sbin = root / "usr/sbin"
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    socket_file = f"--socket={folder}/munge.socket"
    return {
        "munged": [f"{sbin}/munged", "--force", "--foreground", socket_file, *munge],
        "slurmctld": [f"{sbin}/slurmctld", "-D"],
        **{n: [f"{sbin}/slurmd", "-D", "-N", n, "-d", f"{sbin}/slurmstepd"] for n in NODES},
    }


@contextmanager
def _daemon(name: str, words: list[str], slurm: Slurm) -> Iterator[None]:
    with (slurm.folder / f"{name}.out").open("w") as out:
        process = subprocess.Popen(words, env=slurm.env, stdout=out, stderr=out)
    try:
        if name == "munged":  # the others need its socket
            _await((slurm.folder / "munge.socket").exists, 10)
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_nodes(slurm: Slurm) -> None:
    def are_idle() -> bool:
        shown = slurm("sinfo", "--noheader", "--Node", "--format=%T")
        return shown.stdout.split() == ["idle"] * len(NODES)

    if not _await(are_idle, 30):
        logs = [file.read_text() for file in sorted(slurm.folder.glob("*.out"))]
        raise TimeoutError("Slurm's nodes do not come up:\n" + "\n".join(logs))


def _await(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (is_so := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return is_so


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
