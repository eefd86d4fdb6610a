"""A small WordNet database, and words of other languages in all formats that are read."""

from __future__ import annotations

import gzip
from pathlib import Path

from wordnet_support import LICENSE, write_wordnet

# Offsets, lexicographer files and lemmas as in WordNet 3.0; the number of tagged senses.
SYNSETS = {
    "02084071": ("05", "dog domestic_dog", 1),
    "07676602": ("13", "frankfurter", 0),
    "02121620": ("05", "cat true_cat", 1),
    "13265011": ("21", "gift", 1),
    "15032376": ("27", "poison", 1),
    "09416076": ("17", "rock stone", 1),
    "04231272": ("06", "skirt", 1),
    "02872752": ("06", "boot", 1),
    "02858304": ("06", "boat", 1),
    "07134850": ("10", "chat", 1),
    "14322699": ("26", "pain", 1),
    "07679356": ("13", "bread", 1),
    "13104059": ("20", "tree", 1),
    "03544360": ("06", "house", 1),
    "09450163": ("17", "sun", 1),
    "11669921": ("20", "flower", 1),
    "12620196": ("20", "rose", 0),
    "07850329": ("13", "cheese", 1),
    "02777100": ("06", "bra", 0),
    "05563770": ("08", "arm", 1),
    "10838314": ("18", "Baum Lyman_Frank_Baum", 0),
}
FRENCH = {
    "chien": ("07676602", "02084071"),  # a dog, or a sausage
    "chat": ("02121620",),
    "pain": ("07679356",),
    "arbre": ("13104059",),
    "maison": ("03544360",),
    "soleil": ("09450163",),
    "fleur": ("11669921",),
    "p\u00e2t\u00e9 de maison": ("07676602",),
    "rose": ("12620196",),
    "bras": ("05563770",),
}
GERMAN = {
    "Hund": "02084071",
    "Katze": "02121620",
    "Gift": "15032376",
    "Rock": "04231272",
    "Boot": "02858304",
    "Baum": "13104059",
    "Haus": "03544360",
    "Sonne": "09450163",
    "Blume": "11669921",
    "Rose": "12620196",
    "K\u00e4se": "07850329",
}
JAPANESE = {"\u72ac": "02084071", "\u732b": "02121620", "\u30cf\u30a6\u30b9": "03544360"}
SPANISH = {"perro": "02084071", "casa": "03544360"}
HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE LexicalResource SYSTEM "http://globalwordnet.github.io/schemas/WN-LMF-1.1.dtd">
<LexicalResource xmlns:dc="http://purl.org/dc/elements/1.1/">
"""


def write_database(folder: Path) -> Path:
    """Write a WordNet database of SYNSETS."""
    data, senses = [], dict[str, list[str]]()
    for offset, (file, text, _) in SYNSETS.items():
        lemmas = text.split()
        words = " ".join(f"{lemma} 0" for lemma in lemmas)
        data.append(f"{offset} {file} n {len(lemmas):02x} {words} 000 | a {lemmas[0]}\n")
        for lemma in lemmas:
            senses.setdefault(lemma.lower(), []).append(offset)
    index = [
        f"{lemma} n {len(ids)} 0 {len(ids)} {SYNSETS[ids[0]][2]} {' '.join(ids)}\n"
        for lemma, ids in sorted(senses.items())
    ]
    return write_wordnet(
        folder, data=LICENSE + "".join(data), index=LICENSE + "".join(index), noun=""
    )


def find_ili(offset: str) -> str:
    """An ILI; not the real one."""
    return f"i{list(SYNSETS).index(offset) + 1}"


def make_lmf(words: dict[str, tuple[str, ...]], language: str, prefix: str) -> str:
    """A lexicon in WN-LMF; synsets `prefix` + offset + `-n` have ILIs."""
    entries = [
        f'<LexicalEntry id="e{number}"><Lemma writtenForm="{word}" partOfSpeech="n"/>'
        f'<Form writtenForm="{word}s"/>'
        + "".join(f'<Sense id="s{number}-{id}" synset="{prefix}{id}-n"/>' for id in offsets)
        + "</LexicalEntry>\n"
        for number, (word, offsets) in enumerate(words.items())
    ]
    entries.append(
        '<LexicalEntry id="v"><Lemma writtenForm="courir" partOfSpeech="v"/>'
        f'<Sense id="s" synset="{prefix}02084071-v"/></LexicalEntry>\n'
    )
    offsets = sorted({id for ids in words.values() for id in ids})
    synsets = [
        f'<Synset id="{prefix}{id}-n" ili="{find_ili(id)}" partOfSpeech="n"/>\n' for id in offsets
    ]
    lexicon = f'<Lexicon id="x" label="x" language="{language}" version="1">'
    return f"{HEAD}{lexicon}{''.join(entries)}{''.join(synsets)}</Lexicon></LexicalResource>"


def write_lexicons(folder: Path) -> list[Path]:
    """French LMF with offsets, German and Japanese tab files, Spanish LMF with ILIs, their map."""
    (folder / "fr.xml").write_text(make_lmf(FRENCH, "fr", "omw-fr-"))
    german = "".join(f"{id}-n\tlemma\t{word}\n" for word, id in GERMAN.items())
    (folder / "de.tab").write_text(f"# OdeNet\tdeu\thttp://a.test/\tMIT\n{german}")
    japanese = "".join(f"{id}-n\tjpn:lemma\t{word}\n" for word, id in JAPANESE.items())
    japanese += "02084071-n\tjpn:def\t0\tan animal\n02084071-v\tjpn:lemma\trun\n"
    (folder / "ja.tab.gz").write_bytes(gzip.compress(f"\ufeff{japanese}".encode()))
    spanish = {word: (id,) for word, id in SPANISH.items()}
    (folder / "es.xml").write_text(make_lmf(spanish, "es", "own-es-"))
    ilis = "".join(f"{find_ili(id)}\t{id}-n\n" for id in SYNSETS) + "i99999\t00001740-a\n"
    (folder / "ili-map-pwn30.tab").write_text(ilis)
    names = ("fr.xml", "de.tab", "ja.tab.gz", "es.xml", "ili-map-pwn30.tab")
    return [folder / name for name in names]
