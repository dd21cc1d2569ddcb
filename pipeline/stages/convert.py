"""`fewstep convert MODEL -o DIR`: a copy of a model whose weights are only a pickle, with safetensors in its place."""

from pathlib import Path

from fewstep.errors import UserError
from fewstep.files import MOST_JSON, read_bounded, staged_folder, write_bytes
from fewstep.pipeline.stages.unpickle import unpickle
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say
from fewstep.teachers.folder import WEIGHTS, ModelFolder, located, model_folder


def convert(model: str, out: Path, revision: str | None = None) -> Path:
    """Write a copy of a diffusers model, a folder or a hub id, into `out`, a new or an empty folder.

    The copy lies as the model does, with its configurations and card; the weights, to the bit, are safetensors of the
    pickle that one process reads (see `unpickle`). It is then loaded. `revision`: of a hub id. UserError: the model has
    safetensors, no pickle or several; the network is no UNet2DModel, or the weights are not its configuration's; there
    is a part beside the network and its scheduler.
    """
    out = out.absolute()
    if out == Path.cwd() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError("--out", str(out), "exists and is not an empty folder, or is the current one; give a new one")
    source = model_folder(_folder(model, revision))
    pickle = _pickle(source)
    with raising_signals(), staged_folder(out) as stage:
        _copy_texts(source, stage)
        weights = stage / source.network.relative_to(source.path) / f"{WEIGHTS}.safetensors"
        tensors = unpickle(pickle, weights)
        _load(stage, source)
        size = weights.stat().st_size
    say(f"{tensors} tensors, {size:,} bytes: {out / weights.relative_to(stage)}")
    return out


def _folder(model: str, revision: str | None) -> Path:
    """Where a model's files are."""
    path = Path(model).expanduser()
    if path.is_file():
        raise UserError("MODEL", model, "is a file: give the folder of its model, which has the configuration too")
    return located(model, revision, "--revision", weights="bin")


def _pickle(source: ModelFolder) -> Path:
    """The pickle of a model that can be converted."""
    kind = source.unet.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise UserError(source.path, None, f"its network is {str(kind)[:100]}, not UNet2DModel: no copy is made of it")
    if source.weights:
        raise UserError(source.path, None, "has safetensors weights: it needs no conversion")
    others = [name for name, value in source.index.items() if isinstance(value, list) and (source.path / name).is_dir()]
    if others := sorted({*others} - {"unet", "scheduler"}):
        raise UserError(source.path, None, f"has {', '.join(others)} beside unet and scheduler: no copy is made of it")
    named = [path for path in source.pickles if path.name == f"{WEIGHTS}.bin"] or source.pickles
    if not named:
        raise UserError(source.network, None, f"has no weights: no {WEIGHTS}.bin, nor another .bin, .pt, .pth or .ckpt")
    if len(named) > 1:
        names = ", ".join(path.name for path in named)
        raise UserError(source.network, None, f"has several pickles ({names}): name the network's {WEIGHTS}.bin")
    return named[0]


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
