"""Two hosts: two network namespaces of this machine with a cable between them, each with a launcher of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_arguments

from fewstep.pipeline.cli.main import main
from several import ON_CPU, SLICES, free_port, losses, weights

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
NAMES = tuple(f"fewstep-{os.getpid()}-{index}" for index in range(2))
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, ...]]:
    """The names of two namespaces, in which the interface `cable` has one of ADDRESSES each."""
    if shutil.which("ip") is None:
        pytest.skip("needs `ip`, to make network namespaces")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", NAMES[0], "type", "veth", "peer", "name", "cable", "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for interface in ("lo", "cable"):
                ip("-n", name, "link", "set", interface, "up")
        yield NAMES
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces can be made here: {error.stderr.strip()}")
    finally:
        for name in NAMES:  # the cable goes with them
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_two_hosts_with_a_shared_folder_train_as_one_process_does(hosts, tmp_path: Path):
    meeting = ["--master_addr", ADDRESSES[0], "--master_port", str(free_port())]
    command = ["-m", "fewstep", "train-teacher", *tiny_arguments(tmp_path, **SLICES)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *meeting]
    launchers = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, *torchrun, "--node_rank", str(rank), *command],
            env={**os.environ, **ON_CPU, "GLOO_SOCKET_IFNAME": "cable"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(hosts)
    ]
    try:
        outputs = [launcher.communicate(timeout=120) for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    assert outputs[0][0].count("teacher: done in") == 1
    assert "teacher: done in" not in outputs[1][0]
    assert main(["train-teacher", *tiny_arguments(tmp_path / "one", **SLICES)]) == 0
    one, two = tmp_path / "one" / "digits", tmp_path / "digits"
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    mine, theirs = weights(one), weights(two)
    assert all((theirs[name] - value).abs().max() < 1e-6 for name, value in mine.items())
