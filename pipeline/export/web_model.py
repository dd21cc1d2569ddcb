"""The graphs of a page: several .onnx files whose weights, where they are the same, lie in one file beside them."""

from collections.abc import Mapping
from pathlib import Path

from fewstep.files import sha256_file

WEIGHTS = "weights.bin"
_SMALL = 256  # bytes; what is smaller stays in the graph
_ALIGNED = 64


def write_shared(graphs: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Write each of the .onnx files into `folder` under its name, and their weights into WEIGHTS; sha256 by file."""
    import onnx

    kept: dict[bytes, int] = {}
    with open(folder / WEIGHTS, "wb") as weights:
        for name, path in graphs.items():
            model = onnx.load(path)
            for tensor in model.graph.initializer:
                data = onnx.numpy_helper.to_array(tensor).tobytes()
                if len(data) < _SMALL:
                    continue
                if data not in kept:
                    weights.write(b"\0" * (-weights.tell() % _ALIGNED))
                    kept[data] = weights.tell()
                    weights.write(data)
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in (("location", WEIGHTS), ("offset", kept[data]), ("length", len(data))):
                    tensor.external_data.add(key=key, value=str(value))
            (folder / name).write_bytes(model.SerializeToString())
    return {name: sha256_file(folder / name) for name in (*graphs, WEIGHTS)}
