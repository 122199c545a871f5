"""Bad input is one line that names the file or flag, exit code 2, and leaves nothing behind."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import data
import dolls.__main__
import evaluate
import train
from model import ViT
from reid import checkpoints, cli, weights
from reid.folders import open_dataset
from reid.images import load_image
from tests.reference import golden, pass_checkpoint
from tests.small_bert import write_bert
from tests.test_data import cocas, market, put, text

PATIENCE = 60  # seconds until a command counts as hanging
STEP = ("--task", "t2i", "--text-model", "bert", "--steps", 1, "--ids", 2, "--images", 2)


def pedes(root):
    """CUHK-PEDES of two people to train and two to test on, as drawn data."""
    entries = []
    for pid, split in enumerate(("train", "train", "test", "test"), 1):
        file = f"{split}_query/{pid}.jpg"
        put(root, f"imgs/{file}")
        entry = {"split": split, "id": pid, "file_path": file, "captions": [f"person {pid}"]}
        entries.append(entry)
    text(root, "reid_raw.json", entries)
    text(root, "toy.json", {})
    return root


def call(module, *flags):
    """The exit code of a command in this process."""
    before = sys.argv
    sys.argv = [f"{module.__name__}.py", *map(str, flags)]
    try:
        cli.run(module.main, module.Config)
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with data, a small BERT, a run of one step on them, and its features."""
    folder = tmp_path_factory.mktemp("world")
    before = os.getcwd()
    os.chdir(folder)
    try:
        pedes(folder / "pedes")
        write_bert(folder / "bert")
        assert call(train, "--data", "pedes", "--name", "run", *STEP) == 0
        shutil.copy("runs/run/last.pt", "last.pt")
        shutil.rmtree("runs")
        flags = ("--checkpoint", "last.pt", "--save-features", "f.safetensors")
        assert call(evaluate, *flags) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """An own copy of `world`, in which commands run."""
    folder = tmp_path / "here"
    shutil.copytree(world, folder, ignore=shutil.ignore_patterns("last.pt"))
    os.link(world / "last.pt", folder / "last.pt")  # large, and no test writes into it
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(here, capsys):
    """refused(module, flags, *words): one line with these words, exit code 2, no new file."""
    def hang(*_):
        pytest.fail("it hangs")

    def check(module, flags, *words):
        before = sorted(here.rglob("*"))
        capsys.readouterr()
        signal.signal(signal.SIGALRM, hang)
        signal.alarm(PATIENCE)
        code = call(module, *flags)
        signal.alarm(0)

        err = capsys.readouterr().err
        lines = [line for line in err.splitlines() if line.strip() and "%|" not in line]
        assert len(lines) == 1 and lines[0].startswith("error: "), err
        assert code == 2
        for word in words:
            assert str(word) in lines[0], lines[0]
        assert sorted(here.rglob("*")) == before
    return check


# ---- flags ----

@pytest.mark.parametrize("module,flag", [
    (evaluate, "--batch=0"), (evaluate, "--ap-window=0"), (evaluate, "--data="),
    (dolls.__main__, "--people=7"), (dolls.__main__, "--people=1000"),
    (dolls.__main__, "--sheet=sheet.txt"),
])
def test_flags_of_the_other_commands(module, flag, refused):
    refused(module, (flag,), flag.partition("=")[0])


@pytest.mark.parametrize("ratios", [
    "trad:0", "trad:-1", "foo:1", "t2i:x", "t2i", "t2i:1:2", "t2i:99999999999"])
def test_ratios(ratios, refused):
    refused(train, ("--data", "pedes", "--ratios", ratios, *STEP), "--ratios")


@pytest.mark.parametrize("flag", ["--data", "--resume"])
def test_a_path_that_is_too_long(flag, refused):
    refused(train, (flag, "n" * 300), "n" * 300)


