"""Check the sender, address and content of every request before it is passed on to Gradio.

Gradio has many more routes than the page uses; some of them open files or send requests to other
servers. Only the routes in this module are passed on, without headers and fields that the page does
not need. Everything else is refused with one line in the log.
"""

import asyncio
import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swag_models.app.access import Access
from swag_models.app.addresses import Addresses, RefusedError
from swag_models.app.calls import parse_call
from swag_models.app.uploads import Uploads
from swag_models.formatting import escape_unprintable

logger = logging.getLogger("swag_models")
T = TypeVar("T")

API = "/gradio_api/"
FILE = API + "file="
# Routes of Gradio that only read, and contain nothing about users or files of this machine
READ_ROUTES = re.compile(
    r"/(config|theme\.css|manifest\.json|favicon\.ico|robots\.txt)?"
    r"|/(assets|static)/(?!.*(\.\.|//))\w[\w./-]{,200}"
    r"|/gradio_api/(startup-events|heartbeat/[\w-]{1,128})",
    re.ASCII,
)
# Others, such as Range, Cookie and X-Forwarded-Host, change what Gradio does.
PASSED_HEADERS = {b"accept", b"accept-encoding", b"content-type"}
# keys in the scope: who sent the request, to which host, and the path within the page
OWNER, HOST, PATH = "swag_models.owner", "swag_models.host", "swag_models.path"

MANIFEST = re.compile(rb'<link rel="manifest"[^>]*>')

MAX_UPLOAD = 64 << 20  # bytes of one request
MAX_CALL = 64 << 10  # bytes
MAX_UPLOAD_TIME = 600  # seconds
MAX_CALL_TIME = 30  # seconds; larger bodies have more time
MIN_UPLOAD_RATE = 4 << 10  # bytes per second of a body that takes longer
WRONG_PASSWORD_DELAY = 1  # seconds
MAX_LOGGED = 400  # characters of a line in the log


