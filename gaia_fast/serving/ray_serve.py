"""Replicas on Ray Serve: started, watched, replaced where they die; batches go to those that are free."""

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gaia_fast import extras
from gaia_fast.errors import BackendError, first_line
from gaia_fast.evaluation.image_sets import Detector
from gaia_fast.gaia import Gaia
from gaia_fast.serving.errors import ReplicaError
from gaia_fast.serving.replica import Answer, Replica, Scored

NAME = "gaia_fast"  # of the application, and its deployment
_ERROR = re.compile(r"\s*[\w.]*(Error|Exception)\b.*: ")
_STORE = 256 * 2**20  # bytes of a local Ray's object store: a few batches and the model


class Replicas:
    """What was deployed: scores batches, tells how many replicas run."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def score(self, images: Sequence[np.ndarray]) -> list[Answer]:
        """Scores a batch of float32 (3, H, W).

        A batch whose replica dies goes to another one; if that dies, too, each of its images goes alone, so that one
        image that kills replicas takes no other with it. A score depends on the image alone, so nothing is counted
        twice.

        Raises:
            ReplicaError: the replicas failed in another way than by dying.
        """
        for _ in range(2):
            with contextlib.suppress(*_deaths()):
                return await self._once(images)
        return [await self._alone(image) for image in images]

    async def _alone(self, image: np.ndarray) -> Answer:
        try:
            (answer,) = await self._once([image])
        except _deaths() as error:
            return ReplicaError(f"the replica died over this image: {first_line(error)}")
        return answer

    async def _once(self, images: Sequence[np.ndarray]) -> list[Answer]:
        try:
            found: Scored = await self._handle.score.remote(np.stack(images))
        except _deaths():
            raise
        except Exception as error:
            raise ReplicaError(f"the replica failed: {first_line(getattr(error, 'cause', None) or error)}") from error
        return found.answers()

    async def running(self) -> int:
        """How many replicas are ready to score."""
        return await asyncio.to_thread(_running)


@contextlib.contextmanager
def deployed(
    detector: Detector | Gaia,
    example: np.ndarray,
    *,
    replicas: int,
    batches_a_replica: int,
    threads: int,
    cache_dir: Path | None,
    address: str | None,
) -> Iterator[Replicas]:
    """Deploys replicas, yields them once all are ready, and takes them down.

    Args:
        detector, example, threads, cache_dir: as in `Replica`. The detector travels through Ray, with its model.
        replicas, batches_a_replica: as in `app.Service`.
        address: of a running Ray cluster; None starts one on this machine that ends with this process.

    Raises:
        BackendError: Ray is missing, cannot be started or reached, or no replica could be made.
    """
    ray = extras.load("ray", "serve", "gaia-fast serve")
    serve = extras.load("ray.serve", "serve", "gaia-fast serve")

    class RayReplica:
        """Holds a `Replica`, and keeps Ray's event loop free while it works."""

        def __init__(self, held: list[Any]) -> None:
            self._replica = Replica(ray.get(held[0]), example, threads, cache_dir)
            self._one_at_a_time = asyncio.Lock()

        async def score(self, images: np.ndarray) -> Scored:
            async with self._one_at_a_time:
                return await asyncio.to_thread(self._replica.score, images)

        async def check_health(self) -> None:
            async with self._one_at_a_time:
                await asyncio.to_thread(self._replica.check)

    environment = {
        # Of OpenMP: threads that spin while they wait take the processor from the other replicas.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "OMP_NUM_THREADS": str(threads),
        # The module of `--model` may lie in the folder that this process runs in.
        "PYTHONPATH": os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH")))),
    }
    local = address is None
    settings: dict[str, Any] = {"address": address} if address else {
        "address": "local",
        "num_cpus": max(replicas * threads, os.cpu_count() or 1),
        "include_dashboard": False,
        "object_store_memory": _STORE + 2 * _model_bytes(detector),
    }  # fmt: skip
    try:
        ray.init(**settings, namespace="serve", log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise BackendError(
            f"Ray cannot be {'started' if local else f'reached at {address}'}: {first_line(error)}"
        ) from error
    try:
        held = [ray.put(detector)]
        deployment = serve.deployment(RayReplica).options(
            name=NAME,
            num_replicas=replicas,
            max_ongoing_requests=batches_a_replica,
            health_check_period_s=10,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=5,
            max_constructor_retry_count=2,
            ray_actor_options={
                "num_cpus": threads,
                "num_gpus": _gpus(detector, replicas),
                "runtime_env": {"env_vars": environment},
            },
        )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        if local:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        try:
            handle = serve.run(
                deployment.bind(held), name=NAME, route_prefix=None, logging_config={"log_level": "ERROR"}
            )
        except Exception as error:
            raise BackendError(f"no replica could be made: {_why() or first_line(error)}") from error
        try:
            yield Replicas(handle)
        finally:
            if not local:  # else all of Ray ends
                serve.delete(NAME)
    finally:
        ray.shutdown()


def _deaths() -> tuple[type[Exception], ...]:
    """What Ray raises of a replica that died, or of a machine."""
    from ray import exceptions
    from ray.serve.exceptions import ReplicaUnavailableError

    return (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.OutOfMemoryError,
        exceptions.ObjectLostError,
        ReplicaUnavailableError,
    )


def _running() -> int:
    from ray import serve

    application = serve.status().applications.get(NAME)
    if application is None:
        return 0
    states = [each.replica_states for each in application.deployments.values()]
    return sum(count for each in states for state, count in each.items() if state == "RUNNING")


def _model_bytes(detector: Detector | Gaia) -> int:
    return sum(each.numel() * each.element_size() for each in detector.model.state_dict().values())


def _gpus(detector: Detector | Gaia, replicas: int) -> float:
    """The share of a GPU that each replica gets."""
    first = next(detector.model.parameters(), torch.empty(0))
    return min(1.0, torch.cuda.device_count() / replicas) if first.device.type == "cuda" else 0.0


def _why() -> str:
    """What the first replica that failed said at last, in a line; empty where Ray keeps nothing of it."""
    from ray import serve

    application = serve.status().applications.get(NAME)
    for each in application.deployments.values() if application else ():
        # A traceback, behind which Ray says what it will do.
        errors = [line.strip() for line in each.message.splitlines() if _ERROR.match(line)]
        if errors:
            return errors[-1]
    return ""
