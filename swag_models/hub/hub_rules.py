"""What a server of the Hugging Face Hub may make its client do. Imports no torch.

The client names files after headers of responses, and sends requests to URLs in them.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from swag_models.errors import FetchError
from swag_models.formatting import describe

# The client uses it as a file name, after removing quotes, and W and / in front.
ETAG = re.compile(r'(W/)?"?(?!\.{0,2}"?$)[!#-.0-\[\]-~]{1,150}"?')
ETAG_HEADERS = ("X-Linked-ETag", "ETag")
COMMIT_HEADER = "X-Repo-Commit"
COMMIT = re.compile(r"[0-9a-f]{40}")


@contextlib.contextmanager
def request_hooks(**hooks: Callable[[Any], None]) -> Iterator[None]:
    """Call functions with each request and response of this thread in the `with` block.

    Args:
        **hooks: the functions, named "request" and "response".
    """
    from huggingface_hub import get_session

    thread = threading.get_ident()  # other threads use the same session

    def call(hook: Callable[[Any], None], item: Any) -> None:
        if threading.get_ident() == thread:
            hook(item)

    client_hooks = get_session().event_hooks
    added = {name: partial(call, hook) for name, hook in hooks.items()}
    for name, hook in added.items():
        client_hooks[name].append(hook)
    try:
        yield
    finally:
        for name, hook in added.items():
            client_hooks[name].remove(hook)


def check_request(request: Any) -> None:
    """Raise FetchError for plain http if the Hub uses https; send the token only to the Hub.

    Args:
        request: of httpx; its header is removed. Uploads have the headers that the Hub states.
    """
    from huggingface_hub import constants

    endpoint, default = (
        type(request.url)(url) for url in (constants.ENDPOINT, "https://huggingface.co")
    )
    if request.url.scheme == "http" and endpoint.scheme == "https":
        raise FetchError(f"a redirect to {request.url} is not allowed: it must stay on https")
    origins = [(url.scheme, url.host, url.port) for url in (request.url, endpoint, default)]
    if request.method in ("GET", "HEAD") and origins[0] not in origins[1:]:
        request.headers.pop("Authorization", None)


def check_response(response: Any) -> None:
    """Raise FetchError if the client would store a file outside its cache.

    Args:
        response: of httpx.
    """
    if response.request.method != "HEAD":  # of which the client uses the headers
        return
    for name in ETAG_HEADERS:
        value = response.headers.get(name)
        if value is not None and not ETAG.fullmatch(value):
            raise FetchError(f"the server sent an invalid {name}, {describe(value)}")
    commit = response.headers.get(COMMIT_HEADER)
    if commit is not None and not COMMIT.fullmatch(commit):
        raise FetchError(f"the server sent an invalid {COMMIT_HEADER}, {describe(commit)}")
