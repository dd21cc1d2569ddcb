"""Each section refuses what is out of range, naming its dotted key; good values are kept as they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from fewstep.errors import UserError
from fewstep.eval.features.table import EXTRACTORS
from fewstep.eval.seeds import RESULT_BLOCKS
from fewstep.files import sha256_json
from fewstep.pipeline.config.evaluation import EvalConfig
from fewstep.pipeline.config.keys import config_keys, validated
from fewstep.pipeline.config.reading import config_from_dict, load_config, preset_names
from fewstep.pipeline.config.schema import DataConfig
from fewstep.settings import in_words


@pytest.mark.parametrize("name", ["digits", "digits-family", "mnist", "fashion-mnist", "cifar10"])
def test_a_preset_is_a_valid_config_named_after_itself(name):
    config = load_config(name)
    assert config.name == name
    assert config.folder == Path("runs", name)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_digits_is_the_default_preset_and_comes_first():
    assert preset_names()[0] == "digits"
    assert load_config() == load_config("digits")


def test_grey_presets_measure_against_test_images_and_cifar10_against_its_training_images():
    assert load_config("mnist").data.reference_split == "test"
    assert load_config("fashion-mnist").data.reference_split == "test"
    assert load_config("cifar10").data.reference_split is None


def test_configs_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        load_config().seed = 1


def test_every_key_is_documented():
    keys = config_keys()
    assert len(keys) > 60
    for name, field in keys.items():
        assert len(field.description or "") > 5, name
        assert in_words(field), name
    assert next(iter(keys)) == "name"
    assert "teacher.train.kimg" in keys
    assert "student.train.kimg" in keys


def test_numbers_are_the_settings_that_change_results_whatever_way_they_were_given():
    base = load_config()
    assert base.numbers() == load_config("digits", {"seed": "0"}).numbers()
    assert base.numbers() != load_config("digits", {"seed": "1"}).numbers()
    silent = {"teacher.train.log_every": 3, "student.train.checkpoint_kimg": 1, "student.train.keep_checkpoints": 5}
    other = load_config("digits", silent | {"name": "x", "out": "y", "device": "cpu"})
    assert base.numbers() == other.numbers()
    other = load_config("digits", {"student.train.kimg": "121"})
    assert base.teacher.numbers() == other.teacher.numbers()
    assert base.students["student"].numbers() != other.students["student"].numbers()
    assert "source" in base.data.numbers()
    assert sha256_json(base.eval.numbers())


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("name", "a/b", "letters"),
        ("name", "..", "letters"),
        ("seed", "-1", "at least 0"),
        ("seed", "2147483648", "at most"),
        ("device", "gpu", "auto"),
        ("data.source", "mnist", "hub:ID"),
        ("data.source", "parquet:", "parquet:PATH"),
        ("data.source", "ftp:x", "imagefolder:PATH"),
        ("data.split", "test", "one split, train"),
        ("data.reference_split", "test", "no effect on digits"),
        ("data.choice_split", "test", "no effect on digits"),
        ("data.choice_split", "train", "what quality is measured against"),
        ("data.image_column", "image", "no effect on digits"),
        ("data.label_column", "label", "no effect on digits"),
        ("data.image_size", "0", "at least 1"),
        ("data.image_size", "7", "divisible by 2"),
        ("data.channels", "2", "one of 1, 3"),
        ("data.storage", "tape", "one of memory, disk, stream"),
        ("data.storage", "stream", "the digits are made in memory"),
        ("data.shuffle_window", "100", "is of data.storage stream, and memory shuffles all images together"),
        ("data.shuffle_window", "1", "at least 2"),
        ("data.workers", "2", "has no effect with data.storage memory"),
        ("data.workers", "-1", "at least 0"),
        ("teacher.source", "", "train, a folder or a hub id"),
        ("teacher.prediction", "x0", "v_prediction, epsilon, sample"),
        ("teacher.schedule", "cosine", "squaredcos_cap_v2"),
        ("teacher.num_train_timesteps", "5", "at least 10"),
        ("teacher.network.channels", "[]", "one or more"),
        ("teacher.network.channels", "[30, 64]", "not divisible by teacher.network.norm_groups = 8"),
        ("teacher.network.channels", "[-8, 8]", "at least 1"),
        ("teacher.network.attention", "[true]", "2 entries"),
        ("teacher.network.norm_groups", "0", "at least 1"),
        ("teacher.network.layers_per_block", "0", "at least 1"),
        ("teacher.network.dropout", "1.0", "less than 1"),
        ("teacher.train.kimg", "0", "greater than 0"),
        ("teacher.train.kimg", "0.1", "less than one batch"),
        ("teacher.train.batch_size", "0", "at least 1"),
        ("student.train.slices", "3", "must divide student.train.batch_size = 64"),
        ("student.train.learning_rate", "-1e-3", "greater than 0"),
        ("student.train.learning_rate", "inf", "a number"),
        ("student.train.learning_rate", "nan", "a number"),
        ("student.train.warmup_kimg", "-1", "at least 0"),
        ("student.train.decay", "step", "constant, cosine, linear"),
        ("student.train.betas", "[0.9, 1.0]", "less than 1"),
        ("student.train.betas", "[0.9]", "a list"),
        ("student.train.weight_decay", "-0.1", "at least 0"),
        ("student.train.ema_halflife_kimg", "0", "greater than 0"),
        ("student.train.ema_halflife_kimg", "[2, 0]", "a number greater than 0, or of a student a list"),
        ("student.train.ema_halflife_kimg", "[2, 5, 2.0]", "names an average twice"),
        ("student.train.ema_halflife_kimg", "[2, 5.5, 7]", "with student.train.kimg = 110.0 a half-life is held to"),
        ("teacher.train.ema_halflife_kimg", "[2, 5]", "must be one number: a teacher has one average"),
        ("student.quality_kimg", "0", "greater than 0"),
        ("student.train.gradient_clip", "0", "greater than 0"),
        ("student.train.precision", "fp8", "fp32, bf16"),
        ("student.train.checkpoint_kimg", "0", "greater than 0"),
        ("student.train.keep_checkpoints", "0", "at least 1"),
        ("student.train.log_every", "0", "at least 1"),
        ("student.training_seeds", "0", "at least 1"),
        ("student.method", "sct", "must be one of cd, "),
        ("student.method.at_sigma_max", "1", "less than 1"),
        ("trajectories.steps", "1", "at least 2"),
        ("student.adversarial.weight", "0", "greater than 0"),
        ("student.matching.weight", "0", "greater than 0"),
        ("student.matching.images", "1", "less than 1"),
        ("student.adversarial.sigma_min", "0.2", "less than student.adversarial.sigma_max = 0.2"),
        ("student.regression_kimg", "-1", "at least 0"),
        ("student.sigma_min", "0", "greater than 0"),
        ("student.sigma_min", "80", "less than student.sigma_max"),
        ("student.refit_steps", "-1", "at least 0"),
        ("student.search_images", "31", "at least 32"),
        ("eval.extractor", "vgg", "digits-cnn, small-cnn, inception, dinov2"),
        ("eval.weights", "w.pth", "no effect with eval.extractor = digits-cnn"),
        ("eval.images", "1", "at least 2"),
        ("eval.images", "1048577", "at most"),
        ("eval.seed_blocks", "0", "at least 1"),
        ("eval.seed_blocks", str(RESULT_BLOCKS + 1), f"at most {RESULT_BLOCKS}"),
        ("eval.ddpm_seed_blocks", "4", "at most eval.seed_blocks = 3"),
        ("eval.samplers", "[]", "one or more"),
        ("eval.samplers", "[student@3]", "teacher@SOLVER:N"),
        ("eval.samplers", "[teacher@euler:10]", "teacher@SOLVER:N"),
        ("eval.samplers", "[teacher@ddim:0]", "teacher@SOLVER:N"),
        ("eval.samplers", "[student@1, student@1]", "twice"),
        ("eval.samplers", "[teacher@ddim:all]", "teacher@SOLVER:N"),
        ("eval.samplers", "[student@all]", "teacher@SOLVER:N"),
        ("student.steps", "[3]", "1, 2, 4, 8"),
        ("student.steps", "[]", "one or more"),
        ("eval.batch_size", "0", "at least 1"),
        ("eval.kid_subset_size", "1001", "at most eval.images = 1000"),
        ("eval.latency_runs", "0", "at least 1"),
        ("eval.latency_seconds", "0", "greater than 0"),
        ("eval.throughput_batch_sizes", "[8, 8]", "twice"),
        ("eval.throughput_batch_sizes", "[0]", "at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_dotted_key(key, value, says):
    with pytest.raises(UserError) as caught:
        load_config("digits", {key: value})
    assert str(caught.value).startswith(f"{key}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "key", "value", "says"),
    [
        ("cd", "doublings", "31", "at most 30"),
        ("cd", "solver", "rk4", "heun, euler"),
        ("cd", "target_ema", "1.0", "less than 1"),
        ("cd", "distance", "lpips", "huber, l2"),
        ("cd", "boundary", "2", "is no setting of method cd"),
        ("ect", "target_ema", "0.9", "is no setting of method ect"),
        ("ect", "q", "256", "with student.method.q = 256: lower one of them"),
        ("ect", "q", "1", "greater than 1"),
        ("ct", "s0", "200", "must be at most student.method.s1 = 150"),
        ("ict", "s0", "1281", "must be at most student.method.s1 = 1280"),
        ("ct", "mu0", "0", "greater than 0"),
        ("lcm", "skip", "0", "at least 1"),
        ("cmt", "at_sigma_max", "1", "less than 1"),
        ("tcm", "stage_one", "1", "less than 1"),
        ("tcm", "boundary", "40", "between student.sigma_min = 0.002 and half of student.sigma_max = 80.0"),
        ("tcm", "boundary", "0.002", "between student.sigma_min = 0.002 and half of student.sigma_max = 80.0"),
    ],
)
def test_what_makes_no_sense_with_a_method_is_refused(method, key, value, says):
    with pytest.raises(UserError) as caught:
        load_config("digits", {"student.method": method, f"student.method.{key}": value})
    where = "doublings" if says.endswith("lower one of them") else key
    assert str(caught.value).startswith(f"student.method.{where}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_students_of_the_same_trajectories_have_the_same_ends():
    two = {f"students.{name}.method": method for name, method in (("a", "cmt"), ("b", "ect"), ("c", "cmt"))}
    assert load_config("digits", two | {"students.b.sigma_max": "40"})
    with pytest.raises(UserError, match=r"^students\.c\.sigma_min, sigma_max: \(0\.002, 40\.0\): a has 0\.002 and 80"):
        load_config("digits", two | {"students.c.sigma_max": "40"})


def test_levels_are_kept_from_below_the_boundary_of_tcm_alone():
    lowest = [
        load_config("digits", {"student.method": name}).students["student"].method.lowest_level
        for name in ("cd", "tcm")
    ]
    assert lowest == [0.0, 1.0]


def test_the_weights_file_is_that_of_the_extractor():
    for extractor in ("dinov2", "inception"):
        given = {"eval.extractor": extractor, "eval.weights": "w.pth"}
        assert load_config("cifar10", given).eval.weights == Path("w.pth")
    assert load_config("cifar10").eval.weights is None


def test_check_shape_judges_images_once_they_are_known():
    config = load_config("mnist")
    config.check_shape((1, 28, 28))
    with pytest.raises(UserError, match=r"^data\.image_size: 30: must be divisible by 4"):
        config.check_shape((1, 30, 30))


def test_sections_are_validated_apart_under_their_dotted_name():
    with pytest.raises(UserError, match=r"^data\.horizontal_flip: 1: must be true or false"):
        validated(DataConfig, {"source": "digits", "horizontal_flip": 1}, "data.")
    section = {"extractor": "inception", "images": True, "kid_subset_size": 2, "throughput_batch_sizes": [1]}
    with pytest.raises(UserError, match=r"^eval\.images: True: must be a whole number"):
        validated(EvalConfig, section, "eval.")
    with pytest.raises(UserError, match=r"^data\.source: is required"):
        validated(DataConfig, {}, "data.")


def test_configuration_and_command_line_load_without_torch():
    code = (
        "import sys, fewstep.pipeline.cli.main, fewstep.pipeline.cli.arguments as c, fewstep.pipeline.cli.others;"
        "assert c.config_from_arguments('x', 'y', ['digits', '--seed', '3']).seed == 3;"
        "sys.exit(', '.join({'torch', 'datasets', 'diffusers', 'numpy', 'PIL'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_extractors_have_the_number_of_features_that_seed_blocks_are_checked_against():
    from fewstep.eval.features.digits_cnn import DigitsCNN
    from fewstep.eval.features.dinov2 import ARCHITECTURE
    from fewstep.eval.features.small_cnn import FEATURES

    dims = {"digits-cnn": DigitsCNN().embed.out_features, "small-cnn": FEATURES}
    dims |= {"inception": 2048, "dinov2": ARCHITECTURE["embed_dim"]}
    assert {name: each.dim for name, each in EXTRACTORS.items()} == dims


def test_a_stream_is_measured_against_another_split_or_a_file(tmp_path):
    stream = {"data.source": "parquet:x", "data.storage": "stream", "data.reference_split": None}
    for split in (None, "train"):
        with pytest.raises(UserError, match=r"data\.reference_split: .*must name another split with data\.storage"):
            load_config("mnist", stream | {"data.reference_split": split})
    with pytest.raises(UserError, match=r"data\.choice_split: 'train': is the split that is streamed"):
        load_config("mnist", stream | {"data.choice_split": "train", "data.reference_split": "test"})
    assert load_config("mnist", stream | {"eval.reference": "r.safetensors"}).data.window == 10_000
    for storage, workers in (("memory", 0), ("disk", 0), ("stream", 2)):
        assert load_config("mnist", {"data.storage": storage}).data.reading_processes == workers
