"""The choice of a student's two-step noise level."""

import torch

from fewstep.eval.cancel import stop_if_cancelled
from fewstep.eval.features.extractors import Extractor, load_extractor
from fewstep.eval.images import Generated, TensorImages
from fewstep.eval.quality.metrics import frechet_distance, statistics
from fewstep.eval.quality.references import extract
from fewstep.pipeline.config.schema import StudentConfig
from fewstep.pipeline.sampling.models import student_sampler
from fewstep.pipeline.stages.context import RunContext
from fewstep.pipeline.training.randomness import keyed_generator
from fewstep.progress import say
from fewstep.students.consistency import ConsistencyModel

SEARCHED_SIGMAS = (0.15, 0.25, 0.4, 0.65, 1.0, 1.6, 2.5, 4.0)
SEARCH_SEED = 4095
"""The seed block of the search: no benchmark that starts at block 0 reaches it."""


def search_two_step(run: RunContext, settings: StudentConfig, model: ConsistencyModel) -> dict[float, float]:
    """Frechet distance of two-step samples, by intermediate noise level, on a seed block of its own.

    It is taken to training images, never to a held-out reference: choosing on what one is judged by flatters.
    """
    config = run.config
    extractor: Extractor = load_extractor(config.eval.extractor, config.eval.extractor_weights, run.device)
    count = min(len(run.data.images), 4 * settings.search_images)
    order = torch.randperm(len(run.data.images), generator=keyed_generator(config.seed, "search"))
    real = extract(extractor, TensorImages(run.data.images[order[:count]]), f"features of {count} training images")
    target = statistics(real)
    images = settings.search_images
    say(f"  searching the two-step noise level: {len(SEARCHED_SIGMAS)} of them, {images} images each")
    model.register_forward_pre_hook(stop_if_cancelled)
    values = {}
    for sigma in SEARCHED_SIGMAS:
        sampler = student_sampler(model, 2, [model.sigma_max, sigma])
        source = Generated(sampler, SEARCH_SEED, settings.search_images, config.eval.batch_size)
        features = extract(extractor, source, f"two steps, sigma {sigma:g}", config.eval.batch_size)
        values[sigma] = frechet_distance(statistics(features), target)
    return values
