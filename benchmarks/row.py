"""A row of the table of benchmarks: one piece of work, done by this library and by its peers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measure import Maker


@dataclass(frozen=True)
class Context:
    """Where and how a row is measured.

    Attributes:
        folder: an empty folder for inputs and outputs.
        quick: whether inputs are small, as a test of the benchmarks.
        timm_script: path of timm's train.py, which its wheel does not include.
        wordnet: folder of WordNet; None for the usual places.
    """

    folder: Path
    quick: bool = False
    timm_script: str | None = None
    wordnet: str | None = None


@dataclass(frozen=True)
class Row:
    """One piece of work.

    Attributes:
        name: unique; `--only` selects rows by parts of it.
        group: heading of the table.
        text: the work of one call; `{items}` stands for the size.
        ours: label of this library's way.
        prepare: returns the makers of all ways by label, for a context and a size.
        items: size of the input, and that of a quick run.
        unit: what the size counts; empty to print the time of a call instead of a rate.
        rounds: at most; fewer than 25 where a round takes long.
    """

    name: str
    group: str
    text: str
    ours: str
    prepare: Callable[[Context, int], dict[str, Maker]]
    items: tuple[int, int] = (1, 1)
    unit: str = ""
    rounds: int = 25

    def size(self, context: Context) -> int:
        return self.items[context.quick]

    def describe(self, context: Context) -> str:
        return self.text.format(items=f"{self.size(context):,}")
