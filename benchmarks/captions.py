"""Nouns of captions: precision and recall on judged captions, and captions per core-second.

    python benchmarks/captions.py [--half tuning|final] [--errors] [--millions 1 4] [--wordnet FOLDER]

The labels of CatLIP (Mehta et al. 2024, arXiv 2404.15653) are reproduced as: each word, as singular, whose
first synset has it as its own first name. The second row takes only words that are part of a judged noun, as a
perfect tagger of parts of speech would. Intervals are 95% bootstraps over captions. Captions for the
measurement of time are generated: 10 words on average, 4 of them nouns, by Zipf's law; time is that of the CPU, of one
thread, from Parquet to Parquet.
"""

import argparse
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from swag_models.recipe.curation.captions import find_nouns, make_lexicon
from swag_models.recipe.curation.posts import CAPTION_MARK
from swag_models.recipe.hashtags import Matcher, load_stoplist
from swag_models.recipe.spelling import canonicalise
from swag_models.recipe.wordnet import WordNet

JUDGED = Path(__file__).parents[1] / "tests" / "recipe" / "curation" / "captions.tsv"
WORD = re.compile(r"[^\W_]+")
COMMON = "man woman dog cat table street people beach car tree house water kitchen horse train field plate pizza"
OTHERS = "a the a with on in of red large two young standing sitting near holding white"
Judged = tuple[str, list[set[str]]]  # caption, and the synsets of each noun, of which one is enough


def read_judged(half: str) -> tuple[list[Judged], set[str]]:
    """The captions of a half, and the synsets that are neither right nor wrong."""
    lines = JUDGED.read_text().splitlines()
    neutral = set(lines[2].partition(": ")[2].split())
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return [
        (text, [set(noun.split("|")) for noun in synsets.split()])
        for part, _, text, synsets in rows
        if part == half
    ], neutral


def find_tags(wordnet: WordNet, texts: list[str]) -> list[list[str]]:
    """The nouns of captions, as `curate --from captions` finds them."""
    connection = ibis.duckdb.connect()
    posts = pa.table(
        {"id": range(len(texts)), "hashtags": [[CAPTION_MARK + text] for text in texts]}
    )
    found = find_nouns(*map(ibis.memtable, (posts, *make_lexicon(wordnet))))
    rows = connection.to_pyarrow(found).to_pylist()
    tags = {row["id"]: row["hashtags"] for row in rows}
    return [tags.get(number, []) for number in range(len(texts))]


def label_as_catlip(
    wordnet: WordNet, matcher: Matcher, text: str, nouns: set[str] | None
) -> set[str]:
    labels = set()
    for word in WORD.findall(text.lower()):
        lemma = word if word in wordnet.senses else matcher.inflections.find_singular(word)
        if lemma not in wordnet.senses or (nouns is not None and word not in nouns):
            continue
        first = wordnet.senses[lemma][0]
        if nouns is not None or canonicalise(wordnet.synsets[first].lemmas[0]) == lemma:
            labels.add(first)
    return labels


def score(
    wordnet: WordNet, judged: list[Judged], labels: list[set[str]], neutral: set[str]
) -> list[tuple[int, int, int, int]]:
    """For each caption: labels that are right, labels, nouns found, nouns."""
    counts = []
    for (_, nouns), found in zip(judged, labels, strict=True):
        right = set().union(*nouns)
        # "bridge" in "Golden Gate Bridge" is not wrong
        above = {parent for synset in right for parent in wordnet.ancestors(synset)}
        rated = found - ((neutral | above) - right)
        hits = sum(bool(noun & found) for noun in nouns)
        counts.append((len(rated & right), len(rated), hits, len(nouns)))
    return counts


def format_share(counts: list[tuple[int, int, int, int]], part: int, whole: int) -> str:
    make = random.Random(0)

    def share(rows: list[tuple[int, int, int, int]]) -> float:
        return 100 * sum(row[part] for row in rows) / max(1, sum(row[whole] for row in rows))

    draws = sorted(share(make.choices(counts, k=len(counts))) for _ in range(1000))
    return f"{share(counts):.1f} ({draws[25]:.1f} to {draws[974]:.1f})"


def list_names(wordnet: WordNet, synsets: set[str]) -> list[str]:
    return sorted(
        wordnet.synsets[synset].lemmas[0] for synset in synsets if synset in wordnet.synsets
    )


