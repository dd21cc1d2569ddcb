"""The training loop: exact after any interruption, the same in slices and processes, and never a non-finite update."""

import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from fewstep.errors import UserError
from fewstep.pipeline.training import loop
from fewstep.pipeline.training.log import TrainingLog
from fewstep.pipeline.training.loop import train
from fewstep.pipeline.training.randomness import TEACHER, batch_indices, keyed_generator, training_stream
from fewstep.teachers.interfaces import Progress
from fewstep.teachers.network import build_scheduler, build_unet
from fewstep.teachers.objective import DDPMObjective
from small_training import stored

STEPS = 12  # of the job in conftest.py; an epoch is five steps


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.fixture
def whole(training):
    """Uninterrupted training, which every other course must equal."""
    whole = training("whole")
    whole.average = whole.run()
    return whole


@pytest.mark.parametrize("interrupted_at", [1, 3, 5, 7, STEPS], ids="step {}".format)
def test_interrupted_and_resumed_equals_uninterrupted_to_the_bit(training, whole, capsys, interrupted_at):
    cut = training("cut")
    cut.run(interrupted_at=interrupted_at)
    assert f"stopped after step {interrupted_at} of {STEPS}" in capsys.readouterr().out
    assert cut.checkpoint(interrupted_at).is_dir()
    average = cut.run()
    assert f"continues at step {interrupted_at} of {STEPS}" in capsys.readouterr().out
    assert cut.hashes(STEPS) == whole.hashes(STEPS)  # objective, average, optimizer
    assert len(cut.hashes(STEPS)) == 3
    assert torch.equal(weights(average), weights(whole.average))
    assert cut.trace() == whole.trace()
    assert [record["step"] for record in cut.trace()] == list(range(1, STEPS + 1))


def test_interrupted_twice_between_log_lines_gives_the_same_log(training):
    whole, cut = training("whole", log_every=5), training("cut", log_every=5)
    whole.run()
    for step in (2, 7):
        cut.run(interrupted_at=step)
    cut.run()
    assert [record["step"] for record in whole.trace()] == [5, 10, 12]
    assert cut.trace() == whole.trace()


def test_dropout_draws_other_numbers_each_step(training, whole):
    without = training("without")
    without.run(dropout=0.0)
    assert without.hashes(STEPS) != whole.hashes(STEPS)


def test_another_seed_gives_another_network(training, whole):
    other = training("other")
    other.job = replace(other.job, seed=12)
    other.run()
    assert other.hashes(STEPS) != whole.hashes(STEPS)


def test_training_neither_uses_nor_needs_the_state_of_the_global_generator(training, whole):
    torch.manual_seed(123)
    other = training("other")
    other.run()
    assert other.hashes(STEPS) == whole.hashes(STEPS)


def test_another_title_changes_no_number(training, whole):
    other = training("other")
    other.job = replace(other.job, title="the teacher, reworded")
    other.run()
    assert other.trace() == whole.trace()
    assert other.hashes(STEPS) == whole.hashes(STEPS)


def test_another_stream_changes_all_of_them(training, whole):
    other = training("other")
    other.job = replace(other.job, stream=training_stream("student"))
    other.run()
    assert all(one["loss"] != two["loss"] for one, two in zip(other.trace(), whole.trace(), strict=True))


def test_gradients_left_from_before_training_are_part_of_no_step(training, whole, denoising):
    left = denoising()
    for parameter in left.network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    other = training("other")
    other.run(left)
    assert other.trace() == whole.trace()
    assert other.hashes(STEPS) == whole.hashes(STEPS)


def test_the_gradient_of_a_sliced_batch_is_the_mean_over_its_slices(training, denoising):
    sliced = training(slices=4, gradient_clip=1e9, kimg=0.008, warmup_kimg=0.0, checkpoint_kimg=1)
    objective, grads = denoising(dropout=0.0), []
    objective.network[0].weight.register_hook(lambda grad: grads.append(grad.clone()))
    sliced.run(objective)
    reference, expected, losses = denoising(dropout=0.0), [], []
    for part in range(4):
        batch = sliced.job.batch(0, part, torch.device("cpu"))
        assert len(batch.images) == 2
        loss = reference(batch, Progress(step=0, total_steps=1, images=0), keyed_generator(11, TEACHER, 0, part)).loss
        losses += loss.tolist()
        (grad,) = torch.autograd.grad(loss.mean(), [reference.network[0].weight])
        expected.append(grad)
    torch.testing.assert_close(sum(grads), torch.stack(expected).mean(0), rtol=1e-5, atol=1e-7)
    assert sliced.trace()[0]["loss"] == pytest.approx(sum(losses) / 8, rel=1e-5)


