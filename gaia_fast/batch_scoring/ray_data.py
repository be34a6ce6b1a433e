"""Chunks scored over Ray Data: workers hold one prepared detector each, and send their rows to the process that asked.

What a worker gets is all that it needs but for the package itself: the detector, its programs, and the images of a
chunk, or where they lie. So files of images must be within every worker's reach, and nothing else need be.
"""

import contextlib
import logging
import math
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from joblib import cpu_count

from gaia_fast import extras
from gaia_fast.batch_scoring.chunks import Chunk, ChunkScorer, Part, Prepared
from gaia_fast.data import ImageSource
from gaia_fast.errors import (
    BackendError,
    GaiaError,
    ModelError,
    UnpreparedWarning,
    first_line,
    printable,
)
from gaia_fast.evaluation.image_sets import each_of
from gaia_fast.ray_cluster import check_reachable

# A worker that ends is started again by Ray, and its chunk scored anew; but not for ever: the chunk may have ended it.
_ATTEMPTS = 3
_SECONDS_TO_START = 600  # all workers: until others that have a cluster's processors let go of them
_STORE = 256 * 2**20  # bytes of memory that a local Ray has for what is sent; more than that lies in files


@dataclass(frozen=True)
class Workers:
    """Processes of a Ray that is connected.

    Attributes:
        count: how many there are.
        threads: that each of them computes on.
        cpus: of Ray's that each of them takes.
        gpus: the same.
    """

    count: int
    threads: int
    cpus: float
    gpus: float

    def score_chunks(
        self,
        scorer: ChunkScorer,
        source: ImageSource,
        chunks: Sequence[Chunk],
        prepared: Prepared | None = None,
        programs: Path | None = None,
        advance: Callable[[int], None] = lambda images: None,
    ) -> Iterator[tuple[Chunk, Part]]:
        """Scores chunks of a source, and yields each as it is done, in any order.

        Args:
            scorer: what each worker has.
            source: the images.
            chunks: of them.
            prepared: what the detectors were prepared for, and how; None where they were not.
            programs: the folder of programs that they were prepared in.
            advance: called with each number of images done.

        Raises:
            GaiaError: as `ChunkScorer.score`. ModelError: the model cannot be sent. BackendError: a worker ended again
                and again, or Ray did.
        """
        import ray
        import ray.data
        from ray.exceptions import RayError

        sent, attempts = ray.put(_packed(scorer, prepared, programs)), _attempts()
        # One after the other, so that no second copy of images that are held here is made of all of them at once.
        sources = {start: ray.put(pickle.dumps(source.part(start, stop))) for start, stop in chunks}
        items = [
            {
                "start": start,
                "stop": stop,
                "images": f"{printable(source.names[start])} to {printable(source.names[stop - 1])}",
            }
            for start, stop in chunks
        ]
        found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Worker,
            fn_constructor_args=([sent], sources, attempts, self.threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(self.count, len(items))),
            num_cpus=self.cpus,
            num_gpus=self.gpus or None,
        )
        missing = set(chunks)
        try:
            for batch in found.iter_batches(batch_size=None, prefetch_batches=0):
                for start, stop, data in zip(batch["start"], batch["stop"], batch["result"], strict=True):
                    result = pickle.loads(data)
                    if isinstance(result, Exception):
                        raise result
                    chunk = Chunk(int(start), int(stop))
                    missing.discard(chunk)
                    yield chunk, result
                    advance(chunk.stop - chunk.start)
        except RayError as error:
            raise BackendError(
                f"Ray could not go on ({first_line(error)}). What a worker says before it ends is in Ray's logs"
            ) from error
        if missing:
            raise BackendError(f"Ray lost {len(missing)} of {len(chunks)} chunks, from image {min(missing).start} on")


