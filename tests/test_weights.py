"""Published weights: every tensor of a file is where the published program has it, a checkpoint
needs none of the files again, and a wrong file is one line."""

import argparse
import re
import signal
from functools import partial

import huggingface_hub
import pytest
import torch

import evaluate
import train
from model import SIZES, ViT
from reid import checkpoints, weights
from reid.cli import UserError
from reid.runs import read_log
from tests.commands import FAST, Payload, one_line
from tests.reference import (
    PASS_LAYOUTS,
    albef_checkpoint,
    deit_checkpoint,
    golden,
    pass_checkpoint,
    under,
)

BETTER = "; PASS in ./weights/ would be better, see docs/weights.md"


def near(ours, theirs, limit):
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < limit


# ---- recorded numbers of the published programs ----

@pytest.mark.parametrize("name,write,depth,words", [
    *(("vit_pass/io", partial(pass_checkpoint, layout), 1, "PASS,16x8 resized")
      for layout in PASS_LAYOUTS),
    ("deit/io_plain", partial(deit_checkpoint, "plain"), 2, "DeiT,14x14 resized"),
    ("deit/io_distilled", partial(deit_checkpoint, "distilled"), 1, "DeiT"),
    ("vit_albef/io", albef_checkpoint, 2, "ALBEF,16x16 resized,(bicubic)"),
])
def test_published_vits_reference(name, write, depth, words, tmp_path):
    io = golden(f"{name}.npz")
    positions = io["pos_embed_resized"]
    vit = ViT(
        io["image"].shape[2:], 16, int(io.get("stride", 16)), positions.shape[-1], depth,
        int(io["num_heads"]), part_tokens=1)
    report = weights.load_vit(vit, write(path=tmp_path / "vit.pth"))
    near(vit.pos[:, -positions.shape[1]:], positions, 1e-6)
    assert all(word in report for word in words.split(",")), report

    vit.eval()
    image = torch.tensor(io["image"])
    with torch.no_grad():
        near(vit(image), io["out"], 2e-5)
        near(vit.double()(image.double()), io["out"], 1e-6)


@pytest.mark.parametrize("file,mode,cls", [
    ("vit_pass", "bilinear", 0), ("deit", "bilinear", 1), ("vit_albef", "bicubic", 1)])
def test_resized_positions_reference(file, mode, cls):
    tables = golden(f"{file}/resize.npz")
    source = torch.tensor(tables["source"])[:, cls:]
    grid = weights._grid(source.shape[1])
    for name in tables:
        if name.startswith("resized_"):
            target = [int(side) for side in name.removeprefix("resized_").split("x")]
            near(weights.resize_grid(source, grid, target, mode), tables[name][:, cls:], 1e-6)


def albef_bert(path, width, **config):
    """ALBEF's text tower and its multimodal layers, as a training run has them."""
    return weights.load_albef_text(path, **config), weights.load_albef_cross(path, width, **config)


@pytest.mark.parametrize("precision,limit", [(torch.float32, 2e-5), (torch.float64, 1e-6)])
def test_albef_text_reference(precision, limit, tmp_path):
    io = golden("bert_albef/io.npz")
    ids = torch.tensor(io["input_ids"])
    real = torch.tensor(io["attention_mask"])
    image = torch.tensor(io["encoder_hidden_states"]).to(precision)

    path = albef_checkpoint(tmp_path / "ALBEF.pth")
    text, cross = albef_bert(path, image.shape[-1], num_attention_heads=int(io["num_heads"]))
    text.to(precision)
    cross.to(precision)
    with torch.no_grad():
        words = text(ids, attention_mask=real).last_hidden_state
        near(words, io["text_out"], limit)
        near(text(ids).last_hidden_state, io["text_nomask_out"], limit)
        for mask in ("full", "partial"):
            image_mask = torch.tensor(io[f"encoder_mask_{mask}"]).bool()
            for i, expected in enumerate(io[f"fusion_{mask}_out"]):
                seen = image[i:i + 1, image_mask[i]]
                near(cross(words[i:i + 1], real[i:i + 1].bool(), seen)[0], expected, limit)
    assert text.pooler is None and len(text.encoder.layer) == int(io["fusion_layer"])
    assert len(cross.layers.layer) == int(io["num_layers"]) - int(io["fusion_layer"])


