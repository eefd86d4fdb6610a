"""The page itself: what lies where, and what happens when something is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from swag_models.app import desk, panel
from swag_models.app.heat import count_layers
from swag_models.app.overlay import crop_seen, lay_over
from swag_models.app.shelf import Shelf
from swag_models.errors import SwagModelsError
from swag_models.fetch import find_weights
from swag_models.spec import ModelSpec, ViTConfig

MEAN = "mean"
LABEL_EXAMPLES = """(...inputs) => {
  document.querySelectorAll("#examples button").forEach((button, i) => button.setAttribute("aria-label", `Example ${i + 1}`));
  return inputs;
}"""
Updates = Iterator[dict[Any, Any]]  # each: component -> what to change


def tell(*cleared: str) -> Callable[[Callable[..., Updates]], Callable[..., Updates]]:
    """Makes a handler say what goes wrong in the page's notice, and clear the components that would show old results."""

    def decorate(handler: Callable[..., Updates]) -> Callable[..., Updates]:
        @wraps(handler)
        def answer(page: Page, *inputs: Any) -> Updates:
            try:
                yield from handler(page, *inputs)
            except SwagModelsError as error:
                line, _, detail = str(error).partition("\n")
                yield {**{getattr(page, name): None for name in cleared}, page.notice: panel.say(line, detail)}

        return answer

    return decorate


