// Positions: how alike two places are, by their rotations alone. cos a cos b + sin a sin b = cos(a − b), a pair's share.

const AXES = ['reference', 'row', 'column'];

/** Return the speeds of an axis, in radians a position: θ^(−2i/dim). */
function speeds(axis) {
  const dim = cfg.axes_dim[axis];
  return Array.from({length: dim / 2}, (_, i) => cfg.theta ** ((-2 * i) / dim));
}

/** Return how alike two places are: the mean over pairs of the cosine of the angle between them. */
function alike(rows, columns, axes = 'all') {
  const apart = [0, rows, columns];
  const used = AXES.flatMap((name, axis) => (axes === 'all' || axes === name ? [axis] : []));
  const cosines = used.flatMap((axis) => speeds(axis).map((speed) => Math.cos(apart[axis] * speed)));
  return sum(cosines) / cosines.length;
}

/** Return rows and columns of the grid that is shown, of the drawing's aspect. */
function alikeSize() {
  const larger = Math.max(...data.tokens) / state.side;
  return data.tokens.map((count) => Math.max(1, Math.round(count / larger)));
}

function alikeCell() {
  const [rows, columns] = alikeSize();
  const [r, c] = state.alike ?? [Math.floor(rows / 3), Math.floor(columns / 3)];
  return [Math.min(r, rows - 1), Math.min(c, columns - 1)];
}

const positions = makeGrid(byId('alike'), 'Places of patches', alikeSize, {
  pick: (r, c) => choose({alike: [r, c]}),
  over: (cell) => cell && choose({alike: cell}),
});
byId('side').value = state.side;
byId('side').addEventListener('input', () => choose({side: Number(byId('side').value)}));
radios('axes', (axes) => ({axes}));

whenever(['axes', 'side', 'alike'], () => {
  const [rows, columns] = alikeSize();
  const [r, c] = alikeCell();
  const values = Array.from({length: rows * columns}, (_, i) => alike(Math.floor(i / columns) - r, (i % columns) - c, state.axes));
  const least = Math.min(...values);
  paint(positions.canvas, rows, columns, (i) => colourOf(VIRIDIS, (values[i] - least) / Math.max(1 - least, 1e-9)));
  positions.mark([r, c]);
  const pixels = data.size[1] / data.tokens[0];
  byId('side-said').textContent = `${rows} × ${columns}, an image of ${columns * pixels} × ${rows * pixels} pixels`;
  byId('alike-least').textContent = least.toFixed(2);
  const corner = values.at(-1).toFixed(2);
  byId('alike-said').textContent = `The patch in row ${r + 1}, column ${c + 1}: 1.00 to itself, ${corner} to that in the lower right corner.`;
});

whenever(['axes', 'side'], () => {
  const [, columns] = alikeSize();
  const xs = Array.from({length: Math.max(columns, 2)}, (_, i) => i);
  const lines = [
    {name: 'all axes', colour: 'pe', values: xs.map((x) => alike(0, x))},
    {name: 'columns alone', colour: 'vec', values: xs.map((x) => alike(0, x, 'column'))},
  ];
  const low = Math.min(0, ...lines.flatMap((line) => line.values));
  drawLines(byId('alike-lines'), {lines, xs, from: 0, to: xs.length - 1, low, high: 1, label: 'patches apart', name: 'How alike two patches of a row are, by distance'});
});
