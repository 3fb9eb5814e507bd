"""`gencli sample` with `--input` and `--keep` of a CVAE that was trained to complete halves, and of one that was not."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from shell import Shell
from tiny import opened, smoke, trained


def test_a_half_is_completed_by_the_words_that_complete_it_for_models_of_tokens(shell: Shell) -> None:
    tables = smoke("cvae-halves")
    path = trained(Path("checkpoints"), tables)
    args = ["--input", "test:3-4", "--keep", "left-half", "-n", "2", "-q"]
    folder = Path(shell.fine("sample", path.name, *args).out.strip())
    receipt = json.loads((folder / "samples.json").read_text())
    images = [np.asarray(Image.open(folder / item["file"])) for item in receipt["items"]]
    items = opened(tables["data"]).split("test")
    assert folder.name == "prior-left-half-0" and receipt["completion"]["keep"] == "left-half"
    for image, item, number in zip(images, receipt["items"], (3, 3, 4, 4), strict=True):
        assert np.array_equal(image[:, :4], items.x[number, 0, :, :4])
        assert item["label"] == int(items.cond["label"][number])
    assert not np.array_equal(images[0], images[1])
    shell.fine("sample", path.name, "-n", "2", "-q")  # whole images too
    plain = trained(Path("checkpoints"), smoke("cvae"))
    shell("sample", plain.name, *args).fails("cvae has no tokens to keep")
