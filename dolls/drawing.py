"""How a person in a pose is drawn: `Doll`, a paper doll of lines, discs and polygons."""

import bisect
import math
from typing import NamedTuple

from PIL import ImageDraw

from dolls.people import between

# sides as seen from the front
LEFT = -1
RIGHT = 1

CLOTH_THICKNESS = {"jacket": 0.012, "long coat": 0.014, "sweater": 0.008, "business suit": 0.006}
SHADOW = 0.85  # brightness of the side away from the light, which falls from the left
STRIPES = ((0.5, 0.66), (0.3, 0.5, 0.7), (0.62,))  # of a sweater: pattern -> levels
BUTTONS = (-0.35, -0.1, 0.2, 0.55, 0.75)  # of a long coat
NOSE = ((0.9, -0.05), (1.2, 0.3), (0.85, 0.38))  # its profile in half widths and half heights of the head


class Pose(NamedTuple):
    yaw: float  # radians, 0 = facing the camera, pi / 2 = facing right
    stride: float  # swing of arms and legs, in radians
    x: float  # where the feet are on the canvas
    ground: float
    scale: float  # pixels per cm
    spread: float  # arms away from the body, in radians


def paints(body, outfit, infrared=False):
    """part -> RGB of everything on a person. In infrared skin is bright, hair dark, cloth as its material has it."""
    paint = outfit.colours | {
        "skin": body.skin,
        "hair": body.hair,
        "brow": shade(body.hair, 0.9),
        "frame": (24, 24, 28),
        "metal": (190, 190, 186),
        "linen": (244, 244, 244),
        "lips": (196, 60, 70) if body.gender == "female" else shade(body.skin, 0.72),
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
    if colour is None:
        return None
    return tuple(min(255, int(channel * factor)) for channel in colour)


class Doll:
    """One person on a canvas. Body coordinates: x to their left, y up, z forward, in shares of their height.

    Every shape is projected by the viewing angle, so one drawing serves front, side and back. What has
    no paint (None) is left out: that makes shop pictures. Heights on the trunk are levels t: 0 at the
    hips, 1 at the shoulders, below 0 towards the knees.
    """

    def __init__(self, canvas, body, outfit, paint, pose):
        """paint: part -> RGB or None, as `paints` gives it."""
        self.pen = ImageDraw.Draw(canvas)
        self.body = body
        self.paint = paint
        self.pose = pose

        self.wears = outfit.attributes
        self.style = outfit.attributes["coat style"]
        self.pattern = outfit.pattern
        self.cloth = CLOTH_THICKNESS.get(self.style, 0.003)

        self.cos = math.cos(pose.yaw)
        self.sin = math.sin(pose.yaw)
        self.profile = abs(self.sin) > 0.5
        self.tall = body.height * pose.scale  # pixels from sole to crown
        self.torso = 1 - body.head - body.neck - body.legs

        self.arms = {side: self.arm_joints(side) for side in (LEFT, RIGHT)}
        self.legs = {side: self.leg_joints(side) for side in (LEFT, RIGHT)}
        self.place_head()

    # Where things are

    def at(self, x, y, z):
        """Body coordinates -> canvas."""
        right = x * self.cos + z * self.sin
        return self.pose.x + right * self.tall, self.pose.ground - y * self.tall

    def points(self, joints):
        return [self.at(*joint) for joint in joints]

    def nearness(self, joint):
        """How far in front of the middle of the body, as the camera sees it."""
        x, _, z = joint
        return z * self.cos - x * self.sin

    def spine(self, t):
        """(y, z) of the back at a level; below the hips it hangs straight down."""
        lean = self.body.stoop if t > 0 else 0
        return self.body.legs + t * self.torso * math.cos(lean), t * self.torso * math.sin(lean)

    def girth(self, t):
        """Half width and half depth of the clothed trunk at a level."""
        body = self.body
        knots = (0, 0.4, 0.8, 0.94, 1)
        widths = (body.hips, body.waist, body.shoulders * 0.88, body.shoulders * 0.95, body.shoulders * 0.55)
        depths = (0.062 + 0.3 * body.belly, body.belly, 0.04 + 0.4 * body.belly, 0.05, 0.035)

        t = min(max(t, 0), 1)
        above = bisect.bisect_left(knots, t, 1, 4)
        below = above - 1
        share = (t - knots[below]) / (knots[above] - knots[below])

        width = widths[below] + share * (widths[above] - widths[below]) + self.cloth
        depth = depths[below] + share * (depths[above] - depths[below]) + self.cloth
        return width, depth

    def chest(self, t, x=0.0):
        """A canvas point on the middle of the chest, or of the back for somebody who turns it."""
        y, z = self.spine(t)
        _, depth = self.girth(t)
        return self.at(x, y, z + math.copysign(depth, self.cos) * 0.92)

    def arm_joints(self, side):
        """Shoulder, elbow, hand in body coordinates."""
        body = self.body
        swing = -side * self.pose.stride * 0.9 + 0.06
        spread = self.pose.spread

        y, z = self.spine(0.89)
        x = side * (body.shoulders + self.cloth - body.limb * 0.4)
        joints = [(x, y, z)]

        # The forearm is bent forward a little.
        for share, bend in ((0.48, 0), (0.52, 0.22)):
            x = x + side * math.sin(spread) * body.arms * share
            y = y - math.cos(swing) * body.arms * share
            z = z + math.sin(swing + bend) * body.arms * share
            joints.append((x, y, z))
        return joints

    def leg_joints(self, side):
        """Hip, knee, ankle in body coordinates."""
        body = self.body
        hip = body.hips * 0.52
        foot = max(body.stance, body.limb * 1.3)
        z = math.sin(side * self.pose.stride) * body.legs

        # The heel of the hind leg is lifted, and knees bend forward.
        lifted = 0.035 + 0.04 * max(0, -z) * abs(self.sin)
        knee = (side * (hip + foot) / 2, body.legs / 2, z / 2 + abs(z) * 0.12)
        return [(side * hip, body.legs, 0), knee, (side * foot, lifted, z)]

    def place_head(self):
        """The middle of the head on the canvas and half its width and height in pixels."""
        body = self.body
        lean = body.stoop * 1.3
        reach = body.neck + body.head / 2
        y, z = self.spine(1.0)
        self.head = self.at(0, y + reach * math.cos(lean), z + reach * math.sin(lean) + 0.01)

        self.head_ry = body.head / 2 * self.tall
        across = self.head_ry * body.face * self.cos
        along = self.head_ry * body.face * 1.1 * self.sin
        self.head_rx = math.hypot(across, along)

    def clothes_box(self):
        """Left, top, right, bottom of the worn clothes on the canvas, shoulders to soles."""
        limbs = [*self.arms.values(), *self.legs.values()]
        points = [point for joints in limbs for point in self.points(joints)]
        trunk = self.levels(0, 0.4, 0.94)
        points += self.outline(trunk, LEFT) + self.outline(trunk, RIGHT)
        xs = [x for x, _ in points]

        edge = self.body.limb * self.tall
        neck, _ = self.spine(1.03)
        _, top = self.at(0, neck, 0)
        return min(xs) - edge, top, max(xs) + edge, self.pose.ground + 1

    # Strokes. Radii and sizes are shares of the height.

    def disc(self, point, radius, fill):
        if fill is None:
            return
        x, y = point
        r = radius * self.tall
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def line(self, points, radius, fill):
        """A line with round joints and ends."""
        self.taper(points, [radius] * len(points), fill)

    def taper(self, points, radii, fill):
        """A line with round joints and ends that has its own half width at each point."""
        if fill is None:
            return
        pixels = [radius * self.tall for radius in radii]
        for (x0, y0), (x1, y1), r0, r1 in zip(points, points[1:], pixels, pixels[1:]):
            length = math.hypot(x1 - x0, y1 - y0) or 1
            nx = (y0 - y1) / length  # across the line
            ny = (x1 - x0) / length
            corners = [
                (x0 + nx * r0, y0 + ny * r0),
                (x1 + nx * r1, y1 + ny * r1),
                (x1 - nx * r1, y1 - ny * r1),
                (x0 - nx * r0, y0 - ny * r0),
            ]
            self.pen.polygon(corners, fill=fill)

        for point, radius in zip(points, radii):
            self.disc(point, radius, fill)

    def levels(self, *heights):
        """(t, half width, half depth) of the trunk at each height t."""
        return [(t, *self.girth(t)) for t in heights]

    def outline(self, levels, edge):
        """Canvas points of the trunk's silhouette; edge: -1 = its left side, 0 = its middle, 1 = its right side."""
        points = []
        for t, width, depth in levels:
            x, y = self.at(0, *self.spine(t))
            half = math.hypot(width * self.cos, depth * self.sin) * self.tall
            points.append((x + half * edge, y))
        return points

    def band(self, levels, fill, left=LEFT, right=RIGHT):
        """Fills the trunk's silhouette through the levels, from edge to edge."""
        if fill is None:
            return
        left_points = self.outline(levels, left)
        right_points = self.outline(levels, right)
        self.pen.polygon(left_points + right_points[::-1], fill=fill)

    def belt(self, t0, t1, fill):
        self.band(self.levels(t0, t1), fill)

    def box(self, top, half_width, height, fill):
        """A bag that hangs from a canvas point, with a seam."""
        x, y = top
        wide = half_width * self.tall
        high = height * self.tall
        seam = (x - wide * 0.9, y + high * 0.3, x + wide * 0.9, y + high * 0.36)
        self.pen.rounded_rectangle((x - wide, y, x + wide, y + high), radius=2, fill=fill)
        self.pen.rectangle(seam, fill=shade(fill, 0.7))

    # The drawing

    def draw(self):
        """Far things first."""
        facing = self.cos > 0
        far_leg, near_leg = sorted((LEFT, RIGHT), key=lambda side: self.nearness(self.legs[side][2]))
        far_arm, near_arm = sorted((LEFT, RIGHT), key=lambda side: self.nearness(self.arms[side][2]))
        both_arms_behind = self.nearness(self.arms[near_arm][2]) < 0

        if facing:
            self.draw_backpack()
            self.draw_hanging_hair()
        self.draw_leg(far_leg, 0.86 if self.profile else 1)
        self.draw_leg(near_leg, 1)
        self.draw_skirt_or_seat()

        self.draw_arm(far_arm, 0.84 if self.profile else 0.92)
        if both_arms_behind:
            self.draw_arm(near_arm, 0.92)
        self.draw_coat()
        if not both_arms_behind:
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
        hip, knee, ankle = self.points(self.legs[side])
        thick = self.body.limb * 1.75
        skin = shade(self.paint["skin"], light)
        self.taper([hip, knee, ankle], [thick, thick * 0.8, thick * 0.55], skin)

        cloth = shade(self.paint["trousers"], light)
        kind = self.wears["trousers length"]
        if kind == "trousers":
            self.taper([hip, knee, ankle], [thick * 1.12, thick * 0.98, thick * 0.85], cloth)
        elif kind == "shorts trousers":
            self.taper([hip, between(hip, knee, 0.85)], [thick * 1.15, thick * 1.1], cloth)
        self.draw_shoe(side, light)

    def draw_shoe(self, side, light):
        kind = self.wears["shoes style"]
        colour = shade(self.paint["shoes"], light)
        thick = self.body.limb * 0.8 + 0.008

        x, y, z = self.legs[side][2]
        heel = self.at(x, y - 0.015, z - 0.008)
        toe_x, toe_y = self.at(x * 1.15, y - 0.017, z + 0.065)
        toe = (toe_x, toe_y + 0.012 * self.tall * max(0, self.cos))  # seen from above by who stands in front
        drop = thick * 0.7 * self.tall
        sole = [(heel[0], heel[1] + drop), (toe[0], toe[1] + drop)]

        if kind == "sandal":  # a bare foot, a sole and a strap
            self.taper([heel, toe], [thick * 0.85, thick * 0.8], self.paint["skin"])
            self.line(sole, thick * 0.5, colour)
            self.disc(between(heel, toe, 0.5), thick * 0.7, colour)
            return

        tip = thick * 0.7 if kind == "leather shoes" else thick
        self.taper([heel, toe], [thick, tip], colour)
        if kind == "boots":
            shaft = [heel, self.at(x, y, z), self.at(x, 0.12, z * 0.88)]
            self.taper(shaft, [thick, thick, thick * 1.25], colour)
        elif kind == "walking shoes":  # a sole in contrast
            self.line(sole, 0.007, (225, 225, 225) if sum(colour) < 560 else (90, 90, 90))

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
        shoulder, elbow, hand = self.points(self.arms[side])
        thick = self.body.limb
        skin = shade(self.paint["skin"], light)
        self.taper([shoulder, elbow, hand], [thick * 1.05, thick * 0.85, thick * 0.7], skin)

        cloth = shade(self.paint["sleeve"], light)
        loose = thick + self.cloth * 0.7
        if self.wears["coat length"] == "long sleeve coat":
            self.taper([shoulder, elbow, hand], [loose * 1.1, loose, loose * 0.9], cloth)
        elif self.wears["coat length"] == "short sleeve coat":
            self.taper([shoulder, between(shoulder, elbow, 0.75)], [loose * 1.15, loose * 1.2], cloth)

        fist = between(elbow, hand, 1.16)
        self.disc(fist, thick, skin)
        if self.wears["glove"] == "with glove" and skin:
            self.taper([hand, fist], [thick * 1.1, thick * 1.25], self.paint["things"])

    def draw_coat(self):
        body = self.body
        cloth = self.paint["coat"]
        skin = self.paint["skin"]
        neck = self.at(0, *self.spine(0.93))
        self.line([neck, self.head], body.limb * 1.2 + 0.008, shade(skin, 0.88))

        # The silhouette from the hem, which flares, to the shoulders.
        hem_below_hips = -0.035
        flare = 1.03
        if self.style == "dress":
            hem_below_hips = -body.legs * 0.5
            flare = 1.5
        elif self.style == "long coat":
            hem_below_hips = -body.legs * 0.6
            flare = 1.2
        elif self.style == "business suit":
            hem_below_hips = -0.07
        hem = hem_below_hips / self.torso
        width, depth = self.girth(hem)
        levels = [(hem, width * flare, depth * flare), *self.levels(0, 0.2, 0.4, 0.6, 0.8, 0.94, 1.0)]

        if self.wears["coat length"] == "bareback coat":  # bare shoulders and two straps
            self.band(levels[-3:], skin)
            levels = levels[:-2]
            for x in (-0.5 * body.shoulders, 0.5 * body.shoulders):
                self.line([self.chest(0.78, x), self.chest(0.97, x)], 0.012, cloth)

        self.band(levels, cloth)
        self.band(levels[:-1], shade(cloth, SHADOW), left=0.52)

        # Waistbands, stripes and belts, which go all around; then what only the front has.
        dark = shade(cloth, 0.6) if sum(cloth) > 150 else (96, 96, 102)
        if self.style in ("jacket", "sweater"):
            self.belt(hem, hem + 0.07, dark)
        if self.style == "sweater":
            for t in STRIPES[self.pattern]:
                self.belt(t, t + 0.08, self.paint["accent"])
        elif self.style == "dress":
            self.belt(0.33, 0.41, self.paint["accent"])
        elif self.style == "long coat":
            self.belt(0.33, 0.41, dark)
        if self.cos > 0.25:
            self.draw_coat_front(hem, dark)

    def draw_coat_front(self, hem, dark):
        """Collars, zips, buttons, ties and prints."""
        accent = self.paint["accent"]
        metal = self.paint["metal"]
        at = self.chest

        if self.style in ("t-shirt", "dress", "sweater"):  # the neckline
            self.disc(at(1.0), 0.026, self.paint["skin"])

        if self.style == "t-shirt":  # a print: a spot, a drop or a band
            if self.pattern == 0:
                self.disc(at(0.62), 0.042, accent)
            elif self.pattern == 1:
                self.taper([at(0.52), at(0.7)], [0.042, 0.035], accent)
            else:
                self.belt(0.52, 0.68, accent)

        elif self.style == "shirt":  # a row of buttons and a collar
            self.line([at(0), at(0.95)], 0.004, dark)
            for side in (LEFT, RIGHT):
                self.taper([at(0.93, side * 0.045), at(0.85, side * 0.012)], [0.014, 0.008], accent)

        elif self.style == "jacket":  # a zip, a stand-up collar and two pockets
            self.line([at(hem), at(0.95)], 0.007, metal)
            self.line([at(0.98, -0.055), at(0.98, 0.055)], 0.018, dark)
            for x in (-0.6 * self.body.waist, 0.6 * self.body.waist):
                self.line([at(0.12, x), at(0.28, x)], 0.006, dark)

        elif self.style == "long coat":  # two rows of buttons and lapels
            for x in (-0.028, 0.028):
                for t in BUTTONS:
                    self.disc(at(t, x), 0.01, metal)
            for side in (LEFT, RIGHT):
                self.taper([at(0.85, side * 0.01), at(0.98, side * 0.055)], [0.012, 0.022], dark)

        elif self.style == "business suit":  # a shirt, a tie and lapels
            self.pen.polygon([at(0.98, -0.045), at(0.98, 0.045), at(0.45)], fill=self.paint["linen"])
            self.line([at(0.5), at(0.93)], 0.012, accent if min(accent) < 200 else dark)
            for side in (LEFT, RIGHT):
                self.line([at(0.98, side * 0.05), at(0.45, side * 0.004)], 0.008, dark)

    # Head

    def draw_hanging_hair(self):
        """Hair that hangs below the head: behind the trunk when seen from the front, over it from behind."""
        body = self.body
        hair = shade(self.paint["hair"], 0.9)
        x, y = self.head
        half = self.head_ry
        back = self.sin * half * body.face
        end = y + half * body.hair_length

        if body.hair_style in ("bob", "long"):
            wide = half * body.face * body.volume * (1.08 - 0.25 * abs(self.sin))
            middle = x - back * 0.45
            fall = (middle - wide, y - half * 0.5, middle + wide, end)
            self.pen.rounded_rectangle(fall, radius=half * 0.45, fill=hair)
        elif body.hair_style == "ponytail":
            tail = [
                (x - back, y - half * 0.35),
                (x - back * 1.5, y + half * 0.3),
                (x - back * 1.4, end),
            ]
            self.taper(tail, [body.head * 0.12, body.head * 0.15, body.head * 0.06], hair)

    def draw_head(self):
        """The skull, hair or a hat on it and, unless it is turned away, the face."""
        x, y = self.head
        skull = (x - self.head_rx, y - self.head_ry, x + self.head_rx, y + self.head_ry)
        face_shows = self.cos > -0.25

        self.pen.ellipse(skull, fill=self.paint["skin"])
        if self.body.hair_style != "bald":
            self.draw_hair(face_shows)
        if face_shows:
            self.draw_face()
        if self.wears["cap style"] == "with hat":
            self.draw_hat()

    def draw_hair(self, face_shows):
        body = self.body
        hair = self.paint["hair"]
        skin = self.paint["skin"]
        x, y = self.head
        top = y - self.head_ry * body.volume
        bottom = y + self.head_ry
        wide = self.head_rx * body.volume

        # A cap of hair, in degrees: it lies at the back of the head and leaves the face free.
        tilt = -35 * self.sin
        low = 12 + 25 * abs(self.sin) if face_shows else 48
        self.pen.chord((x - wide, top, x + wide, bottom), 180 - low + tilt, 360 + low + tilt, fill=hair)
        if body.hair_style == "bun":
            self.disc((x - self.sin * self.head_rx * 0.8, top), body.head * 0.22, shade(hair, 0.9))

        # The forehead, as far up as the fringe lets see.
        if face_shows:
            middle = x + self.sin * self.head_rx * 0.4
            wide = self.head_rx * (0.84 * max(0, self.cos) + 0.6 * abs(self.sin))
            hairline = y - self.head_ry * (0.78 - 0.7 * body.fringe)
            self.pen.ellipse((middle - wide, hairline, middle + wide, bottom), fill=skin)

    def draw_hat(self):
        hat = self.paint["hat"]
        x, y = self.head
        rx = self.head_rx
        ry = self.head_ry
        crown = (x - rx * 1.14, y - ry * 1.25, x + rx * 1.14, y + ry * 0.5)
        self.pen.chord(crown, 188, 352, fill=hat)

        # The brim sticks out to where a face in profile looks.
        brim = y - ry * 0.42
        side = rx * 1.05 * abs(self.cos)
        peak = x + self.sin * rx * 1.7 if self.profile else x
        self.line([(x - side, brim), (peak, brim), (x + side, brim)], 0.009, shade(hat, 0.75))

    # Face. Each feature sits at its angle on a round head and is drawn when it is turned to the camera.

    def on_face(self, angle, height):
        """A canvas point. angle: radians from the nose; height: down from the middle, in half heads."""
        x, y = self.head
        return x + math.sin(self.pose.yaw + angle) * self.head_rx * 0.92, y + height * self.head_ry

    def is_seen(self, angle):
        return math.cos(self.pose.yaw + angle) > 0.12

    def draw_face(self):
        body = self.body
        paint = self.paint
        if body.beard == "beard":
            self.draw_beard()
        if self.profile:
            self.draw_nose()
        if body.beard == "moustache":
            moustache = [self.on_face(-0.32, 0.42), self.on_face(0, 0.36), self.on_face(0.32, 0.42)]
            self.line(moustache, body.head * 0.06, paint["brow"])
        mouth = [self.on_face(-0.22, 0.62), self.on_face(0.22, 0.62)]
        self.line(mouth, body.head * 0.035, paint["lips"])

        sunglasses = not body.glasses and self.wears["glass style"] == "with sunglasses"
        for angle in (-0.45, 0.45):
            if self.is_seen(angle):
                self.draw_eye(angle, sunglasses)
        if body.glasses or sunglasses:
            self.draw_frame()

    def draw_beard(self):
        x, y = self.head
        middle = x + self.sin * self.head_rx * 0.3
        wide = self.head_rx * (0.95 - 0.25 * abs(self.sin))
        beard = (middle - wide, y - self.head_ry * 0.7, middle + wide, y + self.head_ry * 1.12)
        self.pen.chord(beard, 12, 168, fill=self.paint["brow"])

    def draw_nose(self):
        x, y = self.head
        forward = math.copysign(self.head_rx, self.sin)
        nose = [(x + forward * out, y + self.head_ry * down) for out, down in NOSE]
        self.pen.polygon(nose, fill=self.paint["skin"])

    def draw_eye(self, angle, sunglasses):
        """Brow, white and pupil; sunglasses are one large pupil, other glasses a ring."""
        head = self.body.head
        brow = [self.on_face(angle - 0.16, -0.24), self.on_face(angle + 0.16, -0.24)]
        self.line(brow, head * 0.035 * self.body.brow, self.paint["brow"])

        eye = self.on_face(angle, 0.02)
        self.disc(eye, head * 0.065, (245, 245, 245))
        self.disc(eye, head * (0.14 if sunglasses else 0.045), self.paint["frame"])
        if self.body.glasses:
            x, y = eye
            r = head * 0.13 * self.tall
            self.pen.ellipse((x - r, y - r, x + r, y + r), outline=self.paint["frame"], width=2)

    def draw_frame(self):
        """The bridge and the temples of glasses."""
        for start, end in ((-0.1, 0.1), (-1.4, -0.75), (0.75, 1.4)):
            if self.is_seen(start) and self.is_seen(end):
                rod = [self.on_face(start, 0), self.on_face(end, 0)]
                self.line(rod, self.body.head * 0.025, self.paint["frame"])

    # What somebody carries

    def has_backpack(self):
        return self.paint["bag"] is not None and self.wears["bag style"] == "backpack"

    def draw_backpack(self):
        if not self.has_backpack():
            return
        bag = self.paint["bag"]
        y, z = self.spine(0.5)
        _, depth = self.girth(0.5)
        x, y = self.at(0, y, z - depth - 0.035)
        wide = math.hypot(0.1 * self.cos, 0.055 * self.sin) * self.tall
        high = self.torso * 0.42 * self.tall
        self.pen.rounded_rectangle((x - wide, y - high, x + wide, y + high), radius=wide * 0.4, fill=bag)

        pocket = (x - wide * 0.65, y, x + wide * 0.65, y + high * 0.7)
        self.pen.rounded_rectangle(pocket, radius=wide * 0.2, fill=shade(bag, 0.7))

    def draw_backpack_straps(self):
        if not self.has_backpack():
            return
        for x in (-0.065, 0.065):
            strap = [self.chest(0.98, x), self.chest(0.7, x), self.chest(0.35, x)]
            self.line(strap, 0.011, self.paint["bag"])

    def draw_bag(self):
        """A bag that is not a backpack: at the waist, at the hip or in a hand."""
        body = self.body
        kind = self.wears["bag style"]
        bag = self.paint["bag"]
        dark = shade(bag, 0.7)
        x, y, z = self.arms[RIGHT][2]

        if kind == "waist pack":
            self.belt(0.12, 0.17, dark)
            if self.cos > 0:
                self.box(self.chest(0.2), 0.03 + 0.03 * self.cos, 0.056, bag)
        elif kind == "shoulder bag":
            strap = [self.chest(0.97, -body.shoulders * 0.6), self.chest(0.08, body.hips)]
            self.line(strap, 0.009, dark)
            self.box(self.at(body.hips + 0.02, body.legs - 0.02, 0), 0.055, 0.085, bag)
        elif kind == "hand bag":
            self.taper([self.at(x, y, z), self.at(x, y - 0.05, z)], [0.012, 0.03], dark)
            self.box(self.at(x, y - 0.05, z), 0.06, 0.09, bag)
        elif kind == "trolley":
            self.line([self.at(x, y, z), self.at(x + 0.05, 0.24, z - 0.08)], 0.008, dark)
            self.box(self.at(x + 0.06, 0.25, z - 0.1), 0.075, 0.24, bag)

    def draw_umbrella(self):
        """A folded one, in the hand that carries no bag."""
        if self.wears["umbrella"] != "with umbrella":
            return
        x, y, z = self.arms[LEFT][2]
        handle = self.at(x, y + 0.05, z)
        middle = self.at(x, y - 0.08, z + 0.03)
        tip = self.at(x, max(0.01, y - 0.36), z + 0.1)
        self.taper([handle, middle, tip], [0.01, 0.032, 0.006], self.paint["things"])
