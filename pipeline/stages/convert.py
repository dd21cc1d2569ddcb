"""`fewstep convert MODEL -o DIR`: a copy of a model whose weights are only a pickle, with safetensors in its place."""

from pathlib import Path

from fewstep.errors import UserError
from fewstep.files import MOST_JSON, check_not_pointer, read_bounded, read_json, staged_folder, write_bytes, write_json
from fewstep.pipeline.stages.unpickle import unpickle
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say
from fewstep.teachers.folder import WEIGHTS, ModelFolder, located, model_folder, shards
from fewstep.teachers.refusal import NETWORKS, tensor_names


def convert(model: str, out: Path, revision: str | None = None) -> Path:
    """Write a copy of a diffusers model, a folder or a hub id, into `out`, a new or an empty folder.

    The copy lies as the model does, with its configurations and card; the weights, to the bit, are safetensors of the
    pickle, or of each of its parts, that one process reads (see `unpickle`). It is then loaded. `revision`: of a hub
    id. UserError: the model has safetensors, no pickle, several without an index of them, or parts that do not fit
    their index; the network is no UNet2DModel, or the weights are not its configuration's; there is a part beside the
    network and its scheduler.
    """
    out = out.absolute()
    if out == Path.cwd() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError("--out", str(out), "exists and is not an empty folder, or is the current one; give a new one")
    source = model_folder(_folder(model, revision))
    parts = _pickles(source)
    with raising_signals(), staged_folder(out) as stage:
        _copy_texts(source, stage)
        network = stage / source.network.relative_to(source.path)
        count = size = 0
        for pickle, names in parts.items():
            weights = network / f"{WEIGHTS if names is None else pickle.stem}.safetensors"
            count += unpickle(pickle, weights)
            size += weights.stat().st_size
            if names is not None and tensor_names(weights) != names:
                raise UserError(pickle, None, f"does not hold the tensors that {_index(source).name} names for it")
        if None not in parts.values():
            _write_index(source, network)
        _load(stage, source)
    place = out / network.relative_to(stage)
    say(f"{count} tensors, {size:,} bytes: {place if len(parts) > 1 else place / f'{WEIGHTS}.safetensors'}")
    return out


def _folder(model: str, revision: str | None) -> Path:
    """Where a model's files are."""
    path = Path(model).expanduser()
    if path.is_file():
        raise UserError("MODEL", model, "is a file: give the folder of its model, which has the configuration too")
    return located(model, revision, "--revision", weights="bin")


def _index(source: ModelFolder) -> Path:
    """Return the file that says which of several pickles each tensor is in."""
    return source.network / f"{WEIGHTS}.bin.index.json"


def _write_index(source: ModelFolder, network: Path) -> None:
    """Write the index of safetensors whose parts are named as the pickles are."""
    index = read_json(_index(source), {})
    names = {tensor: f"{Path(part).stem}.safetensors" for tensor, part in index["weight_map"].items()}
    write_json(network / f"{WEIGHTS}.safetensors.index.json", index | {"weight_map": names})


def _pickles(source: ModelFolder) -> dict[Path, set[str] | None]:
    """Return the pickles of a model that can be converted, each with the tensors that an index names, if any."""
    kind = source.unet.get("_class_name", "UNet2DModel")
    if kind not in NETWORKS:
        raise UserError(source.path, None, f"its network is {str(kind)[:100]}, not UNet2DModel: no copy is made of it")
    if source.weights:
        raise UserError(source.path, None, "has safetensors weights: it needs no conversion")
    others = [name for name, value in source.index.items() if isinstance(value, list) and (source.path / name).is_dir()]
    if others := sorted({*others} - {"unet", "scheduler"}):
        raise UserError(source.path, None, f"has {', '.join(others)} beside unet and scheduler: no copy is made of it")
    for path in source.pickles:
        check_not_pointer(path)
    own = [path for path in source.pickles if path.name == f"{WEIGHTS}.bin"]
    if not own and _index(source).is_file():
        parts = {source.network / name: names for name, names in shards(_index(source)).items()}
        if missing := [path.name for path in parts if path not in source.pickles]:
            raise UserError(_index(source), missing[0], "is named there, and is not in the folder")
        return {**parts}
    named = own or source.pickles
    if not named:
        raise UserError(source.network, None, f"has no weights: no {WEIGHTS}.bin, nor another .bin, .pt, .pth or .ckpt")
    if len(named) > 1:
        names = ", ".join(path.name for path in named)
        raise UserError(source.network, None, f"has several pickles ({names}): name the network's {WEIGHTS}.bin")
    return {named[0]: None}


def _copy_texts(source: ModelFolder, target: Path) -> None:
    """Copy what a model says of itself: its configurations and its card."""
    for folder in {source.path, source.network, source.scheduler}:
        beside = target / folder.relative_to(source.path)
        beside.mkdir(exist_ok=True)
        texts = [path for path in folder.glob("*.json") if not path.name.endswith(".index.json")]
        for path in (*texts, *folder.glob("README.md")):
            write_bytes(beside / path.name, read_bounded(path, MOST_JSON))


def _load(stage: Path, source: ModelFolder) -> None:
    """Load a copy; UserError, naming what it is a copy of, where its weights are not its configuration's."""
    from fewstep.teachers.load import read_teacher
    from fewstep.teachers.stock import load_unet

    student = source.index.get("_class_name") == "ConsistencyModelPipeline"
    try:
        if student or not (source.noise or source.own):
            load_unet(model_folder(stage), "model")
        else:
            read_teacher(stage)
    except UserError as error:
        where, _, what = str(error).replace(str(stage), str(source.path)).partition(": ")
        raise UserError(where, None, what) from None
