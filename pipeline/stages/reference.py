"""`fewstep reference`: a reference file from real images."""

from pathlib import Path

from torch import Tensor

from fewstep.errors import printable
from fewstep.eval.features.extractors import check_extractor, load_extractor
from fewstep.eval.features.table import default_extractor
from fewstep.eval.interfaces import IndexedImages
from fewstep.eval.quality.references import load_reference, write_features
from fewstep.pipeline.config.schema import DataConfig
from fewstep.pipeline.data.choice import reference_images
from fewstep.pipeline.data.load import load_data
from fewstep.pipeline.stages.evaluate import dataset_name
from fewstep.pipeline.training.processes import join
from fewstep.pipeline.training.signals import raising_signals
from fewstep.progress import say


def make_reference(
    data: DataConfig, extractor_name: str | None, weights: Path | None, out: Path, *, without_choices: bool = False
) -> None:
    """Write the features of all images of `data.split` into `out`, from the cache where they are known.

    extractor_name: None for the default one. without_choices: of all but those that a run makes its choices on, as in
    a run's own reference.
    UserError: the data or the weights cannot be read; the extractor does not take images of their shape.
    """
    with raising_signals():
        say(f"data: reading {printable(data.source)}, split {printable(data.split)}")
        read, split = load_data(data, data.split).images, data.split
        images: Tensor | IndexedImages = read
        if without_choices:
            images, split = reference_images(data, read)
        if extractor_name is None:
            extractor_name, why = default_extractor(weights)
            if why:
                say(why)
        check_extractor(extractor_name, weights, tuple(read.shape[1:]))
        extractor = load_extractor(extractor_name, weights, join())
        say(f"reference: features of {len(images):,} images ({extractor_name})")
        provenance = {"dataset": dataset_name(data.source), "split": split}
        reference = load_reference(images, provenance, extractor)
        assert reference.features is not None
        write_features(out, reference.features, reference.provenance, extractor)
    say(str(out))
