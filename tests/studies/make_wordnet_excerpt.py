"""Write studies/scenes/wordnet, an excerpt of WordNet 3.0.

    python tests/studies/make_wordnet_excerpt.py /usr/share/wordnet

The files keep the format of the database (wndb(5WN)) and the synsets their ids, which in the full
database are byte offsets; in an excerpt they cannot be, so a reader must go by the id that begins
each line. Every word of a caption keeps all its senses in their order. Other lemmas, and the
pointers of synsets, are cut down to the synsets that are there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from studies.scenes.captions import EMPTY
from studies.scenes.gallery import WORDNET
from studies.scenes.things import THINGS

FILES = ("index.noun", "data.noun", "noun.exc")
UP, DOWN = ("@", "@i"), ("~", "~i")
PARTS = (
    8  # hyponyms of each thing that come along, so that the excerpt is wider than the vocabulary
)


def read(path: Path) -> tuple[list[str], list[str]]:
    """The lines of the header, which is the licence, and the others."""
    lines = path.read_text(encoding="ascii").splitlines()
    return [line for line in lines if line.startswith("  ")], [
        line for line in lines if not line.startswith("  ")
    ]


def split_pointers(line: str) -> tuple[list[str], list[list[str]], str]:
    """Fields of a data line up to the number of pointers, pointers of four fields, and gloss."""
    fields, gloss = line.split(" | ", 1)
    parts = fields.split()
    at = 4 + 2 * int(parts[3], 16)
    count = int(parts[at])
    return (
        parts[:at],
        [parts[at + 1 + 4 * n : at + 5 + 4 * n] for n in range(count)],
        gloss.rstrip(),
    )


def follow(data: dict[str, str], synset: str, kinds: Iterable[str]) -> Iterator[str]:
    """The synsets that pointers of some kinds lead to."""
    return (
        target
        for kind, target, part, _ in split_pointers(data[synset])[1]
        if kind in kinds and part == "n"
    )


def choose(index: dict[str, str], data: dict[str, str]) -> tuple[set[str], set[str]]:
    """The synsets of the excerpt, and the lemmas that keep all their senses."""
    things = [thing.synset[1:] for thing in THINGS]
    words = {word for thing in THINGS for word in (*thing.words(), *thing.broader.split())} | set(
        EMPTY
    )
    words |= {lemma.lower() for synset in things for lemma in split_pointers(data[synset])[0][4::2]}
    words &= index.keys()
    chosen = {sense for word in words for sense in list_senses(index[word])}
    chosen |= {below for synset in things for below in list(follow(data, synset, DOWN))[:PARTS]}
    unseen = list(chosen)
    while unseen:
        new = set(follow(data, unseen.pop(), UP)) - chosen
        chosen |= new
        unseen += new
    return chosen, words


def list_senses(line: str) -> list[str]:
    """The synsets of an index line, the most frequent sense first."""
    fields = line.split()
    return fields[-int(fields[2]) :]


def cut_index(line: str, chosen: set[str]) -> str | None:
    """An index line with the senses that are there; None if none is."""
    fields = line.split()
    senses = list_senses(line)
    kept = [sense for sense in senses if sense in chosen]
    if not kept:
        return None
    tagged = min(int(fields[-len(senses) - 1]), len(kept))  # senses that are ordered by frequency
    return "  ".join(
        [
            " ".join(
                [
                    *fields[:2],
                    str(len(kept)),
                    *fields[3 : -len(senses) - 2],
                    str(len(kept)),
                    str(tagged),
                    *kept,
                ]
            ),
            "",
        ]
    )


def cut_data(line: str, chosen: set[str]) -> str:
    """A data line with the pointers to what is there."""
    fields, pointers, gloss = split_pointers(line)
    kept = [pointer for pointer in pointers if pointer[2] == "n" and pointer[1] in chosen]
    return (
        " ".join(
            [
                *fields,
                f"{len(kept):03d}",
                *(part for pointer in kept for part in pointer),
                "|",
                gloss.split('; "')[0],
            ]
        )
        + "  "
    )


def make(source: Path) -> dict[str, str]:
    """The files of the excerpt: name to text."""
    header, lines = read(source / "index.noun")
    index = {line.split(" ", 1)[0]: line for line in lines}
    data_header, lines = read(source / "data.noun")
    data = {line[:8]: line for line in lines}
    chosen, _ = choose(index, data)
    cut = {lemma: kept for lemma, line in index.items() if (kept := cut_index(line, chosen))}
    exceptions = [
        line
        for line in read(source / "noun.exc")[1]
        if any(word in cut for word in line.split()[1:])
    ]
    texts = {
        "index.noun": [*header, *cut.values()],
        "data.noun": [*data_header, *(cut_data(data[synset], chosen) for synset in sorted(chosen))],
        "noun.exc": exceptions,
        "LICENSE": [
            line[2:].split(" ", 1)[-1].rstrip() if line.strip()[:1].isdigit() else line.strip()
            for line in header
        ],
    }
    return {name: "\n".join(lines) + "\n" for name, lines in texts.items()}


if __name__ == "__main__":
    WORDNET.mkdir(exist_ok=True)
    for name, text in make(Path(sys.argv[1])).items():
        (WORDNET / name).write_text(text, encoding="ascii")
        print(f"{name}: {len(text)} bytes")
