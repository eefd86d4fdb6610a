"""The things that images show: names, synsets, hashtags, and their frequency in each club's posts.

Synsets and senses are those of WordNet 3.0. The most frequent sense of a word is the thing itself,
with three intended exceptions: the first sense of `table` is an array of numbers, of `banana` the
plant, and of `bike` a motorcycle.
"""

from __future__ import annotations

from typing import NamedTuple


class Thing(NamedTuple):
    """A noun that can be drawn.

    Args:
        name: its most frequent hashtag.
        synset: the WordNet id of the thing.
        synonyms: further lemmas, separated by spaces.
        broader: hypernyms that people use.
        foreign: words of other languages, which are not in WordNet.
        colours: the usual colours of body and trim, names of `painter.HUES`.
    """

    name: str
    synset: str
    synonyms: str
    broader: str
    foreign: str
    colours: str

    def words(self) -> list[str]:
        """English lemmas, the most frequent first; words of one lemma are joined by underscores."""
        return [self.name, *self.synonyms.split()]


# The most frequent first: the k-th is 1 / k times as frequent as the first (Zipf's law).
THINGS = (
    Thing("flower", "n11669921", "", "plant_life", "fleur blume flor цветок 花", "pink green"),
    Thing(
        "car",
        "n02958343",
        "auto automobile motorcar",
        "vehicle motor_vehicle",
        "voiture coche mashina 車",
        "red black",
    ),
    Thing("fish", "n02512053", "", "animal", "poisson fisch pez рыба 魚", "orange yellow"),
    Thing(
        "apple", "n07739125", "", "fruit edible_fruit", "pomme apfel manzana яблоко", "red green"
    ),
    Thing("house", "n03544360", "", "dwelling building", "haus maison casa дом", "brown red"),
    Thing("star", "n09444100", "", "celestial_body", "estrella étoile звезда 星", "yellow orange"),
    Thing("cup", "n03147509", "", "tableware container", "taza чашка カップ", "white blue"),
    Thing(
        "butterfly",
        "n02274259",
        "",
        "insect animal",
        "schmetterling vlinder бабочка",
        "purple orange",
    ),
    Thing("chair", "n03001627", "", "furniture", "stuhl silla стул", "brown yellow"),
    Thing(
        "sailboat",
        "n04128499",
        "sailing_boat",
        "vehicle",
        "voilier segelboot парусник",
        "white blue",
    ),
    Thing(
        "airplane",
        "n02691156",
        "plane aeroplane",
        "aircraft vehicle",
        "avion flugzeug самолёт 飛行機",
        "grey blue",
    ),
    Thing("tree", "n13104059", "", "plant_life", "arbre árbol дерево 木", "green brown"),
    Thing("mushroom", "n13001041", "", "fungus", "pilz гриб", "red white"),
    Thing("banana", "n07753592", "", "fruit edible_fruit", "banane plátano банан", "yellow brown"),
    Thing(
        "guitar", "n03467517", "", "musical_instrument", "gitarre guitarra гитара", "orange brown"
    ),
    Thing("duck", "n01846331", "", "bird animal", "ente pato утка", "yellow orange"),
    Thing("umbrella", "n04507155", "", "", "regenschirm parapluie зонт", "purple black"),
    Thing(
        "bicycle",
        "n02834778",
        "bike",
        "vehicle wheeled_vehicle",
        "fahrrad vélo велосипед 自転車",
        "blue black",
    ),
    Thing("owl", "n01621127", "", "bird animal", "eule búho сова", "brown yellow"),
    Thing("table", "n04379243", "", "furniture", "tisch стол", "brown orange"),
    Thing("cactus", "n11842204", "", "succulent plant_life", "kaktus кактус", "green pink"),
    Thing("moon", "n09358358", "", "celestial_body", "mond lune луна 月", "yellow white"),
    Thing("bottle", "n02876657", "", "container", "flasche bouteille бутылка", "green white"),
    Thing(
        "truck",
        "n04490091",
        "motortruck",
        "vehicle motor_vehicle",
        "lkw грузовик トラック",
        "blue grey",
    ),
    Thing("strawberry", "n07745940", "", "fruit berry", "erdbeere fresa клубника", "red green"),
    Thing("spider", "n01772222", "", "arachnid animal", "spinne araignée паук", "black red"),
    Thing("teapot", "n04398044", "", "pot container", "teekanne théière чайник", "blue white"),
    Thing("bed", "n02818832", "", "furniture", "bett cama кровать", "white purple"),
    Thing("rocket", "n04099429", "", "vehicle", "cohete raketa ракета", "grey red"),
    Thing("pear", "n07767847", "", "fruit edible_fruit", "poire birne груша", "green yellow"),
    Thing("snail", "n01944390", "", "animal", "schnecke caracol улитка", "brown pink"),
    Thing(
        "scissors", "n04148054", "pair_of_scissors", "tool", "schere ciseaux ножницы", "grey orange"
    ),
)
NAMES = tuple(thing.name for thing in THINGS)
BY_NAME = dict(zip(NAMES, THINGS, strict=True))

# Each post is from one of two clubs. The planted things are PLANTED_RATIO times as frequent in one
# club as in the other. These ranks were chosen because all other things are then equally frequent
# in both clubs, within 0.2%.
CLUBS = "ab"
PLANTED_RATIO = 3.0
PLANTED = {"apple": "a", "star": "a", "guitar": "a", "fish": "b", "cup": "b"}


def list_weights(club: str) -> list[float]:
    """Relative frequency of each thing in a club's posts."""
    more, less = 2 * PLANTED_RATIO / (PLANTED_RATIO + 1), 2 / (PLANTED_RATIO + 1)
    sides = [PLANTED.get(name) for name in NAMES]
    return [
        (1.0 if side is None else more if side == club else less) / rank
        for rank, side in enumerate(sides, 1)
    ]
