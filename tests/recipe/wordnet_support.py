"""A few nouns in the format of WordNet's database files.

The ids are those of WordNet 3.0, where they are file offsets; in these short files they are not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.wordnet import find_wordnet

LICENSE = (
    "  1 This software and database is being provided to you, the LICENSEE  \n"
    "  2 WordNet 3.0 Copyright 2006  \n"
)
DATA = """\
00001740 03 n 01 entity 0 001 ~ 00015388 n 0000 \
| that which is perceived to have its own distinct existence
00015388 03 n 02 animal 0 beast 0 002 @ 00001740 n 0000 ~ 02131653 n 0000 | a living organism
02131653 05 n 01 bear 0 002 @ 00015388 n 0000 ~ 02132136 n 0000 \
| massive plantigrade mammals; "a bear | a cub"
02132136 05 n 03 brown_bear 0 bruin 1 Ursus_arctos 0 002 @ 02131653 n 0000 ~ 02132466 n 0000 \
| large bear of Eurasia
02132466 05 n 02 Syrian_bear 0 Ursus_arctos_syriacus 0 001 @ 02132136 n 0000 \
| yellowish-grey Syrian brown bear
09845191 18 n 01 bear 1 001 @ 00001740 n 0000 | an investor with a pessimistic market outlook
02330245 05 n 01 mouse 0 001 @ 00015388 n 0000 | small rodent
02332156 05 n 02 house_mouse 0 Mus_musculus 0 001 @ 02330245 n 0000 | brownish-grey Old World mouse
01604330 05 n 02 bird_of_prey 0 raptor 0 001 @ 00015388 n 0000 | carnivorous bird
02012849 05 n 01 crane 0 001 @ 00015388 n 0000 | large long-necked wading bird
03126707 06 n 01 crane 1 001 @ 00001740 n 0000 | lifts and moves heavy objects
09213565 17 n 01 bank 0 001 @ 00001740 n 0000 | sloping land
08420278 14 n 02 bank 1 banking_company 0 001 @ 00001740 n 0000 | a financial institution
02935658 06 n 02 cafe 0 coffee_bar 0 001 @ 00001740 n 0000 | a small restaurant
07697537 13 n 02 hotdog 0 red_hot 0 001 @ 00001740 n 0000 | a frankfurter
10187710 18 n 01 hot_dog 0 001 @ 00001740 n 0000 | someone who performs dangerous stunts
10448983 18 n 02 policeman 0 officer 0 001 @ 00001740 n 0000 | a member of a police force
09041785 15 n 02 Istanbul 0 Stambul 0 001 @i 00001740 n 0000 | the largest city of Turkey
04272054 06 n 03 spectacles 0 specs 0 glasses 0 001 @ 00001740 n 0000 | a pair of lenses
"""
INDEX = """\
animal n 1 2 @ ~ 1 1 00015388
bank n 2 2 @ ~ 2 2 09213565 08420278
banking_company n 1 1 @ 1 0 08420278
bear n 2 2 @ ~ 2 1 02131653 09845191
beast n 1 2 @ ~ 1 1 00015388
bird_of_prey n 1 1 @ 1 0 01604330
brown_bear n 1 2 @ ~ 1 0 02132136
bruin n 1 2 @ ~ 1 0 02132136
cafe n 1 1 @ 1 0 02935658
coffee_bar n 1 1 @ 1 0 02935658
crane n 2 1 @ 2 0 03126707 02012849
entity n 1 1 ~ 1 1 00001740
glasses n 1 1 @ 1 0 04272054
hot_dog n 1 1 @ 1 0 10187710
hotdog n 1 1 @ 1 0 07697537
house_mouse n 1 1 @ 1 0 02332156
istanbul n 1 1 @i 1 0 09041785
mouse n 1 1 @ 1 1 02330245
policeman n 1 1 @ 1 1 10448983
raptor n 1 1 @ 1 0 01604330
spectacles n 1 1 @ 1 0 04272054
syrian_bear n 1 1 @ 1 0 02132466
ursus_arctos n 1 1 @ 1 0 02132136
"""
EXCEPTIONS = "mice mouse\noctopi octopus\n"
FILES = {"data.noun": LICENSE + DATA, "index.noun": LICENSE + INDEX, "noun.exc": EXCEPTIONS}


def write_wordnet(folder: Path, **changed: str) -> Path:
    """Write the files to `folder`; `changed` replaces the text of data, index or noun (.exc)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(changed.get(name.partition(".")[0], text))
    return folder


def has_wordnet() -> bool:
    """Return whether the complete WordNet is installed."""
    try:
        find_wordnet()
    except ConfigError:
        return False
    return True


needs_wordnet = pytest.mark.skipif(not has_wordnet(), reason="no WordNet: apt install wordnet-base")