class Body:
    """Receives the body of a request up to a size.

    Args:
        receive: of the server.

    Attributes:
        limit: the largest number of bytes to receive.
        size: number of bytes received so far.
        is_complete: whether the whole body was received.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.limit: float = 0
        self.size = 0
        self.is_complete = False
        self._start: float | None = None

    async def receive(self) -> Message:
        """Receive the next part.

        Raises:
            RefusedError: the body is too large, or arrives too slowly.
        """
        if self.is_complete:  # waits until the client closes the connection
            return await self._receive()
        now = time.monotonic()
        if self._start is None:
            self._start = now
        allowed = MAX_CALL_TIME + self.size / MIN_UPLOAD_RATE - (now - self._start)
        message = await _limit_time(self._receive(), max(allowed, 0))
        self.size += len(message.get("body", b""))
        self.is_complete = message["type"] != "http.request" or not message.get("more_body")
        if self.size > self.limit:
            raise RefusedError(413, f"the body is larger than {self.limit} bytes")
        return message

    async def discard(self) -> bool:
        """Receive and drop the rest, within limits; returns whether that was all of it."""
        self.limit = self.size + 2 * MAX_UPLOAD
        with contextlib.suppress(RefusedError):
            await _limit_time(self._receive_rest(), MAX_CALL_TIME)
        return self.is_complete

    async def _receive_rest(self) -> None:
        while not self.is_complete:
            await self.receive()


class Guard:
    """ASGI application that passes checked requests on to Gradio.

    Args:
        app: Gradio.
        handlers: number of each event handler -> its input components.
        uploads: the uploaded files.
        access: who may use the page.
        addresses: where the page is found.
        head: HTML for the head of the page.
    """

    def __init__(
        self,
        app: ASGIApp,
        handlers: Mapping[int, Sequence[Any]],
        uploads: Uploads,
        access: Access,
        addresses: Addresses,
        head: str,
    ) -> None:
        self.app = app
        self.handlers = handlers
        self.uploads = uploads
        self.access = access
        self.addresses = addresses
        self.head = head.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        body = Body(receive)
        request = Request(scope, body.receive)
        try:
            answer = await self.answer(request, body)
            body.limit = math.inf  # the rest is not used
            await answer(scope, body.receive, send)
        except ClientDisconnect:  # for example an upload that was cancelled
            pass
        except RefusedError as error:
            client = request.client.host if request.client else "a local socket"
            # not `request.url`, which contains the host name and may be invalid
            line = f"{request.method} {scope['path']} from {client}: {error.reason}"
            logger.warning("refused: %s", escape_unprintable(line, MAX_LOGGED))
            # a client that is still sending does not read the response
            is_read = error.status != 408 and await body.discard()
            headers = {} if is_read else {"Connection": "close"}
            if error.status == 401 and self.access.users:
                headers["WWW-Authenticate"] = 'Basic realm="swag_models", charset="UTF-8"'
            response = JSONResponse({"error": error.reason}, error.status, headers)
            await response(scope, receive, send)

    async def answer(self, request: Request, body: "Body") -> ASGIApp:
        """Check a request.

        Args:
            request: the request.
            body: the body of the same request.

        Returns:
            The ASGI application that answers it.

        Raises:
            RefusedError: the request is refused.
            ClientDisconnect: the client closed the connection.
        """
        scheme, request.scope[HOST] = self.addresses.check(request.headers)
        request.scope["scheme"] = scheme or request.scope["scheme"]
        path = self.addresses.strip_root_path(request.scope["path"])
        request.scope[PATH] = path
        method = request.method
        reads = method in ("GET", "HEAD")
        browser = self.access.read_cookie(request.cookies)
        is_page = path in ("/", self.addresses.root_path)
        if is_page and reads and self.access.check_token(request.query_params.get("token", "")):
            # without the token in the address, which others may see and browsers store
            cookie = self.access.make_cookie(request.scope["scheme"] == "https")
            return RedirectResponse(self.access.path, 303, {"Set-Cookie": cookie})
        if path == self.addresses.root_path and reads:  # without the slash at the end
            return RedirectResponse(self.access.path, 303)
        owner = browser or await self.check_credentials(request)
        request.scope[OWNER] = owner
        if path == API + "upload" and method == "POST":
            return await self.receive_upload(request, body, owner)
        if path == API + "upload_progress" and reads:  # uploads are too short to report progress
            return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")
        if path == API + "run/predict" and method == "POST":
            _check_content_type(request, "application/json")
            body.limit = MAX_CALL
            call = parse_call(await request.body(), self.handlers)
            return self.pass_on(json.dumps(call).encode())
        if path.startswith(FILE) and reads:
            if not self.uploads.may_view(path.removeprefix(FILE), owner):
                raise RefusedError(403, "it is not a file of this session")
            return self.pass_on()
        if READ_ROUTES.fullmatch(path) and reads:
            is_page = path == "/"
            is_secure = request.scope["scheme"] == "https"
            cookie = self.access.make_cookie(is_secure) if is_page and not browser else ""
            return self.pass_on(cookie=cookie, is_page=is_page)
        raise RefusedError(404, "the page has no such address")

    async def check_credentials(self, request: Request) -> str:
        """Return who sends a request, "" if no credentials are needed; reject wrong credentials."""
        if not self.access.is_required:
            return ""
        if self.access.check_token(request.query_params.get("token", "")):
            return "token"
        authorization = request.headers.get("authorization", "")
        if user := self.access.check_header(authorization):
            return user
        if authorization:
            await asyncio.sleep(WRONG_PASSWORD_DELAY)  # slows down guessing
        raise RefusedError(
            401,
            "the user name or password is missing or wrong"
            if self.access.users
            else "the token is missing or wrong; open the address that the terminal shows",
        )

    async def receive_upload(self, request: Request, body: "Body", owner: str) -> Response:
        """Store the files of a form; the response contains their paths, as Gradio's does."""
        _check_content_type(request, "multipart/form-data")
        body.limit = MAX_UPLOAD
        try:
            return await self.store_form(request, owner)
        except OSError as error:  # a full disk
            raise RefusedError(507, f"the upload cannot be stored: {error.strerror}") from None

    async def store_form(self, request: Request, owner: str) -> Response:
        """Receive a form and store its files."""
        try:
            form = await _limit_time(request.form(max_files=8, max_fields=8), MAX_UPLOAD_TIME)
        except MultiPartException as error:
            raise RefusedError(400, f"the form cannot be read: {error.message}") from None
        try:
            files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
            if not files:
                raise RefusedError(422, "the form contains no file")
            paths = [
                await run_in_threadpool(self.uploads.add, file.file, file.filename or "", owner)
                for file in files
            ]
        finally:
            await form.close()
        return JSONResponse(paths)

    def pass_on(
        self, body: bytes | None = None, cookie: str = "", is_page: bool = False
    ) -> ASGIApp:
        """An application that passes a request on to Gradio.

        Args:
            body: the body that Gradio receives; None for an empty one.
            cookie: value of a `Set-Cookie` header of the response; "" for none.
            is_page: whether the response is the HTML of the page.
        """
        content = body or b""

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            passed = PASSED_HEADERS - ({b"accept-encoding"} if is_page else set())
            headers = [(key, value) for key, value in scope["headers"] if key in passed]
            headers.append((b"content-length", b"%d" % len(content)))
            headers.append((b"host", scope[HOST].encode()))
            unread: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

            async def replay() -> Message:
                if unread:
                    return unread.pop()
                with contextlib.suppress(RefusedError):  # the rest arrives too slowly
                    while (await receive())["type"] != "http.disconnect":
                        pass
                return {"type": "http.disconnect"}

            async def send_edited(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = [
                        (key, value)
                        for key, value in message.get("headers", [])
                        if not (is_page and key == b"content-length")
                    ]
                    headers += [(b"set-cookie", cookie.encode())] * bool(cookie)
                    message = {**message, "headers": headers}
                elif is_page:
                    message = {**message, "body": self.edit_page(message.get("body", b""))}
                await send(message)

            path = scope[PATH]
            checked = {**scope, "path": path, "headers": headers, "query_string": b""}
            checked.pop("raw_path", None)
            await self.app(checked, replay, send_edited)

        return respond

    def edit_page(self, html: bytes) -> bytes:
        """Add to the head of the page, and drop a link to the root of the host.

        Gradio adds to the head only when its script has started; until then, browsers request
        /favicon.ico, which may belong to another page behind the same proxy.
        """
        return MANIFEST.sub(b"", html).replace(b"</head>", self.head + b"</head>", 1)


def _check_content_type(request: Request, expected: str) -> None:
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != expected:
        raise RefusedError(415, f"the content is not {expected}")


async def _limit_time(work: Awaitable[T], seconds: float) -> T:
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise RefusedError(408, "the body arrives too slowly") from None