# ---- files made here, in other sizes: tensor by tensor ----

def random_tensors(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def weight_and_bias(shapes):
    both = {}
    for name, shape in shapes.items():
        both |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return both


def vit_file(dim, depth, patch, positions, seed):
    """A random ViT in timm's names, which PASS, DeiT, HAP and ALBEF share."""
    shapes = {"patch_embed.proj": (dim, 3, patch, patch), "norm": (dim,)}
    for i in range(depth):
        shapes |= under(f"blocks.{i}.", {
            "norm1": (dim,), "norm2": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)})
    tokens = {"cls_token": (1, 1, dim), "pos_embed": (1, positions, dim)}
    return random_tensors(tokens | weight_and_bias(shapes), seed)


def bert_file(width, layers, fusion, words, image_width, seed):
    """A random BERT in ALBEF's names, cross-attention from layer `fusion` on."""
    embeddings = {"word": words, "position": 80, "token_type": 2}
    shapes = {}
    for i in range(layers):
        sources = {"attention": width, "crossattention": image_width}
        for block in list(sources)[:1 + (i >= fusion)]:
            shapes |= under(f"encoder.layer.{i}.{block}.", {
                "self.query": (width, width), "self.key": (width, sources[block]),
                "self.value": (width, sources[block]), "output.dense": (width, width),
                "output.LayerNorm": (width,)})
        shapes |= under(f"encoder.layer.{i}.", {
            "intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width),
            "output.LayerNorm": (width,)})
    shapes = weight_and_bias({"embeddings.LayerNorm": (width,)} | shapes)
    for name, rows in embeddings.items():
        shapes[f"embeddings.{name}_embeddings.weight"] = (rows, width)
    return random_tensors(shapes, seed)


def albef_file(dim, depth, patch, grid, width, layers, fusion, words, seed):
    """ALBEF's layout with all that it holds in addition to the towers that are used."""
    state = random_tensors({
        "itm_head.weight": (2, width), "itm_head.bias": (2,), "temp": (), "image_queue": (8, 4),
        "text_queue": (8, 4)}, seed + 2)
    for twin, offset in (("", 0), ("_m", 1000)):
        vit = vit_file(dim, depth, patch, 1 + grid * grid, seed + offset)
        bert = bert_file(width, layers, fusion, words, dim, seed + offset + 1)
        bert["embeddings.position_ids"] = torch.arange(80)[None]
        state |= under(f"visual_encoder{twin}.", vit) | under(f"text_encoder{twin}.bert.", bert)
        state |= random_tensors({
            f"vision_proj{twin}.weight": (8, dim), f"text_proj{twin}.weight": (8, width),
            f"text_encoder{twin}.cls.predictions.bias": (words,)}, seed)
    return {"model": state | {"queue_ptr": torch.zeros(1, dtype=torch.long)}, "epoch": 29}


