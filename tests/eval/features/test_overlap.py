"""Images and features by several threads: every batch once and in order, and a signal ends all of them soon."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fewstep.eval.cancel import Cancelled, can_be_cancelled, stop_if_cancelled
from fewstep.eval.features.digits_cnn import digits
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.features.overlap import each_batch
from fewstep.eval.images import TensorImages, made_in_shares
from fewstep.eval.interfaces import ALONE

IMAGES = digits()[0][:130]


@pytest.fixture
def extractor():
    return load_extractor("digits-cnn", None, "cpu")


@pytest.fixture(params=[1, 3])
def cores(request):
    """torch's cores before the call, which must be as many after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_every_image_comes_once_in_order_with_its_features(extractor, cores, batch_size):
    whole, places, images, features = extractor(IMAGES), [], [], []

    def store(which, batch, of_batch):
        places.extend(range(len(IMAGES))[which])
        images.append(batch)
        features.append(of_batch)

    each_batch(TensorImages(IMAGES), extractor, batch_size, "all", store)
    assert places == list(range(len(IMAGES)))
    assert torch.equal(torch.cat(images), IMAGES)
    assert torch.allclose(torch.cat(features), whole, atol=1e-4)


class Slow:
    """A source whose batches take a minute, but for the network evaluations between which it can be left."""

    def __init__(self):
        self.working, self.left = threading.Semaphore(0), []

    def images(self, start, stop):
        self.working.release()
        try:
            for _ in range(6000):
                stop_if_cancelled()
                time.sleep(0.01)
        except Cancelled:
            self.left.append(start)
            raise
        return IMAGES[start:stop]

    def __len__(self):
        return len(IMAGES)


def test_an_error_in_one_thread_ends_the_others_at_their_next_evaluation(extractor, cores):
    class Broken(Slow):
        def images(self, start, stop):
            if start == 0:
                for _ in range(min(cores, 4) - 1):
                    self.working.acquire()  # the others have begun
                raise KeyboardInterrupt
            return super().images(start, stop)

    source, began = Broken(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        each_batch(source, extractor, 10, "all", lambda *_: None)
    assert time.monotonic() - began < 10
    assert len(source.left) >= min(cores, 4) - 1  # the freed thread may have begun another batch


def test_an_error_while_storing_ends_the_threads(extractor, cores):
    class Second(Slow):
        def images(self, start, stop):
            return IMAGES[start:stop] if start == 0 else super().images(start, stop)

    def full(*_):
        raise OSError("no space left")

    began = time.monotonic()
    with pytest.raises(OSError, match="no space"):
        each_batch(Second(), extractor, 10, "all", full)
    assert time.monotonic() - began < 10


def test_a_thread_that_nobody_cancels_goes_on():
    stop_if_cancelled()
    event, outcome = threading.Event(), []

    def work():
        can_be_cancelled(event)
        stop_if_cancelled()
        event.set()
        with pytest.raises(Cancelled):
            stop_if_cancelled()
        outcome.append("left")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == ["left"]


class Dealt:
    """`Shares` of one of two threads, which wait for each other."""

    number = 2

    def __init__(self, index, meeting, table):
        self.index, self.meeting, self.table = index, meeting, table

    def call(self, *task):
        raise AssertionError("nothing is called out here")

    def gather(self, mine):
        self.table[self.index] = mine
        self.meeting.wait(60)
        made = list(self.table)
        self.meeting.wait(60)  # before the next turn
        return made


@pytest.mark.parametrize("count", [130, 96, 20])  # an odd number of batches, an even one, a single one
def test_two_that_share_the_batches_both_get_all_of_them_as_one_makes_them(extractor, count):
    def features(shares):
        parts = []
        source = TensorImages(IMAGES[:count])
        each_batch(source, extractor, 32, "all", lambda *made: parts.append(made[2]), shares)
        return torch.cat(parts)

    def images(shares):
        return made_in_shares(TensorImages(IMAGES), 5, count, 32, shares)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    meeting, table = threading.Barrier(2), [(), ()]
    for work in (features, images):
        with ThreadPoolExecutor(2) as pool:
            two = list(pool.map(work, [Dealt(index, meeting, table) for index in range(2)]))
        assert all(torch.equal(each, work(ALONE)) for each in two)
    torch.set_num_threads(before)
