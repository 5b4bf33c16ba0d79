"""Conversations about scenes. Every answer is right by construction; what would be a matter of opinion is not asked."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from . import drawings
from .scene import Label, Scene, Thing
from .things import (
    ALSO,
    COLOUR_NAMES,
    KIND_INDEX,
    KINDS,
    PAINTS,
    STUFF,
    SYNONYMS,
    Kind,
    article,
    be,
    held_colour,
    region,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MARGIN = 0.12  # two things are left, right, above or below of one another from this distance on
BORDER = 0.04  # a thing's ninth of the picture is asked for if its centre is this far inside


@dataclass(frozen=True)
class Turn:
    kind: str
    question: str
    answer: str
    about: tuple[Thing | Label, ...] = ()  # where to look for the answer


Maker = Callable[["Talk"], Turn | None]


class Talk:
    """Makes questions about one scene."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self.scene, self.rng = scene, rng
        self.things = scene.things
        self.counts = Counter(thing.kind.name for thing in scene.things)
        self.asked: set[object] = set()  # what was asked: what was answered already is copied
        self.last: Thing | None = None  # what "it" is
        self.told: set[Label] = set()  # what was read already: to read it again is to copy

    # --- words ---

    def word(self, name: str) -> str:
        """A kind's name or, now and then, another word for it."""
        return SYNONYMS[name] if name in SYNONYMS and self.rng.random() < 0.15 else name

    def the(self, thing: Thing) -> str | None:
        """A phrase that means this thing alone."""
        if self.mixed(thing.kind.name):
            return None
        if self.counts[thing.kind.name] == 1 and (not thing.painted or self.rng.random() < 0.7):
            return self.word(thing.kind.name)
        # Unpainted ones may be partly of any colour.
        same = [t for t in self.things if t.kind == thing.kind and (not t.painted or t.colour == thing.colour)]
        if not thing.painted or same != [thing]:
            return None
        self.asked.add((thing.colour, (thing,)))
        return f"{thing.colour} {thing.kind.name}"

    def pick(self, allow: Callable[[Thing], bool] = lambda _: True) -> Thing | None:
        """A thing; those in held-out combinations are preferred, being what is to be tested."""
        choices = [thing for thing in self.things if allow(thing)]
        special = [thing for i, thing in enumerate(self.things) if i in self.scene.held_out and allow(thing)]
        if special and self.rng.random() < 0.7:
            choices = special
        return self.rng.choice(choices) if choices else None

    def called(self, name: str) -> tuple[Thing, ...]:
        """All things of a kind."""
        return tuple(thing for thing in self.things if thing.kind.name == name)

    def mixed(self, name: str) -> bool:
        """Whether there are things that could be called so, too."""
        return any(self.counts[other] for other in ALSO.get(name, ()))

    def absent(self) -> str:
        """A kind that is not there."""
        while True:
            kind = self.rng.choice(KINDS).name
            if not self.counts[kind] and not self.mixed(kind):
                return kind

    def counted(self, kind: Kind) -> bool:
        """Whether there is no doubt how many there are."""
        return kind.name not in STUFF and not self.mixed(kind.name)

    def one_of(self, *phrases: str) -> str:
        return self.rng.choice(phrases)


def where(x: float, y: float) -> str | None:
    """The ninth of the picture a point is in, if there is no doubt."""
    for value in (x, y):
        if min(abs(value - 1 / 3), abs(value - 2 / 3)) < BORDER:
            return None
    return region(x, y)


def alone(item: Thing | Label, others: tuple[Thing | Label, ...]) -> bool:
    """Whether nothing but the item is, or is half, where a phrase says that it is. "On the left" may mean all of the left."""
    place = where(item.x, item.y)
    for other in others:
        if other is item:
            continue
        if place in ("left", "right", "top", "bottom"):
            at = other.x if place in ("left", "right") else other.y
            if at < 1 / 3 + BORDER if place in ("left", "top") else at > 2 / 3 - BORDER:
                return False
        near = max(abs(other.x - item.x), abs(other.y - item.y)) < 0.36
        if other.region == place or (near and where(other.x, other.y) is None):
            return False
    return True


