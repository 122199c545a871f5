"""How a person in a pose is drawn: `Doll`, a paper doll of lines, discs and polygons."""

import math

from PIL import ImageDraw

from toydata.figure import LEFT, RIGHT, Figure
from toydata.people import between

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
        "lips": (196, 60, 70),
        "frame": (24, 24, 28),
        "metal": (190, 190, 186),
        "linen": (244, 244, 244),
    }
    if body.gender == "male":
        paint["lips"] = shade(body.skin, 0.72)
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
    if colour is None:
        return None
    shaded = [int(channel * factor) for channel in colour]
    return tuple(min(255, channel) for channel in shaded)


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
        self.style = outfit.attributes["coat style"]
        self.pattern = outfit.pattern
        super().__init__(body, self.style, pose)

    # Strokes. Radii and sizes are shares of the height.

    def disc(self, point, radius, fill):
        if fill is None:
            return
        self.pen.ellipse(self.square(point, radius), fill=fill)

    def square(self, point, radius):
        """The box around a disc."""
        x, y = point
        r = radius * self.tall
        return x - r, y - r, x + r, y + r

    def line(self, points, radius, fill):
        """A line with round joints and ends."""
        radii = [radius] * len(points)
        self.taper(points, radii, fill)

    def taper(self, points, radii, fill):
        """A line with round joints and ends that has its own half width at each point."""
        if fill is None:
            return
        ends = list(zip(points, radii))
        for start, end in zip(ends, ends[1:]):
            corners = self.trapezium(start, end)
            self.pen.polygon(corners, fill=fill)
        for point, radius in ends:
            self.disc(point, radius, fill)

    def trapezium(self, start, end):
        """Four corners: two at each end, a radius away to either side."""
        (x0, y0), radius0 = start
        (x1, y1), radius1 = end
        length = math.hypot(x1 - x0, y1 - y0) or 1
        across_x = (y0 - y1) / length
        across_y = (x1 - x0) / length

        r0 = radius0 * self.tall
        r1 = radius1 * self.tall
        return [
            (x0 + across_x * r0, y0 + across_y * r0),
            (x1 + across_x * r1, y1 + across_y * r1),
            (x1 - across_x * r1, y1 - across_y * r1),
            (x0 - across_x * r0, y0 - across_y * r0),
        ]

    def band(self, levels, fill, left=LEFT, right=RIGHT):
        """Fills the trunk's silhouette through the levels, from edge to edge."""
        if fill is None:
            return
        upwards = self.outline(levels, left)
        downwards = self.outline(levels[::-1], right)
        self.pen.polygon(upwards + downwards, fill=fill)

    def belt(self, bottom, top, fill):
        """A stripe around the trunk, between two heights."""
        self.band(self.levels(bottom, top), fill)

    def box(self, point, half_width, height, fill):
        """A bag that hangs from a canvas point, with a seam."""
        x, y = point
        wide = half_width * self.tall
        high = height * self.tall
        bag = (x - wide, y, x + wide, y + high)
        self.pen.rounded_rectangle(bag, radius=2, fill=fill)

        seam_top = y + high * 0.3
        seam_bottom = y + high * 0.36
        seam = (x - wide * 0.9, seam_top, x + wide * 0.9, seam_bottom)
        self.pen.rectangle(seam, fill=shade(fill, 0.7))

    # The drawing

    def draw(self):
        """Far things first."""
        facing = self.cos > 0
        far_leg, near_leg = self.far_to_near(self.legs)
        far_arm, near_arm = self.far_to_near(self.arms)
        near_hand = self.arms[near_arm][2]
        arms_behind = self.nearness(near_hand) < 0  # both of them

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
        if facing:
            self.draw_backpack_straps()
        else:
            self.draw_hanging_hair()
            self.draw_backpack()

        if self.paint["bag"]:
            self.draw_bag()
            self.draw_umbrella()

    # Legs

    def draw_leg(self, side, light):
        """The bare leg, the cloth on it and the shoe. light: below 1 = in the shade."""
        leg = self.points(self.legs[side])
        thick = self.body.limb * 1.75
        skin = shade(self.paint["skin"], light)
        cloth = shade(self.paint["trousers"], light)
        self.taper(leg, [thick, thick * 0.8, thick * 0.55], skin)

        kind = self.wears["trousers length"]
        if kind == "trousers":
            self.taper(leg, [thick * 1.12, thick * 0.98, thick * 0.85], cloth)
        elif kind == "shorts trousers":
            hip, knee, _ = leg
            end = between(hip, knee, 0.85)
            self.taper([hip, end], [thick * 1.15, thick * 1.1], cloth)
        self.draw_shoe(side, light)

    def draw_shoe(self, side, light):
        kind = self.wears["shoes style"]
        colour = shade(self.paint["shoes"], light)
        thick = self.body.limb * 0.8 + 0.008

        # From the front a foot is seen a little from above: the toe lies lower.
        x, y, z = self.legs[side][2]
        heel = self.at(x, y - 0.015, z - 0.008)
        toe_x, toe_y = self.at(x * 1.15, y - 0.017, z + 0.065)
        toe = (toe_x, toe_y + 0.012 * self.tall * max(0, self.cos))
        foot = [heel, toe]
        drop = thick * 0.7 * self.tall
        sole = [(x, y + drop) for x, y in foot]

        if kind == "sandal":  # a bare foot, a sole and a strap
            skin = self.paint["skin"]
            self.taper(foot, [thick * 0.85, thick * 0.8], skin)
            self.line(sole, thick * 0.5, colour)
            instep = between(heel, toe, 0.5)
            self.disc(instep, thick * 0.7, colour)
            return

        tip = thick * 0.7 if kind == "leather shoes" else thick
        self.taper(foot, [thick, tip], colour)
        if kind == "boots":
            ankle = self.at(x, y, z)
            top = self.at(x, 0.12, z * 0.88)
            shaft = [heel, ankle, top]
            self.taper(shaft, [thick, thick, thick * 1.25], colour)
        elif kind == "walking shoes":  # a sole that stands out
            bright = sum(colour) >= 560
            contrast = (90, 90, 90) if bright else (225, 225, 225)
            self.line(sole, 0.007, contrast)

    def draw_skirt_or_seat(self):
        cloth = self.paint["trousers"]
        width, depth = self.girth(0)

        if self.wears["trousers length"] == "skirt":
            hem = -self.body.legs * 0.52 / self.torso
            skirt = [(hem, width * 1.35, depth * 1.3)]
            skirt += self.levels(0, 0.3)
            self.band(skirt, cloth)
            self.band(skirt, shade(cloth, SHADOW), left=0.4)
        else:
            seat = [(-0.12, width * 0.98, depth * 0.9)]
            seat += self.levels(0.3)
            self.band(seat, cloth)

    # Arms and trunk

    def draw_arm(self, side, light):
        """The bare arm, the sleeve on it, the fist and its glove. light: below 1 = in the shade."""
        arm = self.points(self.arms[side])
        shoulder, elbow, hand = arm
        thick = self.body.limb
        skin = shade(self.paint["skin"], light)
        self.taper(arm, [thick * 1.05, thick * 0.85, thick * 0.7], skin)

        cloth = shade(self.paint["sleeve"], light)
        loose = thick + self.cloth * 0.7
        if self.wears["coat length"] == "long sleeve coat":
            self.taper(arm, [loose * 1.1, loose, loose * 0.9], cloth)
        elif self.wears["coat length"] == "short sleeve coat":
            end = between(shoulder, elbow, 0.75)
            self.taper([shoulder, end], [loose * 1.15, loose * 1.2], cloth)

        fist = between(elbow, hand, 1.16)
        self.disc(fist, thick, skin)
        if self.wears["glove"] == "with glove" and skin:
            glove = self.paint["things"]
            self.taper([hand, fist], [thick * 1.1, thick * 1.25], glove)

    def draw_coat(self):
        """The neck, the coat's silhouette with the shade on one side, and what goes around it."""
        cloth = self.paint["coat"]
        skin = self.paint["skin"]
        self.draw_neck()

        hem, flare = self.coat_hem()
        width, depth = self.girth(hem)
        levels = [(hem, width * flare, depth * flare)]
        levels += self.levels(0, 0.2, 0.4, 0.6, 0.8, 0.94, 1.0)
        if self.wears["coat length"] == "bareback coat":  # ends below bare shoulders
            self.band(levels[-3:], skin)
            levels = levels[:-2]
            self.draw_straps()
        self.band(levels, cloth)
        shadow = shade(cloth, SHADOW)
        self.band(levels[:-1], shadow, left=0.52)

        dark = shade(cloth, 0.6) if sum(cloth) > 150 else DARK
        self.draw_belts(hem, dark)
        if self.cos > 0.25:
            self.draw_coat_front(hem, dark)

    def draw_neck(self):
        y, z = self.spine(0.93)
        nape = self.at(0, y, z)
        thick = self.body.limb * 1.2 + 0.008
        skin = shade(self.paint["skin"], 0.88)
        self.line([nape, self.head], thick, skin)

    def coat_hem(self):
        """The level where the coat ends and how much wider than the body it is there."""
        below_hips = -0.035
        flare = 1.03
        if self.style == "business suit":
            below_hips = -0.07
        elif self.style == "dress":
            below_hips = -self.body.legs * 0.5
            flare = 1.5
        elif self.style == "long coat":
            below_hips = -self.body.legs * 0.6
            flare = 1.2
        return below_hips / self.torso, flare

    def draw_straps(self):
        for side in (-0.5, 0.5):
            x = side * self.body.shoulders
            low = self.chest(0.78, x)
            high = self.chest(0.97, x)
            self.line([low, high], 0.012, self.paint["coat"])

    def draw_belts(self, hem, dark):
        """Waistbands, stripes and belts."""
        accent = self.paint["accent"]
        if self.style in ("jacket", "sweater"):
            self.belt(hem, hem + 0.07, dark)
        if self.style == "sweater":
            for level in STRIPES[self.pattern]:
                self.belt(level, level + 0.08, accent)
        elif self.style == "dress":
            self.belt(0.33, 0.41, accent)
        elif self.style == "long coat":
            self.belt(0.33, 0.41, dark)

    def draw_coat_front(self, hem, dark):
        """Necklines, collars, zips, buttons, ties and prints."""
        if self.style in ("t-shirt", "dress", "sweater"):
            neckline = self.chest(1.0)
            self.disc(neckline, 0.026, self.paint["skin"])

        if self.style == "t-shirt":
            self.draw_print()
        elif self.style == "shirt":
            self.draw_shirt_front(dark)
        elif self.style == "jacket":
            self.draw_jacket_front(hem, dark)
        elif self.style == "long coat":
            self.draw_long_coat_front(dark)
        elif self.style == "business suit":
            self.draw_suit_front(dark)

    def draw_print(self):
        """A spot, a drop or a band."""
        accent = self.paint["accent"]
        if self.pattern == 0:
            self.disc(self.chest(0.62), 0.042, accent)
        elif self.pattern == 1:
            drop = [self.chest(0.52), self.chest(0.7)]
            self.taper(drop, [0.042, 0.035], accent)
        else:
            self.belt(0.52, 0.68, accent)

    def draw_shirt_front(self, dark):
        """The row of buttons and the collar."""
        accent = self.paint["accent"]
        buttons = [self.chest(0), self.chest(0.95)]
        self.line(buttons, 0.004, dark)
        for side in (LEFT, RIGHT):
            outer = self.chest(0.93, side * 0.045)
            tip = self.chest(0.85, side * 0.012)
            self.taper([outer, tip], [0.014, 0.008], accent)

    def draw_jacket_front(self, hem, dark):
        """The zip, the stand-up collar and two pockets."""
        zipper = [self.chest(hem), self.chest(0.95)]
        self.line(zipper, 0.007, self.paint["metal"])
        collar_left = self.chest(0.98, -0.055)
        collar_right = self.chest(0.98, 0.055)
        self.line([collar_left, collar_right], 0.018, dark)

        for side in (-0.6, 0.6):
            x = side * self.body.waist
            low = self.chest(0.12, x)
            high = self.chest(0.28, x)
            self.line([low, high], 0.006, dark)

    def draw_long_coat_front(self, dark):
        """Two rows of buttons and the lapels."""
        metal = self.paint["metal"]
        for x in (-0.028, 0.028):
            for level in BUTTONS:
                button = self.chest(level, x)
                self.disc(button, 0.01, metal)
        for side in (LEFT, RIGHT):
            low = self.chest(0.85, side * 0.01)
            high = self.chest(0.98, side * 0.055)
            self.taper([low, high], [0.012, 0.022], dark)

    def draw_suit_front(self, dark):
        """A piece of the shirt, the tie on it and the lapels."""
        shirt = [
            self.chest(0.98, -0.045),
            self.chest(0.98, 0.045),
            self.chest(0.45),
        ]
        self.pen.polygon(shirt, fill=self.paint["linen"])

        tie = [self.chest(0.5), self.chest(0.93)]
        tie_colour = self.paint["accent"]
        if min(tie_colour) >= 200:  # white would not show on the shirt
            tie_colour = dark
        self.line(tie, 0.012, tie_colour)

        for side in (LEFT, RIGHT):
            high = self.chest(0.98, side * 0.05)
            low = self.chest(0.45, side * 0.004)
            self.line([high, low], 0.008, dark)

    # Head

    def head_box(self, half_width, top, bottom, shift=0):
        """A box on the canvas around the middle of the head.

        half_width, shift to the right: pixels; top, bottom: half heads below the middle.
        """
        x, y = self.head
        return (
            x + shift - half_width,
            y + top * self.head_ry,
            x + shift + half_width,
            y + bottom * self.head_ry,
        )

    def draw_hanging_hair(self):
        """Hair below the head: behind the trunk from the front, over it from behind."""
        body = self.body
        hair = shade(self.paint["hair"], 0.9)
        back = self.sin * self.head_ry * body.face

        if body.hair_style in ("bob", "long"):
            narrowing = 1.08 - 0.25 * abs(self.sin)
            wide = self.head_ry * body.face * body.volume * narrowing
            fall = self.head_box(wide, -0.5, body.hair_length, shift=-back * 0.45)
            rounding = self.head_ry * 0.45
            self.pen.rounded_rectangle(fall, radius=rounding, fill=hair)
        elif body.hair_style == "ponytail":
            x, y = self.head
            tail = [
                (x - back, y - self.head_ry * 0.35),
                (x - back * 1.5, y + self.head_ry * 0.3),
                (x - back * 1.4, y + self.head_ry * body.hair_length),
            ]
            radii = [body.head * 0.12, body.head * 0.15, body.head * 0.06]
            self.taper(tail, radii, hair)

    def draw_head(self):
        """The skull, hair or a hat on it and, unless it is turned away, the face."""
        turned_away = self.cos <= -0.25
        skull = self.head_box(self.head_rx, -1, 1)
        self.pen.ellipse(skull, fill=self.paint["skin"])

        if self.body.hair_style != "bald":
            self.draw_hair(turned_away)
        if not turned_away:
            self.draw_face()
        if self.wears["cap style"] == "with hat":
            self.draw_hat()

    def draw_hair(self, turned_away):
        """A cap of hair, which lies at the back of the head; the forehead that it leaves free."""
        body = self.body
        hair = self.paint["hair"]
        tilt = -35 * self.sin  # degrees
        low = 48 if turned_away else 12 + 25 * abs(self.sin)
        start = 180 - low + tilt
        end = 360 + low + tilt
        cap = self.head_box(self.head_rx * body.volume, -body.volume, 1)
        self.pen.chord(cap, start, end, fill=hair)

        if body.hair_style == "bun":
            x, y = self.head
            bun_x = x - self.sin * self.head_rx * 0.8
            bun_y = y - self.head_ry * body.volume
            radius = body.head * 0.22
            self.disc((bun_x, bun_y), radius, shade(hair, 0.9))

        if not turned_away:
            share = 0.84 * max(0, self.cos) + 0.6 * abs(self.sin)
            wide = self.head_rx * share
            hairline = 0.7 * body.fringe - 0.78
            forward = self.sin * self.head_rx * 0.4
            forehead = self.head_box(wide, hairline, 1, shift=forward)
            self.pen.ellipse(forehead, fill=self.paint["skin"])

    def draw_hat(self):
        """The crown, and a brim that sticks out to where a head in profile looks."""
        hat = self.paint["hat"]
        crown = self.head_box(self.head_rx * 1.14, -1.25, 0.5)
        self.pen.chord(crown, 188, 352, fill=hat)

        x, y = self.head
        brim_y = y - self.head_ry * 0.42
        side = self.head_rx * 1.05 * abs(self.cos)
        peak = self.sin * self.head_rx * 1.7 if self.profile else 0
        brim = [(x - side, brim_y), (x + peak, brim_y), (x + side, brim_y)]
        self.line(brim, 0.009, shade(hat, 0.75))

    # Face

    def draw_face(self):
        """Each feature sits at its angle on a round head."""
        body = self.body
        if body.beard == "beard":
            self.draw_beard()
        if self.profile:
            self.draw_nose()
        if body.beard == "moustache":
            self.draw_moustache()
        self.draw_mouth()

        sunglasses = not body.glasses and self.wears["glass style"] == "with sunglasses"
        for angle in (-0.45, 0.45):
            if self.face_shows(angle):
                self.draw_eye(angle, sunglasses)
        if body.glasses or sunglasses:
            self.draw_frame()

    def draw_beard(self):
        wide = self.head_rx * (0.95 - 0.25 * abs(self.sin))
        forward = self.sin * self.head_rx * 0.3
        beard = self.head_box(wide, -0.7, 1.12, shift=forward)
        self.pen.chord(beard, 12, 168, fill=self.paint["brow"])

    def draw_moustache(self):
        moustache = [
            self.on_face(-0.32, 0.42),
            self.on_face(0, 0.36),
            self.on_face(0.32, 0.42),
        ]
        radius = self.body.head * 0.06
        self.line(moustache, radius, self.paint["brow"])

    def draw_mouth(self):
        left = self.on_face(-0.22, 0.62)
        right = self.on_face(0.22, 0.62)
        radius = self.body.head * 0.035
        self.line([left, right], radius, self.paint["lips"])

    def draw_nose(self):
        x, y = self.head
        forward = math.copysign(self.head_rx, self.sin)
        nose = []
        for out, down in NOSE:
            nose.append((x + forward * out, y + self.head_ry * down))
        self.pen.polygon(nose, fill=self.paint["skin"])

    def draw_eye(self, angle, sunglasses):
        """Brow, white and pupil; sunglasses are one large pupil, other glasses a ring."""
        head = self.body.head
        frame = self.paint["frame"]
        brow_left = self.on_face(angle - 0.16, -0.24)
        brow_right = self.on_face(angle + 0.16, -0.24)
        brow_radius = head * 0.035 * self.body.brow
        self.line([brow_left, brow_right], brow_radius, self.paint["brow"])

        eye = self.on_face(angle, 0.02)
        pupil = 0.14 if sunglasses else 0.045
        self.disc(eye, head * 0.065, (245, 245, 245))
        self.disc(eye, head * pupil, frame)
        if self.body.glasses:
            ring = self.square(eye, head * 0.13)
            self.pen.ellipse(ring, outline=frame, width=2)

    def draw_frame(self):
        """The bridge and the temples of glasses."""
        radius = self.body.head * 0.025
        for start, end in FRAME:
            if self.face_shows(start) and self.face_shows(end):
                rod = [self.on_face(start, 0), self.on_face(end, 0)]
                self.line(rod, radius, self.paint["frame"])

    # What somebody carries

    def has_backpack(self):
        return self.paint["bag"] is not None and self.wears["bag style"] == "backpack"

    def draw_backpack(self):
        """The bag behind the back and the pocket on it."""
        if not self.has_backpack():
            return
        bag = self.paint["bag"]
        _, depth = self.girth(0.5)
        y, z = self.spine(0.5)
        x, y = self.at(0, y, z - depth - 0.035)
        wide = math.hypot(0.1 * self.cos, 0.055 * self.sin) * self.tall
        high = self.torso * 0.42 * self.tall
        box = (x - wide, y - high, x + wide, y + high)
        self.pen.rounded_rectangle(box, radius=wide * 0.4, fill=bag)

        inset = wide * 0.65
        pocket = (x - inset, y, x + inset, y + high * 0.7)
        pocket_colour = shade(bag, 0.7)
        self.pen.rounded_rectangle(pocket, radius=wide * 0.2, fill=pocket_colour)

    def draw_backpack_straps(self):
        if not self.has_backpack():
            return
        for x in (-0.065, 0.065):
            shoulder = self.chest(0.98, x)
            chest = self.chest(0.7, x)
            waist = self.chest(0.35, x)
            self.line([shoulder, chest, waist], 0.011, self.paint["bag"])

    def draw_bag(self):
        """A bag that is no backpack: at the waist, at the hip or in a hand."""
        kind = self.wears["bag style"]
        bag = self.paint["bag"]
        dark = shade(bag, 0.7)
        x, y, z = self.arms[RIGHT][2]
        hand = self.at(x, y, z)

        if kind == "waist pack":
            self.belt(0.12, 0.17, dark)
            if self.cos > 0:
                half_width = 0.03 + 0.03 * self.cos
                self.box(self.chest(0.2), half_width, 0.056, bag)
        elif kind == "shoulder bag":
            body = self.body
            shoulder = self.chest(0.97, -body.shoulders * 0.6)
            hip = self.chest(0.08, body.hips)
            self.line([shoulder, hip], 0.009, dark)
            top = self.at(body.hips + 0.02, body.legs - 0.02, 0)
            self.box(top, 0.055, 0.085, bag)
        elif kind == "hand bag":
            top = self.at(x, y - 0.05, z)
            self.taper([hand, top], [0.012, 0.03], dark)
            self.box(top, 0.06, 0.09, bag)
        elif kind == "trolley":
            grip = self.at(x + 0.05, 0.24, z - 0.08)
            self.line([hand, grip], 0.008, dark)
            top = self.at(x + 0.06, 0.25, z - 0.1)
            self.box(top, 0.075, 0.24, bag)

    def draw_umbrella(self):
        """A folded one, in the hand that carries no bag."""
        if self.wears["umbrella"] != "with umbrella":
            return
        x, y, z = self.arms[LEFT][2]
        handle = self.at(x, y + 0.05, z)
        middle = self.at(x, y - 0.08, z + 0.03)
        tip_y = max(0.01, y - 0.36)  # not into the ground
        tip = self.at(x, tip_y, z + 0.1)
        umbrella = [handle, middle, tip]
        self.taper(umbrella, [0.01, 0.032, 0.006], self.paint["things"])
