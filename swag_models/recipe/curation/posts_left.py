"""Check that a selection has any posts, and say why it has none."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, describe, list_names
from swag_models.recipe.curation.posts import BAD_UTF8

MAX_EXAMPLES = 3  # reasons in a message
MAX_EXAMPLE_ROWS = 1000  # rejected rows that are searched for an example of each


def check_posts_left(
    kept: int,
    read: int,
    rejected: Mapping[str, int],
    rejects: Path,
    files: Sequence[Path],
    rejects_stay: bool = True,
) -> None:
    """Check that a selection has any posts.

    Args:
        kept: number of posts that are left.
        read: number of posts that were read.
        rejected: number of malformed rows for each reason.
        rejects: the file that lists them.
        files: the files of posts.
        rejects_stay: whether the user can read `rejects` later.

    Raises:
        ConfigError: no post is left; says why.
    """
    if kept:
        return
    start = f"none of {count_noun(read + sum(rejected.values()), 'post')} is left"
    if not rejected:
        names = list_names([str(path) for path in files])
        why = "check licenses= and exclude=" if read else f"no post is in {names}; pass other files"
        raise ConfigError(f"{start}; {why}")
    share = "" if read else "all "
    examples = dict[str, str]()  # the first of each reason
    with rejects.open() as file:
        for reject in map(json.loads, itertools.islice(file, MAX_EXAMPLE_ROWS)):
            examples.setdefault(reject["reason"], reject.get("value") or describe(reject["text"]))
    most = sorted(rejected, key=lambda reason: -rejected[reason])[:MAX_EXAMPLES]
    counts = [f"{rejected[reason]:,} {reason} ({examples.get(reason, '...')})" for reason in most]
    if len(rejected) > len(most):
        counts.append("...")
    listed = f"listed in {rejects}; " if rejects_stay else ""
    fixes = ["save the files as UTF-8"] if BAD_UTF8 in rejected else []
    if rejected.keys() - {BAD_UTF8}:
        fixes.append("check format=, and name columns with id=, hashtags= or caption=")
    raise ConfigError(f"{start}; {share}rejected: {', '.join(counts)}; {listed}{'; '.join(fixes)}")