def _place_phrase(place: str) -> str:
    return {"left": "on the left", "right": "on the right", "middle": "in the middle", "top": "at the top",
            "bottom": "at the bottom"}.get(place, f"in the {place}")  # fmt: skip


# --- kinds of questions ---


def describe(talk: Talk) -> Turn | None:
    things, labels = talk.things, talk.scene.labels
    if not 1 <= len(things) + len(labels) <= 4 or not things:
        return None
    items: list[tuple[float, str]] = [(t.x, article(t.phrase)) for t in things]
    items += [(label.x, f'the text "{label.text}"') for label in labels]
    items.sort()
    first = min((*things, *labels), key=lambda item: item.x)
    if any(b[0] - a[0] < 0.08 for a, b in zip(items, items[1:])):
        return None
    names = [name for _, name in items]
    text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    ground = f" on {article(talk.scene.background)} background" if talk.scene.background else ""
    talk.told.update(labels)
    question = talk.one_of(
        "Describe the picture.", "Describe the image.", "What do you see?", "What is in the picture?", "What is in this image?",
        "Describe what you see.",
    )  # fmt: skip
    return Turn("describe", question, text[0].upper() + text[1:] + ground + ".", (first,))


def what(talk: Talk) -> Turn | None:
    """What is it, what is there."""
    if len(talk.things) == 1 and talk.rng.random() < 0.5:
        talk.last = thing = talk.things[0]
        return Turn(
            "what",
            talk.one_of("What is it?", "What is this?", "What thing is shown?"),
            article(thing.kind.name),
            (thing,),
        )
    thing = talk.pick(lambda t: where(t.x, t.y) is not None)
    if thing is None:
        return None
    if not alone(thing, (*talk.things, *talk.scene.labels)):
        return None
    talk.last = thing
    phrase = _place_phrase(thing.region)
    talk.asked.add((phrase, (thing,)))
    return Turn("what", talk.one_of(f"What is {phrase}?", f"What do you see {phrase}?", f"Which thing is {phrase}?"),
                article(thing.kind.name), (thing,))  # fmt: skip


def along(side: str, one: Thing | Label, other: Thing | Label) -> float:
    """How far one lies on this side of the other."""
    right, down = one.x - other.x, one.y - other.y
    return {"left of": -right, "right of": right, "above": -down, "below": down}[side]


def beside(talk: Talk) -> Turn | None:
    """What is left of something: the only thing there."""
    thing = talk.pick()
    if thing is None or len(talk.things) < 2:
        return None
    side = talk.one_of("left of", "right of", "above", "below")
    others = [(along(side, other, thing), other) for other in (*talk.things, *talk.scene.labels) if other is not thing]
    found = [other for distance, other in others if distance > MARGIN]
    unsure = [other for distance, other in others if 0 < distance <= MARGIN]
    name = talk.the(thing)
    if len(found) != 1 or unsure or name is None or not isinstance(found[0], Thing):
        return None
    talk.last = found[0]
    the = "to the " if side.endswith("of") else ""
    return Turn("what", f"What is {the}{side} the {name}?", article(found[0].kind.name), (found[0],))


def count(talk: Talk) -> Turn | None:
    draw = talk.rng.random()
    if draw < 0.3:
        question = talk.one_of("How many things are there?", "How many things do you see?", "Count the things.")
        return Turn("count", question, NUMBERS[len(talk.things)], talk.things)
    if draw < 0.75:
        thing = talk.pick()
        name = thing.kind.name if thing and talk.rng.random() < 0.9 else talk.absent()
        kind = KINDS[KIND_INDEX[name]]
        if not talk.counted(kind):
            return None
        question = talk.one_of(f"How many {kind.plural} are there?", f"How many {kind.plural} do you see?")
        return Turn("count", question, NUMBERS[talk.counts[name]], talk.called(name))
    thing = talk.pick(lambda t: t.painted)
    # Unpainted things may be partly of any colour: only asked where all things are painted.
    if thing is None or not all(t.painted for t in talk.things):
        return None
    same = tuple(t for t in talk.things if t.colour == thing.colour)
    return Turn("count", f"How many {thing.colour} things are there?", NUMBERS[len(same)], same)


