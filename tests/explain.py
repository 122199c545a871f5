"""A failing test says what to look at: which of the usual mistakes gives what was found."""

import torch


def is_close(found, expected, tolerance):
    return found.shape == expected.shape and (found - expected).abs().max().item() <= tolerance


@torch.no_grad()
def assert_close(found, expected, mistakes, tolerance=1e-5, what=""):
    """found equals expected, or the test fails with the words of the mistake that explains it.

    mistakes: {what is wrong: the tensor that it would give}; what: the name of what is compared.
    """
    if is_close(found, expected, tolerance):
        return
    words = f"the shape is {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if found.shape == expected.shape:
        words = f"the largest difference is {(found - expected).abs().max().item():.2g}"
    for mistake, wrong in reversed(mistakes.items()):
        if is_close(found, wrong, tolerance):
            words = mistake
    raise AssertionError(f"{what}: {words}" if what else words)
