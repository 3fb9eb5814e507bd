"""Pictures inside the page, as many as there is room for; what is left out is named."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli import files
from gencli.data._decode import formats
from gencli.report.markup import Markup, element

if TYPE_CHECKING:
    from PIL.Image import Image

ROOM = 4_500_000  # characters of all pictures
MOST_FRAMES = 24
_LARGE = 1_000_000  # bytes from which a picture is shown smaller
_MOST_SIDE = 1600  # pixels of a picture that is shown smaller
_SMALL = 360  # pixels up to which a picture is shown at twice its size
_FAULTS = (OSError, ValueError, SyntaxError, EOFError)  # what Pillow raises for a damaged picture


class Album:
    """Makes `<img>` elements that hold their picture, until the page is full.

    Args:
        room: characters for all of them.
    """

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self.count = 0
        self.left_out: list[str] = []
        self.smaller: list[str] = []
        self.problems: list[str] = []

    def file(self, path: Path, alt: str) -> Markup | None:
        """A picture from a file as it is; None where it is damaged or there is no room."""
        from PIL import Image

        try:
            content = path.read_bytes()
            with Image.open(io.BytesIO(content), formats=formats()) as image:
                image.load()
                kind, size = Image.MIME[image.format or ""], image.size
                if len(content) > _LARGE:
                    self.smaller.append(f"{path.name} ({files.as_size(len(content))})")
                    content, kind = _shrunk(image)
        except _FAULTS as error:
            self.problems.append(f"{path.name} is no picture that can be read ({type(error).__name__}) and left out")
            return None
        return self._held(content, kind, size, alt, path.name)

    def drawn(self, image: Image, name: str, alt: str) -> Markup | None:
        """A picture that is in no file; None where there is no room."""
        out = io.BytesIO()
        image.save(out, "PNG")
        return self._held(out.getvalue(), "image/png", image.size, alt, name)

    def files(self, pairs: Sequence[tuple[str, Path]], alt: str) -> list[tuple[str, Markup]]:
        """Captions with their pictures, evenly chosen where there are many, the last for sure if any."""
        chosen = evenly(len(pairs), MOST_FRAMES)
        if len(chosen) < len(pairs):
            self.left_out.append(f"{len(pairs) - len(chosen)} of {len(pairs)} pictures of {alt}")
        made = {i: self.file(pairs[i][1], f"{alt}, {pairs[i][0]}") for i in reversed(chosen)}
        return [(pairs[i][0], picture) for i in chosen if (picture := made[i]) is not None]

    def frames(self, path: Path, alt: str) -> list[tuple[str, Markup]]:
        """An animation's frames, evenly chosen where there are many; none where they have no room."""
        from PIL import Image

        kind = _lossy()
        try:
            with Image.open(path, formats=formats()) as image:
                total = getattr(image, "n_frames", 1)
                chosen = evenly(total, MOST_FRAMES)
                stills = [_still(image, at, kind[0]) for at in chosen]
                size = image.size
        except _FAULTS as error:
            self.problems.append(f"{path.name} is no picture that can be read ({type(error).__name__}) and left out")
            return []
        if sum(map(_length, stills)) > self.room:
            self.left_out.append(f"{alt} ({files.as_size(path.stat().st_size)})")
            return []
        captions = [f"frame {at + 1} of {total}" for at in chosen]
        held = [
            self._held(still, kind[1], size, f"{alt}, {caption}", path.name)
            for still, caption in zip(stills, captions, strict=True)
        ]
        return [(caption, picture) for caption, picture in zip(captions, held, strict=True) if picture is not None]

    def notes(self) -> list[str]:
        """What is not here as it is in the folder, a line each."""
        left = [f"left out to keep the page small: {name}" for name in self.left_out]
        return [*self.problems, *left, *(f"shown smaller to keep the page small: {name}" for name in self.smaller)]

    def _held(self, content: bytes, kind: str, size: tuple[int, int], alt: str, name: str) -> Markup | None:
        if _length(content) > self.room:
            self.left_out.append(f"{name} ({files.as_size(len(content))})")
            return None
        self.room -= _length(content)
        self.count += 1
        factor = 2 if max(size) <= _SMALL else 1
        source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        width, height = size[0] * factor, size[1] * factor
        return element("img", src=source, alt=alt, width=width, height=height, class_="pixels" if factor > 1 else None)


def _shrunk(image: Any) -> tuple[bytes, str]:
    """A picture with loss and within a screen, and what it is."""
    kind = _lossy()
    page = image.convert("RGB")
    page.thumbnail((_MOST_SIDE, _MOST_SIDE))
    out = io.BytesIO()
    page.save(out, kind[0], quality=85)
    return out.getvalue(), kind[1]


def _lossy() -> tuple[str, str]:
    from PIL import features

    return ("WEBP", "image/webp") if features.check("webp") else ("JPEG", "image/jpeg")


def _length(content: bytes) -> int:
    return 4 * len(content) // 3 + 4


def _still(image: Any, at: int, kind: str) -> bytes:
    image.seek(at)
    out = io.BytesIO()
    image.convert("RGB").save(out, kind, quality=80)
    return out.getvalue()


def evenly(count: int, most: int) -> list[int]:
    """Up to `most` of `count` places, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def strip(frames: Sequence[tuple[str, Markup]], label: str) -> Markup:
    """Pictures in a row, which the page's script turns into a slider; one picture is a figure."""
    shown = [element("figure", picture, element("figcaption", caption)) for caption, picture in frames]
    if len(shown) == 1:
        return shown[0]
    return element("div", shown, class_="strip", role="group", tabindex="0", aria_label=label)
