# SPDX-License-Identifier: Apache-2.0
import torch
from torch import distributed, multiprocessing

from modeling_mclfir.losses import InfoNCE, gather_rows, world_size

NUM_PROCESSES = 2


def batch():
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(8, 2, 4, generator=generator)
    labels = torch.randint(-1, 2, (8, 2), generator=generator)
    return embeds, labels, torch.arange(8)


def loss_of(weight, embeds, labels, image_ids):
    unit = torch.nn.functional.normalize(embeds * weight, dim=-1)
    return InfoNCE()(gather_rows(unit), gather_rows(labels), gather_rows(image_ids)) * world_size()


def one_of_two(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM_PROCESSES)
    own = slice(4 * rank, 4 * rank + 4)
    weight = torch.ones(4, requires_grad=True)
    loss = loss_of(weight, *(part[own] for part in batch()))
    loss.backward()
    # What distributed training does with gradients: their average.
    distributed.all_reduce(weight.grad)
    order = gather_rows(torch.tensor([10 + rank]))
    torch.save((loss.detach() / NUM_PROCESSES, weight.grad / NUM_PROCESSES, order), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_one_process_gathers_its_own_rows():
    rows = torch.randn(3, 2, requires_grad=True)
    assert world_size() == 1
    assert gather_rows(rows) is rows


def test_two_processes_give_the_loss_and_the_gradient_of_one(tmp_path):
    weight = torch.ones(4, requires_grad=True)
    expected = loss_of(weight, *batch())
    expected.backward()
    multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=NUM_PROCESSES)
    for rank in range(NUM_PROCESSES):
        loss, gradient, order = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(loss, expected.detach(), atol=1e-6, rtol=0)
        torch.testing.assert_close(gradient, weight.grad, atol=1e-6, rtol=0)
        assert order.tolist() == [10, 11]
