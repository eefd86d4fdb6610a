"""The steps of a curation from posts to labels, each recorded and skipped on a rerun.

`pipeline` has what most of them do.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swag_models.recipe.curation import pipeline
from swag_models.recipe.curation.accounting import account_for_images
from swag_models.recipe.curation.backends import Backend
from swag_models.recipe.curation.captions import tag_captions
from swag_models.recipe.curation.coverage import cover_imagenet
from swag_models.recipe.curation.matching import describe_used_senses
from swag_models.recipe.curation.pipeline import PostSelection
from swag_models.recipe.curation.resampling import resample_labels
from swag_models.recipe.curation.steps import Facts, StepRunner
from swag_models.recipe.curation.tag_table import write_tag_table
from swag_models.recipe.curation.vocabulary import write_vocabulary
from swag_models.recipe.hashtags import Matcher, hash_lists
from swag_models.recipe.phrases import hash_not_nouns
from swag_models.recipe.wordnet import WordNet

if TYPE_CHECKING:
    from swag_models.recipe.curation.curate import Curation

STEPS_VERSION = 12  # increase when the output of the steps changes; all of them then run again


def run_steps(
    steps: StepRunner,
    backend: Callable[[], Backend],
    selection: PostSelection,
    source_key: list[Any],
    net: WordNet,
    matcher: Matcher,
    curation: "Curation",
    output: Path,
) -> Facts:
    """Run the steps from posts to labels and vocabulary; returns the facts of each step.

    Args:
        steps: runs or skips each step.
        backend: returns the backend, which is opened at the first call.
        selection: the posts.
        source_key: kind of the backend and hashes of the files; a change reruns all steps.
        net: the nouns of WordNet.
        matcher: finds the synsets of hashtags.
        curation: how the vocabulary is chosen and the images are resampled.
        output: folder of the results.
    """
    # Each step reads the files of earlier steps. Options that users are likely to change come last:
    # a change of the sampling reruns only the last two steps.
    work, limits = steps.folder, (curation.min_images, curation.max_classes)
    posts = work / "kept"
    post_facts, tagged = _clean_posts(steps, backend, selection, source_key, net, posts, output)
    hashtag_facts, tables = _match_hashtags(steps, backend, tagged, net, matcher, curation)
    tags, matches = tables["tags"], tables["matches"]
    images, senses = tables["images"], tables["senses"]
    classes, unsampled = work / "classes.parquet", work / "labels"
    class_facts = steps.run(
        "classes",
        limits,
        [classes, unsampled],
        lambda: pipeline.choose_classes(backend(), images, matches, limits, classes, unsampled),
    )
    accounting = steps.run(
        "accounting",
        [],
        [],
        lambda: account_for_images(backend(), tagged, tags, images, unsampled, post_facts["kept"]),
    )
    table = output / "hashtags.parquet"
    steps.run(
        "tag table", [], [table], lambda: write_tag_table(tags, matches, senses, classes, table)
    )
    factors, labels = work / "factors.parquet", output / "labels.parquet"
    label_facts = steps.run(
        "labels",
        asdict(curation.sampling),
        [factors, labels],
        lambda: resample_labels(backend(), unsampled, classes, curation.sampling, factors, labels),
    )
    vocabulary = output / "vocabulary.parquet"
    steps.run(
        "vocabulary",
        [],
        [vocabulary],
        lambda: write_vocabulary(backend(), net, matches, classes, factors, labels, vocabulary),
    )
    urls = output / "urls.parquet"
    url_facts = steps.run(
        "urls", [], [urls], lambda: pipeline.write_urls(backend(), labels, posts, urls)
    )
    return {
        "posts": post_facts,
        "urls": url_facts["urls"],
        "hashtags": hashtag_facts,
        "classes": class_facts,
        "images": accounting,
        "labels": label_facts,
        "imagenet": cover_imagenet(net, classes),
    }


def _clean_posts(
    steps: StepRunner,
    backend: Callable[[], Backend],
    selection: PostSelection,
    source_key: list[Any],
    net: WordNet,
    posts: Path,
    output: Path,
) -> tuple[Facts, Path]:
    """Write the posts to use; returns the facts, and the posts with hashtags or nouns of captions.

    Args:
        posts: folder to write the posts to; the other arguments are those of `run_steps`.
    """
    options = [*selection.options.columns], selection.options.format
    rejects = output / "rejects.jsonl"
    facts = steps.run(
        "posts",
        [STEPS_VERSION, source_key, options, selection.excluded, selection.licenses],
        [posts, rejects],
        lambda: pipeline.clean_posts(backend(), selection, steps.folder, posts, rejects),
    )
    source = selection.options.columns.source
    if source == "hashtags":
        return facts, posts
    tagged = steps.folder / "tagged"
    facts |= steps.run(
        "captions",
        [net.digest, hash_not_nouns()],
        [tagged],
        lambda: tag_captions(backend(), net, posts, source, tagged),
    )
    return facts, tagged


def _match_hashtags(
    steps: StepRunner,
    backend: Callable[[], Backend],
    tagged: Path,
    net: WordNet,
    matcher: Matcher,
    curation: "Curation",
) -> tuple[Facts, dict[str, Path]]:
    """Find the synsets of hashtags, and those of each image; returns facts and paths of the tables.

    Args:
        tagged: posts with hashtags; the other arguments are those of `run_steps`.
    """
    work = steps.folder
    tables = {name: work / f"{name}.parquet" for name in ("tags", "matches", "codes", "rules")}
    own_limits = curation.own_classes, curation.min_images if curation.own_classes else 1
    lists = [sorted(matcher.stop), sorted(matcher.overrides.items()), matcher.languages.facts]
    facts = steps.run(
        "hashtags",
        [net.digest, curation.senses, hash_lists(), lists, own_limits],
        [*tables.values()],
        lambda: pipeline.match_posts(backend(), tagged, matcher, net, own_limits, tables),
    )
    matches, codes, rules = (tables[name] for name in ("matches", "codes", "rules"))
    images, senses = work / "images", work / "senses.parquet"
    steps.run(
        "images",  # separate from "classes", so that other limits do not rerun it
        [],
        [images, senses],
        lambda: pipeline.gather_synsets(backend(), tagged, codes, rules, images, senses),
    )
    facts |= steps.run(
        "senses",
        [],
        [],
        lambda: describe_used_senses(facts, rules, senses, matches, matcher, net),
    )
    return facts, {**tables, "images": images, "senses": senses}
