"""The server: what it turns away, and that it ends when it is told to."""

import contextlib
import os
import signal
import socket
import threading
import time

import pytest

from gaia_fast.errors import ArgumentError
from gaia_fast.serving.app import make_app
from gaia_fast.serving.server import bound, run

from served import Client, InProcess, digit, digits_detector, service_of


def test_connections_beyond_the_limit_are_turned_away_and_sigterm_ends_it() -> None:
    detector = digits_detector(engine="hooks")
    found: dict[str, int] = {}

    def ask(url: str) -> None:
        try:
            client = Client(int(url.rpartition(":")[2]))
            found["before"] = client.score(digit(0))[0]
            with contextlib.ExitStack() as stack:
                for _ in range(4):  # that send nothing
                    stack.enter_context(socket.create_connection(("127.0.0.1", client.port)))
                deadline = time.monotonic() + 30
                while client.get("/healthz")[0] != 503 and time.monotonic() < deadline:
                    time.sleep(0.01)
                found["full"] = client.score(digit(0))[0]
            while client.get("/healthz")[0] != 200 and time.monotonic() < deadline:
                time.sleep(0.01)
            found["after"] = client.score(digit(0))[0]
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    asking: list[threading.Thread] = []

    def listening(url: str) -> None:
        asking.append(threading.Thread(target=ask, args=[url]))
        asking[0].start()

    with bound("127.0.0.1", 0) as at:
        run(make_app(service_of(detector), InProcess(detector)), at, listening, max_connections=4)
    asking[0].join()
    assert found == {"before": 200, "full": 503, "after": 200}


def test_an_address_that_is_taken() -> None:
    with bound("127.0.0.1", 0) as at:
        at.listen()
        with pytest.raises(ArgumentError, match="cannot be listened at"), bound("127.0.0.1", at.getsockname()[1]):
            pass
