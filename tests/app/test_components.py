"""What the page says is text, whoever wrote it."""

from dataclasses import replace

import pytest
from PIL import Image

from swag_models.api import SPECS
from swag_models.app.components import (
    ask_consent,
    describe,
    draw_bars,
    draw_neighbours,
    list_skipped,
    say,
)
from swag_models.app.similar import Neighbour
from swag_models.inference.predict import Prediction, Skipped

EVIL = "<script>alert('x')</script>"


def test_no_text_from_outside_becomes_markup() -> None:
    spec = replace(
        SPECS["vit_b16"], description=EVIL, license=EVIL, license_url=f'https://x/"{EVIL}'
    )
    shown = [
        describe(spec, here=False),
        draw_bars([Prediction(EVIL, 0, 1.0)]),
        draw_neighbours([Neighbour(EVIL, 1.0, Image.new("RGB", (2, 2)))]),
        list_skipped([Skipped(EVIL, EVIL)]),
        say(f"{EVIL}\n{EVIL}\n{EVIL}"),
    ]
    assert all("script" in each.lower() for each in shown)
    assert not any("<script" in each.lower() or '"<' in each for each in shown)


@pytest.mark.parametrize("url", ["javascript:alert(1)", "http://x", "", "data:text/html,x"])
def test_only_a_safe_address_becomes_a_link(url: str) -> None:
    assert "<a " not in describe(replace(SPECS["vit_b16"], license_url=url), here=True)
    assert "<a " in describe(SPECS["vit_b16"], here=True)


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_nano_hashtags", "1.25 MiB"), ("vit_b16", "327 MiB"), ("vit_h14", "2.3 GiB")],
)
def test_consent_names_licence_and_size(name: str, size: str) -> None:
    spec = SPECS[name]
    assert ask_consent(spec) == f"Accept {spec.license.upper()} and download {size}"
    assert f"{size} to download" in describe(spec, here=False)
    assert ("no commercial use" in describe(spec, here=False)) == (name != "vit_nano_hashtags")


def test_of_a_long_error_one_line_is_shown_and_the_rest_on_request() -> None:
    assert say("one line") == '<div class="notice" role="alert"><p>one line</p></div>'
    long = say("no source:\n  first: HTTP 404\n  second: offline")
    assert "<p>no source: first: HTTP 404</p><details>" in long
    assert "second: offline" in long