def colour(talk: Talk) -> Turn | None:
    if talk.scene.background and talk.rng.random() < 0.15:
        question = talk.one_of("What colour is the background?", "Which colour is the background?")
        return Turn("colour", question, talk.scene.background)
    thing = talk.pick(lambda t: t.colour is not None and talk.counts[t.kind.name] == 1 and not talk.mixed(t.kind.name))
    if thing is None:
        return None
    talk.last = thing
    name = talk.word(thing.kind.name)
    asked = f"{be(name)} the {name}?"
    question = talk.one_of(f"What colour {asked}", f"Which colour {asked}", f"What color {asked}")
    return Turn("colour", question, thing.colour or "", (thing,))


def place(talk: Talk) -> Turn | None:
    thing = talk.pick(lambda t: where(t.x, t.y) is not None)
    name = talk.the(thing) if thing else None
    if thing is None or name is None:
        return None
    talk.last = thing
    return Turn("where", talk.one_of(f"Where {be(name)} the {name}?", f"In which part of the picture {be(name)} the {name}?"),
                _place_phrase(thing.region), (thing,))  # fmt: skip


def relation(talk: Talk) -> Turn | None:
    one = talk.pick()
    other = talk.rng.choice(talk.things) if talk.things else None
    if one is None or other is None or one is other:
        return None
    side = talk.one_of("left of", "right of", "above", "below")
    distance = along(side, one, other)
    a, b = talk.the(one), talk.the(other)
    if abs(distance) < MARGIN or a is None or b is None:
        return None
    return Turn("where", f"{be(a).title()} the {a} {side} the {b}?", "yes" if distance > 0 else "no", (one, other))


def side(talk: Talk) -> Turn | None:
    """Whether something is in one half of the picture, or not there at all."""
    name = talk.one_of("on the left", "on the right", "at the top", "at the bottom")
    axis, low = int(name.startswith("at")), name in ("on the left", "at the top")
    if talk.rng.random() < 0.15:
        absent = talk.absent()
        return Turn("refuse", f"{be(absent).title()} the {absent} {name}?", f"There {be(absent)} no {absent}.")
    thing = talk.pick(lambda t: abs((t.x, t.y)[axis] - 0.5) > MARGIN)
    called = talk.the(thing) if thing else None
    if thing is None or called is None:
        return None
    talk.last = thing
    return Turn(
        "where",
        f"{be(called).title()} the {called} {name}?",
        "yes" if ((thing.x, thing.y)[axis] < 0.5) == low else "no",
        (thing,),
    )


def exists(talk: Talk) -> Turn | None:
    draw = talk.rng.random()
    if draw < 0.4:
        thing = talk.pick()
        if thing is None:
            return None
        talk.last = thing if talk.counts[thing.kind.name] == 1 else None
        phrase = article(talk.word(thing.kind.name))
        if thing.painted and talk.rng.random() < 0.4:
            phrase = article(thing.phrase)
            talk.asked.add((thing.colour, (thing,)))
        return Turn("exists", talk.one_of(f"{be(phrase).title()} there {phrase}?", f"Do you see {phrase}?"), "yes",
                    talk.called(thing.kind.name))  # fmt: skip
    phrase = article(talk.word(talk.absent()))
    thing = talk.pick(lambda t: t.painted)
    about: tuple[Thing, ...] = ()
    if thing and draw > 0.75:
        # There, but not in this colour.
        others = [c for c in (COLOUR_NAMES if thing.kind.icon is None else PAINTS)
                  if not held_colour(thing.kind.name, c) and all(t.kind != thing.kind or (t.painted and t.colour != c) for t in talk.things)]  # fmt: skip
        if not others:
            return None
        phrase = article(f"{talk.rng.choice(others)} {thing.kind.name}")
        about = talk.called(thing.kind.name)
    elif draw > 0.9:
        return None
    return Turn("exists", talk.one_of(f"{be(phrase).title()} there {phrase}?", f"Do you see {phrase}?"), "no", about)


