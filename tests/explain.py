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
    largest = (found - expected).abs().max().item()
    known = "; ".join(mistakes)
    return f"the largest difference is {largest:.2g}, and the reason is none of these: {known}"


def assert_close(found, expected, mistakes, tolerance=1e-5):
    """found equals expected, or the test fails with the words of the mistake that explains it."""
    with torch.no_grad():
        assert close(found, expected, tolerance), explain(found, expected, mistakes, tolerance)
