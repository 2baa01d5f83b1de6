"""`ray start` for a node that only its own machine may reach: `python -m infra.raynode start ...`.

Ray replaces 127.0.0.1 by the machine's outward address, and then listens on every interface. This keeps it, also for a
second node on the same machine. `tests/infra/test_cluster.py` looks at every socket that results.
"""

import os


def main() -> None:
    # What makes workers and drivers of this node keep the loopback address too. It is read when ray is imported.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    from ray._private import ray_constants, services
    from ray.scripts import scripts

    ray_constants.ENABLE_RAY_CLUSTER = True  # in this process alone, which else refuses a second node
    services.resolve_ip_for_localhost = lambda host: host
    scripts.main()


if __name__ == "__main__":
    main()
