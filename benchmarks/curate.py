"""CPU time and peak memory of curation, compared with handwritten DuckDB SQL for the same files.

    python benchmarks/curate.py [--millions 1 10 30] [--rounds 5] [--memory 4GB] [--threads 2]
    [--wordnet FOLDER]

Posts with 5 hashtags each, Zipf-distributed over WordNet's nouns, some plurals and half as many
unknown words, are generated in a temporary folder. Each round curates them in a new process, then
runs the SQL in another. The ratio is that of the CPU times, which other work on the machine changes
less than the wall time. More than 10 million posts run once.

Both find repeated ids and URLs (the posts have none, and no column of hashes), count hashtags,
gather the synsets of each image, choose the senses that depend on the other hashtags, choose the
classes, account for the images without any, compute the repeat factors, and write the labels and
the URLs, sorted by id. The classes of every image must be the
same.

Only the curation strips hashtags, stores each step on disk for a resumed run, hashes the input,
reads WordNet, matches each distinct hashtag, and writes hashtags.parquet and the report: the SQL is
given the synsets of each hashtag, and keeps its tables in DuckDB's memory.
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
posts, output, urls, steps, memory, threads, scratch = sys.argv[1:]
matches, codes, rules, kinds = (
    f"{steps}/{name}.parquet" for name in ("matches", "codes", "rules", "tags"))
CUE, RULE = 1 << 24, 1 << 25  # the first number of a cue, and of a rule
con = duckdb.connect(config={"memory_limit": memory, "threads": int(threads), "temp_directory": scratch})
con.execute("set enable_progress_bar = false")
con.execute(f"create temp table repeated as select id from '{posts}' group by id having count(*) > 1")
con.execute(f"create temp table copies as select url, min(id) as first from '{posts}' group by url having count(*) > 1")
assert con.execute("select (select count(*) from repeated) + (select count(*) from copies)").fetchone() == (0,)
con.execute(f'''create temp table tags as
    select tag, count(*) as uses from (select unnest(hashtags) as tag from '{posts}') group by tag''')
con.execute(f'''create temp table gathered as
    select id, list_distinct(list(number)) as numbers
    from (select id, unnest(hashtags) as tag from '{posts}') join '{codes}' using (tag) group by id''')
con.execute(f'''create temp table resolved as
    select id, list(synsets[list_position(hits, list_max(hits))]) as chosen from (
        select id, synsets, list_transform(cues, lambda c: len(list_intersect(c, numbers))) as hits from (
            select id, numbers, unnest(list_filter(numbers, lambda n: n >= {RULE})) as rule
            from gathered where list_max(numbers) >= {RULE}
        ) join '{rules}' using (rule)
    ) group by id''')
con.execute(f'''create temp table images as
    select * from (
        select id, list_filter(numbers, lambda n: n < {CUE}) as numbers
        from gathered where list_max(numbers) < {RULE}
        union all
        select id, list_distinct(
            list_filter(numbers, lambda n: n < {CUE}) || list_filter(chosen, lambda n: n >= 0)) as numbers
        from gathered join resolved using (id)
    ) where len(numbers) > 0''')
con.execute("drop table gathered")
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
con.execute(f'''create temp table lost as select id, hashtags from '{posts}' anti join images using (id)''')
con.execute(f'''create temp table accounting as select kind, count(*) as images from (
        select if(min(kind) = max(kind), min(kind), 'mixed') as kind from (
            select id, coalesce(kind, 'unknown') as kind
            from (select id, unnest(hashtags) as tag from lost) left join (
                select tag, if(how = 'stopped', how, 'dropped') as kind from '{kinds}' where how != 'unknown'
            ) using (tag)
        ) group by id
    ) group by kind union all select 'classes left out', count(*) from images anti join labels using (id)''')
con.execute(f'''copy (select id, url from '{posts}' semi join labels using (id) where url is not null order by id)
    to '{urls}' (format parquet, compression zstd)''')
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


def run(code: str, *arguments: object) -> tuple[float, float, float]:
    """Seconds of CPU time and of wall time, and MiB at the peak, of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed with status {status}")
    wall = time.perf_counter() - start
    return usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024


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
        "| posts, millions | curate, CPU s (min to max) | wall s | MiB | SQL, CPU s (min to max) | wall s | MiB "
        "| curate / SQL, CPU | curate, CPU µs per post |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for millions in options.millions:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            posts, labels = folder / "posts.parquet", folder / "sql.parquet"
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
                theirs.append(
                    run(
                        SQL,
                        posts,
                        labels,
                        folder / "urls.parquet",
                        output / "steps",
                        options.memory,
                        options.threads,
                        folder / "scratch",
                    )
                )
                same = "select count(*), bit_xor(hash(id, classes::int[])) from '{}'"
                counted = [
                    duckdb.sql(same.format(path)).fetchall()
                    for path in (output / "labels.parquet", labels)
                ]
                assert counted[0] == counted[1], counted
                subprocess.run(["rm", "-rf", output], check=True)
        cells = []
        for figures in (ours, theirs):
            cpu, wall, peak = zip(*figures, strict=True)
            cells.append(
                f"{statistics.median(cpu):.1f} ({min(cpu):.1f} to {max(cpu):.1f}) "
                f"| {statistics.median(wall):.1f} | {max(peak):.0f}"
            )
        mine, other = (statistics.median(cpu for cpu, *_ in figures) for figures in (ours, theirs))
        print(
            f"| {millions:g} | {' | '.join(cells)} | {mine / other:.2f} | {mine / millions:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
