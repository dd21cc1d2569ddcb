"""What can be known to be wrong with a run before its first stage, of the settings and the data that it will read."""

from pathlib import Path

from fewstep.errors import UserError
from fewstep.eval.features.extractors import check_extractor, load_extractor
from fewstep.pipeline.config.teacher import LoadedTeacher, TrainedTeacher
from fewstep.pipeline.data.choice import check_splits, reference_count
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.stages.manifest import MANIFEST
from fewstep.teachers.folder import LEVELS, model_folder
from fewstep.teachers.refusal import why_not

MEASURING = ("evaluate", "report")
"""The stages that measure, or come after that."""


def check_before(run: RunContext, until: str) -> None:
    """Raise UserError for whatever would stop a run, up to the stage `until`, after hours of work."""
    source = Path(run.config.teacher.source).expanduser()
    if isinstance(run.config.teacher, LoadedTeacher) and source.is_dir() and (why := why_not(model_folder(source))):
        raise UserError(source, None, why)
    measures = until in MEASURING and not (run.folder / "eval" / MANIFEST).exists()
    if until == "teacher" or (until in MEASURING and not measures):
        return
    config, data, facts = run.config.eval, run.config.data, run.data_facts
    chooses = any(
        run.config.chooses(training) and not (run.folder / "students" / name / MANIFEST).exists()
        for name, training in run.config.trainings.items()
    )
    if measures and isinstance(teacher := run.config.teacher, TrainedTeacher):
        run.config.check_steps(teacher.num_train_timesteps if teacher.has_schedule else LEVELS)
    check_splits(data, facts, choices=chooses, references=measures and config.reference is None)
    if measures or chooses:
        check_extractor(config.extractor, config.weights, tuple(facts["shape"]))
    if measures:
        config.check_images()
        real = reference_count(data, facts["count"]) if config.reference is None else _features(run)
        if real is not None:
            config.kid_subset(real)


def _features(run: RunContext) -> int | None:
    """Return the number of features in the reference file, which is read; None: it has mere statistics."""
    from fewstep.eval.quality.reference_files import read_reference

    config = run.config.eval
    assert config.reference is not None
    extractor = load_extractor(config.extractor, config.weights, run.device)
    features = read_reference(config.reference.expanduser(), extractor).features
    return None if features is None else len(features)
