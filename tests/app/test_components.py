"""HTML fragments of the page: values from outside are always shown as text."""

import base64
import csv
import io
import re
from dataclasses import replace

import pytest
from PIL import Image

from swag_models.api import SPECS
from swag_models.app.components import (
    list_choices,
    make_consent_label,
    render_class,
    render_comparison,
    render_copies,
    render_download,
    render_error,
    render_facts,
    render_header,
    render_neighbours,
    render_predictions,
    render_skipped,
)
from swag_models.app.csv_export import format_csv
from swag_models.app.similar import FoundImage
from swag_models.inference.predict import Prediction, Skipped

SCRIPT = "<script>alert('x')</script>"


def test_no_text_from_outside_becomes_markup() -> None:
    spec = replace(
        SPECS["vit_b16"], description=SCRIPT, license=SCRIPT, license_url=f'https://x/"{SCRIPT}'
    )
    fragments = [
        render_facts(spec, is_local=False),
        render_predictions(SCRIPT, [Prediction(SCRIPT, 0, 1.0)]),
        render_neighbours([FoundImage(SCRIPT, 1.0, Image.new("RGB", (2, 2)))]),
        render_class([SCRIPT], [FoundImage(SCRIPT, 1.0, Image.new("RGB", (2, 2)))]),
        render_skipped([Skipped(SCRIPT, SCRIPT)]),
        render_error(f"{SCRIPT}\n{SCRIPT}\n{SCRIPT}"),
    ]
    for html in fragments:
        assert "script" in html.lower()
        assert "<script" not in html.lower()
        assert '"<' not in html


@pytest.mark.parametrize("url", ["javascript:alert(1)", "http://x", "", "data:text/html,x"])
def test_only_an_https_url_becomes_a_link(url: str) -> None:
    assert "<a " not in render_facts(replace(SPECS["vit_b16"], license_url=url), is_local=True)
    assert "<a " in render_facts(SPECS["vit_b16"], is_local=True)


@pytest.mark.parametrize(
    ("name", "license", "size"),
    [
        ("vit_nano_hashtags", "Apache-2.0", "1.25 MiB"),
        ("vit_b16", "CC-BY-NC-4.0", "327 MiB"),
        ("vit_h14", "CC-BY-NC-4.0", "2.3 GiB"),
    ],
)
def test_consent_names_licence_and_size(name: str, license: str, size: str) -> None:
    spec = SPECS[name]
    assert make_consent_label(spec) == f"Accept {license} and download {size}"
    facts = render_facts(spec, is_local=False)
    assert f"{size} to download" in facts
    assert ("no commercial use" in facts) == (name != "vit_nano_hashtags")


def test_facts_of_a_model_are_complete_and_missing_ones_are_left_out() -> None:
    spec = SPECS["regnety_16gf_in1k"]
    facts = render_facts(spec, is_local=True)
    assert f"<dt>Training</dt><dd>{spec.description}</dd>" in facts
    assert f"83.6M parameters, {spec.gmacs:g} GMACs at 384x384 px" in facts
    assert "<dt>Output</dt><dd>1,000 classes</dd>" in facts
    assert spec.metrics is not None
    assert f"{spec.metrics.top1}% top-1 on {spec.metrics.dataset}" in facts
    assert "<dt>Weights</dt><dd>on this machine</dd>" in facts
    backbone = render_facts(replace(SPECS["vit_b16"], description=""), is_local=True)
    assert "<dt>Output</dt><dd>features</dd>" in backbone
    assert "<dt>Accuracy</dt>" not in backbone
    assert "<dt>Training</dt>" not in backbone


@pytest.mark.parametrize(
    ("license", "spelling"),
    [("mit", "MIT"), ("cc0-1.0", "CC0-1.0"), ("openrail", "openrail"), ("unknown", "unknown")],
)
def test_licences_are_spelled_as_usual(license: str, spelling: str) -> None:
    facts = render_facts(replace(SPECS["vit_b16"], license=license), is_local=True)
    assert f">{spelling}</a>" in facts


@pytest.mark.parametrize(
    ("description", "html"),
    [
        ("made by `a b`; `c`", "made by <code>a b</code>; <code>c</code>"),
        ("it`s `<b>`", "it<code>s </code>&lt;b&gt;`"),
        ("``", "<code></code>"),
        ("a`", "a`"),
    ],
)
def test_backticks_in_a_description_enclose_code(description: str, html: str) -> None:
    facts = render_facts(replace(SPECS["vit_b16"], description=description), is_local=True)
    assert f"<dd>{html}</dd>" in facts


