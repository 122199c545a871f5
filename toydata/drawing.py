"""How a person in a pose is drawn: `Doll`, a paper doll of lines, discs and polygons."""

import math

from PIL import ImageDraw

from toydata.figure import LEFT, RIGHT, Figure, around

SHADOW = 0.85  # brightness of the side away from the light, which falls from the left
DARK = (96, 96, 102)  # of trimmings on a coat that is dark itself

# Levels on the trunk of a sweater's stripes, by pattern, and of a long coat's buttons.
STRIPES = ((0.5, 0.66), (0.3, 0.5, 0.7), (0.62,))
BUTTONS = (-0.35, -0.1, 0.2, 0.55, 0.75)

# A nose in profile, in half widths forward and half heights down from the middle of the head.
NOSE = ((0.9, -0.05), (1.2, 0.3), (0.85, 0.38))

# The bridge and the temples of glasses: angles from the nose.
FRAME = ((-0.1, 0.1), (-1.4, -0.75), (0.75, 1.4))


def paints(body, outfit, infrared=False):
    """part -> RGB of everything on a person.

    In infrared skin is bright, hair dark, cloth as its material has it.
    """
    paint = outfit.colours | {
        "skin": body.skin,
        "hair": body.hair,
        "brow": shade(body.hair, 0.9),
        "lips": shade(body.skin, 0.72) if body.gender == "male" else (196, 60, 70),
        "frame": (24, 24, 28),
        "metal": (190, 190, 186),
        "linen": (244, 244, 244),
    }
    if not infrared:
        return paint

    grey = {part: sum(colour) / 3 for part, colour in paint.items()}
    grey |= outfit.infrared
    grey["skin"] = 170 + 0.28 * grey["skin"]
    grey["hair"] = 22 + 0.55 * grey["hair"]
    grey["brow"] = 0.9 * grey["hair"]
    grey["lips"] = 120
    return {part: (round(value),) * 3 for part, value in grey.items()}


def shade(colour, factor):
    """A darker or lighter RGB; None (nothing to draw) stays None."""
    return colour and tuple(min(255, int(channel * factor)) for channel in colour)


class Doll(Figure):
    """A figure and the pen that draws it.

    Every shape is projected by the viewing angle, so one drawing serves front, side and back. What
    has no paint (None) is left out: that makes shop pictures.
    """

    def __init__(self, canvas, body, outfit, paint, pose):
        """canvas: an Image; paint: part -> RGB or None, as `paints` gives it."""
        self.pen = ImageDraw.Draw(canvas)
        self.paint = paint
        self.wears = outfit.attributes
        self.pattern = outfit.pattern
        super().__init__(body, self.wears["coat style"], pose)

    # Strokes. Radii and sizes are shares of the height.

    def disc(self, point, radius, fill):
        self.line([point], radius, fill)

    def line(self, points, radius, fill, shares=None):
        """A line with round joints and ends. radius: half its width; shares: of it, at each point.
        """
        if fill is None:
            return
        radii = [radius * share * self.tall for share in shares or [1] * len(points)]
        ends = list(zip(points, radii))
        for (start, r0), (end, r1) in zip(ends, ends[1:]):
            across = (end - start) / (abs(end - start) or 1) * 1j
            near = [start + across * r0, end + across * r1]
            far = [end - across * r1, start - across * r0]
            self.polygon(near + far, fill)
        for point, r in ends:
            self.pen.ellipse(around(point, r, -r, r), fill=fill)

    def polygon(self, points, fill):
        if fill:
            self.pen.polygon([(point.real, point.imag) for point in points], fill=fill)

    def band(self, levels, fill, left=LEFT, right=RIGHT):
        """Fills the trunk's silhouette through the levels, from edge to edge."""
        upwards = self.outline(levels, left)
        downwards = self.outline(levels[::-1], right)
        self.polygon(upwards + downwards, fill)

    def belt(self, bottom, top, fill):
        """A stripe around the trunk, between two heights."""
        self.band(self.levels(bottom, top), fill)

    def trim(self, points, radius, fill, shares=None):
        """A line on the front of the coat and its mirror image. points: (level, across)."""
        for side in (LEFT, RIGHT):
            line = [self.chest(t, side * x) for t, x in points]
            self.line(line, radius, fill, shares)

    def mark(self, points, radius, fill, shares=None):
        """A line on the face. points: as `on_face` takes them; radius: in heads."""
        line = [self.on_face(*point) for point in points]
        self.line(line, self.body.head * radius, fill, shares)

    def bag(self, point, half_width, height):
        """A bag that hangs from a canvas point, with a seam."""
        fill = self.paint["bag"]
        wide = half_width * self.tall
        high = height * self.tall
        self.pen.rounded_rectangle(around(point, wide, 0, high), radius=2, fill=fill)
        seam = around(point, wide * 0.9, high * 0.3, high * 0.36)
        self.pen.rectangle(seam, fill=shade(fill, 0.7))

    # The drawing

    def draw(self):
        """Far things first."""
        facing = self.cos > 0
        far_leg, near_leg = self.far_to_near(self.legs)
        far_arm, near_arm = self.far_to_near(self.arms)
        arms_behind = self.nearness(self.arms[near_arm][2]) < 0  # both of them

        if facing:
            self.draw_backpack()
            self.draw_hanging_hair()
        self.draw_leg(far_leg, 0.86 if self.profile else 1)
        self.draw_leg(near_leg, 1)
        self.draw_skirt_or_seat()

        self.draw_arm(far_arm, 0.84 if self.profile else 0.92)
        if arms_behind:
            self.draw_arm(near_arm, 0.92)
        self.draw_coat()
        if not arms_behind:
            self.draw_arm(near_arm, 0.95)

        if self.paint["skin"]:
            self.draw_head()
        if not facing:
            self.draw_hanging_hair()
            self.draw_backpack()
        self.draw_bag(facing)
        self.draw_umbrella()

    # Legs

    def draw_leg(self, side, light):
        """The bare leg, the cloth on it and the shoe. light: below 1 = in the shade."""
        leg = self.points(self.legs[side])
        thick = self.body.limb * 1.75
        cloth = shade(self.paint["trousers"], light)
        self.line(leg, thick, shade(self.paint["skin"], light), (1, 0.8, 0.55))

        kind = self.wears["trousers length"]
        if kind == "trousers":
            self.line(leg, thick, cloth, (1.12, 0.98, 0.85))
        elif kind == "shorts trousers":
            hip, knee, _ = leg
            end = hip + 0.85 * (knee - hip)
            self.line([hip, end], thick, cloth, (1.15, 1.1))
        self.draw_shoe(side, light)

    def draw_shoe(self, side, light):
        kind = self.wears["shoes style"]
        colour = shade(self.paint["shoes"], light)
        thick = self.body.limb * 0.8 + 0.008

        # From the front a foot is seen a little from above: the toe lies lower.
        x, y, z = self.legs[side][2]
        heel = self.at(x, y - 0.015, z - 0.008)
        toe = self.at(x * 1.15, y - 0.017, z + 0.065)
        toe += 0.012j * self.tall * max(0, self.cos)
        foot = [heel, toe]
        sole = [point + thick * 0.7j * self.tall for point in foot]

        if kind == "sandal":  # a bare foot, a sole and a strap
            self.line(foot, thick, self.paint["skin"], (0.85, 0.8))
            self.line(sole, thick * 0.5, colour)
            self.disc(heel + 0.5 * (toe - heel), thick * 0.7, colour)
            return

        self.line(foot, thick, colour, (1, 0.7 if kind == "leather shoes" else 1))
        if kind == "boots":
            shaft = [heel, self.at(x, y, z), self.at(x, 0.12, z * 0.88)]
            self.line(shaft, thick, colour, (1, 1, 1.25))
        elif kind == "walking shoes":  # a sole that stands out
            bright = sum(colour) >= 560
            self.line(sole, 0.007, (90, 90, 90) if bright else (225, 225, 225))

    def draw_skirt_or_seat(self):
        cloth = self.paint["trousers"]
        width, depth = self.girth(0)
        if self.wears["trousers length"] == "skirt":
            hem = -self.body.legs * 0.52 / self.torso
            skirt = [(hem, width * 1.35, depth * 1.3), *self.levels(0, 0.3)]
            self.band(skirt, cloth)
            self.band(skirt, shade(cloth, SHADOW), left=0.4)
        else:
            self.band([(-0.12, width * 0.98, depth * 0.9), *self.levels(0.3)], cloth)

    # Arms and trunk

    def draw_arm(self, side, light):
        """The bare arm, the sleeve on it, the fist and its glove. light: below 1 = in the shade."""
        arm = self.points(self.arms[side])
        shoulder, elbow, hand = arm
        thick = self.body.limb
        skin = shade(self.paint["skin"], light)
        self.line(arm, thick, skin, (1.05, 0.85, 0.7))

        cloth = shade(self.paint["sleeve"], light)
        loose = thick + self.cut.cloth * 0.7
        if self.wears["coat length"] == "long sleeve coat":
            self.line(arm, loose, cloth, (1.1, 1, 0.9))
        elif self.wears["coat length"] == "short sleeve coat":
            end = shoulder + 0.75 * (elbow - shoulder)
            self.line([shoulder, end], loose, cloth, (1.15, 1.2))

        fist = elbow + 1.16 * (hand - elbow)
        self.disc(fist, thick, skin)
        if self.wears["glove"] == "with glove":
            self.line([hand, fist], thick, self.paint["things"], (1.1, 1.25))

    def draw_coat(self):
        """The neck, the coat's silhouette with the shade on one side, and what is on it."""
        cloth = self.paint["coat"]
        skin = self.paint["skin"]
        nape = self.at(*self.spine(0.93))
        self.line([nape, self.head], self.body.limb * 1.2 + 0.008, shade(skin, 0.88))

        width, depth = self.girth(self.hem)
        levels = [(self.hem, width * self.cut.flare, depth * self.cut.flare)]
        levels += self.levels(0, 0.2, 0.4, 0.6, 0.8, 0.94, 1.0)
        if self.wears["coat length"] == "bareback coat":  # straps on bare shoulders
            self.band(levels[-3:], skin)
            levels = levels[:-2]
            x = 0.5 * self.body.shoulders
            self.trim([(0.78, x), (0.97, x)], 0.012, cloth)
        self.band(levels, cloth)
        self.band(levels[:-1], shade(cloth, SHADOW), left=0.52)

        dark = shade(cloth, 0.6) if sum(cloth) > 150 else DARK
        self.draw_belts(dark)
        if self.cos > 0.25:
            self.draw_front(dark)

    def draw_belts(self, dark):
        """Waistbands, stripes and belts."""
        accent = self.paint["accent"]
        if self.style in ("jacket", "sweater"):
            self.belt(self.hem, self.hem + 0.07, dark)
        if self.style == "sweater":
            for level in STRIPES[self.pattern]:
                self.belt(level, level + 0.08, accent)
        elif self.style in ("dress", "long coat"):
            self.belt(0.33, 0.41, accent if self.style == "dress" else dark)

    def draw_front(self, dark):
        """Necklines, prints, buttons, zips, collars and ties."""
        accent = self.paint["accent"]
        metal = self.paint["metal"]
        if self.style in ("t-shirt", "dress", "sweater"):
            self.disc(self.chest(1.0), 0.026, self.paint["skin"])

        if self.style == "t-shirt":  # a spot, a drop or a band
            if self.pattern == 0:
                self.disc(self.chest(0.62), 0.042, accent)
            elif self.pattern == 1:
                self.line([self.chest(0.52), self.chest(0.7)], 1, accent, (0.042, 0.035))
            else:
                self.belt(0.52, 0.68, accent)
        elif self.style == "shirt":  # a row of buttons, a collar
            self.trim([(0, 0), (0.95, 0)], 0.004, dark)
            self.trim([(0.93, 0.045), (0.85, 0.012)], 1, accent, (0.014, 0.008))
        elif self.style == "jacket":  # a zip, a stand-up collar, pockets
            x = 0.6 * self.body.waist
            self.trim([(self.hem, 0), (0.95, 0)], 0.007, metal)
            self.trim([(0.98, -0.055), (0.98, 0.055)], 0.018, dark)
            self.trim([(0.12, x), (0.28, x)], 0.006, dark)
        elif self.style == "long coat":  # two rows of buttons, lapels
            for level in BUTTONS:
                self.trim([(level, 0.028)], 0.01, metal)
            self.trim([(0.85, 0.01), (0.98, 0.055)], 1, dark, (0.012, 0.022))
        elif self.style == "business suit":  # a piece of the shirt, the tie on it, lapels
            shirt = [self.chest(0.98, -0.045), self.chest(0.98, 0.045), self.chest(0.45)]
            self.polygon(shirt, self.paint["linen"])
            white = min(accent) >= 200  # it would not show on the shirt
            self.trim([(0.5, 0), (0.93, 0)], 0.012, dark if white else accent)
            self.trim([(0.98, 0.05), (0.45, 0.004)], 0.008, dark)

    # Head

    def head_box(self, half_width, top, bottom, shift=0):
        """A box on the canvas around the middle of the head.

        half_width, shift to the right: pixels; top, bottom: half heads below the middle.
        """
        ry = self.head_ry
        return around(self.head + shift, half_width, top * ry, bottom * ry)

    def draw_hanging_hair(self):
        """Hair below the head: behind the trunk from the front, over it from behind."""
        body = self.body
        hair = shade(self.paint["hair"], 0.9)
        ry = self.head_ry
        back = self.sin * ry * body.face

        if body.hair_style in ("bob", "long"):
            narrowing = 1.08 - 0.25 * abs(self.sin)
            wide = ry * body.face * body.volume * narrowing
            fall = self.head_box(wide, -0.5, body.hair_length, shift=-back * 0.45)
            self.pen.rounded_rectangle(fall, radius=ry * 0.45, fill=hair)
        elif body.hair_style == "ponytail":
            tail = [
                self.head - complex(back, ry * 0.35),
                self.head + complex(-back * 1.5, ry * 0.3),
                self.head + complex(-back * 1.4, ry * body.hair_length),
            ]
            self.line(tail, body.head, hair, (0.12, 0.15, 0.06))

    def draw_head(self):
        """The skull, hair or a hat on it and, unless it is turned away, the face."""
        turned_away = self.cos <= -0.25
        skull = self.head_box(self.head_rx, -1, 1)
        self.pen.ellipse(skull, fill=self.paint["skin"])

        if self.body.hair_style != "bald":
            self.draw_hair(turned_away)
        if not turned_away:
            self.draw_face()
            self.draw_eyes()
        if self.wears["cap style"] == "with hat":
            self.draw_hat()

    def draw_hair(self, turned_away):
        """A cap of hair, which lies at the back of the head; the forehead that it leaves free."""
        body = self.body
        hair = self.paint["hair"]
        tilt = -35 * self.sin  # degrees
        low = 48 if turned_away else 12 + 25 * abs(self.sin)
        cap = self.head_box(self.head_rx * body.volume, -body.volume, 1)
        self.pen.chord(cap, 180 - low + tilt, 360 + low + tilt, fill=hair)

        if body.hair_style == "bun":
            back = self.sin * self.head_rx * 0.8
            bun = self.head - complex(back, self.head_ry * body.volume)
            self.disc(bun, body.head * 0.22, shade(hair, 0.9))

        if not turned_away:
            share = 0.84 * max(0, self.cos) + 0.6 * abs(self.sin)
            forward = self.sin * self.head_rx * 0.4
            hairline = 0.7 * body.fringe - 0.78
            forehead = self.head_box(self.head_rx * share, hairline, 1, shift=forward)
            self.pen.ellipse(forehead, fill=self.paint["skin"])

    def draw_hat(self):
        """The crown, and a brim that sticks out to where a head in profile looks."""
        hat = self.paint["hat"]
        crown = self.head_box(self.head_rx * 1.14, -1.25, 0.5)
        self.pen.chord(crown, 188, 352, fill=hat)

        middle = self.head - 0.42j * self.head_ry
        side = self.head_rx * 1.05 * abs(self.cos)
        peak = self.sin * self.head_rx * 1.7 if self.profile else 0
        self.line([middle - side, middle + peak, middle + side], 0.009, shade(hat, 0.75))

    def draw_face(self):
        """Beard, nose, moustache and mouth. Each sits at its angle on a round head."""
        body = self.body
        if body.beard == "beard":
            wide = self.head_rx * (0.95 - 0.25 * abs(self.sin))
            forward = self.sin * self.head_rx * 0.3
            beard = self.head_box(wide, -0.7, 1.12, shift=forward)
            self.pen.chord(beard, 12, 168, fill=self.paint["brow"])
        if self.profile:
            forward = math.copysign(self.head_rx, self.sin)
            nose = [self.head + complex(forward * x, self.head_ry * y) for x, y in NOSE]
            self.polygon(nose, self.paint["skin"])
        if body.beard == "moustache":
            self.mark([(-0.32, 0.42), (0, 0.36), (0.32, 0.42)], 0.06, self.paint["brow"])
        self.mark([(-0.22, 0.62), (0.22, 0.62)], 0.035, self.paint["lips"])

    def draw_eyes(self):
        """Brow, white and pupil; sunglasses are one large pupil, other glasses a ring."""
        body = self.body
        frame = self.paint["frame"]
        sunglasses = not body.glasses and self.wears["glass style"] == "with sunglasses"
        for angle in (-0.45, 0.45):
            if not self.face_shows(angle):
                continue
            brow = [(angle - 0.16, -0.24), (angle + 0.16, -0.24)]
            self.mark(brow, 0.035, self.paint["brow"], (body.brow, body.brow))
            self.mark([(angle, 0.02)], 0.065, (245, 245, 245))
            self.mark([(angle, 0.02)], 0.14 if sunglasses else 0.045, frame)
            if body.glasses:
                r = body.head * 0.13 * self.tall
                ring = around(self.on_face(angle, 0.02), r, -r, r)
                self.pen.ellipse(ring, outline=frame, width=2)

        for start, end in FRAME:  # not before both eyes are there
            if (body.glasses or sunglasses) and self.face_shows(start) and self.face_shows(end):
                self.mark([(start, 0), (end, 0)], 0.025, frame)

    # What somebody carries

    def draw_backpack(self):
        """The bag behind the back and the pocket on it."""
        if self.wears["bag style"] != "backpack":
            return
        bag = self.paint["bag"]
        _, depth = self.girth(0.5)
        _, y, z = self.spine(0.5)
        middle = self.at(0, y, z - depth - 0.035)
        wide = math.hypot(0.1 * self.cos, 0.055 * self.sin) * self.tall
        high = self.torso * 0.42 * self.tall
        box = around(middle, wide, -high, high)
        self.pen.rounded_rectangle(box, radius=wide * 0.4, fill=bag)
        pocket = around(middle, wide * 0.65, 0, high * 0.7)
        self.pen.rounded_rectangle(pocket, radius=wide * 0.2, fill=shade(bag, 0.7))

    def draw_bag(self, facing):
        """What the front shows of a backpack; other bags: at the waist, at the hip, in a hand."""
        kind = self.wears["bag style"]
        dark = shade(self.paint["bag"], 0.7)
        x, y, z = self.arms[RIGHT][2]
        hand = self.at(x, y, z)

        if kind == "backpack" and facing:
            straps = [(0.98, 0.065), (0.7, 0.065), (0.35, 0.065)]
            self.trim(straps, 0.011, self.paint["bag"])
        elif kind == "waist pack":
            self.belt(0.12, 0.17, dark)
            if facing:
                self.bag(self.chest(0.2), 0.03 + 0.03 * self.cos, 0.056)
        elif kind == "shoulder bag":
            body = self.body
            shoulder = self.chest(0.97, -body.shoulders * 0.6)
            hip = self.chest(0.08, body.hips)
            self.line([shoulder, hip], 0.009, dark)
            self.bag(self.at(body.hips + 0.02, body.legs - 0.02, 0), 0.055, 0.085)
        elif kind == "hand bag":
            top = self.at(x, y - 0.05, z)
            self.line([hand, top], 1, dark, (0.012, 0.03))
            self.bag(top, 0.06, 0.09)
        elif kind == "trolley":
            grip = self.at(x + 0.05, 0.24, z - 0.08)
            self.line([hand, grip], 0.008, dark)
            self.bag(self.at(x + 0.06, 0.25, z - 0.1), 0.075, 0.24)

    def draw_umbrella(self):
        """A folded one, in the hand that carries no bag."""
        if self.wears["umbrella"] != "with umbrella":
            return
        x, y, z = self.arms[LEFT][2]
        handle = self.at(x, y + 0.05, z)
        middle = self.at(x, y - 0.08, z + 0.03)
        tip = self.at(x, max(0.01, y - 0.36), z + 0.1)  # not into the ground
        self.line([handle, middle, tip], 1, self.paint["things"], (0.01, 0.032, 0.006))