def reading(talk: Talk, label: Label) -> Turn:
    kind = "read small" if label.small else "read large"
    if len(talk.scene.labels) == 1:
        question = talk.one_of(
            "What does the text say?", "Read the text.", "What is written there?", "What does it say?"
        )
        if label.text.isdigit() and talk.rng.random() < 0.5:
            question = talk.one_of("Which number is written there?", "What number do you see?", "Read the number.")
        return Turn(kind, question, label.text, (label,))
    phrase = _place_phrase(label.region)
    return Turn(
        kind, talk.one_of(f"What does the text {phrase} say?", f"Read the text {phrase}."), label.text, (label,)
    )


def read(talk: Talk) -> Turn | None:
    labels = talk.scene.labels
    if not labels:
        return Turn("refuse", talk.one_of("What does the text say?", "Read the text.", "What number do you see?"),
                    "There is no text.") if talk.rng.random() < 0.12 else None  # fmt: skip
    label = talk.rng.choice(labels)
    if len(labels) > 1 and not (where(label.x, label.y) and alone(label, labels)):
        return None
    if label in talk.told:
        return None
    talk.told.add(label)
    return reading(talk, label)


def compare(talk: Talk) -> Turn | None:
    one = talk.pick()
    other = talk.rng.choice(talk.things) if talk.things else None
    if one is None or other is None or one is other:
        return None
    draw = talk.rng.random()
    a, b = talk.the(one), talk.the(other)
    if draw < 0.5:
        # By its longer side and by what it covers.
        bigger = [(x, y) for x, y in ((one, other), (other, one)) if x.size > 1.3 * y.size and x.area > 1.3 * y.area]
        if a is None or b is None or not bigger:
            return None
        word, which = talk.rng.choice((("bigger", bigger[0][0]), ("smaller", bigger[0][1])))
        return Turn("compare", f"Which is {word}, the {a} or the {b}?", f"the {a if which is one else b}", (one, other))
    if draw < 0.75:
        if one.kind == other.kind or talk.counts[one.kind.name] == talk.counts[other.kind.name]:
            return None
        if not talk.counted(one.kind) or not talk.counted(other.kind):
            return None
        more = talk.counts[one.kind.name] > talk.counts[other.kind.name]
        return Turn("compare", f"Are there more {one.kind.plural} than {other.kind.plural}?", "yes" if more else "no",
                    talk.called(one.kind.name) + talk.called(other.kind.name))  # fmt: skip
    # Two of the same colour are seldom there.
    wanted = talk.rng.random() < 0.75
    painted = [t for t in talk.things if t.painted and talk.counts[t.kind.name] == 1 and not talk.mixed(t.kind.name)]
    pairs = [(x, y) for x in painted for y in painted if x is not y and (x.colour == y.colour) == wanted]
    if not pairs:
        return None
    one, other = talk.rng.choice(pairs)
    names = f"the {talk.word(one.kind.name)} and the {talk.word(other.kind.name)}"
    return Turn("compare", f"Are {names} the same colour?", "yes" if wanted else "no", (one, other))


def refuse(talk: Talk) -> Turn | None:
    name = talk.absent()
    question = talk.one_of(f"What colour {be(name)} the {name}?", f"Where {be(name)} the {name}?")
    return Turn("refuse", question, f"There {be(name)} no {name}.")


def follow(talk: Talk) -> Turn | None:
    """A question that only the last turn makes clear."""
    thing = talk.last
    if thing is None:
        return None
    draw = talk.rng.random()
    it, its = ("is it", "its") if be(thing.kind.name) == "is" else ("are they", "their")
    if draw < 0.4 and thing.colour:
        question = talk.one_of(f"What colour {it}?", f"And which colour {it}?", f"And {its} colour?")
        return Turn("follow", question, thing.colour, (thing,))
    if draw < 0.8:
        if where(thing.x, thing.y) is None:
            return None
        return Turn("follow", talk.one_of(f"Where {it}?", f"And where {it}?"), _place_phrase(thing.region), (thing,))
    if len(talk.things) == 1:
        return None
    return Turn("follow", talk.one_of("How many other things are there?", "And how many other things are there?"),
                NUMBERS[len(talk.things) - 1], tuple(t for t in talk.things if t is not thing))  # fmt: skip


