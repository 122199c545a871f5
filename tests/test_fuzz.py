"""A few rounds of tests/fuzz.py, which says what it does."""

from tests import fuzz


def test_damaged_files_end_in_a_result_or_in_one_line(tmp_path, monkeypatch, usual_signals):
    monkeypatch.chdir(tmp_path)
    fuzz.prepare()
    assert fuzz.fuzz(rounds=2, seed=1) == []
