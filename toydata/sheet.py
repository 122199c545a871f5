"""A contact sheet: people, outfits, cameras and infrared at a glance."""

import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from toydata.benchmark import jobs_of
from toydata.cameras import CLOTHES_SIZE, HEIGHT, WIDTH, crop, open_jpeg, template
from instructions import describe

CELL_WIDTH = WIDTH + 4
CELL_HEIGHT = HEIGHT + 4
GROUP = 4 * CELL_WIDTH + 14  # an outfit: its shop picture, above a crop, beside three photographs
CROP_TOP = CLOTHES_SIZE[1] + 4  # below the shop picture
LABEL = 20  # height of a line of text
MARGIN = 4
DARK_GREY = (40, 40, 40)
GREY = (90, 90, 90)
TITLES = ("one outfit: shop picture, crop, three cameras", "another", "a third", "infrared")


def contact_sheet(seed=0, rows=6):
    """An Image with a person per row: three outfits, then infrared.

    Each outfit is seen three times, beside its shop picture and a crop. Under each row stands the
    description of its first picture.
    """
    width = MARGIN + 3 * GROUP + 2 * CELL_WIDTH
    height = LABEL + rows * (CELL_HEIGHT + LABEL) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for group, title in enumerate(TITLES):
        left = MARGIN + group * GROUP
        pen.text((left, 4), title, DARK_GREY, font)

    people = jobs_of("real2", Path(), 4 * rows, seed)  # a quarter of them is there to test on
    for row, job in enumerate(people):
        rng = random.Random(f"{seed}:sheet {row}")
        top = LABEL + row * (CELL_HEIGHT + LABEL)

        for outfit, worn in enumerate(job.outfits):
            left = MARGIN + outfit * GROUP
            cams = rng.sample(range(1, 12), 3)
            shots = [job.shoot(outfit, cam, rng) for cam in cams]
            sheet.paste(template(worn), (left, top))
            first = shots[0]
            sheet.paste(crop(first), (left, top + CROP_TOP))
            for k, shot in enumerate(shots, 1):
                picture = open_jpeg(shot.jpeg)
                sheet.paste(picture, (left + k * CELL_WIDTH, top))

            if outfit == 0:
                sentence = describe(first.attributes, rng)
                below = top + CELL_HEIGHT - 1
                pen.text((left, below), sentence, GREY, font)

        left = MARGIN + 3 * GROUP
        for outfit in range(2):
            cam = rng.randint(1, 11)
            shot = job.shoot(outfit, cam, rng, infrared=True)
            picture = open_jpeg(shot.jpeg)
            sheet.paste(picture, (left + outfit * CELL_WIDTH, top))
    return sheet
