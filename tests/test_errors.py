"""The messages of errors: one printable line, whatever file or server they quote."""

import pytest

from swag_models import errors
from swag_models.errors import SwagModelsError

KINDS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_one_printable_line(kind):
    error = kind("no tensor 'a\nb\x1b[1m\u202e\x00\u2028\udc80' in w.pt; save it again")
    assert str(error) == (r"no tensor 'a\nb\x1b[1m\u202e\x00\u2028\udc80' in w.pt; save it again")
    assert str(error).isprintable()


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_message_keeps_its_beginning_and_its_end(kind):
    message = str(kind(f"no tensor {'x' * 10_000} in w.pt; save it again"))
    assert len(message) == 499
    assert message.startswith("no tensor xxx")
    assert message.endswith("xxx in w.pt; save it again")


def test_the_original_text_is_kept():
    assert SwagModelsError("a\nb").args == ("a\nb",)
    assert str(SwagModelsError("猫 and ß")) == "猫 and ß"
