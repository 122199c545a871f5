"""Tests run on the CPU, on one thread, from the repository's root."""

import os
import signal
import string
import sys
import tempfile
from pathlib import Path

import pytest
import torch

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the processes that tests fork could not use a GPU
sys.path.insert(0, str(Path(__file__).parents[1]))
torch.set_num_threads(1)  # several threads on busy cores wait for each other

import toydata  # noqa: E402
from tests.commands import call  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """What tests and the processes that they start leave in the temporary folder goes with the
    folder of the tests."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A few drawn people; tests do not write into their folder."""
    folder = tmp_path_factory.mktemp("world") / "toy"
    toydata.make_toy(folder, people=16, seed=0)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """The folder of a BERT of a few thousand weights that spells words letter by letter, for
    --text-model."""
    from transformers import BertConfig, BertModel  # it takes seconds

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    letters = list(string.ascii_lowercase)
    inner = [f"##{letter}" for letter in letters]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *inner]
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2,
                        num_attention_heads=4, intermediate_size=48, initializer_range=0.3)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(module, *flags) -> (exit code, stdout, stderr), in this process, in an empty folder.
    """
    monkeypatch.chdir(tmp_path)

    def run(module, *flags):
        code = call(module, *flags)
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def train_tiny(drawn, bert, command, monkeypatch):
    """train_tiny(*flags) -> what `command` gives of train.py on drawn people, with a model so small
    that a run takes a fraction of a second."""
    import train
    from model import SIZES
    from reid import plots
    from tests.test_model import TINY

    monkeypatch.setitem(SIZES, "tiny", TINY)
    monkeypatch.setattr(plots, "save", lambda picture, path: picture.save(path))  # soon done
    flags = ("--data", drawn, "--text-model", bert, "--ids", 4, "--images", 2)
    return lambda *more: command(train, *flags, *more)


@pytest.fixture
def undrawn(monkeypatch):
    """Evaluation draws no pictures, which take most of its time."""
    import evaluate

    monkeypatch.setattr(evaluate, "draw", lambda *_: {})


@pytest.fixture
def unfinished(monkeypatch):
    """Training ends without an evaluation."""
    import train

    monkeypatch.setattr(train, "finish", lambda *_: None)


@pytest.fixture
def bundled():
    """For tests that need the model in toydata/: they are skipped in code that it no longer fits,
    such as code with another gate."""
    import evaluate
    from reid.cli import UserError

    try:
        evaluate.load_model(evaluate.TRAINED)
    except UserError as error:
        pytest.skip(f"renew it by python train.py: {error}")


@pytest.fixture
def toy(tmp_path):
    """A folder that counts as drawn data, so that nobody compares it with published counts."""
    (tmp_path / "toy.json").write_text("{}")
    return tmp_path


@pytest.fixture
def usual_signals():
    """Signals do what they do on a terminal, also under nohup or in the background, which ignore
    some."""
    usual = {signal.SIGINT: signal.default_int_handler}
    usual |= dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
