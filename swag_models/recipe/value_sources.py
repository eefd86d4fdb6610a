"""Where the values of the presets come from. Imports no torch.

Each value is marked: "confirmed" by a document of its authors, which is named; "quoted" from the
recipe of others, which is named too; "our reading" of what the authors wrote; or "our choice".
"""

from dataclasses import dataclass
from typing import Literal

Mark = Literal["confirmed", "quoted", "our reading", "our choice"]


@dataclass(frozen=True)
class ValueSource:
    """Where a number comes from.

    Args:
        mark: how sure it is.
        text: what is known.
        document: what confirms or quotes it.
    """

    mark: Mark
    text: str
    document: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.document})" if self.document else self.text


def confirm(text: str, document: str) -> ValueSource:
    """A value that a document of the authors states."""
    return ValueSource("confirmed", text, document)


def quote(text: str, document: str) -> ValueSource:
    """A value of a recipe that others published."""
    return ValueSource("quoted", text, document)


def interpret(text: str) -> ValueSource:
    """A value that follows from what the authors wrote, as we read it."""
    return ValueSource("our reading", text)


def choose(text: str) -> ValueSource:
    """A value that we chose."""
    return ValueSource("our choice", text)


# Fields of the objective that no published recipe of these presets uses
UNUSED_OBJECTIVE = {
    "objective.weighting": choose("equal shares; with one class per image they cannot differ"),
    **dict.fromkeys(
        ("objective.gamma_pos", "objective.gamma_neg", "objective.clip"),
        quote(
            "of kind=asymmetric: 0, 4 and 0.05, as for MS-COCO",
            "Ridnik et al. 2020, arXiv 2009.14119; train.py of Alibaba-MIIL/ML_Decoder",
        ),
    ),
}
