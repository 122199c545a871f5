"""Who people are (`Body`) and what they wear (`Outfit`).

Identity is the body: height, build, proportions, head, skin, hair, face and posture are continuous
traits that stay the same under every outfit, camera, pose and viewing angle. Outfits are made of
the attributes of Supp. Tab. 3.
"""

import math
from collections import Counter
from dataclasses import dataclass

from instructions import ATTRIBUTES

# Traits of a body

@dataclass(frozen=True)
class Body:
    """The traits of a person. The defaults are those of a shop's mannequin."""
    gender: str = "female"  # or "male"
    age: str = "adult"  # or "child" or "old"
    height: float = 170  # in cm; every length below is a share of it
    shoulders: float = 0.125  # half widths
    waist: float = 0.088
    hips: float = 0.1
    belly: float = 0.08  # half depth at the waist
    legs: float = 0.47  # height of the crotch
    arms: float = 0.38
    limb: float = 0.028  # half thickness
    head: float = 0.14
    face: float = 0.8  # width of the head over its height
    neck: float = 0.02
    stance: float = 0.06  # half distance of the feet
    stoop: float = 0  # forward lean of the back, in radians
    skin: tuple | None = None  # RGB; None is not drawn, and without skin there is no head
    hair: tuple | None = None
    hair_name: str = ""  # a phrase of the attribute "hair color"
    hair_style: str = "bald"  # one of HAIR_LENGTHS
    hair_length: float = 0  # below the middle of the head, in half heads
    volume: float = 1
    fringe: float = 0  # 0 = high forehead, 1 = down to the brows
    beard: str = ""  # "", "moustache" or "beard"
    glasses: bool = False
    brow: float = 1  # thickness


AGES = {"child": 0.12, "adult": 0.7, "old": 0.18}  # age -> share of the people
RANGES = {  # age -> from, to of height, legs, head and stoop
    "child": ((96, 138), (0.4, 0.46), (0.2, 0.24), (-0.08, 0.22)),
    "adult": ((150, 190), (0.41, 0.53), (0.135, 0.185), (-0.08, 0.22)),
    "old": ((150, 190), (0.41, 0.53), (0.135, 0.185), (0.25, 0.5)),
}
SKINS = (  # dark to pale
    (62, 38, 28),
    (112, 72, 48),
    (168, 118, 84),
    (214, 166, 130),
    (248, 212, 188),
)
BLACK, OTHER, WHITE, YELLOW = ATTRIBUTES["hair color"]
HAIRS = (
    (BLACK, (22, 20, 24)),
    (OTHER, (74, 44, 24)),
    (OTHER, (128, 78, 40)),
    (OTHER, (176, 66, 22)),
    (YELLOW, (226, 184, 84)),
)
GREYS = (
    (OTHER, (132, 132, 136)),
    (WHITE, (232, 232, 236)),
)
HAIR_LENGTHS = {  # style -> range; it shows only where hair hangs: bob, long, ponytail
    "bald": (1.5, 3.2),
    "short": (1.5, 3.2),
    "bob": (0.9, 1.4),
    "long": (2.0, 4.2),
    "bun": (1.5, 3.2),
    "ponytail": (1.5, 3.2),
}
HAIR_STYLES = {  # gender -> share of each style, in the order above
    "female": (0, 0.22, 0.22, 0.3, 0.13, 0.13),
    "male": (0.2, 0.6, 0.1, 0.12, 0.02, 0.02),
}


