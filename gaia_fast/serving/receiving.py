"""The body of a request, as it comes in: from whom it may, no more than it may have, and no slower."""

import asyncio
import contextlib
import time
from typing import Any

from gaia_fast import extras
from gaia_fast.serving.errors import RequestError

# Seconds that a body may take: those at first, more while it goes on to come, and at most.
_FIRST_SECONDS = 5.0
_SECONDS = 30.0
_RATE = 32 * 2**10  # bytes a second of the slowest that is waited for
_DISCARDED_SECONDS = 5.0  # of a body that is not read


class Upload:
    """The picture in the body of a request.

    Args:
        request: of Starlette.
        max_bytes: of the body.
    """

    def __init__(self, request: Any, max_bytes: int) -> None:
        self._request, self._max_bytes = request, max_bytes
        self._whole = False  # whether it was read to its end

    def check(self) -> None:
        """Looks at the headers.

        Raises:
            RequestError: 403 for one that a browser sends for another site's page, 413 for one that is longer, 415 for
                a form.
        """
        headers = self._request.headers
        # A browser sends for any page to any address. The first header says for which, but only to an address that the
        # browser trusts: one by HTTPS, or of its own machine.
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site:
            foreign = site not in ("same-origin", "none")
        else:
            foreign = origin is not None and origin.partition("://")[2] != headers.get("host")
        if foreign:
            raise RequestError(
                f"this is sent for a page of {origin or 'another site'}, and may be for that of this service; a proxy "
                "has to pass on Host",
                403,
            )
        if headers.get("content-type", "").strip().lower().startswith("multipart/"):
            raise RequestError("the body is a form; send the bytes of the image file themselves", 415)
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self._max_bytes):
            raise self._too_long()

    async def read(self) -> bytes:
        """Returns the body.

        Raises:
            RequestError: 400 where it is cut off, 408 where it comes too slowly, 413 where it is longer.
        """
        disconnected = extras.load("starlette.requests", "serve", "gaia-fast serve").ClientDisconnect
        data = bytearray()
        start = time.monotonic()
        receiving = asyncio.get_running_loop().create_task(self._receive(data))
        try:
            while not receiving.done():
                allowed = min(_FIRST_SECONDS + len(data) / _RATE, _SECONDS)
                left = start + allowed - time.monotonic()
                if left <= 0:
                    raise RequestError(f"the picture did not arrive within {allowed:.3g} seconds", 408)
                await asyncio.wait({receiving}, timeout=left)
            receiving.result()
        except disconnected as error:
            raise RequestError("the picture was cut off", 400) from error
        finally:
            receiving.cancel()
        return bytes(data)

    def heard(self, response: Any) -> Any:
        """Returns a response that a client hears which sends all before it listens: what still comes of a body that was
        not read is thrown away, for some seconds, before the connection may be closed.
        """
        if self._whole:
            return response

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            async def send_all_but_the_end(message: Any) -> None:
                await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

            async def discard() -> None:
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    pass

            await response(scope, receive, send_all_but_the_end)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(discard(), _DISCARDED_SECONDS)
            await send({"type": "http.response.body", "body": b""})

        return answer

    async def _receive(self, data: bytearray) -> None:
        async for chunk in self._request.stream():
            data.extend(chunk)
            if len(data) > self._max_bytes:
                raise self._too_long()
        self._whole = True

    def _too_long(self) -> RequestError:
        return RequestError(f"the body has more than {self._max_bytes} bytes, the limit; send a smaller image", 413)