def measure_quality(wordnet: WordNet, half: str, show_errors: bool) -> None:
    judged, neutral = read_judged(half)
    matcher = Matcher(wordnet, stop=load_stoplist())
    tags = find_tags(wordnet, [text for text, _ in judged])
    ours = [{id for match in matcher.match_post(words) for id in match.synsets} for words in tags]
    spelled = {
        synset: {
            word for lemma in entry.lemmas for word in WORD.findall(lemma.lower().replace("_", " "))
        }
        for synset, entry in wordnet.synsets.items()
    }
    methods: dict[str, list[set[str]]] = {"ours": ours}
    catlip: Callable[..., set[str]] = label_as_catlip
    methods["CatLIP, all words"] = [catlip(wordnet, matcher, text, None) for text, _ in judged]
    tagged = []
    for text, nouns in judged:
        known = {word for noun in nouns for synset in noun for word in spelled.get(synset, ())}
        plural = {
            w for w in WORD.findall(text.lower()) if matcher.inflections.find_singular(w) in known
        }
        tagged.append(catlip(wordnet, matcher, text, known | plural))
    methods["CatLIP, nouns known"] = tagged
    print(f"| {half}, {len(judged)} captions | precision, % | recall, % |\n|---|---|---|")
    for name, labels in methods.items():
        counts = score(wordnet, judged, labels, neutral)
        print(f"| {name} | {format_share(counts, 0, 1)} | {format_share(counts, 2, 3)} |")
    if show_errors:
        for (text, nouns), found, words in zip(judged, ours, tags, strict=True):
            right = set().union(*nouns)
            above = {parent for synset in right for parent in wordnet.ancestors(synset)}
            wrong = found - right - neutral - above
            missed = [list_names(wordnet, noun)[:1] for noun in nouns if not noun & found]
            if wrong or missed:
                print(text, "| WRONG", list_names(wordnet, wrong), "MISSED", missed, words)


def measure_speed(wordnet: WordNet, millions: float) -> None:
    make = random.Random(0)
    nouns = [lemma.replace("_", " ") for lemma in sorted(wordnet.senses)]
    make.shuffle(nouns)
    ranks = [1 / rank for rank in range(1, len(nouns) + 1)]
    common, others = COMMON.split(), OTHERS.split()
    rare = make.choices(nouns, ranks, k=200_000)
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name, f"{part}.parquet") for part in ("posts", "roots", "branches", "nouns")]
        for path, table in zip(paths[1:], make_lexicon(wordnet), strict=False):
            pq.write_table(table, path)
        schema = pa.schema({"id": pa.string(), "hashtags": pa.list_(pa.string())})
        count, words = round(millions * 1e6), 0
        with pq.ParquetWriter(paths[0], schema) as writer:
            for start in range(0, count, 100_000):
                texts = [
                    " ".join(
                        make.choice(
                            others
                            if place % 5 not in (1, 4)
                            else common
                            if make.random() < 0.6
                            else rare
                        )
                        for place in range(make.randrange(5, 15))
                    )
                    for _ in range(min(100_000, count - start))
                ]
                words += sum(len(text.split()) for text in texts)
                ids = [f"p{start + number:09}" for number in range(len(texts))]
                columns = [ids, [[CAPTION_MARK + text + "."] for text in texts]]
                writer.write_table(pa.table(columns, schema=schema))
        connection = ibis.duckdb.connect(threads=1)
        connection.raw_sql("SET enable_progress_bar = false")
        tables = [connection.read_parquet(str(path)) for path in paths[:3]]
        begin = time.process_time()
        connection.to_parquet(find_nouns(*tables), paths[3])
        seconds = time.process_time() - begin
    print(
        f"| {millions:g} | {words / count:.1f} | {seconds:.1f} | {count / seconds:,.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--half", choices=("tuning", "final"), default="tuning")
    parser.add_argument("--errors", action="store_true", help="list wrong and missed nouns")
    parser.add_argument("--millions", nargs="*", type=float, default=[])
    parser.add_argument("--wordnet")
    options = parser.parse_args()
    wordnet = WordNet.load(options.wordnet)
    measure_quality(wordnet, options.half, options.errors)
    if options.millions:
        print("| captions, millions | words each | CPU, s | captions per core-second |")
        print("|---|---|---|---|")
    for millions in options.millions:
        measure_speed(wordnet, millions)


if __name__ == "__main__":
    main()
