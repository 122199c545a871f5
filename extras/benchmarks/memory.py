"""The memory of a training step of `base`: `python benchmarks/memory.py`. Computed, also without a GPU;
benchmarks/gpu.py measures it on one.

Autograd says which tensors a forward pass under bf16 autocast keeps for backward; two sizes of batch give
what each image adds. One sentence for the whole batch. Not counted: losses, and what backward holds for a moment.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from model import SIZES, InstructReID
from reid.text import EmbeddedTextEncoder

BATCH, GIB, SENTENCE = 128, 2**30, "do not change clothes"


def kept_bytes(forward, module):
    """Bytes, less the module's parameters, that autograd keeps for the backward pass of forward()."""
    known, storages = {p.untyped_storage().data_ptr() for p in module.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        forward()
    return sum(storage.nbytes() for address, storage in storages.items() if address not in known)


def activation_bytes(model, b):
    """Of b images: (all kept; kept with checkpointing, one layer's own counted as its backward needs them)."""
    images, instr, inputs = torch.randn(b, 3, *model.size), model.instruct([SENTENCE]), []
    hooks = [block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in model.editor.blocks]
    model.editor.checkpointing = False
    everything = kept_bytes(lambda: model(images, instr), model)
    first = inputs[0].detach().requires_grad_()
    layer = kept_bytes(lambda: model.editor.blocks[0](first, *instr[:2]), model)
    for hook in hooks:
        hook.remove()
    model.editor.checkpointing = True
    outside = kept_bytes(lambda: model(images, instr), model)
    return everything, outside + layer + sum(x.nbytes for x in inputs[:len(model.editor.blocks)])


def computed(size):
    model = InstructReID(size, {"market": 751}, text=EmbeddedTextEncoder()).train()
    parts = {"E_e": model.editor, "E_f": model.attention, "pictures": model.encoder.picture, "text": model.encoder.text}
    numbers = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"{size}, {'x'.join(map(str, model.size))}, {model.editor.pos.shape[1]} tokens: million parameters "
          + ", ".join(f"{name} {number:.1f}" for name, number in numbers.items())
          + f"; {learning / 1e6:.1f} learn, and take {16 * learning / GIB:.2f} GiB with gradients and AdamW")
    two, three = activation_bytes(model, 2), activation_bytes(model, 3)
    total = [(a + (b - a) * (BATCH - 2)) / GIB for a, b in zip(two, three)]
    print(f"  activations of {BATCH} images, bf16 autocast: {total[0]:.1f} GiB; "
          f"with --grad-checkpointing {total[1]:.1f} GiB")


if __name__ == "__main__":
    print(f"torch {torch.__version__}")
    for size in [name for name in SIZES if name.startswith("base")]:
        computed(size)
