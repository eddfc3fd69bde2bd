"""Starts a real Slurm with two simulated nodes on this machine: loopback only, no systemd, no
database."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue", "sinfo", "scancel")
NODES = ("n0", "n1")
SETTINGS = """\
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
KillWait=2
MinJobAge=3600
NodeName=n0 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17001 CPUs=2
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17002 CPUs=2
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=3
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""  # noqa: E501  (Slurm wants a partition on one line)
# submitit asks sacct for the states of jobs. Without a database only squeue knows them.
SACCT = '#!/bin/sh\necho "JobID|State|NodeList"; exec squeue -h -t all -o "%i|%T|%N"\n'


def missing() -> list[str]:
    """The required programs that are not installed."""
    return [name for name in NEEDED if shutil.which(name) is None]


class Lab:
    """A running Slurm cluster. `environment` has the variables that its clients need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("state", "spool.n0", "spool.n1", "bin"):
            (folder / name).mkdir(parents=True)
        (folder / "slurm.conf").write_text(SETTINGS.format(folder=folder))
        (folder / "bin/sacct").write_text(SACCT)
        (folder / "bin/sacct").chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
        }

    def start(self) -> None:
        """Start the daemons, and wait until both nodes are idle."""
        names = ("key-file=munge.key", "socket=munge.socket", "pid-file=munged.pid",
                 "log-file=munged.log", "seed-file=munged.seed")  # fmt: skip
        arguments = [f"--{a}={self.folder}/{b}" for a, b in (n.split("=") for n in names)]
        self.call("munged", *arguments)
        self.call("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        self.until(lambda: self.call("sinfo", "-h", "-p", "debug", "-o", "%T%D") == "idle2", 30)

    def start_node(self, node: str) -> None:
        """Start or restart the daemon of a node."""
        self.call("slurmd", "-c", "-N", node)

    def stop(self) -> None:
        """End every job and daemon that was started here."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.call("scancel", "--user=root")
            self.call("scontrol", "shutdown")
            self.call("munged", "--stop", f"--socket={self.folder}/munge.socket")

    def call(self, *command: str) -> str:
        """Run a client or a daemon. Returns its output."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        )
        return done.stdout.strip()

    def jobs(self) -> list[tuple[str, str, str]]:
        """The id, state and node of every array task."""
        lines = self.call("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%N").splitlines()
        return [tuple(line.split("|")) for line in lines]  # type: ignore[misc]

    def lose_node(self, node: str) -> None:
        """Kill the daemon of a node and everything that it runs with SIGKILL, as in a power
        failure."""
        tasks = [pid for pid in _processes() if f"SLURMD_NODENAME={node}" in _environment(pid)]
        steps = {parent(pid) for pid in tasks}
        daemon = int((self.folder / f"slurmd.{node}.pid").read_text())
        steps = {pid for pid in steps if "slurmstepd" in _command(pid)}
        for pid in [daemon, *steps, *tasks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @staticmethod
    def until(true: object, seconds: float) -> None:
        """Wait until a condition is true. Fails after `seconds`."""
        limit = time.monotonic() + seconds
        while not true():  # type: ignore[operator]
            assert time.monotonic() < limit, "timed out"
            time.sleep(0.2)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _environment(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return []


def parent(pid: int) -> int:
    """The id of the parent of a process; 0 if unknown."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text()
    return ""
