"""A failing test says what to look at: which of the usual mistakes gives what was found."""

import torch


def close(found, expected, tolerance):
    return found.shape == expected.shape and (found - expected).abs().max().item() <= tolerance


def explain(found, expected, mistakes, tolerance):
    """Words for a failing test. mistakes: {what is wrong: the tensor that it would give}."""
    for words, wrong in mistakes.items():
        if close(found, wrong, tolerance):
            return words
    if found.shape != expected.shape:
        return f"the shape is {tuple(found.shape)}, expected {tuple(expected.shape)}"

    if found.ndim == 0:
        words = f"it is {found.item():.6g}, expected {expected.item():.6g}"
    else:
        largest = (found - expected).abs().max().item()
        words = f"the largest difference is {largest:.2g}"
    if mistakes:
        words += ", and the reason is none of these: " + "; ".join(mistakes)
    return words


def assert_close(found, expected, mistakes, tolerance=1e-5, what=""):
    """found equals expected, or the test fails with the words of the mistake that explains it.

    what: the name of the thing that is compared, which the words begin with.
    """
    with torch.no_grad():
        prefix = f"{what}: " if what else ""
        assert close(found, expected, tolerance), (
            prefix + explain(found, expected, mistakes, tolerance))
