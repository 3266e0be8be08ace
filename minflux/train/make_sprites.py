"""Draw the sprites once from Noto Color Emoji: `python -m minflux.train.make_sprites`.

The PNGs in `sprites/` are committed, so nobody needs the font to train or to draw. This script is how they
were made: each emoji is drawn at the one size the font holds, cut to what is not transparent, put in the
middle of a square, and scaled to 96 pixels.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from minflux.errors import ArgumentError
from minflux.train.scenes import SPRITE_FOLDER, THINGS

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the bitmap font's only size
SPRITE_SIDE = 96


def draw_emoji(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw one emoji in colour on a transparent RGBA canvas of 160 x 160 pixels."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((0, 0), emoji, font=font, embedded_color=True)
    return canvas


def crop_to_square(image: Image.Image) -> Image.Image:
    """Cut an RGBA image to its visible part and pad that to a square, transparent around it."""
    visible = image.crop(image.getchannel("A").getbbox())
    side = max(visible.size)
    square = Image.new("RGBA", (side, side))
    square.paste(visible, ((side - visible.width) // 2, (side - visible.height) // 2))
    return square


def make_sprites(font_file: Path = FONT, folder: Path = SPRITE_FOLDER) -> None:
    """Write NAME.png (96 x 96 RGBA) for each of `THINGS`; raises `ArgumentError` if the font is missing."""
    if not font_file.exists():
        raise ArgumentError(f"font_file: {font_file} is not there; install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(font_file), FONT_SIZE)
    for name, emoji in THINGS.items():
        sprite = crop_to_square(draw_emoji(emoji, font))
        sprite = sprite.resize((SPRITE_SIDE, SPRITE_SIDE), Image.Resampling.LANCZOS)
        sprite.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    make_sprites()