def draw_body(rng):
    """A person's traits. rng: random.Random."""
    gender = rng.choice(("female", "male"))
    [age] = rng.choices(tuple(AGES), tuple(AGES.values()))
    height, legs, head, stoop = RANGES[age]
    male = gender == "male"
    grown_man = male and age != "child"
    build = rng.uniform(0, 1)  # slim to stout; the widths vary around it

    hair_name, hair = rng.choice(GREYS if age == "old" else HAIRS)
    bald_share, *shares = HAIR_STYLES[gender]
    shares = (0 if age == "child" else bald_share, *shares)
    [hair_style] = rng.choices(tuple(HAIR_LENGTHS), shares)
    bearded = grown_man and rng.random() < 0.5

    return Body(
        gender=gender,
        age=age,
        height=rng.uniform(*height) + 10 * grown_man - 8 * (age == "old"),
        shoulders=rng.uniform(0.098, 0.132) + 0.022 * male,
        waist=0.062 + 0.062 * build + rng.uniform(-0.008, 0.008),
        hips=0.078 + 0.04 * build + rng.uniform(-0.008, 0.02) * (not male),
        belly=0.05 + 0.07 * build,
        legs=rng.uniform(*legs),
        arms=rng.uniform(0.33, 0.43),
        limb=0.021 + 0.016 * build + rng.uniform(-0.004, 0.004),
        head=rng.uniform(*head),
        face=rng.uniform(0.66, 1.0),
        neck=rng.uniform(0.01, 0.045),
        stance=rng.uniform(0.025, 0.085),
        stoop=rng.uniform(*stoop),
        skin=_skin(rng),
        hair=tint(hair, 14, rng),
        hair_name=hair_name,
        hair_style=hair_style,
        hair_length=rng.uniform(*HAIR_LENGTHS[hair_style]),
        volume=rng.uniform(1.04, 1.3),
        fringe=rng.uniform(0, 0.9),
        beard=rng.choice(("moustache", "beard", "beard")) if bearded else "",
        glasses=rng.random() < 0.25,
        brow=rng.uniform(0.4, 1.3),
    )


def _skin(rng):
    """A tone somewhere on the way from dark to pale."""
    place, share = divmod(rng.random() * (len(SKINS) - 1), 1)
    i = int(place)
    tone = between(SKINS[i], SKINS[i + 1], share)
    return tuple(round(channel) + rng.randint(-8, 8) for channel in tone)


def between(start, end, share):
    """The numbers that lie `share` of the way from those of start to those of end."""
    return tuple(a + share * (b - a) for a, b in zip(start, end))


def tint(colour, spread, rng, light=0):
    """An RGB near another one: as much lighter, and each channel off by at most `spread`."""
    channels = [channel + light + rng.randint(-spread, spread) for channel in colour]
    return tuple(min(255, max(0, channel)) for channel in channels)


# Outfits

@dataclass(frozen=True)
class Outfit:
    attributes: dict  # those of Supp. Tab. 3 that clothes and things decide, attribute -> phrase
    colours: dict  # part -> RGB
    infrared: dict  # part -> brightness; follows the visible colour only loosely
    pattern: int  # which chest print or stripes, 0..2

    def clashes(self, other):
        """Whether it is too similar to another outfit of a person: same coat or trousers colour."""
        mine = self.attributes
        theirs = other.attributes
        return any(mine[key] == theirs[key] for key in ("coat color", "trousers color"))

    def suits(self, body):
        wears_skirt = self.attributes["trousers length"] == "skirt"
        wears_dress = self.attributes["coat style"] == "dress"
        return body.gender == "female" or not (wears_skirt or wears_dress)


COLOURS = {
    "black": (30, 30, 34),
    "blue": (36, 78, 196),
    "gray": (132, 134, 136),
    "green": (36, 136, 62),
    "purple": (128, 48, 158),
    "red": (206, 32, 38),
    "white": (240, 240, 236),
    "yellow": (240, 204, 44),
}
_, LONG, SHORT, BARE = ATTRIBUTES["coat length"]
COAT_LENGTHS = {  # coat style -> the lengths to choose from
    "business suit": (LONG,),
    "dress": (LONG, SHORT, BARE),
    "jacket": (LONG,),
    "long coat": (LONG,),
    "shirt": (LONG, SHORT),
    "sweater": (LONG,),
    "t-shirt": (SHORT, SHORT, BARE),
}
THINGS = {  # attribute -> {phrase: weight}
    "trousers length": {"trousers": 5, "shorts trousers": 2, "skirt": 1},
    "shoes style": dict.fromkeys(ATTRIBUTES["shoes style"], 1),
    "bag style": {"without bag": 5, "backpack": 2, "hand bag": 2, "shoulder bag": 2,
                  "waist pack": 1, "trolley": 1},
    "cap style": {"without hat": 4, "with hat": 1},
    "glass style": {"without glasses": 9, "with sunglasses": 1},
    "glove": {"without glove": 7, "with glove": 1},
    "umbrella": {"without umbrella": 24, "with umbrella": 1},
}


