"""Numbers that are none, injected anywhere: the update is not made, and without the fault the end is the same."""

import math
from dataclasses import replace

import pytest
import torch

from fewstep.errors import UserError
from fewstep.pipeline.training.job import TrainingJob
from fewstep.pipeline.training.randomness import batch_indices
from small_training import Denoising, Training

STEP, LAST = 5, 12


class Poisoned(Denoising):
    """The small objective with a NaN in one place of step 5."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def forward(self, batch, progress, generator):
        terms = super().forward(batch, progress, generator)
        if progress.step != STEP:
            return terms
        if self.place == "loss":
            return replace(terms, loss=torch.cat([terms.loss[:-1], terms.loss[-1:] * math.inf]))
        if self.place == "loss that is not shown":  # its gradient is finite, and so is what is logged
            return replace(terms, loss=terms.loss + math.inf, shown=terms.loss)
        if self.place == "gradient":  # a finite loss whose gradient is none
            return replace(terms, loss=terms.loss + (next(self.network.parameters()).sum() * 0).sqrt())
        return terms


@pytest.mark.parametrize("place", ["batch", "loss", "loss that is not shown", "gradient"])
def test_training_stops_before_the_update_and_without_the_fault_ends_the_same(tmp_path, monkeypatch, place):
    monkeypatch.setattr("fewstep.pipeline.training.log._has_tensorboard", lambda: False)
    whole, bad = Training(tmp_path / "whole"), Training(tmp_path / "bad")
    whole.run()
    objective, batch = Poisoned(place), TrainingJob.batch

    def poisoned(job, step, part, device):
        found = batch(job, step, part, device)
        if place == "batch" and step == STEP:
            found.images[2, 0, 1, 1] = math.nan
        return found

    with monkeypatch.context() as patch:
        patch.setattr(TrainingJob, "batch", poisoned)
        for _ in range(2):  # the fault stays: it stops there again, from the checkpoint before
            with pytest.raises(UserError, match=rf"at step {STEP} is not finite") as stopped:
                bad.run(objective)
            assert f"(images {batch_indices(11, 40, 8, STEP).tolist()})" in str(stopped.value)
            assert f"the last good checkpoint is in {bad.job.checkpoints}" in str(stopped.value)
            assert all(bool(torch.isfinite(parameter).all()) for parameter in objective.parameters())
            assert bad.checkpoint(4).is_dir()
            assert not bad.checkpoint(6).exists()
    bad.run()
    assert bad.hashes(LAST) == whole.hashes(LAST)
    assert bad.trace() == whole.trace()


@pytest.mark.parametrize(
    "fault", ["nan_from_the_student", pytest.param("nan_in_the_teacher_s_embedding", marks=pytest.mark.soak)]
)
def test_a_network_that_gives_nan_stops_the_student(whole_run, tmp_path, fault):
    run = whole_run.before("student", tmp_path)
    code, _, err = run.make("student", fault)
    assert code == 2, err
    assert err.count("\n") == 1
    assert "not finite" in err
    if fault == "nan_from_the_student":
        assert "at step 7 is not finite (images [" in err
        assert f"the last good checkpoint is in {run.folder / 'checkpoints' / 'student'}" in err
    assert not (run.folder / "students" / "student").exists()
    code, out, err = run.make("student")
    assert code == 0, err
    assert ("continues at step 6 of 12" in out) == (fault == "nan_from_the_student")
    assert run.results("student") == whole_run.results("student")


def test_the_optimizer_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.pipeline.training.log._has_tensorboard", lambda: False)
    stepped, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *given: (stepped.append(1), step(self, *given))[1])
    with pytest.raises(UserError, match="not finite"):
        Training(tmp_path).run(Poisoned("loss"))
    assert len(stepped) == STEP
