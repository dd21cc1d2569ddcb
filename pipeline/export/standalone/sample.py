"""Images of an exported student, with numpy and onnxruntime alone: python sample.py FILE.onnx [NUM] [SEED] [OUT.png]

Of a class-conditional one `--labels 3 7` at the end gives these classes in turn; without them it is all classes. This
file may be copied: it needs nothing beside it. Image i of seed s is image i of `fewstep sample --seed s`, with the same
labels, to a processor's rounding. It was written by fewstep (Apache-2.0).
"""

import argparse
import json
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import onnxruntime


def normal(bits: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """float32 `torch.randn(shape)` of a CPU generator: uniforms of 24 bits, Box-Muller over groups of 16."""
    count = math.prod(shape)

    def pairs(values: np.ndarray) -> np.ndarray:
        radius = np.sqrt(-2 * np.log(1 - values[:, :8]))
        angle = 2 * np.pi * values[:, 8:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    def uniform(number: int) -> np.ndarray:
        return (bits.randint(0, 2**32, number, dtype=np.uint32) & 0xFFFFFF) / 2**24

    first = uniform(count)
    whole = pairs(first[: count // 16 * 16].reshape(-1, 16)).reshape(-1)
    if count % 16:  # the last 16 are drawn again
        last = pairs(uniform(16).reshape(1, 16)).reshape(-1)
        whole = np.concatenate([whole, np.zeros(count % 16)])
        whole[-16:] = last
    return whole.astype(np.float32).reshape(shape)


def generate(
    session: onnxruntime.InferenceSession, num: int, seed: int = 0, labels: Sequence[int] | None = None
) -> np.ndarray:
    """uint8 [num, H, W, C]; each image's noise depends on the seed and its number alone.

    `labels`: classes, used in turn; None or none: all that there are. ValueError: there are no such classes.
    """
    facts = json.loads(session.get_modelmeta().custom_metadata_map.get("fewstep", "{}"))
    classes = range(facts.get("num_classes", 0))
    labels = labels or classes
    if any(label not in classes for label in labels):
        known = f"has the classes 0 to {len(classes) - 1}" if classes else "is unconditional: leave labels out"
        raise ValueError(f"labels {list(labels)}: this student {known}")
    inputs = [each for each in session.get_inputs() if each.name != "labels"]
    noises: dict[str, list[np.ndarray]] = {each.name: [] for each in inputs}
    for index in range(num):
        bits = np.random.RandomState(seed * 2**20 + index)
        for each in inputs:
            noises[each.name].append(normal(bits, tuple(each.shape[1:])))
    feeds = {name: np.stack(values) for name, values in noises.items()}
    if classes:
        feeds["labels"] = np.array([labels[index % len(labels)] for index in range(num)], np.int64)
    images = np.asarray(session.run(None, feeds)[0])
    if images.dtype == np.uint8:
        return images
    return (images * 127.5 + 127.5).round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def png(image: np.ndarray) -> bytes:
    """A PNG file of uint8 [H, W, 1 or 3]."""
    height, width, channels = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)}
    parts |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in parts.items())  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="FILE.onnx")
    parser.add_argument("num", metavar="NUM", type=int, nargs="?", default=16)
    parser.add_argument("seed", metavar="SEED", type=int, nargs="?", default=0)
    parser.add_argument("out", metavar="OUT.png", nargs="?", default="grid.png")
    parser.add_argument("--labels", metavar="N", type=int, nargs="+")
    given = parser.parse_args()
    try:
        made = generate(onnxruntime.InferenceSession(given.model), given.num, given.seed, given.labels)
    except ValueError as error:
        parser.error(str(error))
    side = math.ceil(math.sqrt(len(made)))
    empty = np.zeros((side * side - len(made), *made.shape[1:]), np.uint8)
    grid = np.concatenate([made, empty]).reshape(side, side, *made.shape[1:])
    with open(given.out, "wb") as file:
        file.write(png(grid.transpose(0, 2, 1, 3, 4).reshape(side * grid.shape[2], -1, grid.shape[-1])))