def test_the_files_that_are_the_image_itself_are_named() -> None:
    assert render_copies([]) == ""
    assert "the image itself: a, b</p>" in render_copies(["a", "b"])
    assert "0, 1, 2, 3, 4, and 95 more</p>" in render_copies([str(n) for n in range(100)])


def test_a_probability_is_shown_as_text_and_as_a_bar() -> None:
    html = render_predictions("model", [Prediction("cat", 0, 0.98765)])
    assert '<li style="--share: 0.9877"><span>cat</span><b>98.8%</b></li>' in html


def test_progress_has_a_value_only_if_the_total_is_known() -> None:
    assert '3.0 of 4.0 MiB<progress value="3145728" max="4194304">' in render_download(
        3 << 20, 4 << 20
    )
    assert "3.0 MiB<progress ></progress>" in render_download(3 << 20, 0)


def test_a_long_error_is_shown_in_one_line_and_can_be_unfolded() -> None:
    assert render_error("one line") == '<div class="notice" role="alert"><p>one line</p></div>'
    html = render_error("no source:\n  first: HTTP 404\n  second: offline")
    assert "<p>no source: first: HTTP 404</p><details>" in html
    assert "second: offline" in html


def test_the_shown_tables_are_saved_as_csv() -> None:
    image = Image.new("RGB", (2, 2))
    tables = [
        (
            render_predictions("vit_b16", [Prediction('a "b", c', 0, 0.98765)]),
            [["model", "class", "probability"], ["vit_b16", 'a "b", c', "0.98765"]],
        ),
        (
            render_neighbours([FoundImage("=1+1.png", -0.25, image)]),
            [["image", "cosine_similarity"], ["'=1+1.png", "-0.25"]],
        ),
        (
            render_class(["cat"], [FoundImage("a\nb.png", 0.5, image)]),
            [["class", "image", "probability"], ["cat", "a\nb.png", "0.5"]],
        ),
    ]
    for html, rows in tables:
        (content,) = re.findall('href="data:text/csv;charset=utf-8;base64,([^"]+)"', html)
        assert read_csv(base64.b64decode(content)) == rows


def test_two_models_are_shown_side_by_side_and_saved() -> None:
    html = render_comparison(
        [(SCRIPT, [Prediction(SCRIPT, 0, 0.5)], 0.01234), ("vit_b16", [], 1.5)]
    )
    assert "<script" not in html.lower()
    assert "12.3 ms per image" in html
    assert "1.50 s per image" in html
    assert html.count("<section>") == 2
    assert "It has no class names." in html
    (content,) = re.findall('href="data:text/csv;charset=utf-8;base64,([^"]+)"', html)
    assert read_csv(base64.b64decode(content)) == [
        ["model", "milliseconds", "class", "probability"],
        [SCRIPT, "12.34", SCRIPT, "0.5"],
        ["vit_b16", "1500.0", "", ""],
    ]


def test_models_are_chosen_by_family_and_only_with_a_source() -> None:
    own = replace(SPECS["vit_b16"], name="mine")
    without = replace(SPECS["vit_l16"], sources=())
    choices = list_choices({"mine": own, **SPECS, "vit_l16": without})
    assert choices[0] == ("Own: mine", "mine")
    groups = [label.split(":")[0] for label, _ in choices]
    assert list(dict.fromkeys(groups)) == ["Own", "Included", "SWAG", "MAWS", "SWSL", "WSL"]
    assert groups == sorted(groups, key=list(dict.fromkeys(groups)).index)
    assert {name for _, name in choices} == {"mine", *SPECS} - {"vit_l16"}
    assert ("SWSL: resnet18_swsl_in1k", "resnet18_swsl_in1k") in choices
    assert ("Included: vit_nano_hashtags", "vit_nano_hashtags") in choices


@pytest.mark.parametrize("is_private", [True, False])
def test_the_page_says_what_leaves_the_machine(is_private: bool) -> None:
    html = render_header(is_private)
    assert ("Your images do not leave this machine" in html) == is_private
    assert ("sent to the machine that serves this page" in html) != is_private


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", " ="])
def test_no_text_in_a_table_is_a_formula(start: str) -> None:
    text = f'{start}HYPERLINK("https://x", 1)'
    (row,) = read_csv(format_csv(["a"], [[text, -1.5, None, "a=b"]]))[1:]
    assert row == [f"'{text}", "-1.5", "", "a=b"]


def test_a_folder_without_readable_images_says_so() -> None:
    assert "Most probably cat, dog: no image of the folder can be read" in render_class(
        ["cat", "dog"], []
    )


def read_csv(content: bytes) -> list[list[str]]:
    """The rows of a table, whose file begins with a byte order mark."""
    text = content.decode("utf-8-sig")
    assert content[:3] == b"\xef\xbb\xbf"
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))