@pytest.fixture
def beside(here):
    """LTCC and CUHK-PEDES in one folder."""
    put(here, "all/ltcc/query/1_1_c1_1.png", "all/ltcc/train/2_1_c1_1.png")
    put(here, *(f"all/ltcc/test/1_{outfit}_c2_1.png" for outfit in (1, 2)))
    pedes(here / "all/pedes")
    text(here, "all/toy.json", {})
    return here / "all"


def test_a_protocol_without_a_task_is_that_of_the_sets_that_have_it(beside, refused, capsys):
    flags = ("--checkpoint", "last.pt", "--data", beside, "--task", "all")
    assert call(evaluate, *flags, "--protocol", "cc") == 0
    out = capsys.readouterr().out
    assert "LTCC" in out and "PEDES" not in out
    refused(evaluate, (*flags, "--protocol", "no-such"), "no-such", "it has")


def test_a_ranking_that_the_saved_features_lack(beside, refused):
    flags = ("--checkpoint", "f.safetensors", "--data", beside, "--task", "cc")
    refused(evaluate, (*flags, "--rank-list", "r.png"), "give --checkpoint the last.pt")


@pytest.mark.parametrize("target", ["empty", "nothing"])
def test_drawing_into_a_link(target, here, capsys):
    if target == "empty":
        Path("empty").mkdir()
    Path("link").symlink_to(target)
    assert call(dolls.__main__, "--out", "link", "--people", 8) == 0
    assert Path("link").is_symlink() and Path(target, "toy.json").is_file()


# ---- lists, JSON, names ----

def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("key,value", [
    ("captions", 5), ("captions", {"a": "b"}), ("captions", [["a"]]), ("captions", [None]),
    ("captions", ["\ud800"]), ("captions", ["fine", " "]), ("id", None), ("id", 1.5),
    ("id", float("nan")), ("id", 10**30), ("id", "1"), ("id", True), ("file_path", None),
    ("file_path", 7), ("file_path", "/etc/passwd"), ("file_path", "../../x.jpg"),
    ("file_path", "\ud800.jpg"), ("split", ["train"]), ("split", None),
])
def test_an_entry_of_cuhk_pedes(key, value, here, refused):
    entries = json.loads(Path("pedes/reid_raw.json").read_text())
    entries[1][key] = value
    text(here, "pedes/reid_raw.json", entries)
    refused(data, ("pedes",), "pedes")


@pytest.mark.parametrize("content", [
    {}, [5], [{}], [{"id": 1}], [{"file_path": "a.jpg"}], 7, None, nested(10_000), "[", "", "NaN"])
def test_a_json_of_cuhk_pedes(content, here, refused):
    text(here, "pedes/reid_raw.json", "null" if content is None else content)
    refused(data, ("pedes",), "reid_raw.json")


@pytest.mark.parametrize("captions", [[{}], [5], {"a": 1}, [{"file_path": "x.jpg"}]])
def test_captions_beside_cuhk_pedes(captions, here, refused):
    entries = json.loads(Path("pedes/reid_raw.json").read_text())
    for entry in entries:
        del entry["captions"]
    text(here, "pedes/reid_raw.json", entries)
    text(here, "pedes/caption_all.json", captions)
    refused(data, ("pedes",), "caption")


@pytest.mark.parametrize("entry", [
    {"id": 1, "file_path": "a.jpg"}, {"id": 1, "captions": ["a"]}, {"id": 1},
    {"id": 1, "file_path": "a.jpg", "captions": [5]}, {"file_path": "a.jpg", "captions": ["a"]},
    {"id": 1, "file_path": "a.jpg", "captions": []},
    {"id": 10**30, "file_path": "a.jpg", "captions": ["a"]},
    {"id": 1.5, "file_path": "a.jpg", "captions": ["a"]},
    {"id": 1, "file_path": "../a.jpg", "captions": ["a"]},
    '{"id": 1, "captions": ' + "[" * 10_000,
])
def test_an_entry_of_synth_pedes(entry, here, refused):
    content = f"[{entry}]" if isinstance(entry, str) else [entry]
    text(here, "synth/synthpedes-dataset.json", content)
    refused(data, ("synth",), "synthpedes-dataset.json")


