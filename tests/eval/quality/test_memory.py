"""Memory stays flat in the number of images: features lie in a file and are read in blocks."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from fewstep.eval.quality.extrapolation import Extrapolation
from fewstep.eval.quality.metrics import statistics
from fewstep.eval.quality.judge import Judge, generated
from fewstep.eval.quality.references import Reference

count, folder = int(sys.argv[1]), Path(sys.argv[2])
peak = 0

def watch():
    global peak
    while True:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = max(peak, int(next(line for line in lines if line.startswith("RssAnon")).split()[1]))
        time.sleep(0.01)

class Source:
    def images(self, start, stop):
        generator = torch.Generator().manual_seed(start)
        return torch.randint(0, 256, (min(stop, count) - start, 3, 8, 8), generator=generator, dtype=torch.uint8)

    def __len__(self):
        return count

class Projection:
    dim, device = 2048, torch.device("cpu")
    matrix = torch.randn(192, 2048, generator=torch.Generator().manual_seed(0)) / 192**0.5

    def __call__(self, images):
        return images.flatten(1).float() / 127.5 @ self.matrix

torch.set_grad_enabled(False)
extractor = Projection()
real = extractor(torch.randint(0, 256, (3000, 3, 8, 8), generator=torch.Generator().manual_seed(7), dtype=torch.uint8))
reference = Reference({}, real, statistics(real))
judge = Judge(reference=reference, floor_fd=0.0, kid_subset_size=1000)
threading.Thread(target=watch, daemon=True).start()
with generated(Source(), extractor, 500, folder, "") as (images, features):
    print(judge(features), file=sys.stderr)
print(peak)
"""


def peak_mb(count, folder):
    done = subprocess.run([sys.executable, "-c", MEASURE, str(count), str(folder)], stdout=subprocess.PIPE, check=True)
    return int(done.stdout.splitlines()[-1]) / 1024


def test_fifty_thousand_images_take_300_mb_more_than_five_thousand_at_most(tmp_path):
    few, many = peak_mb(5_000, tmp_path), peak_mb(50_000, tmp_path)
    print(f"peak anonymous memory: {few:.0f} MB at 5,000 images, {many:.0f} MB at 50,000")
    assert many - few < 300
