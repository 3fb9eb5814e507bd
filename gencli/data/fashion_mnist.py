"""Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (Xiao et al., 2017). arXiv:1708.07747

Offers: image, label

60,000 training and 10,000 test images, 28×28, grey, ten kinds of clothing; the published split is kept. Read from where
Debian's package `dataset-fashion-mnist` puts it, else from the cache, else fetched once.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from gencli.data._download import Remote
from gencli.data._idx import IdxData

_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


class FashionMnist(IdxData):
    """Zalando's images of clothing."""

    names = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
    folders: ClassVar[tuple[Path, ...]] = (Path("/usr/share/datasets/fashion-mnist"),)
    advice = "apt install dataset-fashion-mnist, or put the four published .gz files in {cache}"
    # The digests are the MD5 checksums in the publishers' README (github.com/zalandoresearch/fashion-mnist, "Get the Data").
    files = (
        Remote("train-images-idx3-ubyte.gz", f"{_URL}train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        Remote("train-labels-idx1-ubyte.gz", f"{_URL}train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        Remote("t10k-images-idx3-ubyte.gz", f"{_URL}t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        Remote("t10k-labels-idx1-ubyte.gz", f"{_URL}t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    )
