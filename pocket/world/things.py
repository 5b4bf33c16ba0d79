"""The content of the world: emoji drawings, shapes, colours, printed words; and which combinations are held out."""

import random
import zlib
from dataclasses import dataclass

# Icons of Noto, and their names here if the icon's own name is unsuitable.
_EMOJI = """
dog-face=dog wolf fox cat-face=cat lion tiger-face=tiger horse-face=horse unicorn zebra deer cow-face=cow pig-face=pig
camel giraffe elephant mouse-face=mouse rabbit-face=rabbit bear panda rooster baby-chick=chick penguin dove=bird duck
owl parrot frog crocodile turtle snake dragon whale dolphin tropical-fish=fish shark octopus crab snail butterfly
honeybee=bee lady-beetle=ladybug spider rose sunflower tulip evergreen-tree=pine-tree palm-tree cactus mushroom grapes
watermelon tangerine=orange-fruit lemon banana pineapple red-apple=apple pear cherries=cherry strawberry tomato carrot
hot-pepper=pepper broccoli bread cheese-wedge=cheese hamburger french-fries=fries pizza hot-dog sandwich egg ice-cream
doughnut=donut cookie birthday-cake=cake cupcake hot-beverage=coffee teapot beer-mug=beer spoon volcano house castle
tent locomotive bus ambulance automobile=car delivery-truck=truck tractor motorcycle bicycle anchor sailboat ship
airplane=plane helicopter rocket watch alarm-clock crescent-moon=moon sun cloud rainbow umbrella snowflake snowman fire
jack-o-lantern=pumpkin balloon wrapped-gift=gift trophy soccer-ball basketball tennis=racket kite game-die=die
teddy-bear glasses t-shirt=shirt dress socks running-shoe=shoe crown top-hat=hat ring gem-stone=gem bell microphone
trumpet guitar drum telephone laptop television camera candle light-bulb=lamp closed-book=book envelope=letter pencil
scissors key hammer gear magnet ladder bed chair skull ghost alien robot
"""

PLURALS = {
    "wolf": "wolves", "mouse": "mice", "fish": "fish", "grapes": "grapes", "cherry": "cherries", "strawberry": "strawberries",
    "fries": "fries", "glasses": "glasses", "socks": "socks", "scissors": "scissors", "die": "dice", "fox": "foxes",
    "sandwich": "sandwiches", "bus": "buses", "watch": "watches", "dress": "dresses", "cactus": "cacti", "cross": "crosses",
    "octopus": "octopuses", "tomato": "tomatoes", "butterfly": "butterflies", "deer": "deer", "trophy": "trophies",
    "broccoli": "broccoli", "bread": "bread", "cheese": "cheese", "coffee": "coffee",
}  # fmt: skip

# Other words for them: emojibase-data 17.0.0's labels and tags, those that mean the same and that no second kind has.
SYNONYMS = {
    "dog": "puppy", "cat": "kitty", "car": "automobile", "bicycle": "bike", "plane": "airplane",
    "bee": "honeybee", "rabbit": "bunny", "donut": "doughnut", "gift": "present", "bird": "dove", "locomotive": "train",
    "letter": "envelope", "television": "TV", "shoe": "sneaker", "lamp": "light bulb", "turtle": "tortoise", "snake": "serpent",
    "mushroom": "toadstool", "hamburger": "burger", "sailboat": "yacht", "helicopter": "copter", "soccer ball": "football",
    "telephone": "phone", "gem": "jewel", "gear": "cogwheel", "trophy": "prize", "hot dog": "sausage", "teddy bear": "teddy",
    "pine tree": "evergreen", "ladybug": "ladybird",
}  # fmt: skip

# Hypernyms: whether there is a bird next to a duck is not asked.
ALSO = {
    "bird": {"duck", "owl", "parrot", "penguin", "chick", "rooster"}, "fish": {"shark", "whale", "dolphin"},
    "bear": {"panda", "teddy bear"}, "cat": {"lion", "tiger"}, "dog": {"wolf"}, "horse": {"unicorn", "zebra"}, "cake": {"cupcake"},
    "bread": {"sandwich", "hamburger", "hot dog"}, "bicycle": {"motorcycle"}, "car": {"ambulance"}, "truck": {"ambulance"},
    "ship": {"sailboat"}, "hat": {"crown"}, "house": {"castle"}, "diamond": {"gem"}, "rectangle": {"square"}, "oval": {"circle"},
}  # fmt: skip

SHAPES = (
    "circle", "square", "triangle", "star", "heart", "diamond", "rectangle", "oval", "hexagon", "cross", "arrow",
)  # fmt: skip