def test_an_entry_of_synth_pedes_in_another_encoding(here, capsys):
    entry = '[{"id": 1, "file_path": "a.jpg", "captions": ["caf\xe9"]}]'
    Path("synth").mkdir()
    Path("synth/synthpedes-dataset.json").write_bytes(entry.encode("latin-1"))
    assert call(data, "synth") == 2  # with an index beside it
    assert "synthpedes-dataset.json" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("captions", [
    [], "null", 7, {"k1": 5}, {"k1": {}}, {"k1": [["a"]]}, {"k1": "\ud800"}, nested(10_000)])
def test_the_captions_beside_a_list(captions, here, refused):
    cocas(here / "cocas")
    text(here, "cocas/real2/datalist/runner_real2_v1_gpt.json", captions)
    refused(data, ("cocas", "--task", "li"), "cocas/real2/datalist")


@pytest.mark.parametrize("row", [
    "/etc/passwd k1 9 2 3", "../../../x.jpg k1 9 2 3", f"a.jpg k1 {10**30} 2 3",
    f"a.jpg k1 {'9' * 5000} 2 3", f"a.jpg k1 9 2 {10**30}", "a.jpg k1 x 2 3"])
def test_a_row_of_a_list(row, here, refused):
    cocas(here / "cocas")
    text(here, "cocas/real2/datalist/gallery_attr.txt", row)
    refused(data, ("cocas", "--task", "li"), "cocas")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_list_in_another_encoding(encoding, here, refused):
    cocas(here / "cocas")
    path = Path("cocas/real2/datalist/gallery_attr.txt")
    path.write_bytes("images/1/caf\xe9.jpg k1 9 2 4\n".encode(encoding))
    refused(data, ("cocas", "--task", "li"), path)
    path = Path("pedes/reid_raw.json")
    path.write_bytes(json.dumps(["caf\xe9"], ensure_ascii=False).encode(encoding))
    refused(data, ("pedes",), path)


def test_a_byte_order_mark_is_no_part_of_a_path(here):
    cocas(here / "cocas")
    before = open_dataset("cocas", "li").records
    for path in Path("cocas").rglob("datalist/*"):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert open_dataset("cocas", "li").records == before


def test_a_caption_may_stand_alone(here):
    before = open_dataset("pedes", "t2i").records
    entries = json.loads(Path("pedes/reid_raw.json").read_text())
    for entry in entries:
        [entry["captions"]] = entry["captions"]
    text(here, "pedes/reid_raw.json", entries)
    assert open_dataset("pedes", "t2i").records == before


def test_a_file_name_that_is_not_utf8(here, refused):
    market(here / "market")
    name = os.fsencode("market/query/0009_c1s1_001051_") + b"\xff.jpg"
    shutil.copy("market/query/0001_c1s1_001051_00.jpg", name)
    refused(data, ("market",), "market", "not UTF-8")


def test_a_folder_of_prcc_that_is_no_person(here, refused):
    put(here, "prcc/rgb/train/092/A_cropped_rgb010.jpg", "prcc/rgb/train/1x/A_cropped_rgb010.jpg",
        *(f"prcc/rgb/test/{letter}/001/cropped_rgb001.jpg" for letter in "ABC"))
    refused(data, ("prcc",), "train/1x")


# ---- permission ----

@pytest.fixture
def as_nobody(here):
    """as_nobody(): from here on as a user whom permissions bind, which they do not root."""
    def change():
        if os.geteuid() == 0:
            for folder in (here, *list(here.parents)[:4]):
                folder.chmod(folder.stat().st_mode | 0o055)
            os.seteuid(65534)

    me = os.geteuid()
    yield change
    os.seteuid(me)


