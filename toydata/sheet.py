"""A contact sheet of people, outfits, cameras and infrared."""

import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from instructions import describe
from toydata import jobs_of
from toydata.cameras import CLOTHES_SIZE, HEIGHT, WIDTH, template

CELL_WIDTH = WIDTH + 4
CELL_HEIGHT = HEIGHT + 4
GROUP = 4 * CELL_WIDTH + 14  # an outfit: its shop picture above a crop, and three photographs
CROP_TOP = CLOTHES_SIZE[1] + 4  # below the shop picture
LABEL = 20  # height of a line of text
MARGIN = 4
DARK_GREY = (40, 40, 40)
GREY = (90, 90, 90)
TITLES = ("one outfit: shop picture, crop, three cameras", "another", "a third", "infrared")


def contact_sheet(seed=0, rows=6):
    """An Image with a person per row: three outfits, then infrared.

    Each outfit has three photographs, its shop picture and a crop. Below each row is the
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

    people = jobs_of("real2", Path(), 4 * rows, seed)  # a quarter of them are test people
    for row, job in enumerate(people):
        job.rng = random.Random(f"{seed}:sheet {row}")
        top = LABEL + row * (CELL_HEIGHT + LABEL)

        for outfit, worn in enumerate(job.outfits):
            left = MARGIN + outfit * GROUP
            shots = [job.shoot(outfit, cam) for cam in job.rng.sample(range(1, 12), 3)]
            sheet.paste(template(worn), (left, top))
            sheet.paste(shots[0].crop(), (left, top + CROP_TOP))
            for k, shot in enumerate(shots, 1):
                sheet.paste(shot.picture(), (left + k * CELL_WIDTH, top))
            if outfit == 0:
                sentence = describe(shots[0].attributes, job.rng)
                pen.text((left, top + CELL_HEIGHT - 1), sentence, GREY, font)

        for outfit in range(2):
            left = MARGIN + 3 * GROUP + outfit * CELL_WIDTH
            shot = job.shoot(outfit, job.rng.randint(1, 11), infrared=True)
            sheet.paste(shot.picture(), (left, top))
    return sheet