def test_slices_are_the_parts_of_the_global_batch(training):
    job = replace(training().job, horizontal_flip=False)
    cut = replace(job, slices=2, parts=range(2))
    cpu = torch.device("cpu")
    parts = [cut.batch(6, part, cpu).images for part in range(2)]
    assert torch.equal(torch.cat(parts), job.batch(6, 0, cpu).images)
    assert float(parts[0].min()) >= -1
    assert float(parts[0].max()) <= 1


def test_about_half_of_the_images_are_mirrored_and_always_the_same_ones(training):
    job = training().job
    plain = replace(job, horizontal_flip=False)
    cpu, mirrored = torch.device("cpu"), 0
    for step in range(20):
        images, straight = job.batch(step, 0, cpu).images, plain.batch(step, 0, cpu).images
        assert torch.equal(images, job.batch(step, 0, cpu).images)
        for image, original in zip(images, straight, strict=True):
            assert torch.equal(image, original) or torch.equal(image, original.flip(-1))
            mirrored += not torch.equal(image, original)
    assert 50 <= mirrored <= 110  # 160 fair coins: outside with probability below 2e-6


def test_labels_stay_with_their_images(training):
    job = replace(training().job, horizontal_flip=False)
    images = job.data.images(0, 40)
    job = replace(job, data=stored(images, images[:, 0, 0, 0].long()))
    batch = job.batch(3, 0, torch.device("cpu"))
    assert batch.condition.labels is not None
    assert torch.equal(((batch.images[:, 0, 0, 0] + 1) * 127.5).round().long(), batch.condition.labels)


@pytest.fixture(params=["loss", "gradient"])
def diverging(denoising, request):
    """The small objective with a loss in step 5 that is not finite, or one that is, whose gradient is infinite."""

    class Diverging(denoising):
        def forward(self, batch, progress, generator):
            terms = super().forward(batch, progress, generator)
            if progress.step == 5 and request.param == "loss":
                terms = replace(terms, loss=terms.loss * math.nan)
            if progress.step == 5 and request.param == "gradient":
                zero = self.network[0].weight.sum() * 0
                terms = replace(terms, loss=terms.loss + zero.sqrt())
            return terms

    return Diverging()


@pytest.fixture
def late(monkeypatch):
    """Training as on a GPU: the optimizer leaves out an update by itself, numbers are read when they are needed."""
    monkeypatch.setattr("fewstep.pipeline.training.loop._is_asynchronous", lambda device: True)