LAYOUTS = {  # the ViT alone, as the published programs wrap it; `other` must not be taken
    "PASS": lambda vit, other: {
        "student": under("module.backbone.", other), "epoch": 3,
        "teacher": under("module.backbone.", vit) | {"module.head.weight": torch.ones(5)},
        "args": argparse.Namespace(arch="vit_base", lr=0.1)},
    "HAP": lambda vit, other: {"model": {
        **{("mae." if i % 2 else "") + name: vit[name] for i, name in enumerate(vit)},
        **under("decoder_blocks.0.", other), "mask_token": torch.ones(3)}},
    "TransReID": lambda vit, other: {**under("base.", vit), "classifier.weight": torch.ones(7)},
    "DeiT": lambda vit, other: {"model": {**vit, "head.weight": torch.ones(5)}},
    "ALBEF": lambda vit, other: {"model": {
        **under("visual_encoder.", vit), **under("visual_encoder_m.", other),
        "text_encoder.bert.encoder.layer.0.output.dense.bias": torch.ones(3)}},
}
PARTS = ("part_token1", "part_token2", "part_token3", "cls_pos", "part1_pos", "part2_pos",
         "part3_pos")


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("dim,depth,heads,patch,side", [(24, 2, 3, 8, 4), (16, 3, 2, 16, 3)])
def test_a_vit_is_found_in_each_wrapper_and_editing_weights_stay(
        kind, dim, depth, heads, patch, side, tmp_path):
    is_square = kind in ("DeiT", "ALBEF")
    grid = (side, side) if is_square else (2 * side, side)
    positions = grid[0] * grid[1] + (kind != "PASS")
    vit, other = (vit_file(dim, depth, patch, positions, seed) for seed in (1, 2))
    if kind == "PASS":
        vit |= random_tensors(dict.fromkeys(PARTS, (1, 1, dim)), seed=3)
    torch.save(vit, tmp_path / "alone.pth")
    torch.save(LAYOUTS[kind](vit, other), tmp_path / "wrapped.pth")

    states = []
    for name in ("alone", "wrapped"):
        torch.manual_seed(0)
        model = ViT((grid[0] * patch, grid[1] * patch), patch, None, dim, depth, heads, instr_dim=9)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        report = weights.load_vit(model, tmp_path / f"{name}.pth")
        states.append(model.state_dict())
        assert f": {len(vit)} tensors loaded, dropped: " in report and "missing: none" in report
    assert report.startswith(f"{kind} in ") and "\n" not in report
    assert model.prefix.requires_grad and model.pos.requires_grad
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
        assert torch.equal(tensor, before[name]) == bool(re.search("gate|instr", name)), name


@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_a_vit_of_the_hub_gives_the_tokens_of_transformers(kind, tmp_path):
    import transformers
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=48,
        intermediate_size=96, layer_norm_eps=1e-6)
    head = {"ViT": "ForImageClassification", "DeiT": "ForImageClassificationWithTeacher"}[kind]
    theirs = getattr(transformers, f"{kind}{head}")(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    theirs.save_pretrained(tmp_path)
    vit = ViT((48, 48), 16, None, 24, 2, 3).eval()
    report = weights.load_vit(vit, tmp_path / "model.safetensors")
    if kind == "ViT":
        image = torch.randn(2, 3, 48, 48)
        near(vit(image), theirs.vit(image).last_hidden_state, 2e-5)
    else:  # its second token goes, with its position
        positions = theirs.deit.embeddings.position_embeddings
        assert torch.equal(vit.pos, positions[:, [0, *range(2, 11)]]) and "dist_token 1" in report
    assert "classifier 2" in report and report.endswith("positions: 3x3")


@pytest.mark.parametrize("width,layers,fusion", [(64, 5, 3), (128, 2, 1), (64, 12, 6)])
def test_albefs_bert_is_taken_apart_where_layers_begin_to_attend_to_the_image(
        width, layers, fusion, tmp_path):
    torch.save(albef_file(24, 1, 8, 2, width, layers, fusion, 50, seed=4), tmp_path / "ALBEF.pth")
    text, cross = albef_bert(tmp_path / "ALBEF.pth", 24)
    file = bert_file(width, layers, fusion, 50, 24, seed=5)
    heads = random_tensors({"itm_head.weight": (2, width), "itm_head.bias": (2,)}, seed=6)

    loaded = dict(text.state_dict())
    for name, tensor in cross.state_dict().items():
        number = re.match(r"layers\.layer\.(\d+)\.", name)
        if number:
            name = f"encoder.layer.{fusion + int(number[1])}.{name[number.end():]}"
        loaded[name.replace("head", "itm_head")] = tensor
    assert loaded.keys() == file.keys() | heads.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in (file | heads).items())
    for config in (text.config, cross.layers.config):
        assert config.num_attention_heads == width // 64 and config.vocab_size == 50
        assert config.intermediate_size == 4 * width and config.max_position_embeddings == 80


