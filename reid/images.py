"""Image files as tensors. Letters in shapes: b batch, h w size."""

import functools

import numpy as np
import torch
from PIL import Image

from reid.cli import UserError

# ImageNet's, for person images and instruction pictures, in training and test alike.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def load_image(path, size):
    """An image file as a uint8 tensor (3 h w) of `size` (h, w).

    UserError that names the file if it cannot be read.
    """
    height, width = size
    try:
        with Image.open(path) as image:
            # Lets a JPEG decode at 1/2, 1/4 or 1/8, never below twice `size`.
            image.draft("RGB", (2 * width, 2 * height))
            image = image.convert("RGB")
            pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"cannot read image {path} ({error}); replace the file or take it off its list")
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def normalise(images):
    """uint8 (b 3 h w) -> float with ImageNet's mean at 0 and its deviation at 1.

    The only way that pixels reach a model.
    """
    mean, std = mean_and_std(images.device)
    return images.float().sub_(mean).div_(std)


@functools.cache
def mean_and_std(device):
    """(3 1 1) each, for pixels from 0 to 255; made once, as a GPU waits for every list of numbers.
    """
    with torch.inference_mode(False):  # training uses them too
        mean = torch.tensor(MEAN, device=device).mul(255).view(3, 1, 1)
        std = torch.tensor(STD, device=device).mul(255).view(3, 1, 1)
    return mean, std
