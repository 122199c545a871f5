"""Positions of the parts of a person in a pose, in body coordinates and on the canvas."""

import math
from typing import NamedTuple

from toydata.people import between

# sides as seen from the front
LEFT = -1
RIGHT = 1


class Cut(NamedTuple):
    """The shape of a coat. Lengths are shares of the height of its wearer."""
    cloth: float = 0.003  # thickness
    drop: float = 0.035  # of the hem below the hips
    legs: float = 0  # shares of the legs that the hem lies lower still
    flare: float = 1.03  # width at the hem over the width of the body there


CUTS = {  # coat style -> Cut; other styles have the default
    "business suit": Cut(0.006, 0.07),
    "dress": Cut(drop=0, legs=0.5, flare=1.5),
    "jacket": Cut(0.012),
    "long coat": Cut(0.014, 0, 0.6, 1.2),
    "sweater": Cut(0.008),
}


class Pose(NamedTuple):
    yaw: float  # radians, 0 = facing the camera, pi / 2 = facing right
    stride: float  # swing of arms and legs, in radians
    x: float  # where the feet are on the canvas
    ground: float
    scale: float  # pixels per cm
    spread: float  # arms away from the body, in radians


class Figure:
    """A body in clothes and in a pose.

    Body coordinates: x across (positive on the side RIGHT), y up from the ground, z forward, in
    shares of the height. A joint is (x, y, z), a point on the canvas is the complex number x + yj,
    y downwards. Heights on the trunk are levels t: 0 at the hips, 1 at the shoulders, below 0
    towards the knees.
    """

    def __init__(self, body, coat_style, pose):
        self.body = body
        self.pose = pose
        self.style = coat_style
        self.cut = CUTS.get(coat_style, Cut())

        self.cos = math.cos(pose.yaw)
        self.sin = math.sin(pose.yaw)
        self.profile = abs(self.sin) > 0.5
        self.tall = body.height * pose.scale  # pixels from sole to crown
        self.torso = 1 - body.head - body.neck - body.legs
        self.hem = -(self.cut.drop + self.cut.legs * body.legs) / self.torso  # level of the coat's

        self.arms = {LEFT: self.arm(LEFT), RIGHT: self.arm(RIGHT)}
        self.legs = {LEFT: self.leg(LEFT), RIGHT: self.leg(RIGHT)}
        self.place_head()

    def at(self, x, y, z):
        """Body coordinates -> canvas."""
        right = x * self.cos + z * self.sin
        return complex(self.pose.x + right * self.tall, self.pose.ground - y * self.tall)

    def points(self, joints):
        return [self.at(*joint) for joint in joints]

    def nearness(self, joint):
        """The distance in front of the middle of the body, as seen by the camera."""
        x, _, z = joint
        return z * self.cos - x * self.sin

    def far_to_near(self, limbs):
        """The sides in the order in which their limbs are drawn. limbs: side -> joints."""
        return sorted(limbs, key=lambda side: self.nearness(limbs[side][-1]))

    # The trunk

    def spine(self, t):
        """(x, y, z) of the back at a level; below the hips it hangs straight down."""
        lean = self.body.stoop if t > 0 else 0
        y = self.body.legs + t * self.torso * math.cos(lean)
        z = t * self.torso * math.sin(lean)
        return 0, y, z

    def girth(self, t):
        """Half width and half depth of the clothed trunk at a level."""
        body = self.body
        knots = (
            # level, half width, half depth
            (0, body.hips, 0.062 + 0.3 * body.belly),
            (0.4, body.waist, body.belly),
            (0.8, body.shoulders * 0.88, 0.04 + 0.4 * body.belly),
            (0.94, body.shoulders * 0.95, 0.05),
            (1, body.shoulders * 0.55, 0.035),
        )

        t = min(max(t, 0), 1)
        for (low, *below), (high, *above) in zip(knots, knots[1:]):
            if t <= high:
                width, depth = between(below, above, (t - low) / (high - low))
                return width + self.cut.cloth, depth + self.cut.cloth

    def levels(self, *heights):
        """(t, half width, half depth) of the trunk at each height t."""
        return [(t, *self.girth(t)) for t in heights]

    def outline(self, levels, edge):
        """Canvas points of the trunk's silhouette; edge: LEFT, RIGHT or between them."""
        points = []
        for t, width, depth in levels:
            half = math.hypot(width * self.cos, depth * self.sin) * self.tall
            points.append(self.at(*self.spine(t)) + half * edge)
        return points

    def chest(self, t, x=0.0):
        """A canvas point in the middle of the chest or, seen from behind, of the back."""
        _, depth = self.girth(t)
        _, y, z = self.spine(t)
        return self.at(x, y, z + math.copysign(depth, self.cos) * 0.92)

    # Limbs and head

    def arm(self, side):
        """Shoulder, elbow, hand in body coordinates."""
        body = self.body
        swing = -side * self.pose.stride * 0.9 + 0.06
        spread = self.pose.spread

        _, y, z = self.spine(0.89)
        x = side * (body.shoulders + self.cut.cloth - body.limb * 0.4)
        joints = [(x, y, z)]
        for share, bend in ((0.48, 0), (0.52, 0.22)):  # the forearm is bent forward a little
            x += side * math.sin(spread) * body.arms * share
            y -= math.cos(swing) * body.arms * share
            z += math.sin(swing + bend) * body.arms * share
            joints.append((x, y, z))
        return joints

    def leg(self, side):
        """Hip, knee, ankle in body coordinates."""
        body = self.body
        hip_x = body.hips * 0.52
        foot_x = max(body.stance, body.limb * 1.3)
        foot_z = math.sin(side * self.pose.stride) * body.legs
        knee_z = foot_z / 2 + abs(foot_z) * 0.12  # knees bend forward
        lift = max(0, -foot_z) * 0.04 * abs(self.sin)  # of the hind heel, as a profile shows it
        return [
            (side * hip_x, body.legs, 0),
            (side * (hip_x + foot_x) / 2, body.legs / 2, knee_z),
            (side * foot_x, 0.035 + lift, foot_z),
        ]

    def place_head(self):
        """The middle of the head on the canvas and half its width and height in pixels."""
        body = self.body
        lean = body.stoop * 1.3
        reach = body.neck + body.head / 2
        _, y, z = self.spine(1.0)
        self.head = self.at(0, y + reach * math.cos(lean), z + reach * math.sin(lean) + 0.01)

        self.head_ry = body.head / 2 * self.tall
        width = self.head_ry * body.face * self.cos
        depth = self.head_ry * body.face * 1.1 * self.sin
        self.head_rx = math.hypot(width, depth)

    def on_face(self, angle, height):
        """A canvas point on a round head.

        angle: radians from the nose; height: below the middle, in half heads.
        """
        across = math.sin(self.pose.yaw + angle) * self.head_rx * 0.92
        return self.head + complex(across, height * self.head_ry)

    def face_shows(self, angle):
        """Whether that part of the face is turned to the camera."""
        return math.cos(self.pose.yaw + angle) > 0.12

    # Clothes

    def clothes_box(self):
        """Left, top, right, bottom of the worn clothes on the canvas, shoulders to soles."""
        trunk = self.levels(0, 0.4, 0.94)
        points = []
        for side in (LEFT, RIGHT):
            points += self.points(self.arms[side] + self.legs[side])
            points += self.outline(trunk, side)
        xs = [point.real for point in points]

        edge = self.body.limb * self.tall
        top = self.at(*self.spine(1.03)).imag
        return min(xs) - edge, top, max(xs) + edge, self.pose.ground + 1


def around(point, half_width, top, bottom):
    """The box on the canvas around a point; top and bottom are measured downwards from it."""
    left = point.real - half_width
    right = point.real + half_width
    return left, point.imag + top, right, point.imag + bottom
