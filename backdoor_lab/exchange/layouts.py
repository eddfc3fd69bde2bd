"""The four layouts of a poisoned data set with a card: names of files, columns and arrays.

Every layout has the same splits. `train` holds the training images in the order of training, `test`
all clean test images, and `triggered` the triggered test images with the labels that the attacker
wants. `test` and `triggered` may be absent. In `train`, ``source_index`` is the index of the clean
training image that an image was made from, -1 for clean images; in `triggered`, it is the index of
the original in `test`.

- ``folder``: ``<split>/metadata.csv``, and the images that its first column names, as PNG files
  relative to it. Rows keep the order of the split. The names of the subfolders have no meaning.
- ``npz``: one file of arrays, readable with ``allow_pickle=False``.
- ``parquet``: one file for each split, with the columns of `TRAIN_COLUMNS` or `TRIGGERED_COLUMNS`
  and the PNG files in `IMAGE`. ``label`` is a number.
- ``toolbox``: the files of backdoor-toolbox, written by ``torch.save``; `test` and `triggered` are
  folders with the images ``data/<row>.png``, and `test` has the name `TEST_FOLDER`.
"""

from __future__ import annotations

LAYOUTS = ("folder", "npz", "parquet", "toolbox")
SPLITS = ("train", "test", "triggered")
README = "README.md"
"""The only file, besides the card, that is not listed in `hashes.files` of the card."""

LABEL, IS_POISON, IS_COVER, SOURCE_INDEX = "label", "is_poison", "is_cover", "source_index"
ELSEWHERE = "elsewhere"
"""Only in `triggered`: images outside the target class and the source class, which do not count for
the attack success rate."""
TRAIN_COLUMNS = (LABEL, IS_POISON, IS_COVER, SOURCE_INDEX)
"""The columns of `train` and `test`. In `test`, they are false, false and -1 after the label."""
TRIGGERED_COLUMNS = (*TRAIN_COLUMNS, ELSEWHERE)
"""The columns of `triggered`; all its images have ``is_poison`` true and ``is_cover`` false."""

METADATA = "metadata.csv"
FILE_NAME, SPLIT = "file_name", "split"
"""The first column of `METADATA`, and the column with the name of the split after `SOURCE_INDEX`.
In this file, ``label`` is the name of the class, and masks are ``true`` or ``false``."""

NPZ = "data.npz"
TRAIN_ARRAYS = ("train_images", "train_labels", IS_POISON, IS_COVER, SOURCE_INDEX)
"""uint8 (n, C, H, W), int64 (n,), bool (n,), bool (n,), int64 (n,)."""
TEST_ARRAYS = ("test_images", "test_labels")
TRIGGERED_ARRAYS = (
    "triggered_images", "triggered_labels", "triggered_index", "triggered_elsewhere",
)  # fmt: skip
"""As for `train`; the index is int64 (k,) and the mask bool (k,)."""
CLASSES = "classes"
"""The names of the classes, an array of strings (k,)."""

PARQUET = "data/{split}-00000-of-00001.parquet"
IMAGE = "image"
"""A column of structs with ``bytes``, a PNG file, and ``path``, its name."""

IMGS, LABELS, POISON_INDICES, COVER_INDICES = "imgs", "labels", "poison_indices", "cover_indices"
"""The files of backdoor-toolbox: a float32 tensor (n, C, H, W), the bytes divided by 255; an int64
tensor (n,); and two lists of rows."""
TEST_FOLDER, TRIGGERED_FOLDER = "test_split", "triggered"
"""Folders with `PNGS` and `LABELS`. `TRIGGERED_FOLDER` also has `TEST_INDEX`, an int64 tensor (k,),
and `ELSEWHERE`, a bool tensor (k,)."""
PNGS, TEST_INDEX = "data", "test_index"
# `SOURCE_INDEX` is a file next to `IMGS`, an int64 tensor (n,).
