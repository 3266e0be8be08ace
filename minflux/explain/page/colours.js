// Colours of numbers, the course's: viridis from little to much, PuOr around zero. Both are told apart by everyone.

const VIRIDIS = stops('440154 482475 414487 355f8d 2a788e 21918c 22a884 44bf70 7ad151 bddf26 fde725');
const PUOR = stops('7f3b08 b35806 e08214 fdb863 fee0b6 f7f7f7 d8daeb b2abd2 8073ac 542788 2d004b');

function stops(words) {
  return words.split(' ').map((word) => [0, 2, 4].map((at) => parseInt(word.slice(at, at + 2), 16)));
}

/** Return the colour [r, g, b] of x in [0, 1] on a scale. */
function colourOf(scale, x) {
  const place = Math.min(Math.max(x, 0), 1) * (scale.length - 1);
  const below = Math.min(Math.floor(place), scale.length - 2);
  return scale[below].map((level, i) => Math.round(level + (place - below) * (scale[below + 1][i] - level)));
}

/** Paint numbers on a canvas, a pixel each: paint(i) gives [r, g, b] or [r, g, b, alpha]. */
function paint(canvas, rows, columns, colour) {
  canvas.width = columns;
  canvas.height = rows;
  const pixels = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const [r, g, b, alpha = 255] = colour(i);
    pixels.data.set([r, g, b, alpha], 4 * i);
  }
  canvas.getContext('2d').putImageData(pixels, 0, 0);
}
