"""Clusters of real Ray nodes on this machine: a raylet each, which share its address and its files.

``python -m tests.e2e.raylets GPUS...`` holds one until its standard input ends, as when whoever started it has died.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.stack import ENVIRONMENT, end, free_port

REPOSITORY = Path(__file__).parents[2]
SECONDS = 120
# A rank and a vLLM server on each of two nodes; ranks of one node would share it.
TWO_NODES = ("trainer.nnodes=2", "trainer.n_gpus_per_node=1")
CPU_SLOTS = 8
STORE_BYTES = 200 * 2**20
ASK = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps([sum(node["Alive"] for node in ray.nodes()), ray.available_resources().get("GPU", 0)]))
"""


@dataclass
class Raylets:
    """A cluster.

    Attributes:
        address: of its head, which has CPU slots alone.
        dashboard: where it takes jobs.
        nodes: how many it has, the head included.
        environment: what processes need that join it.
    """

    address: str
    dashboard: str
    nodes: int
    environment: dict[str, str]

    def ask(self) -> tuple[int, float]:
        """Return how many nodes are alive, and how many logical accelerators are free."""
        done = subprocess.run(
            [sys.executable, "-c", ASK, self.address],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        nodes, gpus = json.loads(done.stdout.splitlines()[-1])
        return nodes, gpus

    def wait(self, gpus: float = 0) -> None:
        """Wait until as many nodes are alive as there should be, and so many logical accelerators are free.

        Those of a run are free once its actors have ended, which they do some time after their driver.
        """
        deadline = time.monotonic() + SECONDS
        while (found := self.ask())[0] != self.nodes or found[1] < gpus:
            assert time.monotonic() < deadline, f"nodes and free accelerators: {found}, not {(self.nodes, gpus)}"
            time.sleep(0.5)

    @contextmanager
    def one_more(self, name: str, *prefix: str, gpus: int = 1, **variables: str) -> Iterator[None]:
        """Add a node for a while: ``ray start``, with these variables and through the command ``prefix``, if any."""
        # No port that another node has: with one machine's address they would meet.
        command = [
            *(*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={self.address}"),
            *(f"--node-name={name}", f"--num-cpus={CPU_SLOTS}", f"--num-gpus={gpus}", "--min-worker-port=0"),
            *("--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"),
            *(f"--resources={json.dumps({'aent_cpu_platform': gpus})}", f"--object-store-memory={STORE_BYTES}"),
        ]
        with open(Path(self.environment["RAY_TMPDIR"], f"{name}.log"), "wb") as log:
            environment = os.environ | self.environment | variables
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.nodes += 1
        try:
            self.wait()
            yield
        finally:
            self.nodes -= 1
            end(process)
            self.wait()


@contextmanager
def cluster(*gpus: int) -> Iterator[Raylets]:
    """Start a head without accelerators, and one more node for each number in ``gpus``, with so many logical ones."""
    # Sockets lie in it: pytest's own folders have too long a path. Ray also notes there which cluster was started.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.raylets", *map(str, gpus)],
        # Workers have the environment of their node, not that of their driver.
        env=os.environ | environment,
        # Not the repository: Ray puts the folder of whoever starts a node on the path of its workers.
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        address, dashboard = json.loads(process.stdout.readline())
        yield Raylets(address, dashboard, 1 + len(gpus), {**environment, "RAY_ADDRESS": address})
    finally:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def hold(gpus: Sequence[int]) -> None:
    from ray.cluster_utils import Cluster

    def node(name: str, gpus: int) -> dict[str, object]:
        return {
            "node_name": name,
            "num_cpus": CPU_SLOTS,
            "num_gpus": gpus,
            "resources": {"aent_cpu_platform": gpus} if gpus else {},
            "object_store_memory": STORE_BYTES,
            "dashboard_agent_listen_port": free_port(),
        }

    dashboard = free_port()
    head = {"include_dashboard": True, "dashboard_port": dashboard}
    nodes = Cluster(initialize_head=True, head_node_args=node("head", 0) | head)
    try:
        for number, each in enumerate(gpus, start=1):
            nodes.add_node(**node(f"worker-{number}", each))
        print(json.dumps([nodes.address, f"http://127.0.0.1:{dashboard}"]), flush=True)
        sys.stdin.read()
    finally:
        nodes.shutdown()


if __name__ == "__main__":
    hold([int(text) for text in sys.argv[1:]])
