"""A service in this process, by HTTP on this machine's own address: what tests of it ask."""

import asyncio
import contextlib
import http.client
import io
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from gaia_fast import Gaia, GaiaA, GaiaZ
from gaia_fast.data import PRESETS
from gaia_fast.data.digits import held_out_digits, held_out_pictures
from gaia_fast.models import digits_resnet
from gaia_fast.scorers import calibrations_of, thresholds_of
from gaia_fast.serving.app import Service, make_app
from gaia_fast.serving.replica import Answer, Replica


def digits_detector(**options: Any) -> GaiaZ:
    """GAIA-Z of the digits' network, calibrated on 300 held-out digits."""
    return GaiaZ(digits_resnet(pretrained=True), **options).calibrate(held_out_digits()[0][:300])


def service_of(detector: GaiaA | GaiaZ | Gaia, **changes: Any) -> Service:
    """What serves digits with a detector."""
    service = Service("digits_resnet", PRESETS["digits"], thresholds_of(detector), calibrations_of(detector))
    return replace(service, **changes)


def file_of(picture: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    """An image file's bytes."""
    data = io.BytesIO()
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    image.convert("RGB").save(data, kind)
    return data.getvalue()


def digit(index: int) -> bytes:
    """A held-out digit as a PNG."""
    return file_of(held_out_pictures()[0][index])


class InProcess:
    """Scores in this process; `gate` can hold it up."""

    def __init__(self, detector: GaiaA | GaiaZ | Gaia) -> None:
        self.replica = Replica(detector, held_out_digits()[0][:2].numpy(), threads=1, max_batch=16)
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.ready = 1

    async def score(self, images: Sequence[np.ndarray]) -> list[Answer]:
        self.batches.append(len(images))
        await asyncio.to_thread(self.gate.wait)
        return self.replica.score(np.stack(images)).answers()

    async def running(self) -> int:
        return self.ready


@contextlib.contextmanager
def listening(app: Any, port: int = 0) -> Iterator[int]:
    """Runs an application in a thread; yields its port, by default one that is free."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def serving(service: Service, scorers: Any) -> Iterator["Client"]:
    """Serves in a thread; yields who asks."""
    with listening(make_app(service, scorers)) as port:
        yield Client(port)


class Client:
    """Asks a service."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str) -> tuple[int, Any]:
        """Status, and what JSON says, else the text."""
        status, _, data = self.ask("GET", path)
        return status, data

    def score(self, body: bytes, **headers: str) -> tuple[int, Any]:
        """Status and answer of an image."""
        status, _, data = self.ask("POST", "/score", body, headers)
        return status, data

    def ask(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, Any]:
        """Status, headers, and what JSON says, else the text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        data = response.read().decode()
        connection.close()
        if response.headers.get_content_type() == "application/json":
            return response.status, response.headers, json.loads(data)
        return response.status, response.headers, data
