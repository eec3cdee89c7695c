"""Rows trained side by side on several cores: the same bits on any number of cores, pieces, workers, stops."""

from __future__ import annotations

import multiprocessing
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workbench.federation.side_by_side import side_by_side
from workbench.methods.federated import _local
from workbench.methods.federated._local import Job, LocalSGD, Samples, draws
from workbench.methods.federated._local_askew import LocalAskewSGD
from workbench.methods.federated._local_luq import LocalLUQ

STEPS = [3, 0, 5, 1, 4, 2]
DATA = np.random.default_rng(1)
X, Y = DATA.normal(size=(60, 1, 6, 6)), DATA.integers(0, 4, 60)


def batch_of(dtype: torch.dtype):
    x, y = torch.tensor(X, dtype=dtype), torch.tensor(Y)
    return lambda index: (x[index], y[index])


def chain(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))
    return nn.Sequential(*layers).to(dtype)


def convolved(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    layers = (first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    return nn.Sequential(*layers).to(dtype)


def trained(
    local: LocalSGD, model: nn.Module, threads: int, chosen: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Models and losses of the rows ``chosen`` (all), each with its own start near ``model``, rate and number of steps."""
    first = local.flat.vector(model)
    dtype = first.dtype
    chosen = list(range(len(STEPS))) if chosen is None else chosen
    noise = torch.randn(len(STEPS), local.flat.P, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    stack = (first + noise.to(dtype) / 20)[chosen]
    samples = [draws(0, i, 0, STEPS[i], 16, len(X)) for i in chosen]
    rates = torch.linspace(0.05, 0.2, len(STEPS), dtype=dtype)[chosen]
    scales = local.measured(first) if isinstance(local, LocalAskewSGD) else ()
    torch.set_num_threads(threads)
    losses = local.train(stack, samples, batch_of(dtype), rates, [Job(0, i, 0, 0.5 + i / 20, scales) for i in chosen])
    return stack, losses


LOOPS = {
    "chain": (chain, lambda model: LocalSGD(model, backend="loop")),
    "convolutions": (convolved, lambda model: LocalSGD(model, backend="loop")),
    "luq": (convolved, lambda model: LocalLUQ(model, backend="loop", layers="all")),
    "askewsgd": (convolved, lambda model: LocalAskewSGD(model, backend="loop", layers="all")),
}


@pytest.mark.parametrize(("network", "make"), LOOPS.values(), ids=LOOPS)
def test_the_loop_gives_the_same_bits_on_any_number_of_cores_and_beside_any_rows(network, make):
    model = network()
    local = make(model)
    want, losses = trained(local, model, 1)
    assert losses[STEPS.index(0)] == 0
    assert (losses > 0).sum() == len(STEPS) - 1
    for threads in (2, 3):
        got = trained(local, model, threads)
        assert torch.equal(got[0], want)
        assert torch.equal(got[1], losses)
    for chosen in ([4], [2, 0, 1]):
        got = trained(local, model, 2, chosen)
        assert torch.equal(got[0], want[chosen])
        assert torch.equal(got[1], losses[chosen])


@pytest.mark.parametrize(("piece", "worth", "pieces"), [(16 * 36 * 2, 2**60, 4), (2**60, 1, 2), (1, 1, 6), (2**60, 2**60, 1)])
@pytest.mark.parametrize("make", [LocalSGD, LocalLUQ, LocalAskewSGD])
def test_matmul_in_pieces_equals_matmul_as_a_whole(make, piece, worth, pieces, monkeypatch):
    model = chain(torch.float64)
    local = make(model, backend="matmul")
    want, losses = trained(local, model, 1)
    monkeypatch.setattr(_local, "PIECE", piece)
    monkeypatch.setattr(_local, "WORTH_A_THREAD", worth)
    torch.set_num_threads(2)
    found, _ = local._pieces([np.zeros((s, 16)) for s in STEPS], torch.device("cpu"))
    assert len(found) == pieces
    assert sorted(i for rows in found for i in rows) == list(range(len(STEPS)))
    got = trained(local, model, 2)
    # float64 on both sides, five steps of sums of at most 36 terms of order 1, in another order at most
    torch.testing.assert_close(got[0], want, rtol=0, atol=1e-12)
    torch.testing.assert_close(got[1], losses, rtol=0, atol=1e-12)


def test_pieces_share_the_work_evenly():
    local = LocalSGD(chain())
    steps = np.random.default_rng(0).integers(1, 21, 40)
    torch.set_num_threads(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_local, "WORTH_A_THREAD", 1)
        found, threads = local._pieces([np.zeros((s, 16)) for s in steps], torch.device("cpu"))
    assert threads == len(found) == 2
    shares = [steps[rows].sum() for rows in found]
    assert max(shares) - min(shares) <= steps.max()  # rows are dealt out by decreasing work, so totals differ by one row at most


def test_copies_for_other_cores_share_a_loss_with_its_data():
    task = SimpleNamespace(data=torch.zeros(10))

    class Loss:
        def __init__(self) -> None:
            self.task = task

        def __call__(self, out: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(out, y)

    local = LocalSGD(convolved(), Loss())
    trained(local, convolved(), 3)
    twins = local._workers(3)
    assert len(twins) == 3
    assert {id(t.loss) for t in twins} == {id(local.loss)}
    assert len({id(t.flat.model) for t in twins}) == 3


def test_a_batch_is_valid_until_the_same_threads_next_call():
    x = torch.arange(20.0).view(20, 1)
    samples = Samples(SimpleNamespace(train_y=torch.arange(20), batch=lambda index: (x[index], index)))
    mine, _ = samples(torch.tensor([3, 4]))
    other: list[Tensor] = []
    thread = threading.Thread(target=lambda: other.append(samples(torch.tensor([7, 8]))[0]))
    thread.start()
    thread.join()
    assert mine.flatten().tolist() == [3, 4]
    assert other[0].flatten().tolist() == [7, 8]
    samples(torch.tensor([5, 6]))
    assert mine.flatten().tolist() == [5, 6]  # the buffer is used again


# --- workers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_every_piece_is_worked_on_once_by_kernels_of_one_thread(threads):
    torch.set_num_threads(threads)
    seen: list[tuple[int, int, int]] = []
    side_by_side(lambda worker, piece: seen.append((piece, worker, torch.get_num_threads())), range(50))
    assert sorted(piece for piece, *_ in seen) == list(range(50))
    assert {worker for _, worker, _ in seen} <= set(range(threads))
    assert {count for *_, count in seen} == {1}


def test_the_number_of_threads_stays_what_it_was_here_and_in_threads_to_come():
    torch.set_num_threads(3)
    side_by_side(lambda worker, piece: None, range(3))
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 3
    assert later == [3]


def test_workers_do_work_at_the_same_time():
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=30)
    side_by_side(lambda worker, piece: meeting.wait(), range(2))  # breaks unless both are in it at once


@pytest.mark.parametrize("threads", [1, 2])
def test_an_exception_ends_the_work_and_the_workers_are_there_for_the_next(threads):
    torch.set_num_threads(threads)
    done: list[int] = []

    def work(worker: int, piece: int) -> None:
        if piece == 3:
            raise KeyError("stop here")
        done.append(piece)

    with pytest.raises(KeyError, match="stop here"):
        side_by_side(work, range(10**6))
    assert len(done) < 10**6
    side_by_side(work, [7])
    assert done[-1] == 7


def test_a_stop_that_a_batch_raises_reaches_the_caller():
    class Stopped(Exception):
        pass

    calls: list[int] = []

    def batch(index: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(1)
        if len(calls) == 4:
            raise Stopped
        return batch_of(torch.float32)(index)

    local = LocalSGD(convolved())
    torch.set_num_threads(2)
    stack = local.flat.vector().repeat(4, 1)
    with pytest.raises(Stopped):
        local.train(stack, [draws(0, i, 0, 10, 8, len(X)) for i in range(4)], batch, 0.1)
    assert len(calls) < 40


def _in_child(found) -> None:
    seen: list[int] = []
    side_by_side(lambda worker, piece: seen.append(piece), range(5))
    found.put(sorted(seen))


def test_a_forked_process_gets_workers_of_its_own():
    torch.set_num_threads(2)
    side_by_side(lambda worker, piece: None, range(2))
    fork = multiprocessing.get_context("fork")
    found = fork.SimpleQueue()
    child = fork.Process(target=_in_child, args=(found,), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert found.get() == list(range(5))
