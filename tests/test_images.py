"""Images as they are decoded."""

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from reid.cli import UserError
from reid.images import is_image, load_image, normalise


def test_what_counts_as_an_image():
    assert all(map(is_image, ("a.jpg", "b/c.JPG", "x.jfif", "x.WebP", "x.tiff")))
    assert not any(map(is_image, ("Thumbs.db", "b/._a.jpg", "a.jpg.txt", "jpg", "a.json", "a.pdf")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.9])
def test_an_image_that_is_cut_short(kind, share, tmp_path):
    path = tmp_path / "x.jpg"
    Image.effect_noise((32, 64), 60).convert("RGB").save(path, kind)
    assert load_image(path, (64, 32)).shape == (3, 64, 32)
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="cannot read image .*x.jpg"):
        load_image(path, (64, 32))


def test_no_other_format_no_pipe_and_no_huge_image_is_opened(tmp_path):
    path = tmp_path / "x.png"
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    for name, words in (("pipe", "not a file"), ("loop", "Too many levels"),
                        ("none", "No such file"), (".", "not a file")):
        with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path / name))} \({words}"):
            load_image(tmp_path / name, (64, 32))
    for kind in ("EPS", "PDF", "DDS"):  # Pillow opens EPS with a program
        Image.new("RGB", (8, 8)).save(path, kind)
        with pytest.raises(UserError, match="cannot identify"):
            load_image(path, (64, 32))
    Image.new("1", (8000, 7000)).save(path)
    with pytest.raises(UserError, match="x.png .more than 50000000 pixels"):
        load_image(path, (64, 32))
    Image.new("L", (8000, 7000)).save(path, "JPEG")  # decoded at an eighth
    assert load_image(path, (64, 32)).max() == 0


def test_an_image_keeps_its_orientation_channels_and_detail(tmp_path):
    image = Image.new("RGB", (64, 128), (255, 0, 0))
    image.paste((0, 0, 255), (0, 64, 64, 128))  # red above blue
    image.save(tmp_path / "a.png")
    red, green, blue = load_image(tmp_path / "a.png", (16, 8)).float().mean(2)
    assert red[:7].min() > 250 and blue[9:].min() > 250 and green.max() < 5
    stripes = (torch.arange(512) // 8 % 2 * 255).to(torch.uint8).expand(1024, 512)
    Image.fromarray(stripes.numpy()).save(tmp_path / "grey.jpg")  # decoded at half its size
    assert load_image(tmp_path / "grey.jpg", (256, 128)).float().std() > 90


@pytest.mark.parametrize("kind,dtype", [
    ("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_an_image_of_16_bits_has_the_brightness_of_8(kind, dtype, tmp_path):
    grey = np.arange(64 * 32).reshape(64, 32) % 256
    Image.fromarray((grey * 257).astype(dtype)).save(tmp_path / "x.png", kind)
    assert (load_image(tmp_path / "x.png", (64, 32)).numpy() == grey).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_an_image_is_turned_as_its_exif_says(kind, tmp_path):
    upright = Image.linear_gradient("L").resize((32, 64)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown, it is turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x.jpg", kind, exif=exif)
    pixels = load_image(tmp_path / "x.jpg", (64, 32)).float()
    assert (pixels - torch.tensor(np.array(upright)).permute(2, 0, 1)).abs().max() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode, tmp_path):
    image = Image.new("RGBA", (32, 64), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 64))
    image.convert(mode).save(tmp_path / "x.png")
    pixels = load_image(tmp_path / "x.png", (64, 32))
    assert (pixels[:, :, :16] == 0).all() and (pixels[:, :, 16:] == 255).all()


def test_normalise_has_zero_mean_and_unit_deviation_on_imagenet_pixels():
    pixel = torch.tensor([[0.485, 0.456, 0.406], [0.714, 0.68, 0.631]]) * 255
    out = normalise(pixel.round().to(torch.uint8).view(2, 3, 1, 1)).view(2, 3)
    assert out.dtype == torch.float32
    assert torch.allclose(out, torch.tensor([[0.0], [1.0]]).expand(2, 3), atol=0.01)
