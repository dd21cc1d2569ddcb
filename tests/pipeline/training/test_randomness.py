"""Randomness depends on its key alone; the data are passed in a new order every epoch, without a break."""

import torch

from fewstep.pipeline.training.randomness import batch_indices, key, keyed_generator


def test_keys_differ_by_seed_stream_step_and_slice():
    keys = [
        key(seed, stream, step, part)
        for seed in range(3)
        for stream in ("teacher", "student", "teacher-dropout", "flip")
        for step in range(40)
        for part in range(4)
    ]
    # 1,920 keys of 32 bits: two agree by chance with probability 4e-4, and the keys are the same in every run
    assert len(set(keys)) == len(keys)
    assert all(0 <= value < 2**32 for value in keys)


def test_counters_are_not_run_together():
    assert key(1, "a", 1, 23) != key(1, "a", 12, 3)
    assert key(1, "a", 2) != key(12, "a")


def test_a_keyed_generator_repeats_itself_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    first, again = (torch.rand(8, generator=keyed_generator(5, "teacher", 7, 1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(8, generator=keyed_generator(5, "teacher", 7, 2)))
    assert torch.equal(before, torch.get_rng_state())


def test_every_epoch_is_a_permutation_without_a_gap_between_epochs():
    images, batch = 37, 8
    order = torch.cat([batch_indices(3, images, batch, step) for step in range(3 * images // batch + 1)])
    epochs = [order[epoch * images : (epoch + 1) * images] for epoch in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(images))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_a_batch_larger_than_the_data_spans_epochs():
    indices = batch_indices(0, 5, 12, 0)
    assert torch.bincount(indices[:5], minlength=5).tolist() == [1] * 5
    assert torch.bincount(indices[5:10], minlength=5).tolist() == [1] * 5


def test_a_batch_depends_on_seed_and_step_not_on_earlier_calls():
    later = batch_indices(3, 37, 8, 9)
    batch_indices(3, 37, 8, 0)
    torch.manual_seed(1)
    assert torch.equal(later, batch_indices(3, 37, 8, 9))
    assert not torch.equal(later, batch_indices(4, 37, 8, 9))
