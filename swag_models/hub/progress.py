"""Progress bars: which are drawn, and where. Imports no torch."""

import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from swag_models.spec import Progress

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")


def choose_bar(progress: Progress) -> "type[tqdm[Any]] | None":
    """Return the class that draws a progress bar, None for no bar.

    Args:
        progress: True draws a bar on a terminal and in a notebook, but not in a pipe or a log file;
            False draws none; a tqdm class is used as it is.
    """
    if isinstance(progress, type):
        return progress
    if not progress or not (_is_terminal() or _is_notebook()):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing ipywidgets; the bar is then drawn as text
        from tqdm.auto import tqdm
    return tqdm


@overload
def make_bar(progress: Progress, iterable: Iterable[T], **options: Any) -> "tqdm[T]": ...


@overload
def make_bar(progress: Progress, **options: Any) -> "tqdm[Any]": ...


def make_bar(
    progress: Progress, iterable: Iterable[Any] | None = None, **options: Any
) -> "tqdm[Any]":
    """Return a progress bar, which draws nothing if there is nowhere to draw it.

    Args:
        progress: as for `choose_bar`.
        iterable: what it counts; None for a bar that is updated.
        options: other arguments of tqdm.
    """
    from tqdm import tqdm

    bar_class = choose_bar(progress)
    return (bar_class or tqdm)(iterable, disable=bar_class is None, **options)


def _is_terminal() -> bool:
    return bool(sys.stderr and sys.stderr.isatty())


def _is_notebook() -> bool:
    """Whether a front end that is not a terminal shows stderr to a user.

    Jupyter, Colab, JupyterLite, IDLE and consoles of editors replace stderr and set a prompt, as an
    interactive Python does; a script in a pipe does neither.
    """
    # Also where a kernel has no prompt yet; the same test as in tqdm.auto.
    has_kernel = "ipykernel.zmqshell" in sys.modules
    return has_kernel or (hasattr(sys, "ps1") and sys.stderr is not sys.__stderr__)
