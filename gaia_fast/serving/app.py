"""The HTTP interface, as an ASGI application; any server can run it, whatever scores."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gaia_fast import extras
from gaia_fast._version import __version__
from gaia_fast.calibration import Calibration
from gaia_fast.data.presets import Preset
from gaia_fast.monitoring import DriftMonitor
from gaia_fast.serving.batching import Batcher
from gaia_fast.serving.errors import OverloadedError, RequestError
from gaia_fast.serving.metrics import Metrics
from gaia_fast.serving.page import page_routes
from gaia_fast.serving.pictures import pixels_of, read_picture
from gaia_fast.serving.replica import Answer, ImageScores

_LARGE = 4_000_000  # pixels that take long to decode: such pictures wait for each other, and no small one for them
_BODY_SECONDS = 30.0  # that a request may take to send its picture


class Scorers(Protocol):
    """What scores batches: `ray_serve.Replicas`, or what a test puts in its place."""

    async def score(self, images: Sequence[np.ndarray]) -> list[Answer]:
        """The answer for each float32 (3, H, W), in order."""

    async def running(self) -> int:
        """How many are ready."""


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
        max_images: images that are decoded, wait or are scored at one time; what comes beyond is answered by 503.
        max_pixels, max_bytes: of a picture.
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


def make_app(service: Service, scorers: Scorers) -> Any:
    """Returns the ASGI application.

    `POST /score` takes the bytes of one image file, and answers JSON: `predicted` (class), `label` (its name, or
    null), `score` and `is_ood` (null without a threshold); of several scores, `scores` and `is_ood` by name. What is
    not answered so has a status and a JSON `error`: 400, 408, 413, 415 and 422 say what is wrong with the request, 503
    that too many images are in service, 500 that the replicas failed.

    `GET /healthz` (this process runs), `/readyz` (a replica is ready, else 503), `/metrics` (Prometheus), `/drift` and
    `/about` (JSON), `/` (a page to drop images on; its style and scripts are `/page/NAME`).

    Raises:
        BackendError: a package of the extra `serve` is missing.
    """
    applications = extras.load("starlette.applications", "serve", "gaia-fast serve")
    routing = extras.load("starlette.routing", "serve", "gaia-fast serve")
    handlers = _Handlers(service, scorers)
    routes = [*page_routes(), routing.Route("/score", handlers.score, methods=["POST"])]
    for path, handler in {
        "/healthz": handlers.healthz,
        "/readyz": handlers.readyz,
        "/metrics": handlers.metrics,
        "/drift": handlers.drift,
        "/about": handlers.about,
    }.items():
        routes.append(routing.Route(path, handler, methods=["GET"]))
    return applications.Starlette(routes=routes, lifespan=handlers.lifespan)


class _Handlers:
    """What answers each path."""

    def __init__(self, service: Service, scorers: Scorers) -> None:
        self._responses: Any = extras.load("starlette.responses", "serve", "gaia-fast serve")
        self._disconnected = extras.load("starlette.requests", "serve", "gaia-fast serve").ClientDisconnect
        self._service, self._scorers = service, scorers
        # Without threshold and calibration there is nothing to compare with.
        self._monitors = {
            name: DriftMonitor(service.calibrations.get(name), threshold, window=service.window)
            for name, threshold in service.thresholds.items()
            if threshold is not None or name in service.calibrations
        }
        self._metrics = Metrics(self._monitors)
        self._batcher: Batcher[np.ndarray, Answer] = Batcher(
            self._run, service.max_batch, service.replicas * service.batches_a_replica
        )
        self._in_service = 0

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Any) -> Any:
        with (
            ThreadPoolExecutor(os.cpu_count(), "decoding") as self._decoders,
            ThreadPoolExecutor(1, "decoding large pictures") as self._large_decoder,
        ):
            yield

    async def score(self, request: Any) -> Any:
        try:
            answer = await self._answer(request)
            status, headers = 200, {}
        except RequestError as error:
            answer, status = {"error": str(error)}, error.status
            headers = {"Retry-After": "1"} if status == OverloadedError.status else {}
        self._metrics.requests.labels(status).inc()
        return self._responses.JSONResponse(answer, status, headers)

    async def healthz(self, _: Any) -> Any:
        return self._responses.JSONResponse({"status": "ok"})

    async def readyz(self, _: Any) -> Any:
        ready = await self._scorers.running()
        return self._responses.JSONResponse({"replicas": ready, "of": self._service.replicas}, 200 if ready else 503)

    async def metrics(self, _: Any) -> Any:
        self._metrics.replicas.set(await self._scorers.running())
        return self._responses.Response(self._metrics.text(), media_type=self._metrics.content_type)

    async def drift(self, _: Any) -> Any:
        return self._responses.JSONResponse({name: each.report().as_dict() for name, each in self._monitors.items()})

    async def about(self, _: Any) -> Any:
        service = self._service
        return self._responses.JSONResponse(
            {
                "gaia_fast": __version__,
                "model": service.model,
                "scores": {
                    name: {
                        "threshold": threshold,
                        "images": service.calibrations[name].images if name in service.calibrations else None,
                        "quantiles": service.calibrations[name].quantiles.tolist()
                        if name in service.calibrations
                        else None,
                    }
                    for name, threshold in service.thresholds.items()
                },
                "input_size": service.preset.input_size,
                "labels": service.labels,
                "max_pixels": service.max_pixels,
                "max_bytes": service.max_bytes,
            }
        )

    async def _answer(self, request: Any) -> dict[str, Any]:
        data = await self._body(request)
        start = time.perf_counter()
        with self._place():
            try:
                answer = await asyncio.wait_for(self._scored(data), self._service.timeout)
            except asyncio.TimeoutError as error:
                raise OverloadedError(
                    f"no replica answered within {self._service.timeout:g} seconds; try again later"
                ) from error
        if isinstance(answer, RequestError):
            raise answer
        self._metrics.seconds.observe(time.perf_counter() - start)
        return self._described(*answer)

    async def _scored(self, data: bytes) -> Answer:
        preset, max_pixels = self._service.preset, self._service.max_pixels
        run = asyncio.get_running_loop().run_in_executor
        pixels = await run(self._decoders, pixels_of, data, max_pixels)
        # Decoders in C let go of the interpreter: other requests go on.
        decoder = self._large_decoder if pixels > _LARGE else self._decoders
        image = await run(decoder, read_picture, data, preset, max_pixels)
        return await self._batcher.submit(image)

    def _described(self, predicted: int, scores: Mapping[str, float]) -> dict[str, Any]:
        decisions = {}
        for name, value in scores.items():
            threshold = self._service.thresholds[name]
            decisions[name] = None if threshold is None else not value <= threshold
        labels = self._service.labels
        described = {"predicted": predicted, "label": labels[predicted] if labels else None}
        if len(scores) > 1:
            return {**described, "scores": scores, "is_ood": decisions}
        ((name, value),) = scores.items()
        return {**described, "score": value, "is_ood": decisions[name]}

    async def _run(self, images: list[np.ndarray]) -> list[Answer]:
        self._metrics.batch.observe(len(images))
        answers = await self._scorers.score(images)
        found = [each.scores for each in answers if isinstance(each, ImageScores)]
        for name, monitor in self._monitors.items():
            monitor.update([scores[name] for scores in found])
        return answers

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

    async def _body(self, request: Any) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("multipart/"):
            raise RequestError("the body is a form; send the bytes of the image file themselves", 415)
        most = self._service.max_bytes
        too_long = RequestError(f"the body has more than {most} bytes, the limit; send a smaller image", 413)
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_long

        async def received() -> bytes:
            data = bytearray()
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise too_long
            return bytes(data)

        try:
            return await asyncio.wait_for(received(), _BODY_SECONDS)
        except asyncio.TimeoutError as error:
            raise RequestError(f"the picture did not arrive within {_BODY_SECONDS:g} seconds", 408) from error
        except self._disconnected as error:
            raise RequestError("the picture was cut off", 400) from error
