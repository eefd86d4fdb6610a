"""The layout of the page: its components, in the order of the keyboard and of phones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from swag_models.app import components, service
from swag_models.app.folder_index import FolderIndexes
from swag_models.app.similar import MAX_WORD
from swag_models.app.uploads import Uploads
from swag_models.spec import ModelSpec

WELCOME = "Choose an image, and its most probable classes are listed here."
SALIENCY_LABEL = "Saliency map"
TIMER_INTERVAL = 0.5  # seconds
MEAN_HEAD = "mean"
OPACITY = 0.55  # of the saliency map at first
# Attributes for screen readers that Gradio has no options for, also of elements that it replaces
SET_ATTRIBUTES = """(...inputs) => {{
  const titles = {titles};
  function set(selector, attributes) {{
    document.querySelectorAll(selector).forEach((element, index) => {{
      for (const [name, value] of Object.entries(attributes(index)))
        if (element.getAttribute(name) !== value) element.setAttribute(name, value);
    }});
  }}
  function setAll() {{
    set("#examples button", i => ({{"aria-label": `Example ${{i + 1}}`, title: titles[i] ?? ""}}));
    set("#notice, #bars, #found", () => ({{"aria-live": "polite", "aria-atomic": "true"}}));
    set("#image button.upload-container",
        () => ({{"aria-label": "Drop Image Here - or - Click to Upload"}}));
    set("#overlay .empty", () => ({{role: "img"}}));
  }}
  setAll();
  new MutationObserver(setAll).observe(document.body, {{childList: true, subtree: true}});
  return inputs;
}}"""


class Layout:
    """The components of the page, without their events.

    Args:
        specs: the models to choose from, by name; the first is selected.
        folder: folder to search; "" for none.
        indexes: the indexes of folders.
        may_type: whether another folder can be entered in the page, because only this machine can
            reach it.
        examples: image files to start with.
        uploads: the uploaded files; no other file is opened for a request.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        folder: str,
        indexes: FolderIndexes,
        may_type: bool,
        examples: list[Path],
        uploads: Uploads,
    ) -> None:
        self.specs = specs
        self.uploads = uploads
        self.folder = folder
        self.may_type = may_type
        self.examples = examples
        self.indexes = indexes
        self.downloads: dict[str, service.Download] = {}
        with gr.Blocks(title="swag_models", analytics_enabled=False) as self.blocks:
            self.analysis, self.idle_polls = gr.State(None), gr.State(0)
            self.download_timer = gr.Timer(TIMER_INTERVAL, active=False)
            self.embed_timer = gr.Timer(TIMER_INTERVAL, active=False)
            gr.HTML(components.render_header(may_type))
            with gr.Row():
                with gr.Column():
                    self.add_image()
                with gr.Column():
                    self.notice = gr.HTML(elem_id="notice")
                    self.bars = gr.HTML(components.render_hint(WELCOME), elem_id="bars")
            with gr.Row():
                with gr.Column():
                    self.add_examples()
                    self.add_model()
                with gr.Column():
                    self.add_saliency()
            self.add_search()
            self.connect()

    def connect(self) -> None:
        """Connect the components to event handlers; overridden by `Page`."""

    @property
    def scripts(self) -> str:
        """JavaScript that runs when the page is loaded."""
        titles = json.dumps([path.stem for path in self.examples])
        return SET_ATTRIBUTES.format(titles=titles)

    def add_image(self) -> None:
        """Add the image."""
        self.image = gr.Image(
            label="Image",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard", "webcam"],
            height=300,
            buttons=[],
            alt_text="The chosen image",
            elem_id="image",
        )

    def add_examples(self) -> None:
        """Add images to start with."""
        if self.examples:
            gr.Examples(
                [[str(path)] for path in self.examples],
                self.image,
                label="Or one of these",
                elem_id="examples",
            )
            gr.HTML(components.render_examples_note(self.specs))

    def add_model(self) -> None:
        """Add the choice of a model, facts about it, and its download."""
        choices = components.list_choices(self.specs)
        with gr.Group():
            self.model = gr.Dropdown(
                choices, value=next(iter(self.specs)), label="Model", elem_id="model"
            )
            self.other = gr.Dropdown(
                [("no other model", ""), *choices],
                value="",
                label="Compare with",
                elem_id="compare",
            )
        self.facts = gr.HTML(elem_id="facts")
        self.progress = gr.HTML(elem_id="progress")
        self.download_button = gr.Button(visible=False, variant="primary", elem_id="download")
        self.stop_button = gr.Button(visible=False, elem_id="stop")

    def add_saliency(self) -> None:
        """Add the saliency map and its controls."""
        with gr.Group():
            self.overlay = gr.Image(
                label=SALIENCY_LABEL,
                interactive=False,
                height=480,
                buttons=["fullscreen"],
                elem_id="overlay",
            )
            with gr.Row():
                options: dict[str, Any] = {"min_width": 150, "buttons": []}
                self.layer = gr.Slider(1, 2, 1, step=1, label="Block", **options)
                self.opacity = gr.Slider(0, 1, OPACITY, step=0.05, label="Opacity", **options)
                self.head = gr.Dropdown([MEAN_HEAD], value=MEAN_HEAD, label="Head", min_width=150)

    def add_search(self) -> None:
        """Add the folder to search, the class to search for, and the images that were found."""
        is_shown = self.may_type or bool(self.folder)
        options: dict[str, Any] = {"visible": is_shown, "min_width": 300}
        with gr.Row():
            self.typed_folder = gr.Textbox(
                self.folder,
                label="Search one of your folders for similar images",
                placeholder="/path/to/images, on this machine",
                interactive=self.may_type,
                submit_btn="Find" if self.may_type else False,
                elem_id="folder",
                **options,
            )
            self.word = gr.Textbox(
                label="and for the images of a class",
                placeholder="cat, or another class or hashtag",
                submit_btn="Search",
                max_length=MAX_WORD,
                elem_id="word",
                **options,
            )
        self.similar = gr.HTML(elem_id="similar")
        self.found = gr.HTML(elem_id="found")
