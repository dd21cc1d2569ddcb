"""Every field of every stock configuration that is read has a meaning here: a new diffusers fails by its name."""

import importlib
import inspect
import sys
from dataclasses import fields
from types import ModuleType
from typing import Any

import diffusers
import pytest
from diffusers import DDPMScheduler, UNet2DModel

from fewstep.teachers.family import SCALING_NUMBERS
from fewstep.teachers.fields import DDPM_DEFAULTS, FAMILIES, OLD_FIELDS, SCHEDULERS, UNET, Fields
from fewstep.teachers.scaling import SCALINGS

ACCEPTED = [name for name, family in SCHEDULERS.items() if family != "student"]


def parameters(kind: Any) -> dict[str, Any]:
    """The fields of a class and their defaults."""
    found = inspect.signature(kind.__init__).parameters.values()
    return {each.name: each.default for each in found if each.name not in ("self", "kwargs")}


@pytest.fixture
def scheduler(monkeypatch):
    """A scheduler class by its name, also where it needs a library that is not installed."""
    if "torchsde" not in sys.modules:
        monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    return lambda name: getattr(module if name == "DPMSolverSDEScheduler" else diffusers, name)


def sets(table: Fields) -> tuple[Any, ...]:
    return table.used, table.sampling, table.fixed.keys()


def unlisted(kind: Any, table: Fields) -> list[str]:
    return [name for name in parameters(kind) if sum(name in each for each in sets(table)) != 1]


@pytest.mark.parametrize("name", ACCEPTED)
def test_each_field_of_a_scheduler_is_used_or_for_sampling_or_fixed(scheduler, name):
    kind, table = scheduler(name), FAMILIES[SCHEDULERS[name]]
    assert unlisted(kind, table) == []
    found = parameters(kind)
    assert {key: found[key] for key in table.fixed if key in found}.items() <= table.fixed.items()
    if SCHEDULERS[name] == "ddpm":
        read = parameters(DDPMScheduler) | DDPM_DEFAULTS.get(name, {})
        assert {key: found[key] for key in table.used if key in found}.items() <= read.items()


def test_each_field_of_the_network_and_each_number_of_a_scaling_is_listed():
    assert unlisted(UNet2DModel, UNET) == []
    for name, kind in SCALINGS.items():
        assert tuple(each.name for each in fields(kind) if each.init) == SCALING_NUMBERS[name]


def test_old_fields_are_not_read_by_the_installed_diffusers_and_their_new_names_are():
    known = {*parameters(UNet2DModel), *parameters(DDPMScheduler)}
    assert not {*OLD_FIELDS} & known
    assert {*OLD_FIELDS.values()} <= known
