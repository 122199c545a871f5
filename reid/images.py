"""Image files as tensors. Letters in shapes: b batch, h w size."""

import functools
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from reid.cli import UserError

ORIENTATION = 0x0112  # the EXIF tag; 1 = as it is stored
DECODERS = 8  # threads
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")  # some others of Pillow run programs
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
PIXELS = 50_000_000  # of a decoded image, 150 MB; there are DECODERS at the same time

# of ImageNet, for person images and pictures of clothes, in training and testing
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def is_image(name):
    """Whether this is the name of an image file; not for the `._name.jpg` that macOS adds."""
    return Path(name).suffix.lower() in SUFFIXES and not Path(name).name.startswith(".")


def load_image(path, size):
    """An image file as a uint8 tensor (3 h w) of `size` (h, w), rotated according to its EXIF data;
    transparent pixels become white."""
    height, width = size
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a file")  # a named pipe would be waited for
        with Image.open(path, formats=FORMATS) as image:
            if image.getexif().get(ORIENTATION, 1) == 1:
                # a JPEG is decoded at 1/2, 1/4 or 1/8, but not below twice `size`
                image.draft("RGB", (2 * width, 2 * height))
            if image.width * image.height > PIXELS:
                raise ValueError(f"more than {PIXELS} pixels")
            ImageOps.exif_transpose(image, in_place=True)
            image = in_rgb(image)
            pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    except Exception as error:  # for unexpected bytes, decoders raise errors of many kinds
        reason = getattr(error, "strerror", None) or error
        fix = "replace the file or take it off its list"
        raise UserError(f"cannot read image {path} ({reason}); {fix}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def load_all(root, paths, size):
    """Image files below `root` as uint8 (b 3 h w)."""
    return torch.stack([load_image(root / path, size) for path in paths])


def batches(root, paths, size, batch):
    """Yields load_all of `batch` paths at a time, in pinned memory if there is a GPU, while threads
    decode the next batch."""
    coming = []
    with ThreadPoolExecutor(DECODERS) as pool:
        for start in range(0, len(paths) + batch, batch):
            some = paths[start:start + batch]
            following = [pool.submit(load_image, root / path, size) for path in some]
            if coming:
                images = torch.stack([image.result() for image in coming])
                yield images.pin_memory() if torch.cuda.is_available() else images
            coming = following


def in_rgb(image):
    """A PIL image of any mode in RGB: 16 bits become 8, and transparent pixels white."""
    if image.mode.startswith("I"):  # convert() would clip it at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def normalise(images):
    """uint8 (b 3 h w) -> float with ImageNet's mean at 0 and its deviation at 1.

    The only way that pixels reach a model.
    """
    mean, std = mean_and_std(images.device)
    return images.float().sub_(mean).div_(std)


@functools.cache
def mean_and_std(device):
    """(3 1 1) each, for pixels from 0 to 255; cached, as a GPU waits when it gets a list."""
    with torch.inference_mode(False):  # training uses them too
        mean = torch.tensor(MEAN, device=device).mul(255).view(3, 1, 1)
        std = torch.tensor(STD, device=device).mul(255).view(3, 1, 1)
    return mean, std