COLOURS = {
    "red": (214, 40, 40), "orange": (245, 130, 30), "yellow": (250, 212, 45), "green": (52, 160, 70), "teal": (0, 140, 140),
    "blue": (40, 90, 215), "purple": (125, 55, 170), "pink": (245, 130, 185), "brown": (125, 78, 42), "gray": (128, 128, 128),
    "black": (25, 25, 25), "white": (248, 248, 248),
}  # fmt: skip
# The colours for recoloured emoji, which keep their shading.
PAINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")

WORDS = tuple(
    """open exit stop shop cafe bank hotel park milk bread tea fish book map bus taxi north south east west hello bye
    love home door key sale free new old hot cold left right push pull yes low high fast slow sun moon star rain snow wind
    fire ice sea lake hill road gate farm barn zoo club jazz rock king queen lord gold iron coal wood salt soup cake plum
    pear lime mint rose lily ivy oak elm ash fox bear lion deer duck crow hawk blue red pink gray team game play win""".split()
)

REGIONS = (
    "top left corner", "top", "top right corner", "left", "middle", "right", "bottom left corner", "bottom", "bottom right corner",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of thing."""

    name: str
    icon: str | None  # None for shapes

    @property
    def plural(self) -> str:
        if self.name in PLURALS:
            return PLURALS[self.name]
        return self.name + "s"


def article(phrase: str) -> str:
    """A phrase with its indefinite article; none before plurals and stuff."""
    if phrase.split()[-1] in _UNCOUNTED:
        return phrase
    return ("an " if phrase[0].lower() in "aeiou" and not phrase.startswith("unicorn") else "a ") + phrase


PLURAL_ALONE = {"grapes", "fries", "glasses", "socks", "scissors"}
STUFF = {"broccoli", "bread", "cheese", "coffee"}
_UNCOUNTED = PLURAL_ALONE | STUFF


def be(phrase: str) -> str:
    """Is it, or are they?"""
    return "are" if phrase.split()[-1] in PLURAL_ALONE else "is"


def _kinds() -> tuple[Kind, ...]:
    kinds = []
    for entry in _EMOJI.split():
        icon, _, name = entry.partition("=")
        kinds.append(Kind((name or icon).replace("-", " "), icon))
    return (*kinds, *(Kind(name, None) for name in SHAPES))


KINDS = _kinds()
KIND_INDEX = {kind.name: index for index, kind in enumerate(KINDS)}
assert len(KIND_INDEX) == len(KINDS)
COLOUR_NAMES = tuple(COLOURS)
# The words of the names of things, colours and texts.
NAMES = tuple(
    dict.fromkeys(
        word
        for phrase in (
            *WORDS,
            *COLOURS,
            *(name for kind in KINDS for name in (kind.name, kind.plural)),
            *SYNONYMS.values(),
        )
        for word in phrase.split()
    )
)


def colour_distance(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How far two colours are apart, over red, green and blue."""
    return sum(abs(a - b) for a, b in zip(one, other))


def any_kind(rng: random.Random) -> Kind:
    """A kind; a quarter and more are shapes."""
    return rng.choice(KINDS) if rng.random() < 0.75 else KINDS[-1 - rng.randrange(len(SHAPES))]


def region(x: float, y: float) -> str:
    """The ninth of the image that contains a point."""
    return REGIONS[3 * min(int(y * 3), 2) + min(int(x * 3), 2)]


# Drawings that are nearly all of one colour (checked by eye, and more than 72 % of the pixels).
NATURAL = {
    "wolf": "gray", "chick": "yellow", "rose": "red", "pine tree": "green", "cactus": "green", "tomato": "red",
    "cheese": "yellow", "teapot": "red", "moon": "yellow", "pumpkin": "orange", "balloon": "red", "dress": "blue",
    "bell": "yellow", "trumpet": "yellow", "telephone": "red", "key": "yellow", "magnet": "red", "broccoli": "green",
    "orange fruit": "orange", "octopus": "red", "elephant": "gray",
}  # fmt: skip


def _draw(text: str, parts: int) -> int:
    return zlib.crc32(text.encode()) % parts


# easy-vqa's train split shows them in all of its colours and everywhere.
_SHOWN = {"circle", "rectangle", "triangle"}


def held_colour(kind: str, colour: str) -> bool:
    """Whether a kind in a colour is held out."""
    return kind not in _SHOWN and NATURAL.get(kind) != colour and _draw(f"colour/{kind}/{colour}", 10) == 0


def held_region(kind: str, place: str) -> bool:
    """Whether a kind in a ninth of the image is held out."""
    return kind not in _SHOWN and _draw(f"region/{kind}/{place}", 12) == 0


def held_pair(one: str, other: str) -> bool:
    """Whether two kinds in one image are held out."""
    first, second = sorted((one, other))
    return first != second and _draw(f"pair/{first}/{second}", 20) == 0
