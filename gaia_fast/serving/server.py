"""Runs the application in this process, until it is told to stop."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

from gaia_fast import extras
from gaia_fast.errors import ArgumentError


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Yields a socket at an address; port 0 is any that is free. ArgumentError: the address cannot be had."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ArgumentError(
                f"{host}:{port} cannot be listened at ({error}); choose another --host or --port"
            ) from error
        yield made


def run(app: Any, at: socket.socket, listening: Callable[[str], None], max_connections: int = 512) -> None:
    """Serves an ASGI application by HTTP until SIGINT or SIGTERM; requests that are under way are answered first.

    Args:
        app: the application.
        at: where, see `bound`.
        listening: is called with the address once connections are taken.
        max_connections: that are open at one time; a request on one more is answered 503, in plain text.

    Raises:
        BackendError: the extra `serve` is missing.
    """
    uvicorn = extras.load("uvicorn", "serve", "gaia-fast serve")
    host, port, *_ = at.getsockname()
    address = f"http://[{host}]:{port}" if at.family == socket.AF_INET6 else f"http://{host}:{port}"

    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                listening(address)

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=30,
        limit_concurrency=max_connections,
        server_header=False,
    )
    with contextlib.suppress(KeyboardInterrupt), _terminating_as_interrupting():
        Server(config).run(sockets=[at])


@contextlib.contextmanager
def _terminating_as_interrupting() -> Iterator[None]:
    """Once it has ended, the server raises its signal again: SIGTERM, too, is then a KeyboardInterrupt."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