# ---- choosing ----

TOY = {key: SIZES["tiny"][key] for key in ("dim", "depth", "patch")}
HEADS = SIZES["tiny"]["heads"]
FORM = tuple(TOY.values())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{kind: path} of published layouts at the size of `tiny`; no name says its kind."""
    folder = tmp_path_factory.mktemp("published")
    tokens = dict.fromkeys(("cls_pos", "part_token1", "part1_pos"), (1, 1, TOY["dim"]))
    albef = albef_file(**TOY, grid=8, width=64, layers=4, fusion=2, words=30522, seed=5)
    states = {
        "ALBEF": albef,
        "DeiT": {"model": vit_file(**TOY, positions=1 + 8 * 8, seed=6)},
        "HAP": {"model": vit_file(**TOY, positions=1 + 8 * 4, seed=7)},
        "TransReID": under("base.", vit_file(**TOY, positions=1 + 8 * 4, seed=7)),
        "PASS": vit_file(**TOY, positions=8 * 4, seed=8) | random_tensors(tokens, 9),
    }
    paths = {}
    for number, (kind, state) in enumerate(states.items()):
        paths[kind] = folder / f"{number}.pth"
        torch.save(state, paths[kind])
    return paths


@pytest.fixture
def chosen_from(tmp_path, monkeypatch):
    """A function that copies files into ./weights/ of an empty folder without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def copy(*paths):
        (tmp_path / "weights").mkdir()
        for path in paths:
            (tmp_path / "weights" / path.name).write_bytes(path.read_bytes())
    return copy


def test_the_best_file_is_chosen(files, chosen_from, tmp_path):
    chosen_from(*files.values())
    for kind in weights.KINDS:
        path, [line] = weights.choose(FORM)
        assert path == f"weights/{files[kind].name}"
        assert line.startswith(f"E_e starts from {kind} in {path}")
        assert line.endswith(BETTER) == (kind != "PASS")
        assert all(f", rather than {worse} in" in line
                   for worse in weights.KINDS[1 + weights.KINDS.index(kind):])
        (tmp_path / path).unlink()
    path, [line] = weights.choose(FORM, albef=str(files["ALBEF"]))
    assert path == str(files["ALBEF"]) and f"ALBEF in {path};" in line


def test_files_that_do_not_fit_are_named(files, chosen_from, tmp_path):
    chosen_from(files["PASS"])
    (tmp_path / "weights/cut.pth").write_bytes(files["DeiT"].read_bytes()[:500])
    (tmp_path / "weights/notes.txt").write_text("not weights")
    path, [other, cut, hub, line] = weights.choose(weights.HUB_FORM, name="--size base")
    assert path is None and f"width {TOY['dim']}" in other and "width 768" in other
    assert cut.startswith("not used: weights/cut.pth")
    assert weights.HUB in hub and "offline" in hub and "give --vit-weights weights/" in hub
    assert line == "E_e starts from scratch: no published weights fit --size base" + BETTER


def test_the_hub_is_asked_last_and_for_three_seconds(files, chosen_from, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: None)
    monkeypatch.setattr(
        huggingface_hub, "get_hf_file_metadata", lambda url, timeout: asked.append((url, timeout)))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file: files["DeiT"])
    monkeypatch.setattr(weights, "HUB_FORM", FORM)
    path, [line] = weights.choose(FORM)
    assert path == weights.HUB and f"DeiT in {path}" in line
    [(url, timeout)] = asked
    repo = weights.HUB.removeprefix("hub:")
    assert url.endswith(f"{repo}/resolve/main/model.safetensors") and timeout == 3

    cached = str(files["HAP"])
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: cached)
    assert str(weights.fetch(weights.HUB)) == cached
    path, [line] = weights.choose((768, 1, 16))
    assert path is None
    chosen_from(files["ALBEF"])
    assert weights.choose(FORM)[0].startswith("weights/") and len(asked) == 1


