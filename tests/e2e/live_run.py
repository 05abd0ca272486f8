"""A stand-in for a training: the actor of its coefficients on a Ray cluster, and steps when it is told to.

It reads lines from its standard input: ``begin 3``, ``update 3 0.25``; and answers each with a line.
"""

import sys

import ray

from aent_verl.plugin import coefficients
from tests.unit.plugin.test_coefficients import settings


def main(address: str, name: str, job: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    control = settings()
    about = {"run": name, "project": "tests", "folder": f"/runs/{job}", "node": "here", "method": control.method}
    about |= {"functional": str(control.functional), "trainer_mode": "aent_sync", "total_steps": 40}
    actor = coefficients.start(control, control.controllers, about)
    print(ray.get(actor.status.remote())["job"], flush=True)
    for line in sys.stdin:
        what, step, *entropy = line.split()
        if what == "begin":
            ray.get(actor.begin.remote(int(step)))
        else:
            entropies = {"bonus": float(entropy[0]), "advantages": float(entropy[0])}
            ray.get(actor.update.remote(entropies, step=int(step)))
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
