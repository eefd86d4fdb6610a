"""The handlers of the page's events."""

import logging
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import gradio as gr

from swag_models.app import components, service
from swag_models.app.folder_index import FolderIndex
from swag_models.app.guard import OWNER
from swag_models.app.layout import MEAN_HEAD, OPACITY, SALIENCY_LABEL, WELCOME, Layout
from swag_models.app.saliency import count_layers, overlay_saliency
from swag_models.app.similar import find_class, find_similar, list_copies, match_classes
from swag_models.architectures import ViTConfig
from swag_models.errors import ConfigError, SwagModelsError
from swag_models.formatting import count_noun
from swag_models.hub.fetch import find_weights
from swag_models.model_metadata import load_classes

logger = logging.getLogger("swag_models")
STOPPED = "The download was stopped; the next download of this model resumes it."
MAX_IDLE_POLLS = 4
Updates = dict[Any, Any]  # component -> its new value or properties


def show_errors(*cleared: str) -> Callable[[Callable[..., Updates]], Callable[..., Updates]]:
    """Decorate an event handler of `Page` so that its errors appear in the notice of the page.

    Args:
        cleared: names of the components that are cleared on an error, because they would show old
            results; a timer is stopped instead.
    """

    def decorate(handler: Callable[..., Updates]) -> Callable[..., Updates]:
        @wraps(handler)
        def handle(page: "Page", *inputs: Any) -> Updates:
            try:
                return handler(page, *inputs)
            except SwagModelsError as error:
                logger.warning("refused: %s", error)
                updates: Updates = {page.notice: components.render_error(str(error))}
                for component in (getattr(page, name) for name in cleared):
                    is_timer = isinstance(component, gr.Timer)
                    updates[component] = gr.Timer(active=False) if is_timer else None
                return updates

        return handle

    return decorate