@pytest.mark.parametrize("name", ["hub:", "hub:deit", "hub:../../etc", "hub:../etc", "hub:a/b/c"])
def test_a_name_that_is_none_reaches_no_library(name, monkeypatch):
    for function in ("try_to_load_from_cache", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, function, lambda *args: pytest.fail("asked"))
    with pytest.raises(UserError, match="hub:OWNER/NAME"):
        weights.read_published(name)


# ---- a run ----

def test_albef_is_text_tower_picture_encoder_and_matching(files):
    path = str(files["ALBEF"])
    config = train.Config(size="tiny", vit_weights=path, albef=path)
    model, report = train.build_model(config, {"market": 5})
    text, cross = albef_bert(path, TOY["dim"])
    shape = SIZES["tiny"]
    picture = ViT(shape["picture_size"], shape["patch"], None, TOY["dim"], TOY["depth"], HEADS)
    weights.load_vit(picture, path)
    twins = {model.encoder.text.bert: text, model.cross: cross, model.encoder.picture: picture}
    for ours, theirs in twins.items():
        state = theirs.state_dict()
        assert ours.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    assert model.encoder.text.pooling == "cls"
    assert torch.equal(model.editor.embed.weight, picture.embed.weight)

    assert [line.split(":")[0] for line in report] == ["text", "E_f of t2i", "pictures", "E_e"]
    fixed = [model.encoder.text.bert, model.encoder.picture]
    assert not any(p.requires_grad for module in fixed for p in module.parameters())
    assert all(p.requires_grad for p in model.cross.parameters())


def test_a_checkpoint_needs_none_of_the_files_it_started_from(
        files, drawn, command, tmp_path, monkeypatch):
    for name in ("PASS", "ALBEF"):
        (tmp_path / f"{name}.pth").write_bytes(files[name].read_bytes())
    flags = ("--data", drawn, "--task", "t2i", "--steps", 4, "--vit-weights", "PASS.pth",
             "--albef", "ALBEF.pth", "--train-text", *FAST)
    code, out, err = command(train, *flags, "--name", "whole")
    assert code == 0 and "E_e: PASS in PASS.pth: " in out, err

    calls = []
    augment = train.data.augment

    def interrupting(*args, **kwargs):  # Ctrl-C in the second step
        calls.append(len(calls))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return augment(*args, **kwargs)
    monkeypatch.setattr(train.data, "augment", interrupting)
    code, _, err = command(train, *flags, "--name", "half")
    assert code == 130 and "python train.py --resume runs/half/last.pt" in err
    for name in ("PASS", "ALBEF"):
        (tmp_path / f"{name}.pth").unlink()
    code, _, err = command(train, "--resume", "runs/half/last.pt")
    assert code == 0, err
    whole = checkpoints.load("runs/whole/last.pt")
    half = checkpoints.load("runs/half/last.pt")
    assert whole["step"] == half["step"] == 4
    assert all(torch.equal(whole["model"][key], half["model"][key]) for key in whole["model"])

    row = read_log("runs/whole")[-1]["rows"][0]
    code, out, err = command(evaluate, "--checkpoint", "runs/whole/last.pt")
    assert code == 0 and f"{100 * row['mAP']:.1f}" in out, err
    model, _ = evaluate.load_model("runs/whole/last.pt")
    assert model.editor.prefix.shape[1] == 2  # CLS and the file's part token


# ---- mistakes ----

DEIT = vit_file(**TOY, positions=65, seed=0)