@pytest.mark.parametrize("path", ["pedes", "pedes/reid_raw.json", "all/other", "own.pt"])
def test_no_permission_to_read(path, here, refused, as_nobody):
    pedes(here / "all/pedes")
    Path("all/other").mkdir()
    shutil.copy("last.pt", "own.pt")
    Path(path).chmod(0)
    as_nobody()
    if path == "own.pt":
        refused(evaluate, ("--checkpoint", path, "--data", "pedes"), path, "ermission")
        refused(train, ("--resume", path), path, "ermission")
    else:
        refused(data, (path.split("/")[0],), path, "ermission")


def test_no_permission_to_write_runs(here, refused, as_nobody):
    Path("runs").mkdir(0o555)
    Path("bert/model.safetensors").chmod(0o644)
    as_nobody()
    refused(train, ("--data", "pedes", *STEP), "runs", "ermission")


def test_runs_is_a_file(here, refused):
    Path("runs").write_text("")
    refused(train, ("--data", "pedes", *STEP), "runs")


# ---- images ----

def test_a_pipe_is_no_image(here, refused):
    image = Path("pedes/imgs/test_query/3.jpg")
    image.unlink()
    os.mkfifo(image)
    refused(evaluate, ("--checkpoint", "last.pt"), image)


@pytest.mark.parametrize("kind", ["AVIF", "DDS", "PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_an_image_that_is_cut_short(kind, share, tmp_path):
    path = tmp_path / "x.jpg"
    Image.effect_noise((32, 64), 60).convert("RGB").save(path, kind)
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(cli.UserError, match="cannot read image .*x.jpg"):
        load_image(path, (64, 32))


@pytest.mark.parametrize("kind,dtype", [
    ("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_an_image_of_16_bits_has_the_brightness_of_8(kind, dtype, tmp_path):
    grey = np.arange(64 * 32).reshape(64, 32) % 256
    Image.fromarray((grey * 257).astype(dtype)).save(tmp_path / "x.png", kind)
    assert (load_image(tmp_path / "x.png", (64, 32)).numpy() == grey).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_an_image_is_turned_as_its_exif_says(kind, tmp_path):
    upright = Image.linear_gradient("L").resize((32, 64)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown, it is turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "x.jpg", kind, exif=exif)
    pixels = load_image(tmp_path / "x.jpg", (64, 32)).float()
    wanted = torch.tensor(np.array(upright)).permute(2, 0, 1)
    assert (pixels - wanted).abs().max() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode, tmp_path):
    image = Image.new("RGBA", (32, 64), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 64))
    image.convert(mode).save(tmp_path / "x.png")
    pixels = load_image(tmp_path / "x.png", (64, 32))
    assert (pixels[:, :, :16] == 0).all() and (pixels[:, :, 16:] == 255).all()


# ---- checkpoints ----

MISSING = object()


def changed(state, path, value):
    """A checkpoint in which the entry at `path`, such as config.size, is another or missing."""
    part, _, key = path.partition(".")
    if key:
        value = changed(state[part], key, value)
    state = {**state, part: value}
    if value is MISSING:
        del state[part]
    return state


@pytest.mark.parametrize("path,value", [
    ("config", 5), ("config", []), ("config.size", "huge"), ("config.size", 5),
    ("config.size", MISSING), ("config.size", torch.ones(3)), ("config.feature", MISSING),
    ("config.feature", "other"), ("config.task", "sing"), ("config.editing", "yes"),
    ("config.data", 5), ("config.amp", "int8"), ("classes", MISSING), ("classes", {}),
    ("classes", ["a"]), ("classes", {"cuhk-pedes": "x"}), ("classes", {"cuhk-pedes": -1}),
    ("classes", {"a.b": 2}), ("classes", {"cuhk-pedes": 3}), ("model", []), ("model", {5: 5}),
    ("model.log_temperature", 5), ("model.log_temperature", MISSING), ("published", 5),
    ("published", {"shape": 5}), ("published", {"shape": {"picture_depth": "x"}}),
    ("published.text", 5), ("published.text", {}), ("published.cross", "[]"),
])
def test_a_checkpoint_that_no_run_wrote(path, value, here, refused):
    state = checkpoints.load_checkpoint("last.pt")
    state["optimiser"]["state"] = {}  # large, and not read
    torch.save(changed(state, path, value), "odd.pt")
    refused(evaluate, ("--checkpoint", "odd.pt"), "odd.pt")
    refused(train, ("--resume", "odd.pt"), "odd.pt")


@pytest.mark.parametrize("path,value", [
    ("step", MISSING), ("step", -5), ("step", 2), ("step", 1.0), ("optimiser", MISSING),
    ("optimiser", {}), ("scaler", MISSING), ("rng", MISSING), ("rng", {}),
    ("rng.cpu", torch.ones(5)), ("rng.cpu", torch.ones(5, dtype=torch.uint8)),
    ("config.workers", MISSING), ("config.unknown", 5),
    ("config.steps", "x"), ("config.lr", None), ("config.lr", -1), ("config.ratios", 5),
    ("config.val", "yes"), ("config.mining", "none"), ("config.name", 5),
])
def test_a_checkpoint_with_which_no_run_goes_on(path, value, here, refused):
    state = checkpoints.load_checkpoint("last.pt")
    state["optimiser"]["state"] = {}  # large, and not read
    torch.save(changed(state, path, value), "odd.pt")
    refused(train, ("--resume", "odd.pt"), "odd.pt")


@pytest.mark.parametrize("key,value", [
    ("auto_map", {"AutoModel": "evil--code.Model"}), ("quantization_config", {"bits": 4}),
    ("hidden_size", "x"), ("hidden_act", "none"), ("num_attention_heads", 0),
])
def test_a_text_model_inside_a_checkpoint(key, value, here, refused):
    state = checkpoints.load_checkpoint("last.pt")
    text_part = dict(state["published"]["text"])
    text_part["bert"] = json.dumps({**json.loads(text_part["bert"]), key: value})
    torch.save(changed(state, "published.text", text_part), "odd.pt")
    refused(evaluate, ("--checkpoint", "odd.pt"), "odd.pt")


def test_a_checkpoint_cannot_choose_the_attention(here):
    state = checkpoints.load_checkpoint("last.pt")
    text_part = dict(state["published"]["text"])
    config = json.loads(text_part["bert"])
    for key in ("attn_implementation", "_attn_implementation"):
        config[key] = "evil/kernel"
    text_part["bert"] = json.dumps(config)
    torch.save(changed(state, "published.text", text_part), "odd.pt")
    model, _ = checkpoints.load_model("odd.pt")
    assert model.encoder.text.bert.config._attn_implementation == "sdpa"


# ---- features ----

PAIR = "cuhk-pedes/t2i/"


def saved(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def odd_features(how, tensors, notes):
    """Changes what a features file holds."""
    gallery = next(key for key in tensors if key.startswith(f"{PAIR}gallery/"))
    nearest = f"{PAIR}matching/nearest"
    scores = f"{PAIR}matching/scores"
    if how == "too few rows":
        tensors[gallery] = tensors[gallery][1:].clone()
    if how == "too many rows":
        tensors[gallery] = tensors[gallery].repeat(2, 1)
    if how == "one dimension":
        tensors[gallery] = tensors[gallery][:, 0].clone()
    if how == "other width":
        tensors[gallery] = tensors[gallery][:, 1:].clone()
    if how == "index out of range":
        tensors[nearest] = tensors[nearest] + 1
    if how == "index below 0":
        tensors[nearest] = tensors[nearest] - 1
    if how == "index is no number":
        tensors[nearest] = tensors[nearest].float()
    if how == "matching of fewer":
        for key in (nearest, scores):
            tensors[key] = tensors[key][1:].clone()
    if how == "no scores":
        del tensors[scores]
    if how == "fewer scores":
        tensors[scores] = tensors[scores][:, :1].clone()
    if how in notes:
        del notes[how]
    if how == "other task":
        notes["task"] = "sing"


@pytest.mark.parametrize("how", [
    "too few rows", "too many rows", "one dimension", "other width", "index out of range",
    "index below 0", "index is no number", "matching of fewer", "no scores", "fewer scores",
    "data", "task", "feature", "flip", "other task",
])
def test_features_that_nobody_saved(how, here, refused):
    tensors, notes = saved("f.safetensors")
    odd_features(how, tensors, notes)
    save_file(tensors, "odd.safetensors", notes)
    refused(evaluate, ("--checkpoint", "odd.safetensors"), "save them again")


# ---- published weights ----

@pytest.mark.parametrize("name", [
    "cls_token", "cls_pos", "pos_embed", "part_token2", "part1_pos", "patch_embed.proj.weight",
    "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "blocks.0.norm1.weight",
])
@pytest.mark.parametrize("how", [
    lambda tensor: torch.zeros(()), lambda tensor: tensor.flatten()[:1], lambda tensor: tensor[:0],
    lambda tensor: tensor.to_sparse(),
])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_published_vit_with_a_tensor_of_another_form(name, how, tmp_path):
    path = pass_checkpoint("flat", tmp_path / "pass.pth")
    state = torch.load(path)
    torch.save({**state, name: how(state[name])}, path)
    io = golden("vit_pass/io.npz")
    vit = ViT(io["image"].shape[2:], 16, None, 12, 1, int(io["num_heads"]))
    with pytest.raises(cli.UserError, match="pass.pth"):
        weights.load_vit(vit, path)


# ---- text models ----

def change_json(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def odd_bert(how):
    config = Path("bert/config.json")
    weights = Path("bert/model.safetensors")
    if how == "quantised":
        change_json(config, quantization_config={"quant_method": "bitsandbytes", "bits": 4})
    if how == "remote code":
        change_json(config, auto_map={"AutoModel": "evil--code.Model"})
    if how == "list":
        config.write_text("[]")
    if how == "number":
        config.write_text("5")
    if how == "no json":
        config.write_text("{")
    if how == "size x":
        change_json(config, hidden_size="x")
    if how == "size -3":
        change_json(config, hidden_size=-3)
    if how == "heads 0":
        change_json(config, num_attention_heads=0)
    if how == "activation":
        change_json(config, hidden_act="none")
    if how == "other size":
        change_json(config, hidden_size=64)
    if how == "sharded":
        weights.unlink()
        index = {"metadata": {}, "weight_map": {"embeddings.LayerNorm.bias": "part-1.safetensors"}}
        Path("bert/model.safetensors.index.json").write_text(json.dumps(index))
    if how == "cut off":
        weights.write_bytes(weights.read_bytes()[:1000])
    if how == "no vocabulary":
        Path("bert/vocab.txt").unlink()


@pytest.mark.parametrize("how", [
    "quantised", "remote code", "list", "number", "no json", "size x", "size -3", "heads 0",
    "activation", "other size", "sharded", "cut off", "no vocabulary",
])
def test_a_text_model_that_is_none(how, here, refused):
    odd_bert(how)
    refused(train, ("--data", "pedes", *STEP), "--text-model bert")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_text_model_cannot_name_a_kernel(key, here, monkeypatch):
    from transformers.integrations import hub_kernels
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *args, **kwargs: pytest.fail("fetched"))
    change_json(Path("bert/config.json"), **{key: "evil/kernel"})
    assert call(train, "--data", "pedes", *STEP) == 0


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_in_a_text_model_is_refused_in_own_words(here, refused):
    Path("bert/model.safetensors").unlink()
    torch.save({"embeddings.LayerNorm.bias": Payload()}, "bert/pytorch_model.bin")
    refused(train, ("--data", "pedes", *STEP), "--text-model bert", "refused")
    with pytest.raises(cli.UserError) as error:
        train.main(cli.parse(train.Config, ["--data", "pedes", *map(str, STEP)]))
    assert "weights_only" not in str(error.value) and "trust" not in str(error.value)
