"""Where the parts of a person in a pose are: in body coordinates and on the canvas."""

import math
from typing import NamedTuple

# sides as seen from the front
LEFT = -1
RIGHT = 1

CLOTH_THICKNESS = {
    "business suit": 0.006,
    "jacket": 0.012,
    "long coat": 0.014,
    "sweater": 0.008,
}  # coat style -> share of the height
THIN_CLOTH = 0.003  # of other styles


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
    shares of the height. A joint is (x, y, z), a point is (x, y) on the canvas. Heights on the
    trunk are levels t: 0 at the hips, 1 at the shoulders, below 0 towards the knees.
    """

    def __init__(self, body, coat_style, pose):
        self.body = body
        self.pose = pose
        self.cloth = CLOTH_THICKNESS.get(coat_style, THIN_CLOTH)

        self.cos = math.cos(pose.yaw)
        self.sin = math.sin(pose.yaw)
        self.profile = abs(self.sin) > 0.5
        self.tall = body.height * pose.scale  # pixels from sole to crown
        self.torso = 1 - body.head - body.neck - body.legs

        self.arms = {LEFT: self.arm(LEFT), RIGHT: self.arm(RIGHT)}
        self.legs = {LEFT: self.leg(LEFT), RIGHT: self.leg(RIGHT)}
        self.place_head()

    def at(self, x, y, z):
        """Body coordinates -> canvas."""
        right = x * self.cos + z * self.sin
        canvas_x = self.pose.x + right * self.tall
        canvas_y = self.pose.ground - y * self.tall
        return canvas_x, canvas_y

    def points(self, joints):
        return [self.at(*joint) for joint in joints]

    def nearness(self, joint):
        """How far in front of the middle of the body, as the camera sees it."""
        x, _, z = joint
        return z * self.cos - x * self.sin

    def far_to_near(self, limbs):
        """The sides in the order in which their limbs are drawn. limbs: side -> joints."""
        return sorted(limbs, key=lambda side: self.nearness(limbs[side][-1]))

    # The trunk

    def spine(self, t):
        """(y, z) of the back at a level; below the hips it hangs straight down."""
        lean = self.body.stoop if t > 0 else 0
        y = self.body.legs + t * self.torso * math.cos(lean)
        z = t * self.torso * math.sin(lean)
        return y, z

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
        for (t0, width0, depth0), (t1, width1, depth1) in zip(knots, knots[1:]):
            if t <= t1:
                break
        share = (t - t0) / (t1 - t0)

        width = width0 + share * (width1 - width0) + self.cloth
        depth = depth0 + share * (depth1 - depth0) + self.cloth
        return width, depth

    def levels(self, *heights):
        """(t, half width, half depth) of the trunk at each height t."""
        return [(t, *self.girth(t)) for t in heights]

    def outline(self, levels, edge):
        """Canvas points of the trunk's silhouette; edge: LEFT, RIGHT or between them."""
        points = []
        for t, width, depth in levels:
            y, z = self.spine(t)
            x, y = self.at(0, y, z)
            half = math.hypot(width * self.cos, depth * self.sin) * self.tall
            points.append((x + half * edge, y))
        return points

    def chest(self, t, x=0.0):
        """A canvas point on the middle of the chest, or of the back for somebody who turns it."""
        _, depth = self.girth(t)
        front = math.copysign(depth, self.cos) * 0.92
        y, z = self.spine(t)
        return self.at(x, y, z + front)

    # Limbs and head

    def arm(self, side):
        """Shoulder, elbow, hand in body coordinates."""
        body = self.body
        swing = -side * self.pose.stride * 0.9 + 0.06
        spread = self.pose.spread

        shoulder = body.shoulders + self.cloth - body.limb * 0.4
        x = side * shoulder
        y, z = self.spine(0.89)
        joints = [(x, y, z)]

        # The forearm is bent forward a little.
        for share, bend in ((0.48, 0), (0.52, 0.22)):
            x = x + side * math.sin(spread) * body.arms * share
            y = y - math.cos(swing) * body.arms * share
            z = z + math.sin(swing + bend) * body.arms * share
            joints.append((x, y, z))
        return joints

    def leg(self, side):
        """Hip, knee, ankle in body coordinates."""
        body = self.body
        hip_x = body.hips * 0.52
        foot_x = max(body.stance, body.limb * 1.3)
        foot_z = math.sin(side * self.pose.stride) * body.legs
        lift = max(0, -foot_z) * 0.04 * abs(self.sin)  # of the hind heel, as a profile shows it
        foot_y = 0.035 + lift

        hip = (side * hip_x, body.legs, 0)
        knee_x = side * (hip_x + foot_x) / 2
        knee_z = foot_z / 2 + abs(foot_z) * 0.12  # knees bend forward
        knee = (knee_x, body.legs / 2, knee_z)
        ankle = (side * foot_x, foot_y, foot_z)
        return [hip, knee, ankle]

    def place_head(self):
        """The middle of the head on the canvas and half its width and height in pixels."""
        body = self.body
        lean = body.stoop * 1.3
        reach = body.neck + body.head / 2
        y, z = self.spine(1.0)
        y = y + reach * math.cos(lean)
        z = z + reach * math.sin(lean) + 0.01
        self.head = self.at(0, y, z)

        self.head_ry = body.head / 2 * self.tall
        width = self.head_ry * body.face * self.cos
        depth = self.head_ry * body.face * 1.1 * self.sin
        self.head_rx = math.hypot(width, depth)

    def on_face(self, angle, height):
        """A canvas point on a round head.

        angle: radians from the nose; height: below the middle, in half heads.
        """
        x, y = self.head
        turn = self.pose.yaw + angle
        across = math.sin(turn) * self.head_rx * 0.92
        return x + across, y + height * self.head_ry

    def face_shows(self, angle):
        """Whether that part of the face is turned to the camera."""
        return math.cos(self.pose.yaw + angle) > 0.12

    # Clothes

    def clothes_box(self):
        """Left, top, right, bottom of the worn clothes on the canvas, shoulders to soles."""
        trunk = self.levels(0, 0.4, 0.94)
        points = []
        for side in (LEFT, RIGHT):
            points += self.points(self.arms[side])
            points += self.points(self.legs[side])
            points += self.outline(trunk, side)
        xs = [x for x, _ in points]

        edge = self.body.limb * self.tall
        neck, _ = self.spine(1.03)
        _, top = self.at(0, neck, 0)
        left = min(xs) - edge
        right = max(xs) + edge
        return left, top, right, self.pose.ground + 1
