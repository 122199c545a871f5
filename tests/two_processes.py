"""train.py with eyes on it, for torchrun: `torchrun ... tests/two_processes.py FLAGS`.

The loss is replaced by one whose gradient is known: GRADIENTS of this process and step, on one
parameter. Every image is replaced by the same probe, so that what differs between processes is how
they augment it. What the process saw goes into rank0.pt or rank1.pt in the current folder.
"""

import os
import sys
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parents[1]))
from reid import cli
import data
import train

# Of each rank in steps 0 and 1: the means are 1.5 and -2, the sums 3 and -4. The clipping to a norm
# of 5 does not touch the means, but would change a -6 that was clipped before the averaging.
GRADIENTS = ((1.0, 2.0), (2.0, -6.0))
PARAMETER = "log_temperature"


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def main():
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    model = None
    seen = {"pids": [], "augmented": [], "gradients": []}
    augment = data.augment

    def loss_terms(net, images, what, batch, *args, **kwargs):
        nonlocal model
        if model is None:
            model = net
            seen["first"] = weights_of(net)
        step = len(seen["pids"])
        seen["pids"].append(batch.pids.tolist())
        return {"known": GRADIENTS[rank][step] * net.get_parameter(PARAMETER)}

    def augment_the_probe(images, *args, **kwargs):
        left_to_right = torch.arange(images.shape[3]).expand_as(images) * 4
        probe = left_to_right.to(images.dtype)
        result = augment(probe, *args, **kwargs)
        seen["augmented"].append(result[0])
        return result

    def note_gradient(optimiser, args, kwargs):
        seen["gradients"].append(model.get_parameter(PARAMETER).grad.item())

    train.loss_terms = loss_terms
    data.augment = augment_the_probe
    register_optimizer_step_pre_hook(note_gradient)
    cli.run(train.main, train.Config)
    seen["last"] = weights_of(model)
    torch.save(seen, f"rank{rank}.pt")


if __name__ == "__main__":
    main()