def test_a_number_that_is_none_stops_before_the_update(training, diverging):
    bad, good = training("bad"), training("good")
    objective = diverging
    with pytest.raises(UserError, match=r"teacher\.train: loss .* at step 5 is not finite") as stopped:
        bad.run(objective)
    assert f"(images {batch_indices(11, 40, 8, 5).tolist()})" in str(stopped.value)
    assert str(bad.job.checkpoints) in str(stopped.value)
    good.run(interrupted_at=5)
    kept = load_file(good.checkpoint(5) / "objective.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in objective.state_dict().items())
    assert sorted(path.name for path in bad.job.checkpoints.iterdir()) == ["step-000000002", "step-000000004"]
    assert [record["step"] for record in bad.trace()] == [1, 2, 3, 4, 5]


def test_where_numbers_are_read_late_the_update_is_left_out_and_the_right_step_is_named(training, diverging, late):
    bad, good = training("bad", log_every=8, checkpoint_kimg=0.032), training("good")
    with pytest.raises(UserError, match=r"teacher\.train: loss .* at step 5 is not finite") as stopped:
        bad.run(diverging)
    assert f"(images {batch_indices(11, 40, 8, 5).tolist()})" in str(stopped.value)
    assert [path.name for path in bad.job.checkpoints.iterdir()] == ["step-000000004"]
    assert bad.trace() == []
    good.run(interrupted_at=6)
    kept = load_file(good.checkpoint(6) / "objective.safetensors")
    for name, value in diverging.state_dict().items():
        assert bool(value.isfinite().all())
        assert not torch.equal(value, kept[name])  # it has gone on to step 7, from weights without step 5


def test_an_update_that_is_left_out_changes_neither_weights_nor_moments(training, diverging, late):
    bad, good = training("bad", checkpoint_kimg=1.0), training("good", checkpoint_kimg=1.0)
    with pytest.raises(UserError, match="at step 5 is not finite"):
        bad.run(diverging)
    good.run(interrupted_at=5)
    kept = load_file(good.checkpoint(5) / "objective.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in diverging.state_dict().items())


def test_numbers_read_late_are_those_read_at_once_and_a_resumed_run_is_exact(training, late):
    late_log, each, cut = (training(name, log_every=every) for name, every in (("late", 5), ("each", 1), ("cut", 5)))
    late_log.run()
    each.run()
    assert late_log.hashes(STEPS) == each.hashes(STEPS)
    losses = [record["loss"] for record in each.trace()]
    assert [record["loss"] for record in late_log.trace()] == [
        sum(losses[i : i + 5]) / len(losses[i : i + 5]) for i in (0, 5, 10)
    ]
    cut.run(interrupted_at=7)
    cut.run()
    assert cut.hashes(STEPS) == late_log.hashes(STEPS)
    assert cut.trace() == late_log.trace()


def test_a_resumed_run_is_exact_in_channels_last_too(training, denoising, late):
    def wide():  # the second convolution takes four channels: its weights differ in the two layouts
        return denoising(dropout=0.0).to(memory_format=torch.channels_last)

    whole, cut = training("whole"), training("cut")
    whole.run(wide())
    cut.run(wide(), interrupted_at=7)
    cut.run(wide())
    assert cut.hashes(STEPS) == whole.hashes(STEPS)


def test_a_signal_in_the_last_save_is_not_lost(training, monkeypatch):
    save = loop.save_checkpoint

    def interrupted(folder, step, *given):
        if step == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        return save(folder, step, *given)

    monkeypatch.setattr(loop, "save_checkpoint", interrupted)
    cut = training("cut")
    with pytest.raises(SystemExit) as left:
        cut.run()
    assert left.value.code == 143
    assert cut.checkpoint(STEPS).is_dir()


def test_the_log_is_on_the_disk_before_a_checkpoint_is_written(training, monkeypatch):
    done, sync, save = [], TrainingLog.sync, loop.save_checkpoint
    monkeypatch.setattr(TrainingLog, "sync", lambda log: (done.append("log"), sync(log))[1])
    monkeypatch.setattr(loop, "save_checkpoint", lambda *given: (done.append("checkpoint"), save(*given))[1])
    training(checkpoint_kimg=0.032).run()
    assert done == ["log", "checkpoint"] * 3


def test_the_learning_rate_warms_up_and_decays(training):
    def rates(**changes):
        job = training(**changes).job
        return [job.learning_rate(step) for step in range(job.total_steps)]

    slow = {"decay": "constant", "warmup_kimg": 0.032}
    assert rates(kimg=0.4, **slow) == pytest.approx([2.5e-3, 5e-3, 7.5e-3] + [1e-2] * 47)
    assert rates(kimg=0.16, **slow) == pytest.approx([5e-3] + [1e-2] * 19)  # held to a tenth, two batches
    assert rates(kimg=0.016, **slow) == pytest.approx([1e-2] * 2)
    assert rates(decay="linear", warmup_kimg=0.0) == pytest.approx([1e-2 * (1 - step / 12) for step in range(12)])
    cosine = rates(decay="cosine", warmup_kimg=0.0)
    assert cosine[0] == pytest.approx(1e-2)
    assert cosine[6] == pytest.approx(5e-3)
    assert cosine == sorted(cosine, reverse=True)


def test_the_length_is_rounded_up_to_whole_batches(training):
    assert training(kimg=0.096).job.total_steps == 12
    assert training(kimg=0.097).job.total_steps == 13


def test_slices_that_processes_cannot_share_are_refused(training, denoising, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    with pytest.raises(UserError, match=r"teacher\.train\.slices: 3: must be a multiple of the number of processes, 2"):
        train(denoising(), training(slices=3, batch_size=9).job, accelerator)


SEVERAL = (0.001, 0.002, 0.05)
"""In kimg; below a twentieth of the images seen at the end, but for the last."""


def test_each_of_several_averages_is_the_one_there_is_alone_and_nothing_else_differs(training, denoising):
    several = training("several", ema_halflife_kimg=SEVERAL)
    averages = train(denoising(), several.job, Accelerator(cpu=True))
    assert list(averages) == ["0.001", "0.002", "0.05"]
    for halflife, average in zip(SEVERAL, averages.values(), strict=True):
        alone = training(f"alone {halflife}", ema_halflife_kimg=halflife)
        assert torch.equal(weights(alone.run()), weights(average))
        assert alone.trace() == several.trace()
        for name in ("objective.safetensors", "optimizer.safetensors"):
            assert alone.hashes(STEPS)[name] == several.hashes(STEPS)[name]
    assert len({weights(average).sum().item() for average in averages.values()}) == 3


@pytest.mark.parametrize("interrupted_at", [1, 7, STEPS])
def test_several_averages_are_resumed_to_the_bit(training, denoising, interrupted_at):
    whole, cut = training("whole", ema_halflife_kimg=SEVERAL), training("cut", ema_halflife_kimg=SEVERAL)
    whole.run()
    cut.run(interrupted_at=interrupted_at)
    averages = train(denoising(), cut.job, Accelerator(cpu=True))
    assert cut.hashes(STEPS) == whole.hashes(STEPS)
    kept = load_file(cut.checkpoint(STEPS) / "ema.safetensors")
    for index, average in enumerate(averages.values()):
        assert all(torch.equal(kept[f"{index}.{name}"], value) for name, value in average.state_dict().items())


@pytest.mark.parametrize(
    ("log_every", "probe_kimg", "steps"),
    [(1, 0.032, [4, 8, 12]), (1, math.inf, [12]), (5, 0.032, [5, 10, 12]), (1, 0.036, [5, 9, 12])],
)
def test_the_probe_is_asked_at_the_first_log_line_after_each_period(training, denoising, log_every, probe_kimg, steps):
    probed, calls = training(log_every=log_every), []

    def probe(averages):
        calls.append(weights(averages["0.05"]))
        return {"kid_0.05": len(calls)}

    averages = train(denoising(), probed.job, Accelerator(cpu=True), probe, probe_kimg)
    values = {record["step"]: record["kid_0.05"] for record in probed.trace() if "kid_0.05" in record}
    assert values == {step: index + 1 for index, step in enumerate(steps)}
    assert torch.equal(calls[-1], weights(averages["0.05"]))


def test_a_signal_ends_a_probe_at_once_and_loses_its_values_alone(training, denoising, whole):
    cut = training("cut")

    def probe(averages):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()  # would wait for another one
        return {"kid_0.05": 1.0}

    with pytest.raises(SystemExit) as left:
        train(denoising(), cut.job, Accelerator(cpu=True), probe, 0.04)
    assert left.value.code == 143
    assert cut.checkpoint(5).is_dir()
    cut.run()
    assert cut.hashes(STEPS) == whole.hashes(STEPS)
    assert cut.trace() == whole.trace()


GOLDEN = [
    0.82658762, 0.6770426, 0.60249102, 0.56329364, 0.54814327, 0.57349372, 0.58292049, 0.59884053, 0.57261223,
    0.56896931, 0.60817134, 0.5549823, 0.53524089, 0.50891727, 0.55721784, 0.51662189, 0.53997946, 0.50420773,
    0.52187926, 0.50021708,
]  # fmt: skip
"""Losses of the steps of `test_golden_loss_trace_of_a_teacher`: a change not meant to change numbers keeps them."""


def test_golden_loss_trace_of_a_teacher(training):
    unet = build_unet(
        (1, 8, 8), channels=(8, 16), layers_per_block=1, attention=(False, True), norm_groups=4, dropout=0.1, seed=3
    )
    objective = DDPMObjective(unet, build_scheduler(1000, "squaredcos_cap_v2", "v_prediction"))
    golden = training(kimg=0.16, batch_size=8)
    images = torch.arange(40 * 64, dtype=torch.int64).mul(37).remainder(256).to(torch.uint8).reshape(40, 1, 8, 8)
    golden.job = replace(golden.job, data=stored(images))
    golden.run(objective)
    assert [record["loss"] for record in golden.trace()] == pytest.approx(GOLDEN, rel=1e-5)
