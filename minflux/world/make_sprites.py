"""Draw the sprites once from two fonts: `python -m minflux.world.make_sprites`.

The PNGs in `sprites/` are committed, so nobody needs a font to train or to draw. This script is how they were made.
Each emoji of Noto Color Emoji is drawn at the one size the font holds, cut to what is not transparent, put in the
middle of a square, and scaled to 128 pixels. The letters of DejaVu Sans Mono Bold lie side by side in one strip, each
cut to the same box, from the top of the capitals to the tail of the Q.
"""

from pathlib import Path
from string import ascii_uppercase

from PIL import Image, ImageDraw, ImageFont

from minflux.errors import ArgumentError
from minflux.world.render import LETTERS_FILE, SPRITE_FOLDER
from minflux.world.scenes import THINGS

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LETTER_FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf")
EMOJI_SIZE = 109  # the bitmap font's only size
SPRITE_SIDE = 128
LETTER_SIZE = 66


def open_font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    """Open a font; raises `ArgumentError` if it is missing."""
    if not file.exists():
        raise ArgumentError(f"font: {file} is not there; install fonts-noto-color-emoji and fonts-dejavu-core")
    return ImageFont.truetype(str(file), size)


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


def letter_strip(font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw A to Z in one row, how much ink each pixel has (mode L)."""
    width = round(font.getlength("M"))
    _, top, _, bottom = font.getbbox(ascii_uppercase)
    strip = Image.new("L", (26 * width, round(bottom - top)))
    for i, letter in enumerate(ascii_uppercase):
        ImageDraw.Draw(strip).text((i * width, -top), letter, font=font, fill=255)
    return strip


def make_sprites(emoji_font: Path = EMOJI_FONT, letter_font: Path = LETTER_FONT, folder: Path = SPRITE_FOLDER) -> None:
    """Write NAME.png (128 x 128 RGBA) for each of `THINGS`, and the strip of letters; raises `ArgumentError`."""
    font = open_font(emoji_font, EMOJI_SIZE)
    for name, emoji in THINGS.items():
        sprite = crop_to_square(draw_emoji(emoji, font))
        sprite = sprite.resize((SPRITE_SIDE, SPRITE_SIDE), Image.Resampling.LANCZOS)
        sprite.quantize(256, method=Image.Quantize.FASTOCTREE).save(folder / f"{name}.png", optimize=True)
    letter_strip(open_font(letter_font, LETTER_SIZE)).save(folder / LETTERS_FILE, optimize=True)


if __name__ == "__main__":
    make_sprites()
