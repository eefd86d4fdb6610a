"""Check the calls of event handlers in requests, before they are passed on to Gradio."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from swag_models.app.addresses import RefusedError
from swag_models.formatting import count_noun

MAX_SESSION = 128  # characters
MAX_TEXT = 4096  # characters: the longest path on Linux
MAX_NUMBER = 1e9


def parse_call(content: bytes, handlers: Mapping[int, Sequence[Any]]) -> dict[str, Any]:
    """Parse the body of a request that calls an event handler.

    Args:
        content: the body, JSON.
        handlers: number of each handler -> its input components.

    Returns:
        A body for Gradio. It contains nothing that was not checked: Gradio knows further fields,
        which the page does not need.

    Raises:
        RefusedError: the body is not a call of a handler with inputs that the page can send.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):  # RecursionError: nested too deeply
        raise RefusedError(400, "the body is not JSON that this page sends") from None
    if not isinstance(body, dict):
        raise RefusedError(422, "the body is not a JSON object")
    session, number, data = (body.get(key) for key in ("session_hash", "fn_index", "data"))
    if not isinstance(session, str) or not 0 < len(session) <= MAX_SESSION:
        raise RefusedError(422, f"session_hash is not a text of 1 to {MAX_SESSION} characters")
    if type(number) is not int or number not in handlers:  # bool is an int
        raise RefusedError(404, "fn_index is not the number of an event handler")
    components = handlers[number]
    if not isinstance(data, list) or len(data) != len(components):
        raise RefusedError(422, f"data is not a list of {count_noun(len(components), 'value')}")
    values = [_check_input(component, value) for component, value in zip(components, data)]
    checked = {"data": values, "fn_index": number, "session_hash": session}
    try:
        json.dumps(checked, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise RefusedError(422, "the body contains text that is not Unicode") from None
    return checked


def _check_input(component: Any, value: Any) -> Any:
    """Return a value for a component, or raise RefusedError."""
    match component:
        case gr.State():  # held by the server
            return None
        case gr.Image():
            if value is None:
                return None
            path = value.get("path") if isinstance(value, dict) else None
            if not _is_text(path):
                raise RefusedError(
                    422, "the image is not an uploaded image: upload the file, then choose it"
                )
            name = value.get("orig_name")
            return {"path": path, "orig_name": name if _is_text(name) else None}
        case gr.Slider():  # its number field can be empty
            is_number = type(value) in (int, float) and -MAX_NUMBER < value < MAX_NUMBER
            if value is None or is_number:
                return value
        case gr.Dropdown(elem_id="model" | "compare"):
            if isinstance(value, str) and value in [choice for _, choice in component.choices]:
                return value
        case gr.Dropdown() | gr.Textbox():
            if _is_text(value):
                return value
        case gr.Dataset():
            if type(value) is int and 0 <= value < len(component.samples or []):
                return value
    raise RefusedError(422, f"the value of {component.label!r} is not one that this page sends")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT
