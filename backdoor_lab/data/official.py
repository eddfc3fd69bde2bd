"""Constants of public data sets: official files with their MD5, and class names.

Hashes of archives are those of torchvision 0.29; a test compares them. Several independent copies
of the decompressed IDX files have the hashes given here.
"""

from __future__ import annotations

from backdoor_lab.data.download import Official

_TORONTO = "https://www.cs.toronto.edu/~kriz/"
CIFAR10 = (
    Official(
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        (f"{_TORONTO}cifar-10-python.tar.gz",),
    ),
)
CIFAR100 = (
    Official(
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        (f"{_TORONTO}cifar-100-python.tar.gz",),
    ),
)

_STANFORD = "http://ufldl.stanford.edu/housenumbers/"
SVHN = tuple(
    Official(name, md5, (f"{_STANFORD}{name}",))
    for name, md5 in (
        ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
    )
)

_ERDA = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
GTSRB = tuple(
    Official(f"gtsrb/{name}", md5, (f"{_ERDA}{name}",))
    for name, md5 in (
        ("GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478"),
        ("GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185"),
        ("GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
    )
)

IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _idx(
    folder: str, mirrors: tuple[str, ...], packed: tuple[str, ...], unpacked: tuple[str, ...]
) -> tuple[Official, ...]:
    return tuple(
        Official(f"{folder}/raw/{name}", md5, tuple(m + name for m in mirrors), content)
        for name, md5, content in zip(IDX_FILES, packed, unpacked, strict=True)
    )


MNIST = _idx(
    "MNIST",
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
)
FASHION_MNIST = _idx(
    "FashionMNIST",
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
)

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
DIGITS = tuple("0123456789")
FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
"""The class names of Fashion-MNIST, without spaces, so that a command line needs no quotes."""

GTSRB_CLASSES = (
    *(f"speed-limit-{speed}" for speed in (20, 30, 50, 60, 70, 80)),
    "end-of-speed-limit-80",
    "speed-limit-100",
    "speed-limit-120",
    "no-passing",
    "no-passing-for-trucks",
    "right-of-way",
    "priority-road",
    "yield",
    "stop",
    "no-vehicles",
    "no-trucks",
    "no-entry",
    "general-caution",
    "curve-left",
    "curve-right",
    "double-curve",
    "bumpy-road",
    "slippery-road",
    "road-narrows-right",
    "road-work",
    "traffic-signals",
    "pedestrians",
    "children-crossing",
    "bicycles-crossing",
    "ice-or-snow",
    "wild-animals",
    "end-of-all-limits",
    "turn-right-ahead",
    "turn-left-ahead",
    "ahead-only",
    "straight-or-right",
    "straight-or-left",
    "keep-right",
    "keep-left",
    "roundabout",
    "end-of-no-passing",
    "end-of-no-passing-for-trucks",
)
"""The class names of GTSRB. The benchmark only numbers its 43 signs; these are common English
names."""
