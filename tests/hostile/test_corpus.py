"""Every input that a fuzzer found, or that is like one, costs one line; every sound input is read."""

import json

import pytest


def test_no_input_of_the_fuzz_corpus_gives_a_traceback(tmp_path, fuzz, borne):
    for target, inputs in fuzz.corpus().items():
        for number, (name, data) in enumerate(inputs.items()):
            folder = tmp_path / f"{target}-{number}"
            folder.mkdir()
            with borne():
                fuzz.TARGETS[target](folder, data)
            assert not (folder / "ran").exists(), name


@pytest.mark.parametrize("part", ["cut", "flipped"])
def test_a_sound_input_cut_or_changed_costs_one_line_at_most(tmp_path, fuzz, borne, part):
    step = 97  # a prime, so that the places differ from file to file
    for target, inputs in fuzz.sound().items():
        for data in inputs:
            for place in range(0, len(data), max(step, len(data) // 8)):
                broken = (
                    data[:place] if part == "cut" else data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
                )
                with borne():
                    fuzz.TARGETS[target](tmp_path, broken)


def test_every_target_reads_what_the_fuzzer_starts_from(tmp_path, fuzz):
    inputs = fuzz.sound()
    assert inputs.keys() == fuzz.TARGETS.keys()
    for target, target_inputs in inputs.items():
        for data in target_inputs:
            fuzz.TARGETS[target](tmp_path, data)


def test_results_of_any_wrong_type_cost_one_line(tmp_path, fuzz, borne):
    """Each part of results.json, to a depth of five, in turn replaced by what does not stand there."""
    (data,) = fuzz.sound()["results"]
    whole = json.loads(data)
    whole["samplers"] = whole["samplers"][:2]
    kept = {"benchmark": whole["benchmark"], "samplers": whole["samplers"]}
    tried = refused = 0
    for path in places(kept, 5):
        for wrong in (None, [], {}, "\x1b[31m", -1, 10**400):
            tried += 1
            changed = json.loads(json.dumps(kept))
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = wrong
            read = False
            with borne():
                fuzz.TARGETS["results"](tmp_path, json.dumps(changed).encode())
                read = True
            refused += not read
    assert tried > 300
    assert refused > tried / 10


def places(value, depth, path=()):
    """The keys that lead to each part of JSON; of a list, to its first entry."""
    if path:
        yield path
    if depth and isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, depth - 1, (*path, key))
    elif depth and isinstance(value, list) and value:
        yield from places(value[0], depth - 1, (*path, 0))
