"""A BERT of a few thousand weights that spells words letter by letter, as --text-model takes it."""

import string

import torch
from transformers import BertConfig, BertModel


def write_bert(folder):
    torch.manual_seed(0)
    letters = list(string.ascii_lowercase)
    inner = [f"##{letter}" for letter in letters]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *inner]
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2,
                        num_attention_heads=4, intermediate_size=48, initializer_range=0.3)

    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return folder
