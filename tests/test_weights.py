"""Published weights: every tensor of a file is where the published program has it, a checkpoint
needs none of the files again, and a wrong file is one line."""

import argparse
import re

import huggingface_hub
import pytest
import torch
from transformers import BertConfig, BertModel

import evaluate
import train
from instructions import asked_tasks
from model import SIZES, ViT
from reid import checkpoints, weights
from reid.cli import UserError
from reid.folders import open_all
from reid.runs import read_log
from tests.commands import FAST, Payload, one_line, output
from tests.reference import golden
from tests.trees import market

BETTER = "; PASS in ./weights/ would be better, see docs/weights.md"


def near(ours, theirs, limit=1e-6):
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < limit


# ---- recorded numbers of the published programs ----

def recorded(name):
    """The published tensors of a file of tests/golden; those of ALBEF beside momentum twins, which
    a loader must not take."""
    tensors = {key: torch.as_tensor(array) for key, array in golden(f"{name}.npz").items()}
    twins = {key.replace(".", "_m.", 1): torch.zeros_like(tensors[key]) for key in tensors}
    return {"model": tensors | twins} if "albef" in name else tensors


@pytest.mark.parametrize("name, of_weights, depth, words", [
    ("vit_pass/io", "vit_pass/weights", 1, "PASS,16x8 resized"),
    ("deit/io_plain", "deit/weights_plain", 2, "DeiT,14x14 resized"),
    ("deit/io_distilled", "deit/weights_distilled", 1, "DeiT"),
    ("vit_albef/io", "albef/weights", 2, "ALBEF,16x16 resized,(bicubic)"),
])
def test_published_vits_reference(name, of_weights, depth, words, tmp_path):
    io = golden(f"{name}.npz")
    positions = io["pos_embed_resized"]
    torch.save(recorded(of_weights), tmp_path / "vit.pth")
    vit = ViT(
        io["image"].shape[2:], 16, int(io.get("stride", 16)), positions.shape[-1], depth,
        int(io["num_heads"]), part_tokens=1)
    report = weights.load_vit(vit, tmp_path / "vit.pth")
    near(vit.pos[:, -positions.shape[1]:], positions)
    assert all(word in report for word in words.split(",")), report
    with torch.no_grad():
        near(vit.double().eval()(torch.tensor(io["image"]).double()), io["out"])


def test_albef_text_reference(tmp_path):
    io = golden("bert_albef/io.npz")
    ids = torch.tensor(io["input_ids"])
    real = torch.tensor(io["attention_mask"])
    image = torch.tensor(io["encoder_hidden_states"]).double()
    state = recorded("albef/weights")
    path = tmp_path / "ALBEF.pth"
    torch.save(state, path)
    heads = int(io["num_heads"])
    text = weights.load_albef_text(path, num_attention_heads=heads).double()
    cross = weights.load_albef_cross(path, image.shape[-1], num_attention_heads=heads).double()
    with torch.no_grad():
        words = text(ids, attention_mask=real).last_hidden_state
        near(words, io["text_out"])
        for mask in ("full", "partial"):
            image_mask = torch.tensor(io[f"encoder_mask_{mask}"]).bool()
            for i, expected in enumerate(io[f"fusion_{mask}_out"]):
                seen = image[i:i + 1, image_mask[i]]
                near(cross(words[i:i + 1], real[i:i + 1].bool(), seen)[0], expected)
    head = state["model"]["itm_head.weight"]
    assert torch.equal(cross.head.weight, head.double()) and text.pooler is None


# ---- files made here, at the size of `tiny` ----

TOY = {key: SIZES["tiny"][key] for key in ("dim", "depth", "patch")}
FORM = tuple(TOY.values())


