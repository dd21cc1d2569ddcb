"""A benchmark of subjects: any mixture of models and images, under one protocol, into a folder of its own."""

from pathlib import Path

from fewstep.errors import UserError
from fewstep.eval.benchmark import Subject, benchmark
from fewstep.eval.features.extractors import check_shape, load_extractor
from fewstep.eval.images import StoredImages
from fewstep.eval.quality.reference_files import read_reference
from fewstep.eval.report.benchmark_page import write_comparison
from fewstep.files import sweep
from fewstep.pipeline.cli.benchmark import Comparison
from fewstep.pipeline.data.load import load_data
from fewstep.pipeline.sampling.cold_start import add_cold_starts
from fewstep.pipeline.sampling.subjects import open_subject
from fewstep.pipeline.stages.context import the_device
from fewstep.pipeline.stages.evaluate import settings_of, training_features
from fewstep.pipeline.stages.lock import run_lock
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say


def compare_subjects(asked: Comparison) -> Path:
    """Measure the subjects, print and write the table; returns the folder with the results.

    What an earlier call measured of the same subject under the same protocol is kept. UserError: a subject, the
    reference or the settings are wrong, or the subjects' images differ in shape.
    """
    device = the_device()
    with raising_signals():
        opened = [open_subject(text, device, trust=asked.trust) for text in asked.subjects]
        subjects = [subject for subject, _ in opened]
        shape = _common_shape(subjects)
        check_shape(asked.eval.extractor, shape)
        extractor = load_extractor(asked.eval.extractor, asked.eval.extractor_weights, device)
        reference = read_reference(asked.reference, extractor)
        training = None if asked.training is None else load_data(asked.training, asked.training.split).images
        if training is not None and tuple(training.shape[1:]) != shape:
            raise UserError("--training", asked.training, f"holds images {tuple(training.shape[1:])}, not {shape}")
        searched = None
        if training is not None and asked.training is not None:
            searched = training_features(asked.eval, training, asked.training, extractor)
        with run_lock(asked.out):
            sweep(asked.out)
            say(f"benchmark: {len(subjects)} subjects, {asked.eval.images} images a seed block ({extractor.name})")
            benchmark(
                subjects,
                reference=reference,
                shown=None,
                training_images=training,
                training_features=searched,
                extractor=extractor,
                settings=settings_of(asked.eval, {subject.name: identity for subject, identity in opened}),
                folder=asked.out,
                device=device,
                say=lambda text: say(f"  {text}"),
            )
            models = [subject.name for subject in subjects if not isinstance(subject, StoredImages)]
            add_cold_starts(asked.out, {name: name for name in models}, device, trust=asked.trust)
            table = write_comparison(asked.out, [asked.command])
    say(table)
    say(str(asked.out / "index.html"))
    return asked.out


def _common_shape(subjects: list[Subject]) -> tuple[int, int, int]:
    """(C, H, W) of all subjects; UserError where one differs from the first."""
    first = subjects[0]
    for subject in subjects[1:]:
        if tuple(subject.shape) != tuple(first.shape):
            remedy = (
                f"makes images {tuple(subject.shape)} (C, H, W), {first.name} {tuple(first.shape)}: measure them apart"
            )
            raise UserError(subject.name, None, remedy)
    return first.shape
