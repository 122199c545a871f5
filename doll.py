"""Paper dolls: who somebody is (`Body`), what they wear (`Outfit`) and how a pose of both is drawn (`Doll`).

Identity is the body: height, build, proportions, head, skin, hair, face and posture are continuous traits that stay the
same under every outfit, camera, pose and viewing angle. Outfits are made of the attributes of Supp. Tab. 3.
"""

import bisect
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

from PIL import ImageDraw


# Traits: who somebody is

@dataclass(frozen=True)
class Body:
    gender: str  # "female" or "male"
    age: str  # "child", "adult" or "old"
    height: float  # in cm; every length below is a share of it
    shoulders: float  # half widths
    waist: float
    hips: float
    belly: float  # half depth at the waist
    legs: float  # height of the crotch
    arms: float
    limb: float  # half thickness
    head: float
    face: float  # width of the head over its height
    neck: float
    stance: float  # half distance of the feet
    stoop: float  # forward lean of the back, in radians
    skin: tuple
    hair: tuple
    hair_name: str  # a phrase of the attribute "hair color"
    hair_style: str  # bald, short, bob, long, bun or ponytail
    hair_length: float  # below the middle of the head, in half heads
    volume: float
    fringe: float  # 0 = high forehead, 1 = down to the brows
    beard: str  # "", "moustache" or "beard"
    glasses: bool
    brow: float  # thickness


SKINS = ((62, 38, 28), (112, 72, 48), (168, 118, 84), (214, 166, 130), (248, 212, 188))  # dark to pale
HAIRS = (("black hair", (22, 20, 24)), ("agnostic color hair", (74, 44, 24)), ("agnostic color hair", (128, 78, 40)),
         ("agnostic color hair", (176, 66, 22)), ("yellow hair", (226, 184, 84)))
GREYS = (("agnostic color hair", (132, 132, 136)), ("white hair", (232, 232, 236)))
HAIR_STYLES = ("bald", "short", "bob", "long", "bun", "ponytail")


def draw_body(rng):
    """A person's traits. rng: random.Random."""
    gender, age = rng.choice(("female", "male")), rng.choices(("child", "adult", "old"), (0.12, 0.7, 0.18))[0]
    man, child, old = gender == "male", age == "child", age == "old"
    build = rng.uniform(0, 1)  # slim to stout; the widths vary around it
    hair_name, hair = rng.choice(GREYS if old else HAIRS)
    shares = (0.2 * (not child), 0.6, 0.1, 0.12, 0.02, 0.02) if man else (0, 0.22, 0.22, 0.3, 0.13, 0.13)
    hair_style = rng.choices(HAIR_STYLES, shares)[0]
    bearded = man and not child and rng.random() < 0.5
    return Body(
        gender=gender,
        age=age,
        height=rng.uniform(96, 138) if child else rng.uniform(150, 190) + 10 * man - 8 * old,
        shoulders=rng.uniform(0.098, 0.132) + 0.022 * man,
        waist=0.062 + 0.062 * build + rng.uniform(-0.008, 0.008),
        hips=0.078 + 0.04 * build + rng.uniform(-0.008, 0.02) * (not man),
        belly=0.05 + 0.07 * build,
        legs=rng.uniform(0.4, 0.46) if child else rng.uniform(0.41, 0.53),
        arms=rng.uniform(0.33, 0.43),
        limb=0.021 + 0.016 * build + rng.uniform(-0.004, 0.004),
        head=rng.uniform(0.2, 0.24) if child else rng.uniform(0.135, 0.185),
        face=rng.uniform(0.66, 1.0),
        neck=rng.uniform(0.01, 0.045),
        stance=rng.uniform(0.025, 0.085),
        stoop=rng.uniform(0.25, 0.5) if old else rng.uniform(-0.08, 0.22),
        skin=_tone(SKINS, rng.random(), rng),
        hair=tuple(max(0, c + rng.randint(-14, 14)) for c in hair),
        hair_name=hair_name,
        hair_style=hair_style,
        hair_length=rng.uniform(*{"bob": (0.9, 1.4), "long": (2.0, 4.2)}.get(hair_style, (1.5, 3.2))),
        volume=rng.uniform(1.04, 1.3),
        fringe=rng.uniform(0, 0.9),
        beard=rng.choice(("moustache", "beard", "beard")) if bearded else "",
        glasses=rng.random() < 0.25,
        brow=rng.uniform(0.4, 1.3))