def under(prefix, tensors):
    """The same tensors with `prefix` before each name."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def vit_file(positions, dim=TOY["dim"], depth=TOY["depth"], patch=TOY["patch"]):
    """A random ViT in timm's names, which PASS, DeiT, HAP and ALBEF share."""
    shapes = {"patch_embed.proj": (dim, 3, patch, patch), "norm": (dim,)}
    for i in range(depth):
        shapes |= under(f"blocks.{i}.", {
            "norm1": (dim,), "norm2": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim),
            "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)})
    tensors = {"cls_token": torch.randn(1, 1, dim), "pos_embed": torch.randn(1, positions, dim)}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = 0.2 * torch.randn(shape)
        tensors[f"{name}.bias"] = torch.randn(shape[0])
    return tensors


HIGH = vit_file(positions=1 + 8 * 4)
SQUARE = vit_file(positions=1 + 8 * 8)


def albef_file(words=30522, width=TOY["dim"], fusion=2):
    """What is read of ALBEF.pth; layers of its BERT attend to the image from `fusion` on, which is
    as wide as they are."""
    config = BertConfig(
        vocab_size=words, hidden_size=width, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=80, is_decoder=True,
        add_cross_attention=True)
    bert = BertModel(config, add_pooling_layer=False)
    for layer in bert.encoder.layer[:fusion]:
        del layer.crossattention
    head = {"itm_head.weight": torch.randn(2, width), "itm_head.bias": torch.randn(2)}
    vit = under("visual_encoder.", SQUARE)
    return {"model": vit | under("text_encoder.bert.", bert.state_dict()) | head}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{kind: path} of published layouts at the size of `tiny`; no name says its kind."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    more = {name: torch.randn(1, 1, TOY["dim"]) for name in ("cls_pos", "part_token1", "part1_pos")}
    decoder = {"decoder_blocks.0.norm1.bias": torch.randn(TOY["dim"]), "mask_token": torch.ones(3)}
    states = {
        "ALBEF": albef_file(),
        "DeiT": {"model": SQUARE},
        "HAP": {"model": under("mae.", HIGH) | decoder},
        "TransReID": under("base.", HIGH) | {"classifier.weight": torch.ones(7)},
        "PASS": {"teacher": vit_file(positions=8 * 4) | more, "args": argparse.Namespace(lr=0.1)},
    }
    paths = {}
    for number, (kind, state) in enumerate(states.items()):
        paths[kind] = folder / f"{number}.pth"
        torch.save(state, paths[kind])
    return paths


def tiny_vit(**options):
    shape = SIZES["tiny"]
    return ViT(shape["size"], shape["patch"], None, shape["dim"], shape["depth"], shape["heads"],
               **options)


def test_a_wrapped_vit_is_taken_whole_and_editing_weights_stay(files, tmp_path):
    """Of a pre-training program the teacher, not the student, and without the head."""
    teacher = under("module.backbone.", HIGH) | {"module.head.mlp.0.bias": torch.ones(7)}
    student = under("module.backbone.", vit_file(positions=1 + 8 * 4))
    torch.save({"student": student, "teacher": teacher, "epoch": 7}, tmp_path / "teacher.pth")
    torch.save({"state_dict": HIGH}, tmp_path / "state.pth")
    paths = files["TransReID"], files["HAP"], tmp_path / "teacher.pth", tmp_path / "state.pth"
    states = []
    for path, kind in zip(paths, ("TransReID", "HAP", "HAP", "HAP")):
        torch.manual_seed(0)
        vit = tiny_vit(instr_dim=9)
        before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
        report = weights.load_vit(vit, path)
        assert report.startswith(f"{kind} in ") and "missing: none" in report
        states.append(vit.state_dict())
    assert torch.equal(states[0]["blocks.1.norm2.bias"], HIGH["blocks.1.norm2.bias"])
    for name, tensor in states[0].items():
        assert all(torch.equal(tensor, state[name]) for state in states)
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


# ---- choosing ----

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
    state = torch.load(path)["model"]
    assert torch.equal(model.cross.head.weight, state["itm_head.weight"])
    words = state["text_encoder.bert.embeddings.word_embeddings.weight"]
    assert torch.equal(model.encoder.text.bert.embeddings.word_embeddings.weight, words)
    assert model.encoder.text.bert.config.num_attention_heads == TOY["dim"] // 64
    assert model.encoder.text.pooling == "cls"
    assert torch.equal(model.editor.embed.weight, model.encoder.picture.embed.weight)

    assert [line.split(":")[0] for line in report] == ["text", "E_f of t2i", "pictures", "E_e"]
    fixed = [model.encoder.text.bert, model.encoder.picture]
    assert not any(p.requires_grad for module in fixed for p in module.parameters())
    assert all(p.requires_grad for p in model.cross.parameters())


def test_a_checkpoint_needs_none_of_the_files_it_started_from(files, drawn, command, tmp_path):
    for name in ("PASS", "ALBEF"):
        (tmp_path / f"{name}.pth").write_bytes(files[name].read_bytes())
    out = output(command(
        train, "--data", drawn / "CUHK-PEDES", "--steps", 1, "--vit-weights", "PASS.pth",
        "--albef", "ALBEF.pth", "--train-text", "--name", "a", *FAST))
    assert "E_e: PASS in PASS.pth: " in out
    for name in ("PASS", "ALBEF"):
        (tmp_path / f"{name}.pth").unlink()
    output(command(train, "--resume", "runs/a/last.pt", "--steps", 2))
    assert checkpoints.load("runs/a/last.pt")["step"] == 2

    row = read_log("runs/a")[-1]["rows"][0]
    out = output(command(evaluate, "--checkpoint", "runs/a/last.pt"))
    assert f"{100 * row['mAP']:.1f}" in out
    model, _ = evaluate.load_model("runs/a/last.pt")
    assert model.editor.prefix.shape[1] == 2  # CLS and the file's part token


# ---- photographs: a start and a preset without being told ----

@pytest.fixture
def chosen(tmp_path, chosen_from, capsys):
    """chosen(*files, **flags) -> (what is printed, the config) of a run on a Market-1501 that does
    not say that it was drawn, with these published files in ./weights/."""
    datasets = open_all(market(tmp_path / "market"), asked_tasks("trad"))

    def choose(*paths, **flags):
        chosen_from(*paths)
        config = train.new_config(train.Config(task="trad", data="market", **flags), datasets)
        return capsys.readouterr().out.splitlines(), config
    return choose


def test_photographs_with_published_weights(files, chosen):
    """The best known file is taken."""
    lines, config = chosen(files["DeiT"], files["PASS"], size="tiny")
    path = f"weights/{files['PASS'].name}"
    assert lines[0].startswith(f"E_e starts from PASS in {path}, rather than DeiT in weights/")
    assert lines[1].startswith("preset paper: no toy.json: photographs")
    assert (config.vit_weights, config.ids, config.erase) == (path, 2, train.PAPER["erase"])


def test_photographs_without_any(chosen):
    (hub, line, preset), config = chosen()
    assert hub.startswith(f"not used: {weights.HUB}")
    assert line == f"E_e starts from scratch: no published weights fit --size base{BETTER}"
    assert preset.startswith("preset scratch: no toy.json: photographs")
    assert config.vit_weights is None and config.preset == "scratch"
    assert SIZES[config.size]["size"] == (128, 64)


@pytest.mark.parametrize("flag, preset", [("none", "scratch"), ("mine.pth", "paper")])
def test_none_asks_for_scratch_and_a_file_for_paper(files, chosen, flag, preset):
    lines, config = chosen(files["PASS"], size="tiny", vit_weights=flag)
    assert len(lines) == 1 and lines[0].startswith(f"preset {preset}")
    assert config.vit_weights == (None if flag == "none" else flag)


# ---- mistakes ----

@pytest.mark.parametrize("state,words", [
    ({"model": SQUARE, "args": argparse.Namespace(lr=Payload())},
     r"refused.*torch.save\(torch.load\("),
    ({"conv1.weight": torch.ones(64, 3, 7, 7)}, "begins with conv1.weight"),
    ({"model": vit_file(65, depth=4)}, "4 layers.*--size"),
    ({"model": {k: v for k, v in SQUARE.items() if k != "blocks.1.mlp.fc1.bias"}},
     "Missing.*blocks.1.mlp.0.bias"),
    ({"model": SQUARE | {"blocks.0.mlp.fc1.weight": torch.ones(9, TOY["dim"])}}, "size mismatch"),
    ({"model": SQUARE | {"pos_embed": torch.ones(1, 61, TOY["dim"])}}, "60 positions"),
    ({"model": SQUARE | {"cls_token": torch.ones(())}}, "another shape"),
    ({"model": SQUARE | {"blocks.0.attn.qkv.bias": torch.ones(())}}, "Missing"),
    ({"model": SQUARE | {"blocks.0.attn.qkv.bias": torch.ones(9).to_sparse()}}, "Missing"),
    ({"epoch": 3}, "no weights"), ([torch.ones(3)], "no weights")])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_wrong_file_is_one_line(state, words, tmp_path):
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=f"x.pth.*{words}"):
        weights.load_vit(tiny_vit(), tmp_path / "x.pth")
    assert not (tmp_path / "executed").exists()


def test_a_wrong_file_ends_the_command(files, drawn, command, tmp_path):
    flags = ("--data", drawn / "CUHK-PEDES", "--steps", 1, *FAST)
    (tmp_path / "x.safetensors").write_bytes(files["DeiT"].read_bytes()[:500])
    one_line(command(train, *flags, "--vit-weights", "x.safetensors"), "cut off")
    one_line(command(train, *flags, "--albef", files["DeiT"]), files["DeiT"], "text_encoder")
    one_line(command(train, *flags, "--albef", "x.pth", "--text-model", "bert"), "--text-model")
    for change, words in (
            ({"words": 40}, "40 tokens"), ({"width": 64}, "width 64"),
            ({"fusion": 4}, "attend to the image")):
        torch.save(albef_file(**change), tmp_path / "ALBEF.pth")
        one_line(command(train, *flags, "--albef", "ALBEF.pth"), "ALBEF.pth", words)
    assert not (tmp_path / "runs").exists()