def draw_outfit(rng):
    """A random outfit; `suits` says for whom."""
    style = rng.choice(tuple(COAT_LENGTHS))

    # The colours by name. Coat, trousers and accent (stripes, prints, ties) differ from each other.
    names = tuple(COLOURS)
    coat, trousers, accent = rng.sample(names, 3)
    colour_names = {"coat": coat, "trousers": trousers, "accent": accent}
    for part in ("shoes", "bag", "hat", "things"):
        colour_names[part] = rng.choice(names)

    # Attributes for sentences.
    attributes = {}
    for key, weights in THINGS.items():
        [attributes[key]] = rng.choices(tuple(weights), weights.values())
    for part in ("coat", "trousers", "shoes"):
        attributes[f"{part} color"] = f"{colour_names[part]} {part}"
    attributes["coat style"] = style
    attributes["coat length"] = rng.choice(COAT_LENGTHS[style])
    if style in ("business suit", "dress", "long coat"):  # shorts would not show below the hem
        attributes["trousers length"] = "trousers"

    # The cloth: each piece a little off its colour, and in infrared as bright as its material is.
    colours = {}
    infrared = {}
    for part, name in colour_names.items():
        colours[part] = tint(COLOURS[name], 5, rng, light=rng.randint(-14, 14))
        material = rng.uniform(35, 235)
        infrared[part] = 0.3 * sum(colours[part]) / 3 + 0.7 * material

    pattern = rng.randrange(3)
    sleeve = "accent" if style == "sweater" and pattern == 2 else "coat"
    colours["sleeve"] = colours[sleeve]
    infrared["sleeve"] = infrared[sleeve]
    return Outfit(attributes, colours, infrared, pattern)


def dress(bodies, rng, count=1, wearers=0):
    """`count` different outfits for each body.

    wearers: how many people, about, share an outfit, so that clothes alone do not identify them;
    0 = outfits are not shared.
    """
    wardrobe = []
    if wearers:
        size = max(9, len(bodies) * count // wearers)
        wardrobe = [draw_outfit(rng) for _ in range(size)]

    worn = Counter()  # id of an outfit -> how many people wear it
    everybody = []
    for body in bodies:
        mine = []
        for outfit in _candidates(wardrobe, worn, rng):
            if len(mine) == count:  # checked after the draw of one more: the bytes depend on it
                break
            if outfit.suits(body) and not any(outfit.clashes(other) for other in mine):
                mine.append(outfit)
                worn[id(outfit)] += 1
        everybody.append(tuple(mine))
    return everybody


def _candidates(wardrobe, worn, rng):
    """The wardrobe, least worn first, then new outfits without end."""
    yield from sorted(wardrobe, key=lambda outfit: (worn[id(outfit)], rng.random()))
    while True:
        yield draw_outfit(rng)


# Attributes of a picture

def attributes_of(body, outfit, yaw):
    """The 20 attributes of Supp. Tab. 3 of one picture, attribute -> phrase.

    yaw: radians. Glasses do not show from behind.
    """
    angle = "side"
    if math.cos(yaw) > 0.7:
        angle = "front"
    elif math.cos(yaw) < -0.7:
        angle = "back"

    hair_style = "agnostic style hair"
    if body.hair_style in ("bald", "short", "long"):
        hair_style = f"{body.hair_style} hair"

    glasses = outfit.attributes["glass style"]
    if angle == "back":
        glasses = "without glasses"
    elif body.glasses:
        glasses = "with glasses"

    return outfit.attributes | {
        "gender code": body.gender,
        "age": body.age,
        "hair style": hair_style,
        "hair color": OTHER if body.hair_style == "bald" else body.hair_name,
        "glass style": glasses,
        "person angle": angle,
        "pose": "stoop" if body.stoop > 0.35 else "stand",
        "uniform": "common clothing",
        "smoking": "without smoking",
    }
