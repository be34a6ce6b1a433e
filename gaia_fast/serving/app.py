"""The HTTP interface, as an ASGI application; any server can run it, whatever scores."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from gaia_fast import extras
from gaia_fast._version import __version__
from gaia_fast.calibration import Calibration, decide
from gaia_fast.data.presets import Preset
from gaia_fast.monitoring import DriftMonitor
from gaia_fast.serving.batching import Batcher
from gaia_fast.serving.decoding import Decoder
from gaia_fast.serving.errors import OverloadedError, RequestError
from gaia_fast.serving.metrics import Metrics
from gaia_fast.serving.page import page_routes
from gaia_fast.serving.pool import Readiness, ReplicaPool
from gaia_fast.serving.receiving import Upload
from gaia_fast.serving.replica import Answer

ABOUT = "Gaia-Fast-About"  # the header of each answer in JSON by which it is seen that /about has changed


@dataclass(frozen=True)
class Service:
    """What is served, and how much of it at one time.

    Attributes:
        model: its name, for people.
        preset: that prepares pictures.
        thresholds: by score, in order; None where there is none.
        calibrations: by score, where they are known.
        labels: names of the classes; None where they have none.
        replicas: how many there are to be.
        batches_a_replica: that are sent to each at one time: while one is scored, the next is on its way.
        max_batch: images that go through the network together.
        max_images: images that are received, decoded, wait or are scored at one time; what comes beyond is answered by
            503. One in eight of them, at least one, may have more than 4 megapixels and wait to be decoded.
        max_pixels: of a picture, as it is and as the preset resizes it.
        max_bytes: of a picture's file.
        timeout: seconds until a picture that was received is answered by 503.
        window: seconds that the drift report looks back.
    """

    model: str
    preset: Preset
    thresholds: Mapping[str, float | None]
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    replicas: int = 1
    batches_a_replica: int = 2
    max_batch: int = 16
    max_images: int = 64
    max_pixels: int = 32_000_000
    max_bytes: int = 32 * 2**20
    timeout: float = 30.0
    window: float = 3600.0


def make_app(service: Service, pool: ReplicaPool) -> Any:
    """Returns the ASGI application.

    `POST /score` takes the bytes of one image file, and answers JSON: `predicted` (class), `label` (its name, or
    null), `score` and `is_ood` (null without a threshold); of several scores, `scores` and `is_ood` by name. What is
    not answered so has a status and a JSON `error`: 400, 403, 408, 413, 415 and 422 say what is wrong with the request,
    503 that too many images are in service, 500 that the replicas failed.

    `GET /healthz` (this process runs), `/readyz` (a replica is ready, else 503), `/metrics` (Prometheus), `/drift` and
    `/about` (JSON), `/` (a page to drop images on; its style and scripts are `/page/NAME`).

    Raises:
        BackendError: a package of the extra `serve` is missing.
    """
    applications = extras.load("starlette.applications", "serve", "gaia-fast serve")
    routing = extras.load("starlette.routing", "serve", "gaia-fast serve")
    exceptions = extras.load("starlette.exceptions", "serve", "gaia-fast serve")
    handlers = _Handlers(service, pool)
    routes = [*page_routes(), routing.Route("/score", handlers.score, methods=["POST"])]
    for path, handler in {
        "/healthz": handlers.healthz,
        "/readyz": handlers.readyz,
        "/metrics": handlers.metrics,
        "/drift": handlers.drift,
        "/about": handlers.about,
    }.items():
        routes.append(routing.Route(path, handler, methods=["GET"]))
    failures = {exceptions.HTTPException: handlers.not_there, Exception: handlers.failed}
    application = applications.Starlette(routes=routes, exception_handlers=failures)
    application.router.redirect_slashes = False  # to the address in the header Host, whatever that is
    return application


class _Handlers:
    """What answers each path."""

    def __init__(self, service: Service, pool: ReplicaPool) -> None:
        self._responses: Any = extras.load("starlette.responses", "serve", "gaia-fast serve")
        self._service, self._pool, self._readiness = service, pool, Readiness(pool)
        # Without threshold and calibration there is nothing to compare with.
        self._monitors = {
            name: DriftMonitor(service.calibrations.get(name), threshold, window=service.window)
            for name, threshold in service.thresholds.items()
            if threshold is not None or name in service.calibrations
        }
        self._metrics = Metrics(self._monitors)
        self._decoder = Decoder(service.preset, service.max_pixels, max(1, service.max_images // 8))
        self._batcher: Batcher[np.ndarray, Answer] = Batcher(
            self._run, service.max_batch, service.replicas * service.batches_a_replica
        )
        self._in_service = 0
        self._about = _description(service)
        self._headers = {ABOUT: hashlib.sha256(json.dumps(self._about).encode()).hexdigest()[:16]}

    async def score(self, request: Any) -> Any:
        upload = Upload(request, self._service.max_bytes)
        status, headers = 500, {}
        try:
            response = self._json(await self._answer(upload))
            status = 200
        except RequestError as error:
            status = error.status
            if status == OverloadedError.status:
                headers = {"Retry-After": "1"}
            response = upload.heard(self._json({"error": str(error)}, status, headers))
        finally:
            self._metrics.requests.labels(status).inc()
        return response

    async def healthz(self, _: Any) -> Any:
        return self._json({"status": "ok"})

    async def readyz(self, _: Any) -> Any:
        ready = await self._readiness.running()
        return self._json({"replicas": ready, "of": self._service.replicas}, 200 if ready else 503)

    async def metrics(self, _: Any) -> Any:
        self._metrics.replicas.set(await self._readiness.running())
        text = await asyncio.to_thread(self._metrics.text)
        return self._responses.Response(text, media_type=self._metrics.content_type)

    async def drift(self, _: Any) -> Any:
        reports = await asyncio.to_thread(lambda: {name: each.report() for name, each in self._monitors.items()})
        return self._json({name: each.as_dict() for name, each in reports.items()})

    async def about(self, _: Any) -> Any:
        return self._json({**self._about, "id": self._headers[ABOUT]})

    async def not_there(self, _: Any, error: Any) -> Any:
        return self._json({"error": error.detail}, error.status_code, error.headers)

    async def failed(self, _: Any, error: Exception) -> Any:
        # It is raised once more when this has been answered, and the server logs it.
        return self._json({"error": f"the service failed ({type(error).__name__}); its log says why"}, 500)

    def _json(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Any:
        return self._responses.JSONResponse(content, status, {**self._headers, **(headers or {})})

    async def _answer(self, upload: Upload) -> dict[str, Any]:
        upload.check()
        with contextlib.ExitStack() as held:
            held.enter_context(self._place())
            data = await upload.read()
            start = time.perf_counter()
            work = asyncio.get_running_loop().create_task(self._scored(data))
            del data  # the task has it until it is decoded
            # The place is its own: until its thread has finished, too, where nobody waits for it any more.
            kept = held.pop_all()
            work.add_done_callback(lambda _: kept.close())
        try:
            await asyncio.wait({work}, timeout=self._service.timeout)
            if not work.done():
                raise OverloadedError(f"no replica answered within {self._service.timeout:g} seconds; try again later")
            answer = work.result()
        finally:
            work.cancel()
        if isinstance(answer, RequestError):
            raise answer
        self._metrics.seconds.observe(time.perf_counter() - start)
        return self._decided(*answer)

    async def _scored(self, data: bytes) -> Answer:
        decoding = self._decoder.decode(data)
        del data
        return await self._batcher.submit(await decoding)

    def _decided(self, predicted: int, scores: Mapping[str, float]) -> dict[str, Any]:
        """What is answered, and counted: an image whose answer comes too late is sent again."""
        decisions = {}
        for name, value in scores.items():
            # As detectors and files decide: in float32, the threshold rounded to it.
            score, threshold = torch.tensor([value], dtype=torch.float32), self._service.thresholds[name]
            decisions[name] = None if threshold is None else bool(decide(score, threshold))
            if name in self._monitors:
                self._monitors[name].update(score)
        labels = self._service.labels
        described = {"predicted": predicted, "label": labels[predicted] if labels else None}
        if len(scores) > 1:
            return {**described, "scores": scores, "is_ood": decisions}
        ((name, value),) = scores.items()
        return {**described, "score": value, "is_ood": decisions[name]}

    async def _run(self, images: list[np.ndarray]) -> list[Answer]:
        self._metrics.batch.observe(len(images))
        return await self._pool.score(images)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._in_service >= self._service.max_images:
            raise OverloadedError(f"{self._in_service} images are in service, as many as may be; try again later")
        self._in_service += 1
        self._metrics.in_service.set(self._in_service)
        try:
            yield
        finally:
            self._in_service -= 1
            self._metrics.in_service.set(self._in_service)


def _description(service: Service) -> dict[str, Any]:
    """What is served, as JSON takes it."""
    calibrations = service.calibrations
    return {
        "gaia_fast": __version__,
        "model": service.model,
        "scores": {
            name: {
                "threshold": threshold,
                "images": calibrations[name].images if name in calibrations else None,
                "quantiles": calibrations[name].quantiles.tolist() if name in calibrations else None,
            }
            for name, threshold in service.thresholds.items()
        },
        "input_size": service.preset.input_size,
        "labels": service.labels,
        "max_pixels": service.max_pixels,
        "max_bytes": service.max_bytes,
    }
