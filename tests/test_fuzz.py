"""A few rounds of tests/fuzz.py, which says what it does."""

from model import SIZES
from reid import plots
from tests import fuzz
from tests.test_model import TINY


def test_damaged_files_end_in_a_result_or_in_one_line(
        bundled, tmp_path, monkeypatch, usual_signals):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SIZES, "tiny", TINY)
    monkeypatch.setattr(plots, "save", lambda picture, path: picture.save(path))  # soon done
    fuzz.prepare()
    assert fuzz.fuzz(rounds=2, seed=1) == []
