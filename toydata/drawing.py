"""Draws a person in a pose: `Doll`, a paper doll of lines and polygons."""

import math

from PIL import ImageDraw

from toydata.figure import LEFT, RIGHT, Figure, around

SHADOW = 0.85  # light on the right side, away from the lamp


def paints(body, outfit, infrared=False):
    """part -> RGB of everything on a person.

    In infrared skin is bright, hair dark, cloth as its material has it.
    """
    paint = outfit.colours | {
        "skin": body.skin,
        "hair": body.hair,
        "brow": shade(body.hair, 0.9),
        "lips": shade(body.skin, 0.72) if body.gender == "male" else (196, 60, 70),
        "eye": (245, 245, 245),
        "frame": (24, 24, 28),
        "metal": (190, 190, 186),
        "linen": (244, 244, 244),
        "dark sole": (90, 90, 90),
        "light sole": (225, 225, 225),
    }
    if infrared:
        grey = {part: sum(colour) / 3 for part, colour in paint.items()}
        grey |= outfit.infrared
        grey["skin"] = 170 + 0.28 * grey["skin"]
        grey["hair"] = 22 + 0.55 * grey["hair"]
        grey["brow"] = 0.9 * grey["hair"]
        grey["lips"] = 120
        paint = {part: (round(value),) * 3 for part, value in grey.items()}

    # Trimmings are darker than the coat, unless it is dark itself.
    coat = paint["coat"]
    paint["dark"] = shade(coat, 0.6) if sum(coat) > 150 else (96, 96, 102)
    return paint