def _tone(colours, position, rng):
    """A colour on the way through `colours`; position in 0..1."""
    place, share = divmod(position * (len(colours) - 1), 1)
    return tuple(round(c) + rng.randint(-8, 8) for c in _between(colours[int(place)], colours[int(place) + 1], share))


def _between(start, end, share):
    return tuple(a + share * (b - a) for a, b in zip(start, end))


# Outfits: what somebody wears

@dataclass(frozen=True)
class Outfit:
    attributes: dict  # those of Supp. Tab. 3 that clothes and things decide, attribute -> phrase
    colours: dict  # part -> RGB
    infrared: dict  # part -> brightness; follows the visible colour only loosely
    print: int  # which chest print or stripes, 0..2

    def clashes(self, other):
        """Too like another outfit of the same person: the same colour of coat or of trousers."""
        return any(self.attributes[key] == other.attributes[key] for key in ("coat color", "trousers color"))

    def suits(self, body):
        return body.gender == "female" or (self.attributes["trousers length"] != "skirt" and
                                           self.attributes["coat style"] != "dress")


COLOURS = {"black": (30, 30, 34), "blue": (36, 78, 196), "gray": (132, 134, 136), "green": (36, 136, 62),
           "purple": (128, 48, 158), "red": (206, 32, 38), "white": (240, 240, 236), "yellow": (240, 204, 44)}
LENGTHS = {  # coat style -> its possible coat lengths
    "business suit": ("long sleeve coat",), "jacket": ("long sleeve coat",), "long coat": ("long sleeve coat",),
    "sweater": ("long sleeve coat",), "shirt": ("long sleeve coat", "short sleeve coat"),
    "t-shirt": ("short sleeve coat", "short sleeve coat", "bareback coat"),
    "dress": ("long sleeve coat", "short sleeve coat", "bareback coat")}
THINGS = {  # attribute -> its phrases and their weights
    "trousers length": (("trousers", "shorts trousers", "skirt"), (5, 2, 1)),
    "shoes style": (("boots", "leather shoes", "sandal", "walking shoes"), (1, 1, 1, 1)),
    "bag style": (("without bag", "backpack", "hand bag", "shoulder bag", "waist pack", "trolley"), (5, 2, 2, 2, 1, 1)),
    "cap style": (("without hat", "with hat"), (4, 1)),
    "glass style": (("without glasses", "with sunglasses"), (9, 1)),
    "glove": (("without glove", "with glove"), (7, 1)),
    "umbrella": (("without umbrella", "with umbrella"), (24, 1))}


def draw_outfit(rng):
    """An outfit for anybody that it suits."""
    style, names = rng.choice(sorted(LENGTHS)), sorted(COLOURS)
    coat, trousers, accent = rng.sample(names, 3)
    name = {"coat": coat, "trousers": trousers, "accent": accent} | {
        part: rng.choice(names) for part in ("shoes", "bag", "hat", "things")}
    attributes = {key: rng.choices(*phrases)[0] for key, phrases in THINGS.items()}
    attributes |= {f"{part} color": f"{name[part]} {part}" for part in ("coat", "trousers", "shoes")}
    attributes |= {"coat style": style, "coat length": rng.choice(LENGTHS[style])}
    if style in ("business suit", "dress", "long coat"):  # shorts would not show below the hem
        attributes["trousers length"] = "trousers"
    colours, infrared = {}, {}
    for part in name:
        light = rng.randint(-14, 14)
        colours[part] = tuple(min(255, max(0, c + light + rng.randint(-5, 5))) for c in COLOURS[name[part]])
        infrared[part] = 0.3 * sum(colours[part]) / 3 + 0.7 * rng.uniform(35, 235)
    look = rng.randrange(3)
    sleeve = "accent" if style == "sweater" and look == 2 else "coat"
    return Outfit(attributes, colours | {"sleeve": colours[sleeve]}, infrared | {"sleeve": infrared[sleeve]}, look)


