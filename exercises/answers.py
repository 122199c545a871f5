"""What a probe answered, as the grader reads it, and Wrong: one sentence for the student."""

import numpy as np
import torch

NO_NUMBER = "NaN or infinity, look for a division by zero or an -inf that meets no number"
KINDS = {"b": "booleans", "i": "integers", "f": "floating-point numbers"}


class Wrong(Exception):
    """One sentence for the student."""


class Answers:
    """What the probe of an exercise answered: {what it is: value}, as JSON gave it."""

    def __init__(self, values):
        self.values = values

    def __getitem__(self, what):
        if what not in self.values:
            raise Wrong(self.values.get("error", f"{what} is missing from the answers"))
        return self.values[what]

    def array(self, what, shape, kind="f"):
        """A tensor as numpy, checked: its shape (None = any length), kind and that it has no NaN.
        """
        value = self[what]
        if isinstance(value, dict) and "type" not in value:
            array = np.array(value["values"], value["dtype"]).reshape(value["shape"])
        elif isinstance(value, (bool, int, float)):
            array = np.array(value)
        else:
            given = value["type"] if isinstance(value, dict) else type(value).__name__
            given = "None (no return?)" if value is None else f"a {given}"
            raise Wrong(f"{what}: {given}, expected a tensor or array of shape {shape}")

        fits = len(array.shape) == len(shape)
        if not fits or any(want not in (None, got) for got, want in zip(array.shape, shape)):
            raise Wrong(f"{what}: the shape {array.shape}, expected {shape}")
        if array.dtype.kind.replace("u", "i") != kind:
            raise Wrong(f"{what}: {array.dtype}, expected {KINDS[kind]}")
        if not np.isfinite(array).all():
            raise Wrong(f"{what}: {NO_NUMBER}")
        return array

    def equal(self, what, expected, otherwise, mistakes=()):
        """Wrong unless an answer equals a tensor, array or number: with the sentence of the mistake
        whose value it equals, {sentence: value}, else with `otherwise`."""
        expected = as_array(expected)
        array = self.array(what, expected.shape, expected.dtype.kind)
        if close(array, expected):
            return
        for sentence, value in dict(mistakes).items():
            if close(array, as_array(value)):
                raise Wrong(sentence)
        raise Wrong(f"{what}: wrong, {otherwise}")


def as_array(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def close(array, expected):
    """float32 arithmetic is right too."""
    return array.shape == expected.shape and np.allclose(array, expected, rtol=1e-4, atol=1e-5)


def demand(right, sentence):
    if not right:
        raise Wrong(sentence)