@contextlib.contextmanager
def connected(address: str | None, workers: int | None, device: str = "cpu") -> Iterator[Workers]:
    """Workers of a Ray cluster; of a Ray of this process's own, which ends with it, where there is no address.

    Meanwhile PyTorch computes on as many threads here as in each worker, so that a program that is prepared here is the
    one that they take.

    Args:
        address: "HOST:PORT" of a cluster, or "auto" for the one that runs here; None for none.
        workers: how many; None for one for each two processors, or for each GPU if the device is one.
        device: where the workers' model is.

    Raises:
        BackendError: Ray is not installed, there is no cluster at the address, or it has nothing to compute on.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what is coming, and is warned of otherwise
    # Else Ray warns of what Ray Data does, at each start.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray = extras.load("ray", "ray", "--ray")
    data = extras.load("ray.data", "ray", "--ray")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    threads, on_sigterm = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    # Ray prints on stdout that a worker has died, also when it ends.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            with _silent():
                _connect(ray, address, workers)
        except BackendError:
            raise
        # Ray raises plain exceptions, too.
        except Exception as error:
            ray.shutdown()
            where = f"Ray at {address} cannot be reached" if address else "Ray cannot be started here"
            raise BackendError(f"{where}: {_why_not(error)}") from error
        try:
            if threading.current_thread() is threading.main_thread():  # Ray has put a handler of its own in place
                signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)
            context = data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
            context.wait_for_min_actors_s = _SECONDS_TO_START
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            found = _workers(nodes, workers, device.startswith("cuda"))
            torch.set_num_threads(found.threads)
            yield found
        finally:
            torch.set_num_threads(threads)
            ray.shutdown()


def _workers(nodes: Sequence[Mapping[str, float]], asked: int | None, on_gpus: bool) -> Workers:
    """How what the nodes of a cluster have is shared, so that all workers find a place at once.

    Raises:
        BackendError: no node has what a worker needs.
    """
    usable = [(node.get("CPU", 0.0), int(node.get("GPU", 0.0)) if on_gpus else 0) for node in nodes]
    usable = [(cpus, gpus) for cpus, gpus in usable if cpus and (gpus or not on_gpus)]
    if not usable:
        what = "a GPU and a processor; leave --device out" if on_gpus else "a processor; add a node that has some"
        raise BackendError(f"no node of Ray's has {what}, or start one by `ray start` with --num-cpus and --num-gpus")
    count = asked or max(sum(gpus if on_gpus else int(cpus // 2) for cpus, gpus in usable), 1)
    on_a_gpu = math.ceil(count / sum(gpus for _, gpus in usable)) if on_gpus else 0
    # The most processors each that leave a place to all; a worker is on one node, and on one GPU.
    places = [(cpus, min(gpus * on_a_gpu, count) if on_gpus else count) for cpus, gpus in usable]
    shares = {cpus / number for cpus, most in places for number in range(1, most + 1)}

    def fit(share: float) -> bool:
        # The small slack keeps 2 / (2 / 3) at 3 where it comes out below.
        return sum(min(int(cpus / share + 1e-9), most) for cpus, most in places) >= count

    share = next(filter(fit, sorted(shares, reverse=True)))
    return Workers(count, max(int(share), 1), _counted(share), _counted(1 / on_a_gpu) if on_gpus else 0.0)


def _counted(share: float) -> float:
    """As Ray counts: whole ones, or less than one in ten-thousandths; never more than there is."""
    return float(int(share)) if share >= 1 else math.floor(share * 10_000) / 10_000


def _why_not(error: Exception) -> str:
    if "AuthenticationError" in "".join(traceback.format_exception(error)):
        return (
            "it asks for a token; set RAY_AUTH_MODE=token, with the token in RAY_AUTH_TOKEN or ~/.ray/auth_token, as "
            "Ray's documentation says"
        )
    return first_line(error)


def _connect(ray: Any, address: str | None, workers: int | None) -> None:
    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        check_reachable(address)
        ray.init(address, **shared)
        return
    # Raylets hand their environment to workers, which so find the modules that are found here.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(each) for each in sys.path)
    try:
        _start(ray, workers, shared)
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ.update({} if before is None else {"PYTHONPATH": before})


def _start(ray: Any, workers: int | None, shared: dict[str, Any]) -> None:
    ray.init(
        "local",
        num_cpus=max(cpu_count(), workers or 1),
        include_dashboard=False,
        object_store_memory=_STORE,
        _node_ip_address="127.0.0.2",  # no other machine reaches it; 127.0.0.1 Ray takes for a mistake, and corrects
        **shared,
    )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drops what is written to the process's stderr: Ray's C++ code says how much it will say."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _packed(scorer: ChunkScorer, prepared: Prepared | None, programs: Path | None) -> bytes:
    from ray import cloudpickle

    kept = {}
    if programs is not None and programs.is_dir():
        kept = {each.name: each.read_bytes() for each in programs.iterdir() if each.is_file()}
    try:
        return cloudpickle.dumps((scorer, prepared, kept))
    # Whatever a user's model holds that cannot be sent.
    except Exception as error:
        raise ModelError(f"the model cannot be sent to Ray's workers: {first_line(error)}") from error


def _unpacked(sent: bytes, threads: int) -> ChunkScorer:
    """What was packed, prepared by the programs that came with it."""
    from ray import cloudpickle

    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", UnpreparedWarning)  # said where it was asked
    try:
        scorer, prepared, programs = cloudpickle.loads(sent)
    except ImportError as error:
        raise ModelError(
            f"a worker cannot import what the model is made of ({first_line(error)}): install it on every node of the "
            "cluster, or send it as the job's working_dir"
        ) from error
    if prepared is not None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in programs.items():
                Path(folder, name).write_bytes(content)
            for detector in each_of(scorer.detectors):
                detector.prepare(prepared.example, prepared.tune, folder)
    return scorer


def _attempts() -> Any:
    """An actor that counts how often each chunk was begun, by any worker."""
    import ray

    # In here, so that it is sent by value, and its process imports nothing.
    class Attempts:
        def __init__(self) -> None:
            self._counts: dict[int, int] = {}

        def begin(self, start: int) -> int:
            self._counts[start] = self._counts.get(start, 0) + 1
            return self._counts[start]

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()


class _Worker:
    """Scores chunks, in a process of its own. What goes wrong is sent as it is: Ray would make a traceback of it."""

    def __init__(self, sent: Sequence[Any], sources: Mapping[int, Any], attempts: Any, threads: int) -> None:
        self._sent, self._sources, self._attempts, self._threads = sent, sources, attempts, threads
        self._scorer: ChunkScorer | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        try:
            result: Part | Exception = self._scored(int(batch["start"][0]), str(batch["images"][0]))
        except Exception as error:
            result = _sendable(error)
        return {"start": batch["start"], "stop": batch["stop"], "result": [pickle.dumps(result)]}

    def _scored(self, start: int, images: str) -> Part:
        import ray

        if ray.get(self._attempts.begin.remote(start)) > _ATTEMPTS:
            raise BackendError(
                f"the worker that scores the images from {images} ended without a word, "
                f"{_ATTEMPTS} of {_ATTEMPTS} times: for want of memory (give a smaller batch size, or fewer workers), "
                "or by a crash"
            )
        if self._scorer is None:  # not before it is counted: this, too, may end the process
            self._scorer = _unpacked(ray.get(self._sent[0]), self._threads)
        return self._scorer.score(pickle.loads(ray.get(self._sources[start])))


def _sendable(error: Exception) -> Exception:
    """An error as it can be sent."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        kind = type(error)
        return BackendError(f"{kind.__name__}: {error}") if not isinstance(error, GaiaError) else GaiaError(str(error))
