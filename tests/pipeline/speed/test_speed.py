"""What `fewstep speed` compares with is what it says: the evaluations of a floor, the rivals' losses, the turns."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_arguments

from fewstep.pipeline.cli.main import main
from fewstep.pipeline.config.reading import load_config
from fewstep.pipeline.speed import sampling, training, turns
from fewstep.pipeline.speed.calls import Calls
from fewstep.pipeline.speed.floor import Floor
from fewstep.pipeline.speed.rivals import AccelerateScript, ECTLoop
from fewstep.pipeline.speed.turns import BLOCK, Turns
from fewstep.students.consistency import ConsistencyModel
from fewstep.students.forward import jvp
from fewstep.students.methods import METHODS
from fewstep.teachers.interfaces import Evaluations, Objective, Progress
from fewstep.teachers.network import build_scheduler

TRAIN = load_config("digits", {"student.train.batch_size": 8, "student.train.kimg": 1}).students["student"].train


class EachPurpose(Objective):
    """Calls a network for all that a call can be for, with images of a number of their own."""

    def __init__(self, network):
        super().__init__()
        self.network, self.cost = network, Evaluations(student=1)

    def forward(self, batch, progress, generator):
        raise AssertionError("only `step` is called")

    def step(self):
        def called(images):
            return lambda x: self.network(x, torch.zeros(images)).sample

        x = {images: torch.randn(images, 1, 8, 8) for images in range(1, 5)}
        called(1)(x[1]).sum().backward()
        with torch.no_grad():
            called(2)(x[2])
        frozen = {name: weight.detach() for name, weight in self.network.named_parameters()}
        torch.func.functional_call(self.network, frozen, (x[3].requires_grad_(), torch.zeros(3)))
        jvp(called(4), (x[4],), (x[4],))
        self.update(Progress(step=0, total_steps=1, images=0))


def test_a_floor_makes_the_calls_of_a_training_on_copies(tiny_unet):
    objective = EachPurpose(tiny_unet())
    calls = Calls(type(objective.network))
    calls.follow(objective)
    floor = Floor(calls.next, TRAIN, (1, 8, 8))
    with calls.noted():
        for _ in range(2):
            objective.step()
        steps = [list(step) for step in calls._taken]
        floor()
        floor()
        assert calls.per_image(2) == {"weights": 0.5, "output": 1.0, "inputs": 1.5, "derivative": 2.0}
        objective.update(Progress(step=0, total_steps=1, images=0))
        made = [replace(call, network=objective.network) for call in calls.next()]
    assert [(call.images, call.purpose) for call in steps[0]] == [
        (1, "weights"),
        (2, "output"),
        (3, "inputs"),
        (4, "derivative"),
    ]
    assert made == steps[0] + steps[1]
    (copied,) = floor._copies.values()
    pairs = zip(copied.parameters(), objective.network.parameters(), strict=True)
    assert any(not torch.equal(new, old) for new, old in pairs)


def test_turns_tell_a_slower_contender_by_its_ratio(tiny_unet):
    objective = EachPurpose(tiny_unet())
    turns = Turns({"slow": lambda: time.sleep(0.004)}, torch.device("cpu"))
    turns.follow(objective)
    for step in range(3 * BLOCK + 1):
        time.sleep(0.002)
        objective.update(Progress(step=step, total_steps=100, images=0))
    assert len(turns.blocks("ours")) == 2
    assert turns.ratio("slow", "ours")["median"] == pytest.approx(2, rel=0.2)
    assert turns.milliseconds("ours") == pytest.approx(2, rel=0.3)


def test_the_ect_rival_computes_with_our_consistency_function_and_learns(tiny_unet):
    unet = tiny_unet()
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    rival = ECTLoop(unet, images, TRAIN)
    ours = ConsistencyModel(
        rival.network,  # type: ignore[arg-type]
        sigma_min=1e-9,
        sigma_max=80.0,
        sigma_data=1.0,
    )  # no shift of sigma_min
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.01, 0.5, 2.0, 80.0])
    with torch.no_grad():
        torch.testing.assert_close(rival.denoiser(x, sigma), ours(x, sigma), rtol=1e-4, atol=1e-4)
    before = [each.clone() for each in rival.network.parameters()]
    rival()
    assert any(not torch.equal(old, new) for old, new in zip(before, rival.network.parameters(), strict=True))
    assert not torch.equal(next(rival.average.parameters()), before[0])


def test_the_accelerate_script_learns(tiny_unet):
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    script = AccelerateScript(tiny_unet(), build_scheduler(1000, "linear", "epsilon"), images, TRAIN, cpu=True)
    losses = []
    for _ in range(40):
        script()
        losses.append(script.log["loss"])
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


@pytest.mark.parametrize("methods", ["cmt,ect", pytest.param(",".join(METHODS), marks=pytest.mark.slow)])
def test_speed_measures_methods_beside_their_floors(tmp_path: Path, capsys, methods, monkeypatch):
    monkeypatch.setattr(sampling, "TURNS", 4)
    for module in (training, turns):
        monkeypatch.setattr(module, "BLOCK", 6)
    out = tmp_path / "speed.json"
    options = ["-o", str(out), "--blocks", "2", "--methods", methods]
    assert main(["speed", *options, *tiny_arguments(tmp_path / "runs", teacher__num_train_timesteps=100)]) == 0
    found = json.loads(out.read_text())
    assert {"teacher", *methods.split(",")} <= set(found["training"])
    for row in found["training"].values():
        assert row["ms"] > 0
        made, cost = row["evaluations"], row["cost"]
        without = cost["target"] + cost["teacher"]
        assert (made["weights"], made["output"], made["derivative"]) == pytest.approx(
            (cost["student"], without, cost["jvp"]), rel=0.05
        )
        assert row["ratio"]["blocks"] == 2
    assert set(found["rivals"]) == {"accelerate script", "ECT loop"}
    assert all(0.5 < row["ratio"]["median"] < 10 for row in found["sampling"].values())
    assert 0 < found["arithmetic"]["share"] < 1
    assert found["overhead"]["data_ms"] > 0
    assert sum(row["share"] for row in found["profile"]) <= 1
    assert "| teacher | 1 / 0 / 0 |" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_loaded_teacher_has_no_training_to_measure(tmp_path: Path, capsys):
    assert main(["speed", "--methods", "ect,none"]) == 2
    assert "--methods: 'none': must be of cd, cmt" in capsys.readouterr().err
    assert main(["speed", "--teacher.source", "someone/model", "-o", str(tmp_path / "speed.json")]) == 2
    assert "teacher.source" in capsys.readouterr().err
