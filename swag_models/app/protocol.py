"""HTTP connections of the page, with time limits that uvicorn does not have."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_IDLE_TIME = 30  # seconds until the next request has arrived with its headers
MAX_WRITE_TIME = 60  # seconds until a client has read the next part of a response


class Protocol(H11Protocol):
    """A connection that is closed if its client is idle, or reads or writes too slowly.

    uvicorn waits without a limit for the first request of a connection, and for the rest of any
    request of which a byte has arrived. h11, unlike httptools, limits the size of headers.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        self.idle_timer: asyncio.TimerHandle | None = None
        self.write_timer: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse a part of a request."""
        try:
            super().data_received(data)
        except UnicodeDecodeError:  # the address of the request is not ASCII
            self.logger.warning("Invalid HTTP request received.")
            self.transport.abort()

    def handle_events(self) -> None:
        """Handle a part of a request; its headers are complete if it has a cycle."""
        cycle = self.cycle
        super().handle_events()
        if self.cycle is not cycle and self.idle_timer:
            self.idle_timer.cancel()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, and for the client to read the response."""
        self._wait_for_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to wait for the client, because it does not read the response."""
        super().pause_writing()
        self.write_timer = self.loop.call_later(MAX_WRITE_TIME, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting: the client has read a part of the response."""
        if self.write_timer:
            self.write_timer.cancel()
        super().resume_writing()

    def _wait_for_request(self) -> None:
        if self.idle_timer:
            self.idle_timer.cancel()
        # not `close`, which would wait until the client has read everything
        self.idle_timer = self.loop.call_later(MAX_IDLE_TIME, self.transport.abort)

    def _stop_timers(self) -> None:
        for timer in (self.idle_timer, self.write_timer):
            if timer:
                timer.cancel()

    def _should_upgrade(self) -> bool:
        return False  # without uvicorn's two lines in the log: the request is handled as any other
