"""Progress bars: of downloads, and where bars are drawn at all. Imports no torch."""

import sys
import warnings
from typing import TYPE_CHECKING, Any

from swag_models.spec import Progress

if TYPE_CHECKING:
    from tqdm import tqdm


def choose_bar(progress: Progress) -> "type[tqdm[Any]] | None":
    """Return the class that draws a progress bar, None for no bar.

    Args:
        progress: True draws a bar on a terminal and in a notebook, but not in a log file; False
            draws none; a tqdm class is used as it is.
    """
    if isinstance(progress, type):
        return progress
    # The same test as in tqdm.auto. The kernel of a notebook is not a terminal.
    in_notebook = "ipykernel.zmqshell" in sys.modules
    if not progress or not (in_notebook or (sys.stderr and sys.stderr.isatty())):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing ipywidgets; the bar is then drawn as text
        from tqdm.auto import tqdm
    return tqdm


def hides_bar(progress: bool) -> bool:
    """Whether there is nowhere to draw a progress bar; the `disable` of a tqdm bar."""
    return choose_bar(progress) is None


def make_bar(progress: Progress, label: str, total: int | None, initial: int) -> "tqdm[Any]":
    """Return a progress bar in bytes, which draws nothing if there is nowhere to draw it.

    Args:
        progress: as for `choose_bar`.
        label: text in front of the bar.
        total: size of the complete file in bytes, None if unknown.
        initial: number of bytes that an earlier download left.
    """
    from tqdm import tqdm

    bar_class = choose_bar(progress)
    return (bar_class or tqdm)(
        total=total,
        initial=initial,
        unit="B",
        unit_scale=True,
        desc=label,
        disable=bar_class is None,
    )
