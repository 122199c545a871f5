from dolls import make_toy, provide

__all__ = ["make_toy", "provide"]
