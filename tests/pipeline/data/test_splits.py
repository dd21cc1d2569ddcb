"""Names that declare a split, as the hub's data sets have them; none is train that may be something else."""

import pytest

from fewstep.pipeline.data.splits import canonical_split, split_of_folder, splits_of_files

LAYOUTS = {
    "shards with a hash": ("data/{}-00000-of-00001-0123456789abcdef.parquet", ("train", "test")),
    "shards": ("plain_text/{}-00000-of-00001.parquet", ("train", "test")),
    "after a name": ("default/digits-{}.parquet", ("train", "test")),
    "inside a name": ("default/parquet-{}-00000-of-00001.parquet", ("train", "test")),
    "with a number": ("{}_0.parquet", ("train", "test")),
    "capital": ("{}.parquet", ("Train", "TEST")),
    "words for splits": ("my {} data.parquet", ("training", "evaluation")),
    "partial folders": ("default/partial-{}/0000.parquet", ("train", "test")),
    "folders": ("{}/0000.parquet", ("train", "test")),
    "nested folders": ("x/{}/y/0000.parquet", ("train", "test")),
    "other names": ("{}-00000-of-00001.parquet", ("train", "extra")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_a_split_are_told_by_their_names(layout):
    form, words = LAYOUTS[layout]
    names = [form.format(word) for word in words]
    other = "extra" if "extra" in words else "test"
    assert splits_of_files(names) == {"train": [names[0]], other: [names[1]]}


def test_files_that_name_no_split_are_train():
    names = ["a.parquet", "0001.parquet", "contest.parquet", "retrain/latest.parquet", "x-00000-of-00002.parquet"]
    assert splits_of_files(names[:-1]) == {"train": names[:-1]}
    assert splits_of_files(["digits-00000-of-00002.parquet", "digits-00001-of-00002.parquet"]).keys() == {"train"}


@pytest.mark.parametrize("name", ["train-test.parquet", "train/test_000.parquet", "test_of_training.parquet"])
def test_a_file_whose_name_holds_another_split_s_word_is_never_train(name):
    assert splits_of_files([name]) == {"test": [name]}


@pytest.mark.parametrize("name", ["cat", "test chart", "trainer", "contest", "my-train-set", "valley", "1"])
def test_other_folders_declare_nothing(name):
    assert split_of_folder(name) is None


def test_words_for_one_split_are_one():
    assert [canonical_split(word) for word in ("val", "dev", "valid", "Eval", "training", "extra")] == [
        *("validation", "validation", "validation", "test", "train", "extra"),
    ]
