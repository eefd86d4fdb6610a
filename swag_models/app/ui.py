"""The page itself: what lies where, and what happens when something is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from swag_models.app import components, service
from swag_models.app.overlay import crop_seen, lay_over
from swag_models.app.saliency import count_layers
from swag_models.app.similar import Shelf
from swag_models.errors import SwagModelsError
from swag_models.hub.fetch import find_weights
from swag_models.spec import ModelSpec, ViTConfig

WELCOME = "Give a picture, and its most probable classes are listed here."
WHERE = "Where it looks"
STOPPED = "The download was stopped; what has arrived is kept, and continued next time."
PAUSE = 0.5  # seconds between two reports
LINGER = 4  # reports
MEAN = "mean"
LABEL_EXAMPLES = """(...inputs) => {
  document.querySelectorAll("#examples button").forEach((button, i) => button.setAttribute("aria-label", `Example ${i + 1}`));
  return inputs;
}"""
Updates = dict[Any, Any]  # component -> what to change


def tell(*cleared: str) -> Callable[[Callable[..., Updates]], Callable[..., Updates]]:
    """Makes a handler say what goes wrong in the page's notice; clears what would show old results, and stops timers."""

    def decorate(handler: Callable[..., Updates]) -> Callable[..., Updates]:
        @wraps(handler)
        def answer(page: Page, *inputs: Any) -> Updates:
            try:
                return handler(page, *inputs)
            except SwagModelsError as error:
                blank = {
                    component: gr.Timer(active=False) if isinstance(component, gr.Timer) else None
                    for component in (getattr(page, name) for name in cleared)
                }
                return {**blank, page.notice: components.say(str(error))}

        return answer

    return decorate