MAKERS: tuple[tuple[Maker, float], ...] = (
    (describe, 0.6), (what, 1.6), (beside, 0.8), (count, 1.5), (colour, 1.6), (place, 1.3), (relation, 1.2), (side, 0.7), (exists, 1.2),
    (read, 4.0), (compare, 2.5), (refuse, 0.3), (follow, 1.0),
)  # fmt: skip


def talk_about(scene: Scene, rng: random.Random, turns: int) -> list[Turn]:
    """A conversation of at most so many turns."""
    talk = Talk(scene, rng)
    makers, weights = zip(*MAKERS)
    out: list[Turn] = []
    for _ in range(6 * turns):
        if len(out) == turns:
            break
        before = talk.last
        maker = rng.choices(makers, weights)[0]
        if maker is not follow:
            talk.last = None
        turn = maker(talk)
        if turn is None or meaning(turn) in talk.asked:
            talk.last = before
            continue
        talk.asked.add(meaning(turn))
        out.append(turn)
    return out


def meaning(turn: Turn) -> object:
    """The same of questions that ask for the same thing in other words."""
    if turn.kind == "describe":
        return "describe"
    if turn.kind == "refuse":
        return turn.answer
    return (turn.answer, turn.about) if turn.about and turn.answer not in ("yes", "no") else turn.question


# --- requests to draw, and small talk ---

REQUESTS = (
    "Draw {}.", "Paint {}.", "Generate {}.", "Generate a picture of {}.", "Draw me {}.", "Please draw {}.", "Show me {}.",
    "Make a picture of {}.",
)  # fmt: skip


def drawing_turn(rng: random.Random) -> Turn:
    prompt = drawings.draw(rng).prompt
    # Programs put it there when a person presses a button.
    button = " <GEN>" if rng.random() < 0.7 else ""
    return Turn("draw", rng.choice(REQUESTS).format(prompt) + button, f"<h>{prompt}</h>")


SMALL_TALK = (
    ("Who are you?", "I am Pocket, a small Mini-Gemini. I see, answer and draw."),
    ("What are you?", "I am Pocket, a small Mini-Gemini. I see, answer and draw."),
    ("What is your name?", "My name is Pocket."),
    ("Hello!", "Hello! Show me a picture, or ask me to draw one."),
    ("Hi!", "Hello! Show me a picture, or ask me to draw one."),
    ("Hello", "Hello! Show me a picture, or ask me to draw one."),
    ("What can you do?", "I can describe pictures of my little world, count, read and draw."),
    ("What can you see?", "I know everyday things, shapes, colours, short words and numbers."),
    ("How do you work?", "Two towers look at your picture, mining joins them, and a language model answers."),
    ("Who made you?", "I was trained from nothing on two processor cores."),
    ("How big are you?", "I fit in your pocket: less than 24 mebibytes."),
    ("How are you?", "I am well, thank you."),
    ("Thank you.", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
    ("Bye!", "Goodbye!"),
    ("Are you human?", "No, I am a small model."),
    ("Can you draw?", "Yes. Ask me to draw a thing in a colour."),
    ("Can you read?", "Yes, short words and numbers."),
    ("Where do you run?", "On your own machine. Nothing leaves it."),
    ("What is the capital of France?", "I do not know. I only know my little world."),
    ("Tell me a joke.", "I do not know any. I only know my little world."),
    ("What is the weather like?", "I do not know. I only know my little world."),
)


def small_talk(rng: random.Random, turns: int) -> list[Turn]:
    return [Turn("talk", *pair) for pair in rng.sample(SMALL_TALK, turns)]
