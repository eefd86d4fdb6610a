"""Figures of matplotlib and their PNG files; matplotlib is imported when the first one is made."""

from pathlib import Path
from typing import TYPE_CHECKING

from swag_models.atomic import atomic_write
from swag_models.runtime import import_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def make_figure(width: float, height: float, *, layout: str | None = "constrained") -> "Figure":
    """An empty figure, which needs no display.

    Args:
        width: in inches.
        height: in inches.
        layout: matplotlib's layout engine; None for axes with given margins, which draw faster.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    # not pyplot, which keeps every figure in a global list and may choose a backend that needs a
    # display
    figure: Figure = import_extra("matplotlib.figure").Figure(
        figsize=(width, height), layout=layout
    )
    return figure


def save_png(
    figure: "Figure", path: Path, *, dpi: int = 110, facecolor: str = "auto", unique: bool = False
) -> None:
    """Write a figure as a PNG file, atomically; the same figure gives the same bytes.

    Args:
        figure: a figure of matplotlib.
        path: the file to write.
        dpi: pixels per inch.
        facecolor: colour of the background, by default that of the figure.
        unique: as for `atomic.atomic_write`.
    """
    with atomic_write(path, unique=unique) as temporary:
        # matplotlib's version in the file would change its bytes with each release
        metadata = {"Software": None}
        figure.savefig(temporary, format="png", dpi=dpi, facecolor=facecolor, metadata=metadata)