class Page:
    """Lays out the page and answers its events.

    specs: the models to choose from, by name; the first is chosen.
    folder: where similar pictures are looked for; `may_type` allows to name another one in the page.
    examples: pictures to begin with.
    """

    def __init__(self, specs: Mapping[str, ModelSpec], folder: str, may_type: bool, examples: list[Path]) -> None:
        self.specs = specs
        self.folder = folder
        self.may_type = may_type
        self.shelf = Shelf()
        self.stopping: set[str] = set()
        with gr.Blocks(title="swag_models", analytics_enabled=False) as self.blocks:
            self.sight = gr.State(None)
            gr.HTML(panel.HEADER)
            with gr.Row(equal_height=False):
                with gr.Column(elem_id="ask"):
                    self.lay_out_question(examples)
                with gr.Column(elem_id="answer"):
                    self.lay_out_answer()
            self.connect()
        self.blocks.queue(max_size=64)

    def lay_out_question(self, examples: list[Path]) -> None:
        self.picture = gr.Image(
            label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard", "webcam"], height=300, buttons=[],
            elem_id="picture",
        )
        if examples:
            gr.Examples([[str(path)] for path in examples], self.picture, label="Or one of these", elem_id="examples")
        self.model = gr.Dropdown(list(self.specs), value=next(iter(self.specs)), label="Model")
        self.facts = gr.HTML(elem_id="facts")
        self.loading = gr.HTML(elem_id="loading")
        self.fetch_button = gr.Button(visible=False, variant="primary", elem_id="fetch")
        self.stop_button = gr.Button(visible=False, elem_id="stop")

    def lay_out_answer(self) -> None:
        self.notice = gr.HTML(elem_id="notice")
        self.bars = gr.HTML(elem_id="bars")
        with gr.Group():
            self.overlay = gr.Image(
                label="Where it looks", interactive=False, height=380, format="jpeg", buttons=["fullscreen"], elem_id="overlay"
            )
            with gr.Row():
                self.layer = gr.Slider(1, 2, 1, step=1, label="Block", min_width=140, buttons=[])
                self.blend = gr.Slider(0, 1, 0.55, step=0.05, label="Blend", min_width=140, buttons=[])
                self.head = gr.Dropdown([MEAN], value=MEAN, label="Head", min_width=140)
        self.typed = gr.Textbox(
            self.folder,
            label="Similar pictures in a folder of yours",
            placeholder="/path/to/pictures, on this machine",
            interactive=self.may_type,
            submit_btn="Find" if self.may_type else False,
            visible=self.may_type or bool(self.folder),
            elem_id="folder",
        )
        self.near = gr.HTML(elem_id="near")

    def connect(self) -> None:
        """Which handler answers which event. What works with a model is done one at a time, so that the last one asked wins."""
        # the page's own checks take the place of Gradio's preprocessing, which has no line to say about a broken file
        quick: dict[str, Any] = {"api_visibility": "private", "preprocess": False, "show_progress": "hidden"}
        work = {**quick, "show_progress": "minimal", "concurrency_id": "model", "concurrency_limit": 1}
        load = {**quick, "show_progress": "full", "show_progress_on": self.loading, "concurrency_id": "fetch"}
        near = {**quick, "show_progress": "full", "show_progress_on": self.near, "concurrency_id": "folder"}
        card = [self.facts, self.fetch_button, self.stop_button, self.layer, self.head]
        how = [self.layer, self.head, self.blend]

        def choose(event: Any, **options: Any) -> None:
            answer(event(self.choose, self.model, card, **quick, **options))

        def answer(step: Any) -> None:
            outputs = [self.sight, self.bars, self.overlay, self.notice]
            find(step.then(self.answer, [self.picture, self.model, *how], outputs, **work))

        def find(step: Any) -> None:
            step.then(self.find, [self.sight, self.typed], [self.near, self.notice], **near)

        def hush(event: Any) -> Any:
            return event(lambda: None, None, self.notice, **quick)

        choose(self.blocks.load, js=LABEL_EXAMPLES)
        choose(hush(self.model.change).then)
        answer(hush(self.picture.change))
        find(hush(self.typed.submit))
        started = hush(self.fetch_button.click).then(self.start, self.model, [self.fetch_button, self.stop_button], **quick)
        choose(started.then(self.fetch, self.model, [self.loading, self.notice], **load).then)
        self.stop_button.click(self.stop, self.model, self.stop_button, queue=False, **quick)
        changed = [self.layer.input, self.head.input, self.blend.input]
        outputs = [self.sight, self.overlay, self.notice]
        gr.on(changed, self.look, [self.sight, *how], outputs, **work, trigger_mode="always_last")

    @tell()
    def choose(self, name: str) -> Updates:
        """A model's card, and the controls that it has."""
        spec = self.specs[name]
        here = find_weights(spec) is not None
        layers = count_layers(spec.config)
        heads = range(1, spec.config.num_heads + 1) if isinstance(spec.config, ViTConfig) else []
        yield {
            self.facts: panel.describe(spec, here),
            self.fetch_button: gr.Button(panel.ask_consent(spec), visible=not here),
            self.stop_button: gr.Button(visible=False),
            self.layer: gr.Slider(1, layers, layers, label="Block" if heads else "Stage"),
            self.head: gr.Dropdown([MEAN, *map(str, heads)], value=MEAN, visible=bool(heads)),
        }

    def start(self, name: str) -> dict[Any, Any]:
        self.stopping.discard(name)
        return {
            self.fetch_button: gr.Button(visible=False),
            self.stop_button: gr.Button("Stop the download", visible=True, interactive=True),
        }

    def stop(self, name: str) -> dict[Any, Any]:
        """Ask a download to stop, which it does when the next bytes arrive."""
        self.stopping.add(name)
        return {self.stop_button: gr.Button("Stopping ...", interactive=False)}

    @tell()
    def fetch(self, name: str, progress: gr.Progress = gr.Progress()) -> Updates:
        """Download a model whose licence was accepted."""

        def report(done: int, total: int | None) -> None:
            if name in self.stopping:
                raise desk.StoppedError
            whole = f" of {total / 2**20:.1f}" if total else ""
            progress(done / total if total else 0, desc=f"{done / 2**20:.1f}{whole} MiB")

        try:
            desk.fetch(self.specs[name], report)
            yield {self.notice: None}
        except desk.StoppedError:
            yield {self.notice: panel.hint("The download was stopped; what has arrived is kept, and continued next time.")}

    @tell("sight", "bars", "overlay")
    def answer(self, upload: dict[str, Any] | None, name: str, layer: int, head: str, blend: float) -> Updates:
        """The classes of the picture and where the model looks, if there is a picture and the model is here."""
        spec = self.specs[name]
        if upload is None:
            hint = "Give a picture, and its most probable classes are listed here."
        elif find_weights(spec) is None:
            hint = f"{name} is not on this machine yet; its card says what it would take to download it."
        else:
            sight = desk.classify(spec, upload["path"], upload["orig_name"])
            hint = f"{name} has no classes with names; below is where it looks."
            yield {self.bars: panel.draw_bars(sight.predictions) if sight.predictions else panel.hint(hint)}
            yield from self.look(sight, layer, head, blend)
            return
        yield {self.sight: None, self.bars: panel.hint(hint), self.overlay: None}

    @tell("sight", "overlay")
    def look(self, sight: desk.Sight | None, layer: int | None, head: str, blend: float) -> Updates:
        """One of a layer's maps, or their mean, over the part of the picture that the model sees."""
        if sight is None:
            yield {self.overlay: None}
            return
        layers = count_layers(sight.spec.config)
        sight = desk.look(sight, min(max(int(layer or layers), 1), layers) - 1)
        heat = sight.maps[int(head) - 1] if head.isdigit() and 0 < int(head) <= len(sight.maps) else sight.maps.mean(axis=0)
        picture = lay_over(crop_seen(sight.picture, sight.spec.preprocess.size), heat, blend)
        yield {self.sight: sight, self.overlay: gr.Image(picture, label=sight.caption, alt_text=sight.caption)}

    @tell("near")
    def find(self, sight: desk.Sight | None, typed: str, progress: gr.Progress = gr.Progress()) -> Updates:
        """The most similar pictures of the folder."""
        folder = (typed if self.may_type else self.folder).strip()
        if sight is None or not folder:
            yield {self.near: None}
            return

        def report(done: int, total: int) -> None:
            progress((done, total), desc=f"Embedding {total} pictures", unit="pictures")

        near, skipped = self.shelf.find(sight.spec, sight.picture, folder, report)
        yield {self.near: panel.draw_neighbours(near) + panel.list_skipped(skipped)}