@pytest.mark.parametrize("state,words", [
    ({"model": {"cls_token": Payload()}}, r"refused.*torch.save\(torch.load\("),
    ({"model": DEIT, "args": argparse.Namespace(lr=Payload())}, "refused"),
    ({"conv1.weight": torch.ones(64, 3, 7, 7)}, "begins with conv1.weight"),
    ({"model": vit_file(48, TOY["depth"], 8, 65, 0)}, "width 48"),
    ({"model": vit_file(TOY["dim"], 4, 8, 65, 0)}, "4 layers"),
    ({"model": vit_file(TOY["dim"], TOY["depth"], 16, 65, 0)}, "patches of 16.*--size"),
    ({"model": {k: v for k, v in DEIT.items() if k != "blocks.1.mlp.fc1.bias"}},
     "Missing.*blocks.1.mlp.0.bias"),
    ({"model": DEIT | {"pos_embed": torch.ones(1, 61, TOY["dim"])}}, "60 positions"),
    ({"model": DEIT | {"blocks.1.ls1.gamma": torch.ones(9)}}, "Unexpected.*blocks.1.ls1.gamma"),
    ({"model": DEIT | {"blocks.0.mlp.fc1.weight": torch.ones(9, TOY["dim"])}}, "size mismatch"),
    ({"epoch": 3}, "no weights"), ([torch.ones(3)], "no weights")])
def test_a_wrong_file_is_one_line(state, words, tmp_path):
    torch.save(state, tmp_path / "x.pth")
    vit = ViT((64, 32), TOY["patch"], None, TOY["dim"], TOY["depth"], HEADS)
    with pytest.raises(UserError, match=f"x.pth.*{words}"):
        weights.load_vit(vit, tmp_path / "x.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", [
    "cls_token", "cls_pos", "pos_embed", "part_token2", "part1_pos", "patch_embed.proj.weight",
    "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "blocks.0.norm1.weight"])
@pytest.mark.parametrize("change", [
    lambda tensor: torch.zeros(()), lambda tensor: tensor.flatten()[:1], lambda tensor: tensor[:0],
    lambda tensor: tensor.to_sparse()])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_published_vit_with_a_tensor_of_another_form(name, change, tmp_path):
    path = pass_checkpoint("flat", tmp_path / "pass.pth")
    state = torch.load(path)
    torch.save({**state, name: change(state[name])}, path)
    io = golden("vit_pass/io.npz")
    vit = ViT(io["image"].shape[2:], 16, None, 12, 1, int(io["num_heads"]))
    with pytest.raises(UserError, match="pass.pth"):
        weights.load_vit(vit, path)


def test_a_wrong_file_ends_the_command(files, drawn, command, tmp_path):
    flags = ("--data", drawn, "--task", "trad", "--steps", 1, *FAST)
    (tmp_path / "x.pth").write_bytes(b"<!DOCTYPE html><html>Quota exceeded</html>")
    one_line(command(train, *flags, "--vit-weights", "x.pth"), "x.pth", "web page")
    (tmp_path / "x.safetensors").write_bytes(files["DeiT"].read_bytes()[:500])
    one_line(command(train, *flags, "--vit-weights", "x.safetensors"), "cut off")
    one_line(command(train, *flags, "--albef", files["DeiT"]), files["DeiT"], "text_encoder")
    one_line(command(train, *flags, "--albef", "nowhere.pth"), "nowhere.pth", "no such file")
    one_line(command(train, *flags, "--albef", "x.pth", "--text-model", "bert"), "--text-model")
    for change, words in (
            ({"words": 40}, "40 words"), ({"dim": 48}, "width 48"),
            ({"layers": 2}, "attend to the image")):
        shape = {**TOY, "grid": 8, "width": 64, "layers": 3, "fusion": 2, "words": 30522, "seed": 5}
        torch.save(albef_file(**shape | change), tmp_path / "ALBEF.pth")
        command_of_t2i = command(train, *flags, "--task", "t2i", "--albef", "ALBEF.pth")
        one_line(command_of_t2i, "ALBEF.pth", words)
    assert not (tmp_path / "runs").exists()
