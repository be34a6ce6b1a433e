"""What everything that runs on Ray asks of a cluster."""

import socket

from gaia_fast.errors import BackendError

_SECONDS = 10.0


def check_reachable(address: str) -> None:
    """Raises BackendError where nothing listens at "HOST:PORT": Ray would wait for it without end. "auto" is let be."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        raise BackendError(f"Ray at {address} cannot be reached: {error}; give HOST:PORT of its head node") from error
