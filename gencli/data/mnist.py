"""MNIST, handwritten digits (LeCun et al., 1998).

Offers: image, label

60,000 training and 10,000 test images, 28×28, grey, ten classes; the published split is kept. Read from the cache, else
fetched once.
"""

from __future__ import annotations

from gencli.data._download import Remote
from gencli.data._idx import IdxData

_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"


class Mnist(IdxData):
    """The digits of LeCun, Cortes and Burges."""

    names = tuple("0123456789")
    advice = "put the four published .gz files in {cache}, or use --data digits, which needs no download"
    # The digests are the MD5 checksums that torchvision's `torchvision.datasets.MNIST.resources` publishes for this mirror.
    files = (
        Remote("train-images-idx3-ubyte.gz", f"{_URL}train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        Remote("train-labels-idx1-ubyte.gz", f"{_URL}train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        Remote("t10k-images-idx3-ubyte.gz", f"{_URL}t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        Remote("t10k-labels-idx1-ubyte.gz", f"{_URL}t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    )
