"""What both servers do with a request: limits, the image in its body, the answer as JSON."""

import asyncio
import io
from collections.abc import Iterable

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from swag_models.errors import ImageError
from swag_models.image_decoding import read_image

MAX_BODY = 10 << 20  # bytes of a request
MAX_BODY_SECONDS = 30  # until a body has arrived
MAX_REQUESTS = 256  # at once, each with its body in memory; others are refused with 503


async def read_body(request: Request) -> bytes:
    """Read the body of a request; refuse one that is too large or too slow.

    Raises:
        HTTPException: 408 or 413, or 400 if the client is gone.
    """

    async def read() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"more than {MAX_BODY} bytes; resize the image")
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), MAX_BODY_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body took more than {MAX_BODY_SECONDS} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client closed the connection") from None


def decode(body: bytes) -> Image.Image:
    """Decode an image file; the limits of `swag_models.image_formats` apply before decoding.

    Raises:
        HTTPException: 422 with the reason, in one line.
    """
    try:
        return read_image(io.BytesIO(body))
    except ImageError as error:
        raise HTTPException(422, str(error)) from None


def read_top_k(request: Request) -> int:
    """Return the number of classes that the query asks for.

    Raises:
        HTTPException: 400.
    """
    text = request.query_params.get("top_k", "5")
    if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text)):
        raise HTTPException(400, "invalid top_k: allowed: a number of at least 1")
    return int(text)


def make_answer(predictions: Iterable[tuple[str, float]]) -> JSONResponse:
    """The answer for an image: its classes with their probabilities, best first."""
    rows = [{"label": label, "probability": probability} for label, probability in predictions]
    return JSONResponse({"predictions": rows})


async def show_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with the one line of an HTTPException."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
