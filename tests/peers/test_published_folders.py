"""Scenarios of transformers' tests of TimmWrapper, and of timm's of the Hub, on saved folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peers.library_calls import NAMES, saved
from peers.subjects import TIMM, VIT, Subject
from torch import nn

SUBJECTS = [pytest.param(subject, marks=subject.marks, id=subject.name) for subject in (VIT, *TIMM)]


@pytest.fixture(params=SUBJECTS)
def folder(request: pytest.FixtureRequest) -> Iterator[tuple[Subject, nn.Module, Path]]:
    with saved(request.param) as (model, path):
        yield request.param, model, path


Saved = tuple[Subject, nn.Module, Path]


class TestTransformers:
    def test_the_auto_classes_find_the_model(self, folder: Saved) -> None:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        subject, model, path = folder
        config = AutoConfig.from_pretrained(path)
        assert config.model_type == "timm_wrapper"
        assert config.num_labels == len(NAMES)
        assert tuple(config.id2label.values()) == NAMES
        assert config.label2id == {name: number for number, name in enumerate(NAMES)}
        processor = AutoImageProcessor.from_pretrained(path)
        images = subject.images()
        with torch.no_grad():
            output = AutoModel.from_pretrained(path).eval()(images)
            features = model.forward_features(images)
        torch.testing.assert_close(output.last_hidden_state, features)
        expected = timm.data.resolve_model_data_config(model)["input_size"]
        assert tuple(processor.data_config["input_size"]) == tuple(expected)

    @pytest.mark.peers
    def test_hidden_states_are_the_intermediates(self, folder: Saved) -> None:
        from transformers import AutoModel

        subject, model, path = folder
        images = subject.images()
        with torch.no_grad():
            theirs = AutoModel.from_pretrained(path).eval()(images, output_hidden_states=True)
            maps = model.forward_intermediates(images, intermediates_only=True)
        for ours, level in zip(maps, theirs.hidden_states, strict=True):
            torch.testing.assert_close(level, ours)

    @pytest.mark.peers
    def test_a_loss_is_computed_and_every_parameter_learns(self, folder: Saved) -> None:
        from transformers import AutoModelForImageClassification

        subject, _, path = folder
        model = AutoModelForImageClassification.from_pretrained(path).train()
        model(pixel_values=subject.images(2), labels=torch.tensor([0, 4])).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.peers
    def test_another_number_of_labels_replaces_the_head(self, folder: Saved) -> None:
        from transformers import AutoModelForImageClassification

        subject, _, path = folder
        model = AutoModelForImageClassification.from_pretrained(
            path, num_labels=9, ignore_mismatched_sizes=True
        )
        assert model(subject.images()).logits.shape == (1, 9)

    @pytest.mark.peers
    def test_what_transformers_saves_loads_again(self, folder: Saved, tmp_path: Path) -> None:
        from transformers import AutoModelForImageClassification

        subject, model, path = folder
        AutoModelForImageClassification.from_pretrained(path).save_pretrained(tmp_path / "again")
        again = AutoModelForImageClassification.from_pretrained(tmp_path / "again").eval()
        images = subject.images()
        with torch.no_grad():
            torch.testing.assert_close(again(images).logits, model(images))
        assert tuple(again.config.id2label.values()) == NAMES


class TestTimm:
    @pytest.mark.peers
    @pytest.mark.parametrize(
        "options", [{}, {"num_classes": 0}, {"num_classes": 3}, {"in_chans": 1}], ids=str
    )
    def test_a_folder_is_a_model(self, options: dict[str, Any], folder: Saved) -> None:
        subject, model, path = folder
        theirs = timm.create_model(f"local-dir:{path}", pretrained=True, **options).eval()
        images = subject.images()[:, : options.get("in_chans", 3)]
        with torch.no_grad():
            output = theirs(images)
            if not options:
                torch.testing.assert_close(output, model(images))
        width = options.get("num_classes", len(NAMES)) or model.num_features
        assert output.shape == (1, width)

    @pytest.mark.peers
    def test_features_are_those_of_the_model(self, folder: Saved) -> None:
        subject, model, path = folder
        theirs = timm.create_model(f"local-dir:{path}", pretrained=True, features_only=True)
        images = subject.images()
        with torch.no_grad():
            maps = model.forward_intermediates(images, intermediates_only=True)
            found = theirs.eval()(images)
        for ours, level in zip(maps[-len(found) :], found):
            assert level.shape == ours.shape

    def test_the_classes_are_named_where_timm_looks(self, folder: Saved) -> None:
        from timm.data import CustomDatasetInfo

        _, _, path = folder
        config = timm.create_model(f"local-dir:{path}").pretrained_cfg
        names = config["label_names"]
        assert [CustomDatasetInfo(list(names)).index_to_label_name(n) for n in range(5)] == [*NAMES]
