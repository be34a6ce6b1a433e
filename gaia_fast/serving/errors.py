"""Requests that are not answered by a score, and the HTTP status that says so."""

from gaia_fast.errors import GaiaError


class RequestError(GaiaError):
    """A request that gets a reason in place of a score.

    Attributes:
        status: of HTTP: 4xx where the request is at fault, 5xx where the service is.
    """

    status = 400

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status or self.status


class OverloadedError(RequestError):
    """As many images wait as may: the request can be sent again later."""

    status = 503


class ReplicaError(RequestError):
    """The replicas could not answer: they died over this image, or failed."""

    status = 500
