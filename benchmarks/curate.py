"""Seconds and peak memory of curation, compared with handwritten DuckDB SQL for the same labels.

    python benchmarks/curate.py [--millions 1 10 30] [--rounds 5] [--memory 4GB] [--threads 2]
    [--wordnet FOLDER]

Posts with 5 hashtags each, Zipf-distributed over WordNet's nouns, some plurals and half as many
unknown words, are generated in a temporary folder. Each round curates them in a new process, then
runs the SQL in another: repeated ids and URLs, distinct hashtags, images, classes, factors, labels,
vocabulary. The SQL is given the classes of each hashtag, so only the curation pays for hashing the
input, reading WordNet, matching, the report, and storing each step on disk. More than 10 million
posts run once.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from swag_models.recipe.wordnet import WordNet

CURATE = """
import json, sys
from swag_models.recipe.curation.curate import Curation, curate
posts, output, wordnet, memory, threads = sys.argv[1:]
curate([posts], output, wordnet=wordnet or None, memory=memory, threads=int(threads), progress=False)
"""
SQL = """
import duckdb, sys
posts, output, matches, memory, threads, scratch = sys.argv[1:]
con = duckdb.connect(config={"memory_limit": memory, "threads": int(threads), "temp_directory": scratch})
con.execute("set enable_progress_bar = false")
con.execute(f"create temp table repeated as select id from '{posts}' group by id having count(*) > 1")
con.execute(f"create temp table copies as select url, min(id) as first from '{posts}' group by url having count(*) > 1")
assert con.execute("select (select count(*) from repeated) + (select count(*) from copies)").fetchone() == (0,)
con.execute(f'''create temp table tags as
    select tag, count(*) as uses from (select unnest(hashtags) as tag from '{posts}') group by tag''')
con.execute(f'''create temp table images as
    select id, list_distinct(list(number)) as numbers
    from (select id, unnest(hashtags) as tag from '{posts}') join '{matches}' using (tag) group by id''')
con.execute('''create temp table classes as
    select number, row_number() over (order by count(*) desc, number) - 1 as class, count(*) as images
    from (select unnest(numbers) as number from images) group by number order by images desc limit 27000''')
con.execute('''create temp table labels as
    select id, list_sort(list(class)) as classes, max(class) as rarest
    from (select id, unnest(numbers) as number from images) join classes using (number) group by id''')
(scale,) = con.execute('''select 5 / 3.6 * sum(n) / sum(n / sqrt(images))
    from (select rarest as class, count(*) as n from labels group by rarest) join classes using (class)''').fetchone()
con.execute(f'''copy (select id, classes, {scale} / sqrt(images) as repeat
    from labels join classes on rarest = class order by id) to '{output}' (format parquet, compression zstd)''')
con.execute(f'''create temp table vocabulary as
    select * from (
        select class, sum(repeat) as samples from (select unnest(classes) as class, repeat from '{output}') group by class
    ) join classes using (class) join (select number, list(tag) as hashtags from '{matches}' group by number) using (number)''')
"""


def make_posts(path: Path, count: int, wordnet: str | None) -> None:
    lemmas = sorted(WordNet.load(wordnet).senses)
    random.Random(0).shuffle(lemmas)
    tags = []
    for number, lemma in enumerate(lemmas):
        tags.append(lemma.replace("_", ""))
        tags += [f"unknown{number}"] if number % 2 else []
        tags += (
            ["".join(word.capitalize() for word in lemma.split("_")) + "s"]
            if number % 10 == 0
            else []
        )
    con = duckdb.connect(config={"threads": 2, "memory_limit": "8GB"})
    con.execute("set enable_progress_bar = false")
    con.execute("select setseed(0.5)")
    con.execute(
        "create table tags as select list(tag) as tags from (select unnest(?) as tag)", [tags]
    )
    rank = f"least({len(tags)}, cast(floor(exp(random() * ln({len(tags)}))) as bigint))"
    written = ", ".join(f"tags[{rank}]" for _ in range(5))
    con.execute(
        f"""copy (select 'p' || printf('%09d', p) as id, 'https://photos.example/' || hash(p) || '/' || p || '.jpg' as url,
        [{written}] as hashtags from range({count}) r(p), tags) to '{path}' (format parquet)"""
    )


def run(code: str, *arguments: object) -> tuple[float, float]:
    """Seconds, and MiB at the peak, of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--millions", nargs="+", type=float, default=[1, 10, 30])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wordnet")
    options = parser.parse_args()
    print(
        "| posts, millions | curate, s (min to max) | MiB | SQL, s (min to max) | MiB | curate / SQL | curate, µs per post |"
    )
    print("|---|---|---|---|---|---|---|")
    for millions in options.millions:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            posts, labels, matches = (
                folder / "posts.parquet",
                folder / "sql.parquet",
                folder / "matches.parquet",
            )
            make_posts(posts, round(millions * 1e6), options.wordnet)
            ours, theirs = [], []
            for turn in range(1 if millions > 10 else options.rounds):
                output = folder / f"curated{turn}"
                ours.append(
                    run(
                        CURATE,
                        posts,
                        output,
                        options.wordnet or "",
                        options.memory,
                        options.threads,
                    )
                )
                (output / "steps" / "matches.parquet").replace(matches)
                theirs.append(
                    run(
                        SQL,
                        posts,
                        labels,
                        matches,
                        options.memory,
                        options.threads,
                        folder / "scratch",
                    )
                )
                same = "select count(*), sum(len(classes)) from '{}'"
                counted = [
                    duckdb.sql(same.format(path)).fetchall()
                    for path in (output / "labels.parquet", labels)
                ]
                assert counted[0] == counted[1], counted
                subprocess.run(["rm", "-rf", output], check=True)
        cells = []
        for figures in (ours, theirs):
            seconds = [each for each, _ in figures]
            peak = max(each for _, each in figures)
            cells.append(
                f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | {peak:.0f}"
            )
        mine, other = (statistics.median(each for each, _ in figures) for figures in (ours, theirs))
        print(
            f"| {millions:g} | {' | '.join(cells)} | {mine / other:.2f} | {mine / millions:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