class Page(Layout):
    """Event handlers of the page; the arguments are those of `Layout`."""

    def connect(self) -> None:
        """Connect events to their handlers.

        Gradio's queue is not used, because the page loses a response if it sends a request at the
        moment when the queue becomes empty. Instead, a handler with long work returns its progress
        after a short time, and a timer calls it again until the work is done.
        """
        # preprocess=False: Gradio would open uploaded files itself, so that damaged ones would not
        # reach the handler, which reports the reason.
        shared: dict[str, Any] = {
            "queue": False,
            "api_visibility": "private",
            "preprocess": False,
            "trigger_mode": "always_last",
        }
        quick: dict[str, Any] = {**shared, "show_progress": "hidden"}
        slow: dict[str, Any] = {**shared, "show_progress": "minimal"}
        card = [self.facts, self.download_button, self.stop_button]
        card += [self.download_timer, self.idle_polls]
        model_outputs = [*card, self.layer, self.head]

        # Each of these functions connects a handler to an event, such as `component.change` or
        # `previous_step.then`, and returns the new step, which further steps can follow.

        def on_clear(event: Any) -> Any:
            return event(lambda: None, None, self.notice, **quick)

        def on_saliency(event: Any) -> Any:
            inputs = [self.analysis, self.layer, self.head, self.opacity]
            # postprocess=False: Gradio would write a file for each map. They are part of the
            # response instead.
            outputs = [self.overlay, self.notice]
            return event(self.show_saliency, inputs, outputs, **slow, postprocess=False)

        def on_search(event: Any) -> Any:
            inputs = [self.analysis, self.model, self.typed_folder, self.word]
            outputs = [self.similar, self.found, self.notice, self.embed_timer]
            return event(self.search_folder, inputs, outputs, **quick)

        def on_classify(event: Any) -> Any:
            outputs = [self.analysis, self.bars, self.notice]
            step = event(self.classify, [self.image, self.model, self.other], outputs, **slow)
            return on_search(on_saliency(step.then).then)

        self.blocks.load(self.select_model, self.model, model_outputs, **quick, js=self.scripts)
        on_clear(self.model.change).then(self.select_model, self.model, model_outputs, **quick)
        on_classify(self.facts.change)  # another model was selected, or its weights were downloaded
        on_classify(on_clear(self.image.change).then)
        on_classify(on_clear(self.other.change).then)
        # one event for all, so that the browser waits for one response before the next request:
        # responses to requests at the same time can arrive out of order
        controls = [self.layer.input, self.head.input, self.opacity.input]
        on_saliency(partial(gr.on, controls))
        on_search(on_clear(self.typed_folder.submit).then)
        on_search(on_clear(self.word.submit).then)
        on_search(self.embed_timer.tick)
        start = on_clear(self.download_button.click)
        start.then(self.start_download, self.model, card, **quick)
        self.stop_button.click(self.stop_download, self.model, self.stop_button, **quick)
        self.download_timer.tick(
            self.poll_download,
            [self.model, self.idle_polls],
            [*card, self.progress, self.notice],
            **quick,
        )

    def select_model(self, name: str) -> Updates:
        """Show a model's card and the controls that it has."""
        config = self.specs[name].config
        layers = count_layers(config)
        heads = range(1, config.num_heads + 1) if isinstance(config, ViTConfig) else []
        return {
            **self.show_card(name),
            self.layer: gr.Slider(1, layers, layers, label="Block" if heads else "Stage"),
            self.head: gr.Dropdown(
                [MEAN_HEAD, *map(str, heads)], value=MEAN_HEAD, visible=bool(heads)
            ),
        }

    def show_card(self, name: str) -> Updates:
        """Show facts about a model, and the button to download it or to stop its download."""
        spec = self.specs[name]
        is_local, is_downloading = find_weights(spec) is not None, name in self.downloads
        return {
            self.facts: components.render_facts(spec, is_local),
            self.download_button: gr.Button(
                components.make_consent_label(spec), visible=not is_local and not is_downloading
            ),
            self.stop_button: gr.Button(
                "Stop the download", visible=is_downloading, interactive=True
            ),
            self.download_timer: gr.Timer(active=True),
            self.idle_polls: 0,
        }

    def start_download(self, name: str) -> Updates:
        """Start downloading a model; clicking the button accepts its licence."""
        if name not in self.downloads:
            self.downloads[name] = service.Download(self.specs[name])
        return self.show_card(name)

    def stop_download(self, name: str) -> Updates:
        """Stop a download, which takes effect when the next bytes arrive."""
        if name in self.downloads:
            self.downloads[name].stopping = True
        return {self.stop_button: gr.Button("Stopping ...", interactive=False)}

    def poll_download(self, name: str, idle_polls: int) -> Updates:
        """Show the progress of a model's download, or how it ended."""
        download = self.downloads.get(name)
        if download is None:
            # Polling continues for a while, because responses can arrive out of order: the page may
            # still show an older state.
            return {
                **self.show_card(name),
                self.progress: None,
                self.download_timer: gr.Timer(active=idle_polls < MAX_IDLE_POLLS),
                self.idle_polls: idle_polls + 1,
            }
        if download.thread.is_alive():
            return {self.progress: components.render_download(download.done, download.total)}
        self.downloads.pop(name, None)
        notice = None
        if download.error:
            notice = components.render_error(str(download.error))
        elif download.stopping:
            notice = components.render_hint(STOPPED)
        return {**self.show_card(name), self.progress: None, self.notice: notice}

    @show_errors("analysis", "bars")
    def classify(self, upload: Any, name: str, other: str, request: gr.Request) -> Updates:
        """Show the classes of the uploaded image, if there is one and the model is local.

        Args:
            upload: the image, as requests refer to it.
            name: the selected model.
            other: the model to compare it with; "" for none.
            request: who sent the request.
        """
        if upload is None:
            return {self.analysis: None, self.bars: components.render_hint(WELCOME)}
        if find_weights(self.specs[name]) is None:
            hint = f"{name} is not on this machine yet; the button below its facts downloads it."
            return {self.analysis: None, self.bars: components.render_hint(hint)}
        assert request.request is not None
        assert request.session_hash
        owner = request.request.scope[OWNER]
        file, file_name = self.uploads.open(upload, owner, request.session_hash)
        with file:
            content = service.FileContent.read(file)
            analysis = service.classify_image(self.specs[name], file, file_name)
            analysis.content = content
            has_other = bool(other) and find_weights(self.specs[other]) is not None
            if has_other and other != name:
                file.seek(0)
                second = service.classify_image(self.specs[other], file, file_name)
                return {self.analysis: analysis, self.bars: self.compare(analysis, second)}
        if analysis.predictions:
            bars = components.render_predictions(name, analysis.predictions)
        else:
            bars = components.render_hint(f"{name} has no class names; its saliency map is below.")
        if other and not has_other:
            hint = f"{other} is not on this machine yet; choose it as the model to download it."
            bars += components.render_hint(hint)
        return {self.analysis: analysis, self.bars: bars}

    def compare(self, *analyses: service.Analysis) -> str:
        """The classes of an image by several models, with the time that each takes."""
        times = [service.measure_time(analysis) for analysis in analyses]
        results = [(a.spec.name, a.predictions, seconds) for a, seconds in zip(analyses, times)]
        return components.render_comparison(results)

    @show_errors("overlay")
    def show_saliency(
        self,
        analysis: service.Analysis | None,
        layer: float | None,
        head: str,
        opacity: float | None,
    ) -> Updates:
        """Show a saliency map of a layer, or the mean of its maps, over the image."""
        if analysis is None:
            return {self.overlay: gr.update(value=None, label=SALIENCY_LABEL)}
        layers = count_layers(analysis.spec.config)
        # the number field of the slider accepts any number, and can be empty
        layer = min(max(int(layer or layers), 1), layers)
        maps = service.get_saliency(analysis, layer - 1)  # (K, h, w)
        heads = {str(index): head_map for index, head_map in enumerate(maps, 1)}
        saliency = heads[head] if head in heads else maps.mean(axis=0)  # (h, w)
        _, view = analysis.get_input()
        opacity = OPACITY if opacity is None else min(max(opacity, 0), 1)
        image = overlay_saliency(view, saliency, opacity)
        label = components.make_saliency_label(analysis.spec, analysis.predictions, layer)
        value = {"url": components.encode_image(image)}
        return {self.overlay: gr.update(value=value, label=label, alt_text=label)}

    @show_errors("similar", "found", "embed_timer")
    def search_folder(
        self, analysis: service.Analysis | None, name: str, typed_folder: str, word: str
    ) -> Updates:
        """Show images of the folder, or how many of them are embedded.

        Args:
            analysis: of the chosen image, whose most similar images are shown.
            name: the selected model.
            typed_folder: the folder, if visitors may choose one.
            word: names the class whose images are shown; "" for none.
        """
        spec, word = self.specs[name], word.strip()
        # without may_type, a request can still contain a folder, which must not be searched
        folder = (typed_folder if self.may_type else self.folder).strip()
        if analysis is not None and analysis.spec != spec:
            analysis = None  # of the model that was selected before
        cleared: Updates = {
            self.similar: None,
            self.found: None,
            self.embed_timer: gr.Timer(active=False),
        }
        if not folder or not (analysis or word):
            return cleared
        if find_weights(spec) is None:
            hint = components.render_hint(f"{name} is not on this machine yet.")
            return {**cleared, self.found: hint if word else None}
        classes, error = list[int](), ""
        if word:
            try:
                classes = match_classes(spec, word)
            except ConfigError as reason:  # the similar images are shown nevertheless
                error = components.render_error(str(reason))
        index = self.indexes.open(spec, folder)
        if analysis or classes:
            done, total = index.embed()
            if done < total:
                text = f"{done} of {count_noun(total, 'image')} embedded"
                bar = components.render_progress(text, done, total)
                timer = gr.Timer(active=True)
                return {self.similar: bar, self.found: error or None, self.embed_timer: timer}
        similar = self.render_similar(index, analysis) if analysis else None
        found = self.render_class(index, classes) if classes else error
        return {**cleared, self.similar: similar, self.found: found}

    def render_similar(self, index: FolderIndex, analysis: service.Analysis) -> str:
        """The images of a folder that are most similar to an image."""
        assert analysis.content
        copies = list_copies(index, analysis.content)
        pixels, _ = analysis.get_input()
        images, skipped = find_similar(index, pixels, exclude=copies)
        html = components.render_neighbours(images) + components.render_copies(copies)
        return html + components.render_skipped(skipped) + self.render_problem(index)

    def render_class(self, index: FolderIndex, classes: list[int]) -> str:
        """The images of a folder in which classes are most probable."""
        images, _ = find_class(index, classes)
        names = load_classes(index.spec)
        html = components.render_class([names[number] for number in classes], images)
        return html + self.render_problem(index)

    def render_problem(self, index: FolderIndex) -> str:
        """Why the index of a folder is not kept; empty if it is."""
        problem = f"The index of this folder is not kept: {index.problem}"
        return components.render_hint(problem) if index.problem else ""