def shade(colour, light):
    """A darker or lighter RGB; None (nothing to draw) stays None."""
    return colour and tuple(min(255, int(channel * light)) for channel in colour)


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

    # Strokes. Radii and sizes are shares of the height; light: below 1 = in the shade.

    def fill(self, part, light=1):
        return shade(self.paint[part], light)

    def line(self, points, radius, part, shares=None, light=1):
        """A line with round joints and ends; of one point, a disc.

        radius: half its width; shares: of the radius, one for each point.
        """
        fill = self.fill(part, light)
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

    def band(self, levels, part, light=1, left=LEFT):
        """Fills the trunk's silhouette through the levels, from an edge to the right one."""
        upwards = self.outline(levels, left)
        downwards = self.outline(levels[::-1], RIGHT)
        self.polygon(upwards + downwards, self.fill(part, light))

    def belt(self, bottom, top, part, light=1):
        """A stripe around the trunk, between two heights."""
        self.band(self.levels(bottom, top), part, light)

    def trim(self, points, radius, part, shares=None):
        """A line on the front of the coat and its mirror image. points: (level, across)."""
        for side in (LEFT, RIGHT):
            line = [self.chest(t, side * x) for t, x in points]
            self.line(line, radius, part, shares)

    def mark(self, points, radius, part, shares=None):
        """A line on the face. points: as `on_face` takes them; radius: in heads."""
        line = [self.on_face(*point) for point in points]
        self.line(line, self.body.head * radius, part, shares)

    def bag(self, point, half_width, height):
        """A bag that hangs from a canvas point, with a seam."""
        wide = half_width * self.tall
        high = height * self.tall
        self.pen.rounded_rectangle(around(point, wide, 0, high), radius=2, fill=self.fill("bag"))
        seam = around(point, wide * 0.9, high * 0.3, high * 0.36)
        self.pen.rectangle(seam, fill=self.fill("bag", 0.7))

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
        """The bare leg, the cloth on it and the shoe."""
        leg = self.points(self.legs[side])
        thick = self.body.limb * 1.75
        self.line(leg, thick, "skin", (1, 0.8, 0.55), light)

        kind = self.wears["trousers length"]
        if kind == "trousers":
            self.line(leg, thick, "trousers", (1.12, 0.98, 0.85), light)
        elif kind == "shorts trousers":
            hip, knee, _ = leg
            end = hip + 0.85 * (knee - hip)
            self.line([hip, end], thick, "trousers", (1.15, 1.1), light)
        self.draw_shoe(side, light)

    def draw_shoe(self, side, light):
        kind = self.wears["shoes style"]
        thick = self.body.limb * 0.8 + 0.008

        # From the front a foot is seen a little from above: the toe lies lower.
        x, y, z = self.legs[side][2]
        heel = self.at(x, y - 0.015, z - 0.008)
        toe = self.at(x * 1.15, y - 0.017, z + 0.065)
        toe += 0.012j * self.tall * max(0, self.cos)
        foot = [heel, toe]
        sole = [point + thick * 0.7j * self.tall for point in foot]

        if kind == "sandal":  # a bare foot, a sole and a strap
            self.line(foot, thick, "skin", (0.85, 0.8))
            self.line(sole, thick * 0.5, "shoes", light=light)
            instep = heel + 0.5 * (toe - heel)
            self.line([instep], thick * 0.7, "shoes", light=light)
            return

        self.line(foot, thick, "shoes", (1, 0.7 if kind == "leather shoes" else 1), light)
        if kind == "boots":
            shaft = [heel, self.at(x, y, z), self.at(x, 0.12, z * 0.88)]
            self.line(shaft, thick, "shoes", (1, 1, 1.25), light)
        elif kind == "walking shoes":  # a thick sole
            bright = sum(self.fill("shoes", light)) >= 560
            self.line(sole, 0.007, "dark sole" if bright else "light sole")

    def draw_skirt_or_seat(self):
        width, depth = self.girth(0)
        if self.wears["trousers length"] == "skirt":
            hem = -self.body.legs * 0.52 / self.torso
            skirt = [(hem, width * 1.35, depth * 1.3), *self.levels(0, 0.3)]
            self.band(skirt, "trousers")
            self.band(skirt, "trousers", SHADOW, left=0.4)
        else:
            seat = [(-0.12, width * 0.98, depth * 0.9), *self.levels(0.3)]
            self.band(seat, "trousers")

    # Arms and trunk

    def draw_arm(self, side, light):
        """The bare arm, the sleeve on it, the fist and its glove."""
        arm = self.points(self.arms[side])
        shoulder, elbow, hand = arm
        thick = self.body.limb
        self.line(arm, thick, "skin", (1.05, 0.85, 0.7), light)

        loose = thick + self.cut.cloth * 0.7
        if self.wears["coat length"] == "long sleeve coat":
            self.line(arm, loose, "sleeve", (1.1, 1, 0.9), light)
        elif self.wears["coat length"] == "short sleeve coat":
            end = shoulder + 0.75 * (elbow - shoulder)
            self.line([shoulder, end], loose, "sleeve", (1.15, 1.2), light)

        fist = elbow + 1.16 * (hand - elbow)
        self.line([fist], thick, "skin", light=light)
        if self.wears["glove"] == "with glove":
            self.line([hand, fist], thick, "things", (1.1, 1.25))

    def draw_coat(self):
        """The neck, the coat's silhouette with the shade on one side, and what is on it."""
        nape = self.at(*self.spine(0.93))
        self.line([nape, self.head], self.body.limb * 1.2 + 0.008, "skin", light=0.88)

        width, depth = self.girth(self.hem)
        flare = self.cut.flare
        levels = [(self.hem, width * flare, depth * flare)]
        levels += self.levels(0, 0.2, 0.4, 0.6, 0.8, 0.94, 1.0)
        if self.wears["coat length"] == "bareback coat":  # straps on bare shoulders
            self.band(levels[-3:], "skin")
            levels = levels[:-2]
            x = 0.5 * self.body.shoulders
            self.trim([(0.78, x), (0.97, x)], 0.012, "coat")
        self.band(levels, "coat")
        self.band(levels[:-1], "coat", SHADOW, left=0.52)

        self.draw_belts()
        if self.cos > 0.25:
            self.draw_front()

    def draw_belts(self):
        """Waistbands, stripes and belts."""
        if self.style in ("jacket", "sweater"):
            self.belt(self.hem, self.hem + 0.07, "dark")
        if self.style == "sweater":
            stripes = ((0.5, 0.66), (0.3, 0.5, 0.7), (0.62,))
            for level in stripes[self.pattern]:
                self.belt(level, level + 0.08, "accent")
        elif self.style == "dress":
            self.belt(0.33, 0.41, "accent")
        elif self.style == "long coat":
            self.belt(0.33, 0.41, "dark")

    def draw_front(self):
        """Necklines, prints, buttons, zips, collars and ties."""
        if self.style in ("t-shirt", "dress", "sweater"):
            self.line([self.chest(1.0)], 0.026, "skin")

        if self.style == "t-shirt":
            self.draw_print()
        elif self.style == "shirt":  # a row of buttons, a collar
            self.trim([(0, 0), (0.95, 0)], 0.004, "dark")
            self.trim([(0.93, 0.045), (0.85, 0.012)], 1, "accent", (0.014, 0.008))
        elif self.style == "jacket":  # a zip, a stand-up collar, pockets
            x = 0.6 * self.body.waist
            self.trim([(self.hem, 0), (0.95, 0)], 0.007, "metal")
            self.trim([(0.98, -0.055), (0.98, 0.055)], 0.018, "dark")
            self.trim([(0.12, x), (0.28, x)], 0.006, "dark")
        elif self.style == "long coat":  # two rows of buttons, lapels
            for level in (-0.35, -0.1, 0.2, 0.55, 0.75):
                self.trim([(level, 0.028)], 0.01, "metal")
            self.trim([(0.85, 0.01), (0.98, 0.055)], 1, "dark", (0.012, 0.022))
        elif self.style == "business suit":
            self.draw_suit_front()

    def draw_print(self):
        """A spot, a drop or a band."""
        if self.pattern == 0:
            self.line([self.chest(0.62)], 0.042, "accent")
        elif self.pattern == 1:
            drop = [self.chest(0.52), self.chest(0.7)]
            self.line(drop, 1, "accent", (0.042, 0.035))
        else:
            self.belt(0.52, 0.68, "accent")

    def draw_suit_front(self):
        """A piece of the shirt, the tie on it and the lapels."""
        shirt = [self.chest(0.98, -0.045), self.chest(0.98, 0.045), self.chest(0.45)]
        self.polygon(shirt, self.fill("linen"))
        white = min(self.paint["accent"]) >= 200  # a white tie would not show on the shirt
        self.trim([(0.5, 0), (0.93, 0)], 0.012, "dark" if white else "accent")
        self.trim([(0.98, 0.05), (0.45, 0.004)], 0.008, "dark")

    # Head

    def head_box(self, half_width, top, bottom, shift=0):
        """A box on the canvas around the middle of the head.

        half_width, shift to the right: pixels; top, bottom: half heads below the middle.
        """
        ry = self.head_ry
        return around(self.head + shift, half_width, top * ry, bottom * ry)

    def on_head(self, across, down):
        """A canvas point. across: pixels from the middle of the head; down: half heads."""
        return self.head + complex(across, down * self.head_ry)

    def draw_hanging_hair(self):
        """Hair below the head: behind the trunk from the front, over it from behind."""
        body = self.body
        ry = self.head_ry
        back = self.sin * ry * body.face
        if body.hair_style in ("bob", "long"):
            narrowing = 1.08 - 0.25 * abs(self.sin)
            wide = ry * body.face * body.volume * narrowing
            fall = self.head_box(wide, -0.5, body.hair_length, shift=-back * 0.45)
            self.pen.rounded_rectangle(fall, radius=ry * 0.45, fill=self.fill("hair", 0.9))
        elif body.hair_style == "ponytail":
            tail = [
                self.on_head(-back, -0.35),
                self.on_head(-back * 1.5, 0.3),
                self.on_head(-back * 1.4, body.hair_length),
            ]
            self.line(tail, body.head, "hair", (0.12, 0.15, 0.06), light=0.9)

    def draw_head(self):
        """The skull, hair or a hat on it and, unless it is turned away, the face."""
        turned_away = self.cos <= -0.25
        skull = self.head_box(self.head_rx, -1, 1)
        self.pen.ellipse(skull, fill=self.fill("skin"))

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
        tilt = -35 * self.sin  # degrees
        low = 48 if turned_away else 12 + 25 * abs(self.sin)
        cap = self.head_box(self.head_rx * body.volume, -body.volume, 1)
        self.pen.chord(cap, 180 - low + tilt, 360 + low + tilt, fill=self.fill("hair"))

        if body.hair_style == "bun":
            bun = self.on_head(-self.sin * self.head_rx * 0.8, -body.volume)
            self.line([bun], body.head * 0.22, "hair", light=0.9)

        if not turned_away:
            share = 0.84 * max(0, self.cos) + 0.6 * abs(self.sin)
            forward = self.sin * self.head_rx * 0.4
            hairline = 0.7 * body.fringe - 0.78
            forehead = self.head_box(self.head_rx * share, hairline, 1, shift=forward)
            self.pen.ellipse(forehead, fill=self.fill("skin"))

    def draw_hat(self):
        """The crown, and a brim that sticks out to where a head in profile looks."""
        crown = self.head_box(self.head_rx * 1.14, -1.25, 0.5)
        self.pen.chord(crown, 188, 352, fill=self.fill("hat"))

        side = self.head_rx * 1.05 * abs(self.cos)
        peak = self.sin * self.head_rx * 1.7 if self.profile else 0
        brim = [self.on_head(across, -0.42) for across in (-side, peak, side)]
        self.line(brim, 0.009, "hat", light=0.75)

    def draw_face(self):
        """Beard, nose, moustache and mouth. Each sits at its angle on a round head."""
        body = self.body
        if body.beard == "beard":
            wide = self.head_rx * (0.95 - 0.25 * abs(self.sin))
            forward = self.sin * self.head_rx * 0.3
            beard = self.head_box(wide, -0.7, 1.12, shift=forward)
            self.pen.chord(beard, 12, 168, fill=self.fill("brow"))
        if self.profile:
            forward = math.copysign(self.head_rx, self.sin)
            outline = ((0.9, -0.05), (1.2, 0.3), (0.85, 0.38))
            nose = [self.on_head(forward * out, down) for out, down in outline]
            self.polygon(nose, self.fill("skin"))
        if body.beard == "moustache":
            self.mark([(-0.32, 0.42), (0, 0.36), (0.32, 0.42)], 0.06, "brow")
        self.mark([(-0.22, 0.62), (0.22, 0.62)], 0.035, "lips")

    def draw_eyes(self):
        """Brow, white and pupil; sunglasses are one large pupil, other glasses a ring."""
        body = self.body
        sunglasses = not body.glasses and self.wears["glass style"] == "with sunglasses"
        for angle in (-0.45, 0.45):
            if not self.face_shows(angle):
                continue
            brow = [(angle - 0.16, -0.24), (angle + 0.16, -0.24)]
            self.mark(brow, 0.035, "brow", (body.brow, body.brow))
            self.mark([(angle, 0.02)], 0.065, "eye")
            self.mark([(angle, 0.02)], 0.14 if sunglasses else 0.045, "frame")
            if body.glasses:
                r = body.head * 0.13 * self.tall
                ring = around(self.on_face(angle, 0.02), r, -r, r)
                self.pen.ellipse(ring, outline=self.fill("frame"), width=2)

        if body.glasses or sunglasses:
            for start, end in ((-0.1, 0.1), (-1.4, -0.75), (0.75, 1.4)):  # bridge, temples
                if self.face_shows(start) and self.face_shows(end):
                    self.mark([(start, 0), (end, 0)], 0.025, "frame")

    # Bags and umbrellas

    def draw_backpack(self):
        """The bag behind the back and the pocket on it."""
        if self.wears["bag style"] != "backpack":
            return
        _, depth = self.girth(0.5)
        _, y, z = self.spine(0.5)
        middle = self.at(0, y, z - depth - 0.035)
        wide = math.hypot(0.1 * self.cos, 0.055 * self.sin) * self.tall
        high = self.torso * 0.42 * self.tall
        box = around(middle, wide, -high, high)
        self.pen.rounded_rectangle(box, radius=wide * 0.4, fill=self.fill("bag"))
        pocket = around(middle, wide * 0.65, 0, high * 0.7)
        self.pen.rounded_rectangle(pocket, radius=wide * 0.2, fill=self.fill("bag", 0.7))

    def draw_bag(self, facing):
        """The straps of a backpack; other bags at the waist, at the hip, in a hand."""
        body = self.body
        kind = self.wears["bag style"]
        x, y, z = self.arms[RIGHT][2]
        hand = self.at(x, y, z)

        if kind == "backpack" and facing:
            self.trim([(0.98, 0.065), (0.7, 0.065), (0.35, 0.065)], 0.011, "bag")
        elif kind == "waist pack":
            self.belt(0.12, 0.17, "bag", 0.7)
            if facing:
                self.bag(self.chest(0.2), 0.03 + 0.03 * self.cos, 0.056)
        elif kind == "shoulder bag":
            strap = [self.chest(0.97, -body.shoulders * 0.6), self.chest(0.08, body.hips)]
            self.line(strap, 0.009, "bag", light=0.7)
            self.bag(self.at(body.hips + 0.02, body.legs - 0.02, 0), 0.055, 0.085)
        elif kind == "hand bag":
            top = self.at(x, y - 0.05, z)
            self.line([hand, top], 1, "bag", (0.012, 0.03), light=0.7)
            self.bag(top, 0.06, 0.09)
        elif kind == "trolley":
            grip = self.at(x + 0.05, 0.24, z - 0.08)
            self.line([hand, grip], 0.008, "bag", light=0.7)
            self.bag(self.at(x + 0.06, 0.25, z - 0.1), 0.075, 0.24)

    def draw_umbrella(self):
        """A folded umbrella, in the hand without a bag."""
        if self.wears["umbrella"] != "with umbrella":
            return
        x, y, z = self.arms[LEFT][2]
        umbrella = [
            self.at(x, y + 0.05, z),
            self.at(x, y - 0.08, z + 0.03),
            self.at(x, max(0.01, y - 0.36), z + 0.1),  # not into the ground
        ]
        self.line(umbrella, 1, "things", (0.01, 0.032, 0.006))
