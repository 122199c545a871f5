"""What is there for a GPU, tried on the CPU: precision, what it is fed and keeps, --compile."""

import os
import threading
import types

import pytest
import torch
from PIL import Image

import data
import evaluate
import losses
import toydata
import train
from benchmarks import gpu
from reid import checkpoints, cli, device, features
from tests.small_bert import write_bert

GPU = torch.device("cuda")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    toydata.make_toy(folder / "toy", people=8, seed=0, workers=1)
    write_bert(folder / "bert")
    return folder


@pytest.fixture
def trained(drawn, tmp_path, monkeypatch):
    """trained(*flags) -> (the terms of the loss of each step, the checkpoint) of two steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "evaluate_all", lambda *args, **flags: [])
    monkeypatch.setattr(evaluate, "instruction_matrix", lambda *args, **flags: [])
    loss_terms = train.loss_terms
    steps = []

    def spy(*args):
        terms = loss_terms(*args)
        steps.append({name: term.item() for name, term in terms.items()})
        return terms

    monkeypatch.setattr(train, "loss_terms", spy)

    def call(*flags):
        steps.clear()
        argv = ["--data", drawn / "toy", "--text-model", drawn / "bert", "--ids", 4, "--images", 2,
                "--steps", 2, "--task", "ctcc"]
        train.main(cli.parse(train.Config, [str(each) for each in (*argv, *flags)]))
        [*_, path] = sorted(tmp_path.rglob("last.pt"), key=os.path.getmtime)
        return list(steps), checkpoints.load_checkpoint(path)

    return call


# ---- precision ----

@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_trains_to_nearly_the_losses_of_float32(trained, amp):
    full, _ = trained("--amp", "off")
    half, checkpoint = trained("--amp", amp)
    for name, value in full[0].items():
        assert half[0][name] == pytest.approx(value, rel=0.05, abs=0.05), name
    assert bool(checkpoint["scaler"]) == (amp == "fp16")  # fp16 alone needs its losses scaled
    for name, value in checkpoint["model"].items():
        assert value.isfinite().all() and value.dtype != torch.bfloat16, name


def test_tf32_is_for_a_gpu_and_not_for_distances(monkeypatch, capsys):
    precision = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precision.append)
    device.allow_tf32(CPU)
    assert precision == [] and capsys.readouterr().out == ""
    device.allow_tf32(GPU)
    assert precision == ["high"] and "TF32" in capsys.readouterr().out
    device.allow_tf32(GPU, say=False)
    assert capsys.readouterr().out == ""


def test_distances_and_rankings_have_all_bits(monkeypatch):
    inside = []
    full = losses.full

    def spy(x):
        inside.append(torch.get_float32_matmul_precision())
        return full(x)

    monkeypatch.setattr(losses, "full", spy)
    torch.set_float32_matmul_precision("high")
    try:
        feats = torch.randn(4, 8)
        losses.distances(feats)
        losses.relatedness(torch.arange(4), feats)
        losses.contrastive(feats, feats, torch.arange(4), torch.tensor(0.1))
        assert set(inside) == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"  # and the model has it again
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- no waiting ----

def test_negatives_are_those_of_multinomial():
    """Drawn without the check of torch.multinomial, for which a GPU would have to wait."""
    for seed in range(50):
        chances = torch.randn(16, 12, generator=torch.Generator().manual_seed(seed)).softmax(1)
        first = torch.Generator().manual_seed(seed)
        second = torch.Generator().manual_seed(seed)
        expected = torch.multinomial(chances, 1, generator=first).squeeze(1)
        assert torch.equal(losses.draw(chances, second), expected)
        assert torch.equal(first.get_state(), second.get_state())


def test_a_batch_moves_as_a_whole():
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    numbers = torch.arange(2)
    batch = data.Batch(pixels, numbers, numbers, "market", "trad", ["a", "b"])
    moved = batch.to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert (moved.instr, moved.task, moved.clothes) == (["a", "b"], "trad", None)
    pictured = batch._replace(instr=pixels, clothes=numbers).to("meta")
    assert pictured.instr.device.type == pictured.clothes.device.type == "meta"


def test_the_step_moves_everything_before_the_model_runs(trained, monkeypatch):
    """Whatever reaches the loss has gone through Batch.to, which does not wait."""
    seen = []
    to = data.Batch.to

    def spy(batch, where):
        seen.append(where)
        return to(batch, where)

    monkeypatch.setattr(data.Batch, "to", spy)
    trained()
    assert seen == [CPU, CPU]


# ---- feeding ----

@pytest.mark.parametrize("cores,processes,workers", [(2, 1, 1), (1, 1, 1), (6, 1, 5), (64, 1, 8),
                                                     (64, 8, 7), (16, 4, 3), (8, 8, 1)])
def test_workers_are_chosen_from_the_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(device, "cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert device.loader_workers(None, GPU) == workers
    assert device.loader_workers(None, CPU) == 0  # images stay in memory
    assert device.loader_workers(3, GPU) == device.loader_workers(3, CPU) == 3


def test_a_batch_is_read_while_the_one_before_is_worked_on():
    started = [threading.Event() for _ in range(4)]

    def read(number):
        started[number].set()
        return number * 10

    results = []
    for result in features.read_ahead(read, range(3)):
        following = len(results) + 1
        if following < 3:
            assert started[following].wait(10), "nothing is read while a batch is worked on"
        results.append(result)
    assert results == [0, 10, 20]
    assert list(features.read_ahead(read, [])) == []


def test_what_fails_while_it_is_read_ahead_is_said():
    def read(number):
        if number == 1:
            raise cli.UserError("cannot read image 1.jpg")
        return number

    with pytest.raises(cli.UserError, match="1.jpg"):
        list(features.read_ahead(read, range(3)))


# ---- the tokens of the second stage ----

def test_tokens_stay_on_a_gpu_that_has_room(monkeypatch):
    where = features.kept_where
    assert where(1000, torch.float32, "bf16", CPU) == (CPU, torch.float32)  # as they are
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 * gib)
    assert where(gib, torch.float32, "bf16", GPU) == (GPU, torch.bfloat16)  # 2 of 5 GiB
    assert where(gib, torch.float32, "fp16", GPU) == (GPU, torch.float16)
    assert where(gib, torch.float32, "off", GPU) == (CPU, torch.float32)  # 4 of 5 GiB
    assert where(2 * gib, torch.float32, "bf16", GPU) == (CPU, torch.bfloat16)


def test_logits_from_kept_tokens_in_half_precision(tmp_path, monkeypatch):
    """As on a GPU: in bf16, the tokens are kept in it, and the logits hardly change."""
    class Pairs(torch.nn.Module):
        size = (8, 4)

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def edit(self, images):
            return images.flatten(2).mT * self.scale

        def instruct(self, sentences):
            return torch.tensor([[len(sentence)] for sentence in sentences])

        def read_text(self, instr):
            return instr

        def match(self, tokens, instr):
            score = tokens.float().mean((1, 2)) * instr.float()[0]
            return torch.stack([-score, score], 1)

    gallery = []
    for number in range(5):
        Image.new("RGB", (4, 8), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
        gallery.append(types.SimpleNamespace(path=f"{number}.png"))
    dataset = types.SimpleNamespace(root=tmp_path, title="CUHK-PEDES")
    nearest = torch.tensor([[0, 3, 2], [4, 1, 0]])
    arguments = (Pairs(), dataset, gallery, ["a", "abc"], nearest, 2)
    exact = features.match(*arguments)
    monkeypatch.setattr(features, "kept_where", lambda *_: (CPU, torch.bfloat16))
    kept = features.match(*arguments)
    assert exact.shape == kept.shape == (2, 3)
    torch.testing.assert_close(kept, exact, rtol=0.02, atol=0.02)


# ---- --compile ----

def test_compile_compiles_the_editor_and_leaves_the_names_of_weights(trained, monkeypatch):
    compiled = []

    def compile_nothing(call, **options):
        compiled.append(call.__self__)
        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    plain, expected = trained()
    assert compiled == []
    losses_compiled, checkpoint = trained("--compile")
    assert [type(module).__name__ for module in compiled] == ["ViT"]
    assert compiled[0].size == (64, 32)  # it is E_e, not the ViT of the pictures
    assert losses_compiled == plain
    assert checkpoint["model"].keys() == expected["model"].keys()


# ---- the benchmark ----

def test_the_benchmark_says_that_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(cli.parse(gpu.Config, []))
    assert "no GPU" in capsys.readouterr().out


def test_the_benchmark_runs(monkeypatch, capsys):
    gpu.main(cli.parse(gpu.Config, ["--device", "cpu", "--tiny", "--steps", "1"]))
    _, bf16, fp16 = capsys.readouterr().out.splitlines()
    assert bf16.startswith("bf16") and fp16.startswith("fp16") and "images/s" in fp16