class Page:
    """Lays out the page and answers its events.

    specs: the models to choose from, by name; the first is chosen.
    folder: where similar pictures are looked for; `may_type` allows to name another one in the page.
    examples: pictures to begin with.
    uploads: the folder of uploaded files; no other file is opened for a request.
    """

    def __init__(
        self,
        specs: Mapping[str, ModelSpec],
        folder: str,
        may_type: bool,
        examples: list[Path],
        uploads: Path,
    ) -> None:
        self.specs = specs
        self.uploads = uploads
        self.folder = folder
        self.may_type = may_type
        self.shelf = Shelf()
        self.downloads: dict[str, service.Download] = {}
        with gr.Blocks(title="swag_models", analytics_enabled=False) as self.blocks:
            self.sight, self.idle = gr.State(None), gr.State(0)
            self.coming, self.embedding = (
                gr.Timer(PAUSE, active=False),
                gr.Timer(PAUSE, active=False),
            )
            gr.HTML(components.HEADER)
            with gr.Row(equal_height=False):
                with gr.Column(elem_id="ask"):
                    self.lay_out_question(examples)
                with gr.Column(elem_id="answer"):
                    self.lay_out_answer()
            self.connect()

    def lay_out_question(self, examples: list[Path]) -> None:
        self.picture = gr.Image(
            label="Picture",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard", "webcam"],
            height=300,
            buttons=[],
            elem_id="picture",
        )
        if examples:
            gr.Examples(
                [[str(path)] for path in examples],
                self.picture,
                label="Or one of these",
                elem_id="examples",
            )
        self.model = gr.Dropdown(list(self.specs), value=next(iter(self.specs)), label="Model")
        self.facts = gr.HTML(elem_id="facts")
        self.loading = gr.HTML(elem_id="loading")
        self.fetch_button = gr.Button(visible=False, variant="primary", elem_id="fetch")
        self.stop_button = gr.Button(visible=False, elem_id="stop")

    def lay_out_answer(self) -> None:
        self.notice = gr.HTML(elem_id="notice")
        self.bars = gr.HTML(components.hint(WELCOME), elem_id="bars")
        with gr.Group():
            self.overlay = gr.Image(
                label=WHERE,
                interactive=False,
                height=380,
                format="jpeg",
                buttons=["fullscreen"],
                elem_id="overlay",
            )
            with gr.Row():
                self.layer = gr.Slider(1, 2, 1, step=1, label="Block", min_width=200, buttons=[])
                self.blend = gr.Slider(
                    0, 1, 0.55, step=0.05, label="Blend", min_width=200, buttons=[]
                )
                self.head = gr.Dropdown([MEAN], value=MEAN, label="Head", min_width=200)
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
        """Which handler answers which event.

        Gradio's queue is not used: its page misses an answer if it asks for another one in the moment in which the queue runs
        empty. What takes long answers soon how far it is, and is asked again by a timer that runs until it is done.
        """
        # broken files have to reach the handlers, which check what they are given, as Gradio's preprocessing would
        plain = {
            "queue": False,
            "api_visibility": "private",
            "preprocess": False,
            "trigger_mode": "always_last",
        }
        quick: dict[str, Any] = {**plain, "show_progress": "hidden"}
        work: dict[str, Any] = {**plain, "show_progress": "minimal"}
        card = [self.facts, self.fetch_button, self.stop_button, self.coming, self.idle]
        controls = [self.layer, self.head]
        shown = [self.sight, self.layer, self.head, self.blend]

        def hush(event: Any) -> Any:
            return event(lambda: None, None, self.notice, **quick)

        def look(event: Any) -> Any:
            return event(self.look, shown, [self.overlay, self.notice], **work)

        def find(event: Any) -> None:
            event(
                self.find,
                [self.sight, self.typed],
                [self.near, self.notice, self.embedding],
                **quick,
            )

        def answer(event: Any) -> None:
            step = event(
                self.classify,
                [self.picture, self.model],
                [self.sight, self.bars, self.notice],
                **work,
            )
            find(look(step.then).then)

        self.blocks.load(self.choose, self.model, card + controls, **quick, js=LABEL_EXAMPLES)
        hush(self.model.change).then(self.choose, self.model, card + controls, **quick)
        answer(self.facts.change)  # another model is chosen, or its weights have come
        answer(hush(self.picture.change).then)
        for control in (self.layer, self.head, self.blend):
            look(control.input)
        find(hush(self.typed.submit).then)
        find(self.embedding.tick)
        hush(self.fetch_button.click).then(self.fetch, self.model, card, **quick)
        self.stop_button.click(self.stop, self.model, self.stop_button, **quick)
        self.coming.tick(
            self.watch, [self.model, self.idle], [*card, self.loading, self.notice], **quick
        )

    def choose(self, name: str) -> Updates:
        """A model's card, and the controls that it has."""
        config = self.specs[name].config
        layers = count_layers(config)
        heads = range(1, config.num_heads + 1) if isinstance(config, ViTConfig) else []
        return {
            **self.show_card(name),
            self.layer: gr.Slider(1, layers, layers, label="Block" if heads else "Stage"),
            self.head: gr.Dropdown([MEAN, *map(str, heads)], value=MEAN, visible=bool(heads)),
        }

    def show_card(self, name: str) -> Updates:
        """What a model is, and a button to download it, or to stop that."""
        spec = self.specs[name]
        here, coming = find_weights(spec) is not None, name in self.downloads
        return {
            self.facts: components.describe(spec, here),
            self.fetch_button: gr.Button(
                components.ask_consent(spec), visible=not here and not coming
            ),
            self.stop_button: gr.Button("Stop the download", visible=coming, interactive=True),
            self.coming: gr.Timer(active=True),
            self.idle: 0,
        }

    def fetch(self, name: str) -> Updates:
        """Begin to download a model whose licence was accepted."""
        if name not in self.downloads:
            self.downloads[name] = service.Download(self.specs[name])
        return self.show_card(name)

    def stop(self, name: str) -> Updates:
        """Ask a download to stop, which it does when the next bytes arrive."""
        if name in self.downloads:
            self.downloads[name].stopping = True
        return {self.stop_button: gr.Button("Stopping ...", interactive=False)}

    def watch(self, name: str, idle: int) -> Updates:
        """How far the model's download is, if there is one; what came of it once it has ended."""
        download = self.downloads.get(name)
        if (
            download is None
        ):  # goes on for a while, in case that an answer has overtaken a later one
            timer = gr.Timer(active=idle < LINGER)
            return {
                **self.show_card(name),
                self.loading: None,
                self.coming: timer,
                self.idle: idle + 1,
            }
        if download.thread.is_alive():
            return {self.loading: components.draw_bytes(download.done, download.total)}
        self.downloads.pop(name, None)
        notice = (
            components.say(str(download.error))
            if download.error
            else components.hint(STOPPED)
            if download.stopping
            else None
        )
        return {**self.show_card(name), self.loading: None, self.notice: notice}

    @tell("sight", "bars")
    def classify(self, upload: Any, name: str) -> Updates:
        """The classes of the picture, if there is one and the model is here."""
        spec = self.specs[name]
        if upload is None:
            return {self.sight: None, self.bars: components.hint(WELCOME)}
        if find_weights(spec) is None:
            hint = f"{name} is not on this machine yet; its card says what it would take to download it."
            return {self.sight: None, self.bars: components.hint(hint)}
        sight = service.classify(spec, *service.find_upload(upload, self.uploads))
        hint = f"{name} has no classes with names; below is where it looks."
        return {
            self.sight: sight,
            self.bars: components.draw_bars(sight.predictions)
            if sight.predictions
            else components.hint(hint),
        }

    @tell("overlay")
    def look(
        self, sight: service.Sight | None, layer: int | None, head: str, blend: float
    ) -> Updates:
        """One of a layer's maps, or their mean, over the part of the picture that the model sees."""
        if sight is None:
            return {self.overlay: gr.Image(None, label=WHERE)}
        layers = count_layers(sight.spec.config)
        layer = min(
            max(int(layer or layers), 1), layers
        )  # the field beside the slider takes any number, and none
        maps = service.look(sight, layer - 1)
        heat = (
            maps[int(head) - 1]
            if head.isdigit() and 0 < int(head) <= len(maps)
            else maps.mean(axis=0)
        )
        picture = lay_over(crop_seen(sight.picture, sight.spec.preprocess.size), heat, blend)
        caption = components.name_map(sight.spec, sight.predictions, layer)
        return {self.overlay: gr.Image(picture, label=caption, alt_text=caption)}

    @tell("near", "embedding")
    def find(self, sight: service.Sight | None, typed: str) -> Updates:
        """The most similar pictures of the folder, or how many of them are embedded so far."""
        folder = (typed if self.may_type else self.folder).strip()
        if sight is None or not folder:
            return {self.near: None, self.embedding: gr.Timer(active=False)}
        done, total = self.shelf.embed(sight.spec, folder)
        if done < total:
            bar = components.draw_progress(f"{done} of {total} pictures embedded", done, total)
            return {self.near: bar, self.embedding: gr.Timer(active=True)}
        near, skipped = self.shelf.rank(sight.spec, folder, sight.picture)
        return {
            self.near: components.draw_neighbours(near) + components.list_skipped(skipped),
            self.embedding: gr.Timer(active=False),
        }
