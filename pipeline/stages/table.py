"""A benchmark of subjects: any mixture of models and images, under one protocol, into a folder of its own."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.errors import UserError
from fewstep.eval.benchmark import benchmark
from fewstep.eval.features.extractors import load_extractor
from fewstep.eval.features.table import EXTRACTORS
from fewstep.eval.images import StoredImages
from fewstep.eval.quality.reference_files import read_reference
from fewstep.eval.report.page import write_comparison
from fewstep.files import sweep
from fewstep.pipeline.config.evaluation import EvalConfig
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.load import load_data
from fewstep.pipeline.sampling.cold_start import add_cold_starts
from fewstep.pipeline.sampling.subjects import open_subject
from fewstep.pipeline.stages.evaluate import count_of, settings_of, training_features
from fewstep.pipeline.stages.lock import run_lock
from fewstep.pipeline.training.processes import join
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say


def compare_subjects(
    texts: Sequence[str],
    settings: EvalConfig,
    reference_file: Path,
    training_data: DataConfig | None,
    out: Path,
    command: str,
    *,
    trust: bool = False,
) -> Path:
    """Measure the subjects, print and write the table into `out`, which is returned; `command` is shown there.

    What an earlier call measured of the same subject under the same protocol is kept. UserError: a subject, the
    reference or the settings are wrong, or the subjects' images differ in shape.
    """
    device = join()
    with raising_signals():
        opened = [open_subject(text, device, trust=trust) for text in texts]
        subjects = [subject for subject, _ in opened]
        first, shape = subjects[0], subjects[0].shape
        if other := next((subject for subject in subjects if tuple(subject.shape) != tuple(shape)), None):
            remedy = f"makes images {tuple(other.shape)} (C, H, W), {first.name} {tuple(shape)}: measure them apart"
            raise UserError(other.name, None, remedy)
        settings.check_images()
        EXTRACTORS[settings.extractor].check_shape(shape)
        extractor = load_extractor(settings.extractor, settings.weights, device)
        reference = read_reference(reference_file, extractor)
        training = searched = None
        if training_data is not None:
            training = load_data(training_data, training_data.split).images
            if tuple(training.shape[1:]) != shape:
                raise UserError("--training", training_data, f"holds images {tuple(training.shape[1:])}, not {shape}")
            searched = training_features(settings, training, training_data, extractor)
        with run_lock(out):
            sweep(out)
            say(f"benchmark: {len(subjects)} subjects, {settings.images} images a seed block ({extractor.name})")
            benchmark(
                subjects,
                reference=reference,
                shown=None,
                training_images=training,
                training_features=searched,
                extractor=extractor,
                settings=settings_of(
                    settings, {subject.name: make_hash() for subject, make_hash in opened}, real=count_of(reference)
                ),
                folder=out,
                device=device,
                say=lambda text: say(f"  {text}"),
            )
            models = [subject.name for subject in subjects if not isinstance(subject, StoredImages)]
            add_cold_starts(out, {name: name for name in models}, device, trust=trust)
            table = write_comparison(out, [command])
    say(table)
    say(str(out / "index.html"))
    return out
