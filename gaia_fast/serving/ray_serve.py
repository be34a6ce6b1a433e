"""Replicas on Ray Serve: started, watched, replaced where they die; batches go to those that are free."""

import asyncio
import contextlib
import logging
import math
import os
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count

from gaia_fast import extras
from gaia_fast.errors import BackendError, first_line
from gaia_fast.evaluation.image_sets import Detector
from gaia_fast.gaia import Gaia
from gaia_fast.serving.errors import ReplicaError
from gaia_fast.serving.replica import Answer, Replica, Scored

_ERROR = re.compile(r"\s*[\w.]*(Error|Exception)\b.*: ")
_STORE = 256 * 2**20  # bytes of a local Ray's object store: a few batches and the model


@dataclass(frozen=True)
class Deployment:
    """How many processes score, and where.

    Attributes:
        replicas: how many there are.
        batches_a_replica: that are sent to each at one time: while one is scored, the next is on its way.
        max_batch: images in a batch, at most.
        threads: of each replica.
        cache_dir: where programs are kept, so that a replica that comes later reads its own; None for nowhere.
        code: a folder whose modules replicas can import, beside what is installed; None for none.
        address: of a running Ray cluster; None starts one on this machine that ends with this process.
        patience: seconds until all replicas are to be ready.
    """

    replicas: int = 1
    batches_a_replica: int = 2
    max_batch: int = 16
    threads: int = 1
    cache_dir: Path | None = None
    code: Path | None = None
    address: str | None = None
    patience: float = 600.0


class Replicas:
    """What was deployed: scores batches, tells how many replicas run."""

    def __init__(self, handle: Any, name: str) -> None:
        self._handle, self._name = handle, name

    async def score(self, images: Sequence[np.ndarray]) -> list[Answer]:
        """Scores a batch of float32 (3, H, W).

        A batch whose replica dies goes to another one; if that dies, too, each of its images goes alone, so that one
        image that kills replicas takes no other with it.

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
        return await asyncio.to_thread(lambda: _state(self._name)[0])


@contextlib.contextmanager
def deployed(detector: Detector | Gaia, example: np.ndarray, asked: Deployment) -> Iterator[Replicas]:
    """Deploys replicas, yields them once all are ready, and takes them down.

    Args:
        detector, example: as in `Replica`. The detector travels through Ray, with its model.
        asked: how many replicas there are, and where.

    Raises:
        BackendError: Ray is missing, cannot be started or reached, or not all replicas could be made in time.
    """
    ray = extras.load("ray", "serve", "gaia-fast serve")
    serve = extras.load("ray.serve", "serve", "gaia-fast serve")

    class RayReplica:
        """Holds a `Replica`, and keeps Ray's event loop free while it works."""

        def __init__(self, held: list[Any]) -> None:
            self._replica = Replica(ray.get(held[0]), example, asked.threads, asked.max_batch, asked.cache_dir)
            self._one_at_a_time = asyncio.Lock()

        async def score(self, images: np.ndarray) -> Scored:
            async with self._one_at_a_time:
                return await asyncio.to_thread(self._replica.score, images)

        async def check_health(self) -> None:
            async with self._one_at_a_time:
                try:
                    await asyncio.to_thread(self._replica.check)
                except Exception as error:
                    # Ray would let it go on until three checks have failed.
                    print(f"this replica ends itself: {error}", file=sys.stderr, flush=True)
                    os._exit(1)

    _connect(ray, detector, asked)
    name = f"gaia_fast-{uuid.uuid4().hex[:8]}"  # another service on the same cluster has another model
    try:
        held = [ray.put(detector)]
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        quiet = {"log_level": "ERROR"}
        serve.start(proxy_location="Disabled", logging_config=quiet)
        deployment = serve.deployment(RayReplica).options(
            name=name,
            num_replicas=asked.replicas,
            max_ongoing_requests=asked.batches_a_replica,
            health_check_period_s=10,
            health_check_timeout_s=30,
            graceful_shutdown_timeout_s=5,
            max_constructor_retry_count=2,
            ray_actor_options=_resources(detector, asked),
        )
        try:
            run = partial(serve.run, deployment.bind(held), name=name, route_prefix=None, logging_config=quiet)
            yield Replicas(_within(asked, name, run), name)
        finally:
            if asked.address is not None:  # else all of Ray ends
                serve.delete(name)
    finally:
        ray.shutdown()


def _connect(ray: Any, detector: Detector | Gaia, asked: Deployment) -> None:
    settings: dict[str, Any] = {"address": asked.address}
    if asked.address is None:
        settings = {
            "address": "local",
            "num_cpus": max(asked.replicas * asked.threads, cpu_count()),
            "include_dashboard": False,
            "object_store_memory": _STORE + 2 * _model_bytes(detector),
        }
    try:
        ray.init(**settings, namespace="serve", log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        failed = "started" if asked.address is None else f"reached at {asked.address}"
        raise BackendError(f"Ray cannot be {failed}: {first_line(error)}") from error


def _resources(detector: Detector | Gaia, asked: Deployment) -> dict[str, Any]:
    """What each replica asks Ray for."""
    environment = {
        # Of OpenMP: threads that spin while they wait take the processor from the other replicas.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "OMP_NUM_THREADS": str(asked.threads),
    }
    if asked.code is not None:
        paths = (str(asked.code), os.environ.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    first = next(detector.model.parameters(), torch.empty(0))
    gpus = 0.0
    if first.device.type == "cuda":  # so many share one
        gpus = 1 / math.ceil(asked.replicas / max(1, torch.cuda.device_count()))
    return {"num_cpus": asked.threads, "num_gpus": gpus, "runtime_env": {"env_vars": environment}}


def _within(asked: Deployment, name: str, run: Callable[[], Any]) -> Any:
    """What `run` returns, which waits for all replicas, if it does so in time; else BackendError."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            found.append(run())
        except Exception as error:
            failed.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(asked.patience)
    if found:
        return found[0]
    ready, reason = _state(name)
    if failed:
        raise BackendError(f"no replica could be made: {reason or first_line(failed[0])}") from failed[0]
    raise BackendError(
        f"after {asked.patience:g} seconds {ready} of {asked.replicas} replicas are ready, each of {asked.threads} CPUs"
        f"{f' ({reason})' if reason else ''}; ask for fewer --replicas or --threads, or for another cluster"
    )


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


def _state(name: str) -> tuple[int, str]:
    """How many replicas are ready, and the error that the last one ended with, where one did, in a line."""
    from ray import serve

    ready, errors = 0, []
    application = serve.status().applications.get(name)
    for each in application.deployments.values() if application else ():
        ready += sum(count for state, count in each.replica_states.items() if state == "RUNNING")
        # A traceback, behind which Ray says what it will do.
        errors += [line.strip() for line in each.message.splitlines() if _ERROR.match(line)]
    return ready, errors[-1] if errors else ""


def _model_bytes(detector: Detector | Gaia) -> int:
    return sum(each.numel() * each.element_size() for each in detector.model.state_dict().values())
