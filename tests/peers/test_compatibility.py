"""Every row of docs/compatibility.md holds on our models and on the peer's."""

from __future__ import annotations

import pytest
from peers.compatibility import SECTIONS, Missing, Refused, Row
from peers.subjects import OURS, PEERS, Subject
from peers.write_compatibility import DOCUMENT, make_document

from swag_models.errors import MAX_MESSAGE, SwagModelsError

CASES = [
    pytest.param(
        row, subject, marks=PEERS if row.long else subject.marks, id=f"{row.slug}-{subject.name}"
    )
    for rows in SECTIONS.values()
    for row in rows
    for subject in (*OURS, *row.peers)
]


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of vmap
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("row", "subject"), CASES)
def test_the_call_does_what_the_document_says(row: Row, subject: Subject) -> None:
    match row.other.get(subject.family):
        case None:
            row.check(subject)
        case Missing(_, error):
            with pytest.raises(error):
                row.check(subject)
        case Refused(_, pattern):
            with pytest.raises(SwagModelsError, match=pattern) as refusal:
                row.check(subject)
            message = str(refusal.value)
            assert message.isprintable()
            assert len(message) <= MAX_MESSAGE


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text("utf-8") == make_document()
