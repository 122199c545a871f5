"""The cameras and their pictures: photographs, crops of clothes, shop pictures."""

import io
import math
import random
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from toydata.drawing import Doll, paints, shade
from toydata.figure import Pose, around
from toydata.people import Body, attributes_of, tint

WIDTH = 64  # of the picture of a person
HEIGHT = 128
CLOTHES_SIZE = (64, 64)  # of crops and shop pictures
ZOOM = 2  # drawn on a canvas this much larger, then averaged down
CANVAS = (WIDTH * ZOOM, HEIGHT * ZOOM)
PIXELS_PER_CM = 0.585  # the same for all: tall people fill more of the frame
DIRECTIONS = (0, math.pi / 2, -math.pi / 2, math.pi)  # front, right, left, back


# Cameras

class Camera(NamedTuple):
    gain: tuple  # per channel: the colour cast
    contrast: float
    offset: float
    blur: float
    quality: int  # of the JPEG
    noise: np.ndarray  # (2 HEIGHT, 2 WIDTH, 3), each picture uses a part
    place: Image.Image  # the background, of which each picture shows a part


@lru_cache(maxsize=None)
def camera(seed, number):
    """The camera `number`.

    All data sets are seen by the same ones, so that only the instruction identifies the task.
    """
    rng = random.Random(f"{seed}:camera {number}")
    noise_rng = np.random.default_rng(rng.getrandbits(64))
    noise = noise_rng.standard_normal((2 * HEIGHT, 2 * WIDTH, 3), np.float32)

    return Camera(
        gain=tuple(rng.uniform(0.93, 1.07) for _ in range(3)),
        contrast=rng.uniform(0.84, 1.08),
        offset=rng.uniform(-14, 14),
        blur=rng.uniform(0, 0.5),
        quality=rng.randint(70, 92),
        noise=noise * np.float32(rng.uniform(2, 7)),
        place=_draw_place(rng),
    )


def _draw_place(rng):
    """A wall with doors, windows and pillars, a floor with lines; lit from an end, blurred."""
    wide = CANVAS[0] * 2
    high = CANVAS[1] + 40
    wall_tone = rng.randint(80, 205)
    floor_tone = rng.randint(70, 190)
    wall = tint((wall_tone,) * 3, 14, rng)
    floor = tint((floor_tone,) * 3, 14, rng)
    horizon = int(high * rng.uniform(0.5, 0.78))

    image = Image.new("RGB", (wide, high), wall)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(3, 7)):  # doors, windows, pillars
        left = rng.randint(-20, wide)
        top = rng.randint(0, horizon)
        colour = tint(wall, 18, rng, light=rng.randint(-40, 40))
        right = left + rng.randint(12, 60)
        bottom = top + rng.randint(30, 150)
        pen.rectangle((left, top, right, bottom), fill=colour)

    pen.rectangle((0, horizon, wide, high), fill=floor)
    for _ in range(rng.randint(0, 3)):  # lines on the floor
        start = rng.randint(0, wide)
        end = start + rng.randint(-120, 120)
        thick = rng.randint(1, 4)
        pen.line((start, horizon, end, high), fill=shade(floor, 0.85), width=thick)

    top_light = rng.uniform(0.85, 1.1)
    bottom_light = rng.uniform(0.85, 1.1)
    light = np.linspace(top_light, bottom_light, high)[:, None, None]
    image = _to_image(np.asarray(image) * light)
    blur = ImageFilter.GaussianBlur(rng.uniform(1, 2.5))
    return image.filter(blur)


def _to_image(pixels):
    pixels = pixels.clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


# Photographs

class Shot(NamedTuple):
    jpeg: bytes
    attributes: dict  # for sentences about it
    box: tuple  # of the worn clothes, in pixels

    def picture(self):
        """The content of the file as an Image (64, 128)."""
        return Image.open(io.BytesIO(self.jpeg))

    def crop(self):
        """The worn clothes, cropped from the picture, (64, 64)."""
        return self.picture().resize(CLOTHES_SIZE, Image.Resampling.BILINEAR, self.box)