def dress(bodies, rng, count=1, wearers=0):
    """`count` outfits, no two alike, for each body.

    wearers: outfits come from a wardrobe in which each is worn by about so many people, so that the clothes alone tell
    nobody; 0 = everybody has their own.
    """
    wardrobe = [draw_outfit(rng) for _ in range(max(9, len(bodies) * count // wearers))] if wearers else []
    worn, everybody = [0] * len(wardrobe), []
    for body in bodies:
        mine = []
        least_worn_first = sorted(range(len(wardrobe)), key=lambda i: (worn[i], rng.random()))
        fresh = ((None, draw_outfit(rng)) for _ in itertools.count())  # runs when the wardrobe has nothing left
        for i, outfit in itertools.chain(((i, wardrobe[i]) for i in least_worn_first), fresh):
            if len(mine) == count:
                break
            if outfit.suits(body) and not any(outfit.clashes(other) for other in mine):
                mine.append(outfit)
                if i is not None:
                    worn[i] += 1
        everybody.append(tuple(mine))
    return everybody


def attributes_of(body, outfit, yaw):
    """The 20 attributes of Supp. Tab. 3 of one picture, attribute -> phrase. Glasses do not show from behind."""
    hair_style = body.hair_style + " hair" if body.hair_style in ("bald", "short", "long") else "agnostic style hair"
    angle = "front" if math.cos(yaw) > 0.7 else "back" if math.cos(yaw) < -0.7 else "side"
    glasses = "with glasses" if body.glasses else outfit.attributes["glass style"]
    return outfit.attributes | {
        "gender code": body.gender, "age": body.age, "hair style": hair_style,
        "hair color": "agnostic color hair" if body.hair_style == "bald" else body.hair_name,
        "glass style": "without glasses" if angle == "back" else glasses, "person angle": angle,
        "pose": "stoop" if body.stoop > 0.35 else "stand", "uniform": "common clothing", "smoking": "without smoking"}


# Drawing

class Pose(NamedTuple):
    yaw: float  # radians, 0 = facing the camera, pi / 2 = facing right
    stride: float  # swing of arms and legs, in radians
    x: float  # where the feet are on the canvas
    ground: float
    scale: float  # pixels per cm
    spread: float  # arms away from the body, in radians


def shade(colour, factor):
    """A darker or lighter RGB; None (nothing to draw) stays None."""
    return colour and tuple(min(255, int(c * factor)) for c in colour)


class Doll:
    """One person on a canvas. Body coordinates: x to their left, y up, z forward, in shares of their height.

    Every shape is projected by the viewing angle, so one drawing serves front, side and back. What has no paint (None)
    is left out: that makes shop pictures.
    """

    def __init__(self, canvas, body, outfit, paint, pose):
        self.pen, self.body, self.paint, self.pose = ImageDraw.Draw(canvas), body, paint, pose
        self.wears, self.print, self.style = outfit.attributes, outfit.print, outfit.attributes["coat style"]
        self.cos, self.sin, self.tall = math.cos(pose.yaw), math.sin(pose.yaw), body.height * pose.scale
        self.torso = 1 - body.head - body.neck - body.legs
        thickness = {"jacket": 0.012, "long coat": 0.014, "sweater": 0.008, "business suit": 0.006}
        self.pad = thickness.get(self.style, 0.003)  # of the cloth
        self.arms, self.legs = ({side: joints(side) for side in (-1, 1)} for joints in (self._arm, self._leg))

    def at(self, x, y, z):
        """Body coordinates -> canvas."""
        return self.pose.x + (x * self.cos + z * self.sin) * self.tall, self.pose.ground - y * self.tall

    def near(self, point):
        return point[2] * self.cos - point[0] * self.sin

    def spine(self, t):
        """(y, z) of the back: t = 0 at the hips, 1 at the shoulders, below 0 straight down."""
        lean = self.body.stoop * (t > 0)
        return self.body.legs + t * self.torso * math.cos(lean), t * self.torso * math.sin(lean)

    def girth(self, t):
        """Half width and half depth of the clothed trunk."""
        body, knots = self.body, (0, 0.4, 0.8, 0.94, 1)
        wide = body.hips, body.waist, body.shoulders * 0.88, body.shoulders * 0.95, body.shoulders * 0.55
        deep = 0.062 + 0.3 * body.belly, body.belly, 0.04 + 0.4 * body.belly, 0.05, 0.035
        t = min(max(t, 0), 1)
        i = bisect.bisect_left(knots, t, 1, 4)
        share = (t - knots[i - 1]) / (knots[i] - knots[i - 1])
        return tuple(v[i - 1] + share * (v[i] - v[i - 1]) + self.pad for v in (wide, deep))

    def chest(self, t, x=0.0):
        """A canvas point on the middle of the chest, or of the back for somebody who turns it."""
        y, z = self.spine(t)
        return self.at(x, y, z + math.copysign(self.girth(t)[1], self.cos) * 0.92)

    def _arm(self, side):
        """Shoulder, elbow, hand."""
        body, angle, out = self.body, -side * self.pose.stride * 0.9 + 0.06, self.pose.spread
        y, z = self.spine(0.89)
        joints = [(side * (body.shoulders + self.pad - body.limb * 0.4), y, z)]
        for share, bend in ((0.48, 0), (0.52, 0.22)):
            x, y, z = joints[-1]
            joints.append((x + side * math.sin(out) * body.arms * share, y - math.cos(angle) * body.arms * share,
                           z + math.sin(angle + bend) * body.arms * share))
        return joints

    def _leg(self, side):
        """Hip, knee, ankle."""
        body, hip, foot = self.body, self.body.hips * 0.52, max(self.body.stance, self.body.limb * 1.3)
        z = math.sin(side * self.pose.stride) * body.legs
        lifted = 0.035 + 0.04 * max(0, -z) * abs(self.sin)
        knee = side * (hip + foot) / 2, body.legs / 2, z / 2 + abs(z) * 0.12
        return [(side * hip, body.legs, 0), knee, (side * foot, lifted, z)]

    def limb(self, points, radii, fill):
        """A rounded line through canvas points; one point makes a disc. radii: shares of the height."""
        if fill is None:
            return
        radii = [radius * self.tall for radius in radii]
        for (x0, y0), (x1, y1), r0, r1 in zip(points, points[1:], radii, radii[1:]):
            length = math.hypot(x1 - x0, y1 - y0) or 1
            nx, ny = (y0 - y1) / length, (x1 - x0) / length
            self.pen.polygon([(x0 + nx * r0, y0 + ny * r0), (x1 + nx * r1, y1 + ny * r1),
                              (x1 - nx * r1, y1 - ny * r1), (x0 - nx * r0, y0 - ny * r0)], fill=fill)
        for (x, y), r in zip(points, radii):
            self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def band(self, levels, fill, part=(-1, 1)):
        """Fills the silhouette of the trunk through levels (t, half width, half depth); part: of its width, -1..1."""
        sides = ([], [])
        for t, width, depth in levels:
            x, y = self.at(0, *self.spine(t))
            half = math.hypot(width * self.cos, depth * self.sin) * self.tall
            for points, edge in zip(sides, part):
                points.append((x + half * edge, y))
        if fill:
            self.pen.polygon(sides[0] + sides[1][::-1], fill=fill)
        return sides[0] + sides[1]

    def belt(self, t0, t1, fill):
        self.band([(t, *self.girth(t)) for t in (t0, t1)], fill)

    def draw(self):
        """Far things first."""
        far_leg, near_leg = sorted((-1, 1), key=lambda side: self.near(self.legs[side][2]))
        far_arm, near_arm = sorted((-1, 1), key=lambda side: self.near(self.arms[side][2]))
        profile, facing = abs(self.sin) > 0.5, self.cos > 0
        behind = self.near(self.arms[near_arm][2]) < 0
        self.backpack(near=False)
        if facing:
            self.hanging_hair()
        self.leg(far_leg, 0.86 if profile else 1)
        self.leg(near_leg, 1)
        self.skirt_or_seat()
        self.arm(far_arm, 0.84 if profile else 0.92)
        if behind:
            self.arm(near_arm, 0.92)
        self.coat()
        if not behind:
            self.arm(near_arm, 0.95)
        self.head()
        if not facing:
            self.hanging_hair()
        self.backpack(near=True)
        self.carried()

    def leg(self, side, light):
        (hip, knee, ankle), thick = (self.at(*joint) for joint in self.legs[side]), self.body.limb * 1.75
        cloth, kind = shade(self.paint["trousers"], light), self.wears["trousers length"]
        self.limb([hip, knee, ankle], [thick, thick * 0.8, thick * 0.55], shade(self.paint["skin"], light))
        if kind == "trousers":
            self.limb([hip, knee, ankle], [thick * 1.12, thick * 0.98, thick * 0.85], cloth)
        elif kind == "shorts trousers":
            self.limb([hip, _between(hip, knee, 0.85)], [thick * 1.15, thick * 1.1], cloth)
        self.shoe(side, light)

    def shoe(self, side, light):
        (x, y, z), kind, colour = self.legs[side][2], self.wears["shoes style"], shade(self.paint["shoes"], light)
        thick = self.body.limb * 0.8 + 0.008
        heel, (toe_x, toe_y) = self.at(x, y - 0.015, z - 0.008), self.at(x * 1.15, y - 0.017, z + 0.065)
        toe = toe_x, toe_y + 0.012 * self.tall * max(0, self.cos)
        sole = [(x, y + thick * 0.7 * self.tall) for x, y in (heel, toe)]
        if kind == "sandal":
            self.limb([heel, toe], [thick * 0.85, thick * 0.8], self.paint["skin"])
            self.limb(sole, [thick * 0.5] * 2, colour)
            self.limb([_between(heel, toe, 0.5)], [thick * 0.7], colour)
            return
        self.limb([heel, toe], [thick, thick * (0.7 if kind == "leather shoes" else 1)], colour)
        if kind == "boots":
            self.limb([heel, self.at(x, y, z), self.at(x, 0.12, z * 0.88)], [thick, thick, thick * 1.25], colour)
        if kind == "walking shoes":
            self.limb(sole, [0.007] * 2, (225, 225, 225) if sum(colour) < 560 else (90, 90, 90))

    def skirt_or_seat(self):
        (width, depth), cloth = self.girth(0), self.paint["trousers"]
        if self.wears["trousers length"] == "skirt":
            hem = -self.body.legs * 0.52 / self.torso
            levels = [(hem, width * 1.35, depth * 1.3), (0, width, depth), (0.3, *self.girth(0.3))]
            self.band(levels, cloth)
            self.band(levels, shade(cloth, 0.85), part=(0.4, 1))
        else:
            self.band([(-0.12, width * 0.98, depth * 0.9), (0.3, *self.girth(0.3))], cloth)

    def arm(self, side, light):
        shoulder, elbow, hand = (self.at(*joint) for joint in self.arms[side])
        thick, skin, cloth = self.body.limb, shade(self.paint["skin"], light), shade(self.paint["sleeve"], light)
        loose = thick + self.pad * 0.7
        self.limb([shoulder, elbow, hand], [thick * 1.05, thick * 0.85, thick * 0.7], skin)
        if self.wears["coat length"] == "long sleeve coat":
            self.limb([shoulder, elbow, hand], [loose * 1.1, loose, loose * 0.9], cloth)
        elif self.wears["coat length"] == "short sleeve coat":
            self.limb([shoulder, _between(shoulder, elbow, 0.75)], [loose * 1.15, loose * 1.2], cloth)
        fist = _between(elbow, hand, 1.16)
        self.limb([fist], [thick], skin)
        if self.wears["glove"] == "with glove" and skin:
            self.limb([hand, fist], [thick * 1.1, thick * 1.25], self.paint["things"])

    def coat(self):
        body, paint, skin = self.body, self.paint["coat"], self.paint["skin"]
        self.limb([self.at(0, *self.spine(0.93)), self.head_centre()], [body.limb * 1.2 + 0.008] * 2, shade(skin, 0.88))
        hems = {"dress": -body.legs * 0.5, "long coat": -body.legs * 0.6, "business suit": -0.07}
        hem, flare = hems.get(self.style, -0.035) / self.torso, {"dress": 1.5, "long coat": 1.2}.get(self.style, 1.03)
        levels = [(t, *self.girth(t)) for t in (hem, 0, 0.2, 0.4, 0.6, 0.8, 0.94, 1.0)]
        levels[0] = hem, levels[0][1] * flare, levels[0][2] * flare
        if self.wears["coat length"] == "bareback coat":  # bare shoulders and two straps
            self.band(levels[-3:], skin)
            levels = levels[:-2]
            for side in (-0.5, 0.5):
                self.limb([self.chest(t, side * body.shoulders) for t in (0.78, 0.97)], [0.012] * 2, paint)
        self.band(levels, paint)
        self.band(levels[:-1], shade(paint, 0.85), part=(0.52, 1))  # light falls from the left
        dark = shade(paint, 0.6) if sum(paint) > 150 else (96, 96, 102)
        if self.style in ("jacket", "sweater"):
            self.belt(hem, hem + 0.07, dark)
        if self.style == "sweater":
            for t in ((0.5, 0.66), (0.3, 0.5, 0.7), (0.62,))[self.print]:
                self.belt(t, t + 0.08, self.paint["accent"])
        if self.style in ("dress", "long coat"):
            self.belt(0.33, 0.41, self.paint["accent"] if self.style == "dress" else dark)
        if self.cos > 0.25:
            self.coat_front(hem, dark)

    def coat_front(self, hem, dark):
        """Collars, zips, buttons, ties and prints."""
        style, accent, metal, at = self.style, self.paint["accent"], self.paint["metal"], self.chest
        if style in ("t-shirt", "dress", "sweater"):
            self.limb([at(1.0)], [0.026], self.paint["skin"])
        if style == "t-shirt":
            if self.print == 2:
                self.belt(0.52, 0.68, accent)
            else:
                self.limb(([at(0.62)], [at(0.52), at(0.7)])[self.print], (0.042, 0.035), accent)
        if style == "shirt":
            self.limb([at(0), at(0.95)], [0.004] * 2, dark)
            for side in (-1, 1):
                self.limb([at(0.93, side * 0.045), at(0.85, side * 0.012)], [0.014, 0.008], accent)
        if style == "jacket":
            self.limb([at(hem), at(0.95)], [0.007] * 2, metal)
            self.limb([at(0.98, -0.055), at(0.98, 0.055)], [0.018] * 2, dark)
            for x in (-0.6 * self.body.waist, 0.6 * self.body.waist):
                self.limb([at(0.12, x), at(0.28, x)], [0.006] * 2, dark)
        if style == "long coat":
            for side, t in itertools.product((-0.028, 0.028), (-0.35, -0.1, 0.2, 0.55, 0.75)):
                self.limb([at(t, side)], [0.01], metal)
            for side in (-1, 1):
                self.limb([at(0.85, side * 0.01), at(0.98, side * 0.055)], [0.012, 0.022], dark)
        if style == "business suit":
            self.pen.polygon([at(0.98, -0.045), at(0.98, 0.045), at(0.45)], fill=self.paint["linen"])
            self.limb([at(0.5), at(0.93)], [0.012] * 2, accent if min(accent) < 200 else dark)
            for side in (-1, 1):
                self.limb([at(0.98, side * 0.05), at(0.45, side * 0.004)], [0.008] * 2, dark)

    def head_centre(self):
        y, z = self.spine(1.0)
        lean, reach = self.body.stoop * 1.3, self.body.neck + self.body.head / 2
        return self.at(0, y + reach * math.cos(lean), z + reach * math.sin(lean) + 0.01)

    def hanging_hair(self):
        """Hair that hangs below the head: behind the trunk when seen from the front, over it from behind."""
        body, hair, (x, y) = self.body, shade(self.paint["hair"], 0.9), self.head_centre()
        half = body.head / 2 * self.tall
        back, end = self.sin * half * body.face, y + half * body.hair_length
        if body.hair_style in ("bob", "long"):
            wide, x = half * body.face * body.volume * (1.08 - 0.25 * abs(self.sin)), x - back * 0.45
            self.pen.rounded_rectangle((x - wide, y - half * 0.5, x + wide, end), radius=half * 0.45, fill=hair)
        elif body.hair_style == "ponytail":
            points = [(x - back, y - half * 0.35), (x - back * 1.5, y + half * 0.3), (x - back * 1.4, end)]
            self.limb(points, [body.head * 0.12, body.head * 0.15, body.head * 0.06], hair)

    def head(self):
        body, pen, hair, skin = self.body, self.pen, self.paint["hair"], self.paint["skin"]
        if skin is None:
            return
        (x, y), half, facing = self.head_centre(), body.head / 2 * self.tall, self.cos > -0.25
        rx = math.hypot(half * body.face * self.cos, half * body.face * 1.1 * self.sin)
        pen.ellipse((x - rx, y - half, x + rx, y + half), fill=skin)
        if body.hair_style != "bald":
            top, wide = y - half * body.volume, rx * body.volume
            tilt, low = -35 * self.sin, 12 + 25 * abs(self.sin) if facing else 48  # degrees: hair lies at the back
            pen.chord((x - wide, top, x + wide, y + half), 180 - low + tilt, 360 + low + tilt, fill=hair)
            if body.hair_style == "bun":
                self.limb([(x - self.sin * rx * 0.8, top)], [body.head * 0.22], shade(hair, 0.9))
            if facing:
                middle, wide = x + self.sin * rx * 0.4, rx * (0.84 * max(0, self.cos) + 0.6 * abs(self.sin))
                pen.ellipse((middle - wide, y - half * (0.78 - 0.7 * body.fringe), middle + wide, y + half), fill=skin)
        if facing:
            self.face(x, y, rx, half)
        if self.wears["cap style"] == "with hat":
            hat, brim = self.paint["hat"], y - half * 0.42
            pen.chord((x - rx * 1.14, y - half * 1.25, x + rx * 1.14, y + half * 0.5), 188, 352, fill=hat)
            side = rx * 1.05 * abs(self.cos)
            points = [(x - side, brim), (x + self.sin * rx * 1.7 * (abs(self.sin) > 0.5), brim), (x + side, brim)]
            self.limb(points, [0.009] * 3, shade(hat, 0.75))

    def face(self, x, y, rx, half):
        """Each feature sits at its angle on a round head and is drawn when it is turned to the camera."""
        body, paint, unit = self.body, self.paint, self.body.head
        spot = lambda angle, height: (x + math.sin(self.pose.yaw + angle) * rx * 0.92, y + height * half)
        seen = lambda angle: math.cos(self.pose.yaw + angle) > 0.12
        if body.beard == "beard":
            middle, wide = x + self.sin * rx * 0.3, rx * (0.95 - 0.25 * abs(self.sin))
            self.pen.chord((middle - wide, y - half * 0.7, middle + wide, y + half * 1.12), 12, 168, fill=paint["brow"])
        if abs(self.sin) > 0.5:  # the nose in profile
            tip = math.copysign(rx, self.sin)
            nose = ((0.9, -0.05), (1.2, 0.3), (0.85, 0.38))
            self.pen.polygon([(x + tip * out, y + half * down) for out, down in nose], fill=paint["skin"])
        if body.beard == "moustache":
            points = [spot(-0.32, 0.42), spot(0, 0.36), spot(0.32, 0.42)]
            self.limb(points, [unit * 0.06] * 3, paint["brow"])
        self.limb([spot(-0.22, 0.62), spot(0.22, 0.62)], [unit * 0.035] * 2, paint["lips"])
        sunglasses = not body.glasses and self.wears["glass style"] == "with sunglasses"
        for angle in filter(seen, (-0.45, 0.45)):
            eye = ex, ey = spot(angle, 0.02)
            brow = [spot(angle - 0.16, -0.24), spot(angle + 0.16, -0.24)]
            self.limb(brow, [unit * 0.035 * body.brow] * 2, paint["brow"])
            self.limb([eye], [unit * 0.065], (245, 245, 245))
            self.limb([eye], [unit * (0.14 if sunglasses else 0.045)], paint["frame"])
            if body.glasses:
                r = unit * 0.13 * self.tall
                self.pen.ellipse((ex - r, ey - r, ex + r, ey + r), outline=paint["frame"], width=2)
        if body.glasses or sunglasses:  # bridge and temples
            for start, end in ((-0.1, 0.1), (-1.4, -0.75), (0.75, 1.4)):
                if seen(start) and seen(end):
                    self.limb([spot(start, 0), spot(end, 0)], [unit * 0.025] * 2, paint["frame"])

    def backpack(self, near):
        """near: what is on the camera's side of the trunk, the bag itself or its straps."""
        paint = self.paint["bag"]
        if paint is None or self.wears["bag style"] != "backpack":
            return
        if near and self.cos > 0:
            for side in (-0.065, 0.065):
                self.limb([self.chest(t, side) for t in (0.98, 0.7, 0.35)], [0.011] * 3, paint)
        if near != (self.cos > 0):
            y, z = self.spine(0.5)
            x, y = self.at(0, y, z - self.girth(0.5)[1] - 0.035)
            wide, high = math.hypot(0.1 * self.cos, 0.055 * self.sin) * self.tall, self.torso * 0.42 * self.tall
            self.pen.rounded_rectangle((x - wide, y - high, x + wide, y + high), radius=wide * 0.4, fill=paint)
            pocket = (x - wide * 0.65, y, x + wide * 0.65, y + high * 0.7)
            self.pen.rounded_rectangle(pocket, radius=wide * 0.2, fill=shade(paint, 0.7))

    def carried(self):
        """The other bags, and the umbrella."""
        kind, paint, body, (x, y, z) = self.wears["bag style"], self.paint["bag"], self.body, self.arms[1][2]
        if paint is None:
            return
        dark = shade(paint, 0.7)
        if kind == "waist pack":
            self.belt(0.12, 0.17, dark)
            if self.cos > 0:
                self.box(self.chest(0.2), 0.03 + 0.03 * self.cos, 0.056, paint)
        elif kind == "shoulder bag":
            self.limb([self.chest(0.97, -body.shoulders * 0.6), self.chest(0.08, body.hips)], [0.009] * 2, dark)
            self.box(self.at(body.hips + 0.02, body.legs - 0.02, 0), 0.055, 0.085, paint)
        elif kind == "hand bag":
            self.limb([self.at(x, y, z), self.at(x, y - 0.05, z)], [0.012, 0.03], dark)
            self.box(self.at(x, y - 0.05, z), 0.06, 0.09, paint)
        elif kind == "trolley":
            self.limb([self.at(x, y, z), self.at(x + 0.05, 0.24, z - 0.08)], [0.008] * 2, dark)
            self.box(self.at(x + 0.06, 0.25, z - 0.1), 0.075, 0.24, paint)
        if self.wears["umbrella"] == "with umbrella":
            x, y, z = self.arms[-1][2]
            points = [self.at(x, y + 0.05, z), self.at(x, y - 0.08, z + 0.03), self.at(x, max(0.01, y - 0.36), z + 0.1)]
            self.limb(points, [0.01, 0.032, 0.006], self.paint["things"])

    def box(self, top, half_width, height, fill):
        (x, y), wide, high = top, half_width * self.tall, height * self.tall
        self.pen.rounded_rectangle((x - wide, y, x + wide, y + high), radius=2, fill=fill)
        self.pen.rectangle((x - wide * 0.9, y + high * 0.3, x + wide * 0.9, y + high * 0.36), fill=shade(fill, 0.7))

    def clothes_box(self):
        """Left, top, right, bottom of the worn clothes on the canvas, shoulders to soles."""
        joints = [self.at(*joint) for limbs in (self.arms, self.legs) for side in limbs.values() for joint in side]
        xs = [x for x, _ in joints + self.band([(t, *self.girth(t)) for t in (0, 0.4, 0.94)], None)]
        edge = self.body.limb * self.tall
        return min(xs) - edge, self.at(0, self.spine(1.03)[0], 0)[1], max(xs) + edge, self.pose.ground + 1


def paints(body, outfit, infrared=False):
    """part -> RGB of everything on a person. In infrared skin is bright, hair dark, cloth as its material has it."""
    paint = outfit.colours | {
        "skin": body.skin, "hair": body.hair, "brow": shade(body.hair, 0.9), "frame": (24, 24, 28),
        "metal": (190, 190, 186), "linen": (244, 244, 244),
        "lips": (196, 60, 70) if body.gender == "female" else shade(body.skin, 0.72)}
    if infrared:
        grey = {part: sum(colour) / 3 for part, colour in paint.items()} | outfit.infrared
        hair = 22 + 0.55 * grey["hair"]
        grey |= {"skin": 170 + 0.28 * grey["skin"], "hair": hair, "brow": 0.9 * hair, "lips": 120}
        paint = {part: (round(value),) * 3 for part, value in grey.items()}
    return paint