def shoot(body, outfit, cam, rng, infrared=False):
    """One picture of a person by a Camera, in a random pose and angle."""
    [direction] = rng.choices(DIRECTIONS, (5, 2, 2, 3))
    yaw = direction + rng.uniform(-0.5, 0.5)

    # The visible part of the background.
    wide, high = CANVAS
    left = rng.randint(0, cam.place.width - wide)
    top = rng.randint(0, cam.place.height - high)
    canvas = cam.place.crop((left, top, left + wide, top + high))
    if infrared:
        canvas = canvas.convert("L").convert("RGB")

    # The person's position: people who stoop in profile must stay inside the frame.
    scale = ZOOM * PIXELS_PER_CM * rng.uniform(0.96, 1.04)
    stoop = math.sin(yaw) * body.stoop * 0.2 * body.height * scale
    pose = Pose(
        x=wide / 2 + rng.uniform(-9, 9) - stoop,
        yaw=yaw,
        stride=rng.uniform(-0.42, 0.42),
        ground=high - rng.uniform(3, 12),
        scale=scale,
        spread=rng.uniform(0.06, 0.24),
    )

    floor = canvas.getpixel((4, canvas.height - 4))
    shadow = around(complex(pose.x, pose.ground), 0.16 * body.height * scale, -6, 4)
    ImageDraw.Draw(canvas).ellipse(shadow, fill=shade(floor, 0.72))
    doll = Doll(canvas, body, outfit, paints(body, outfit, infrared), pose)
    doll.draw()
    if rng.random() < 0.1:
        _occlude(canvas, rng)

    limits = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    pixels = [round(edge / ZOOM) for edge in doll.clothes_box()]
    return Shot(
        jpeg=_photograph(canvas.reduce(ZOOM), cam, rng, infrared),
        attributes=attributes_of(body, outfit, yaw),
        box=tuple(min(limit, max(0, pixel)) for pixel, limit in zip(pixels, limits)),
    )


def _occlude(canvas, rng):
    """A pillar at one side or something low in front."""
    wide, high = canvas.size
    x = rng.choice((0.12, 0.88)) * wide
    pillar = (x - 12, 0, x + 12, high)
    low_left = rng.randint(-60, 20)
    low_top = high - rng.randint(16, 46)
    low = (low_left, low_top, rng.randint(wide - 50, wide + 40), high)

    box = rng.choice((pillar, low))
    grey = rng.randint(60, 190)
    ImageDraw.Draw(canvas).rectangle(box, fill=(grey, grey, grey))


def _photograph(image, cam, rng, infrared):
    """Lens, sensor and JPEG of a camera. Returns the file's bytes."""
    top = rng.randrange(HEIGHT)
    left = rng.randrange(WIDTH)
    noise = cam.noise[top:top + HEIGHT, left:left + WIDTH]
    gain = np.float32(cam.gain)
    if infrared:  # one channel, and more noise
        noise = noise[..., :1] * np.float32(1.3)
        gain = np.float32([sum(cam.gain) / 3])

    blurred = image.filter(ImageFilter.BoxBlur(cam.blur))
    light = 128 * (1 - cam.contrast) + cam.offset + rng.uniform(-7, 7)
    pixels = np.asarray(blurred, np.float32)
    pixels = pixels * np.float32(cam.contrast) + np.float32(light)

    file = io.BytesIO()
    _to_image(pixels * gain + noise).save(file, "JPEG", quality=cam.quality)
    return file.getvalue()


# Shop pictures

def template(outfit):
    """A shop's picture of the clothes alone: front, flat, on white, (64, 64)."""
    wide, high = CANVAS
    canvas = Image.new("RGB", CANVAS, (255, 255, 255))
    pose = Pose(0, 0, wide / 2, high - 8, scale=ZOOM * PIXELS_PER_CM, spread=0.3)
    things = {"bag style": "without bag", "glove": "without glove", "umbrella": "without umbrella"}
    clothes = replace(outfit, attributes=outfit.attributes | things)

    mannequin = Body()
    paint = paints(mannequin, clothes)
    paint["linen"] = (226, 226, 226)  # a white shirt would not show on white
    doll = Doll(canvas, mannequin, clothes, paint, pose)
    doll.draw()
    return canvas.resize(CLOTHES_SIZE, Image.Resampling.BOX, doll.clothes_box())
