// Modulation: the size of each block's shift, scale and gate over time, and some of their channels.

const QUANTITIES = ['shift', 'scale', 'gate'];
const STEERED = ['double', 'single'].flatMap((kind) => {
  const of = data.modulation[kind];
  if (!of.blocks.length) return [];
  const sizes = unpack(of.sizes);
  const levels = unpack(of.channels.levels);
  const most = unpack(of.channels.most);
  return of.blocks.map((name, block) => ({kind, name, block, places: of.places, shape: of.channels.levels.shape, sizes, levels, most}));
});

/** Return the place that is shown of a block: that chosen for double blocks, or a single block's only one. */
function placeIn(of) {
  return of.kind === 'double' ? state.where : 0;
}

/** Return the sizes of a block's shift, scale or gate at all steps that are shown. */
function sizesOf(of, quantity) {
  return data.shown.map((_, step) => of.sizes[flat(of.shape.slice(0, 4), [step, of.block, placeIn(of), quantity])]);
}

/** Return the channels of a block at a step, as they were. */
function channelsOf(of, step, quantity) {
  const line = flat(of.shape.slice(0, 4), [step, of.block, placeIn(of), quantity]);
  const count = of.shape[4];
  return Array.from(of.levels.subarray(line * count, (line + 1) * count), (level) => ((level - 127) / 127) * of.most[line]);
}

const times = data.shown.map((step) => data.timesteps[step]);
const names = el('div', {class: 'names', 'aria-hidden': 'true'}, ...STEERED.map((of) => el('span', {}, shortName(of.name))));
const heat = el('div', {class: 'patches tall'});
byId('steered').append(names, heat, el('div', {class: 'times'}, el('span', {}, 't = 1, noise'), el('span', {}, 'image')));
heat.style.height = `${Math.min(26, Math.max(9, 380 / STEERED.length)) * STEERED.length}px`;
if (STEERED.length > 26) names.style.fontSize = '8px';
const steered = makeGrid(heat, 'Blocks (rows) over time (columns)', () => [STEERED.length, SHOWN], {
  pick: (block, place) => choose({steered: block, place}),
});
const strip = makeGrid(byId('channels'), 'Channels (rows) over time (columns)', () => [1, SHOWN], {
  pick: (_, place) => choose({place}),
});

for (const [i, name] of data.modulation.double.places.entries()) byId('place').append(el('option', {value: i}, name));
byId('place').addEventListener('change', () => choose({where: Number(byId('place').value)}));
if (!data.modulation.double.blocks.length) byId('place').closest('label').hidden = true;
radios('quantity', (value) => ({quantity: Number(value)}));

whenever(['quantity', 'where'], () => {
  const rows = STEERED.map((of) => sizesOf(of, state.quantity));
  const most = Math.max(...rows.flat(), 1e-9);
  paint(steered.canvas, STEERED.length, SHOWN, (i) => colourOf(VIRIDIS, rows[Math.floor(i / SHOWN)][i % SHOWN] / most));
  byId('steered-name').textContent = `The size of each block's ${QUANTITIES[state.quantity]}, over time`;
  byId('steered-most').textContent = most.toFixed(2);
});

whenever(['quantity', 'where', 'steered', 'place'], () => {
  const of = STEERED[state.steered];
  const here = Math.min(state.place, SHOWN - 1);
  steered.mark([state.steered, here]);
  strip.mark([0, here]);
  const title = `${shortName(of.name)}, ${of.places[placeIn(of)]}`;
  byId('steered-block').textContent = title;
  const lines = QUANTITIES.map((name, i) => ({name, values: sizesOf(of, i), colour: ['img', 'txt', 'vec'][i]}));
  const high = Math.max(...lines.flatMap((line) => line.values));
  drawLines(byId('steered-lines'), {
    lines, xs: times, from: 1, to: 0, low: 0, high: 1.05 * high, label: 't, from noise to image', now: times[here],
    pick: (place) => choose({place}), name: `Sizes of shift, scale and gate in ${title}, over time`,
  });
  const now = lines.map((line) => `${line.name} ${line.values[here].toFixed(2)}`).join(', ');
  byId('modulation-said').textContent = `At t = ${times[here].toFixed(2)} in ${title}: ${now} (root of the mean square over ${cfg.hidden_size} channels).`;
  drawChannels(of);
});

function drawChannels(of) {
  const columns = data.shown.map((_, step) => channelsOf(of, step, state.quantity));
  const count = of.shape[4];
  const most = Math.max(...columns.flat().map(Math.abs), 1e-9);
  paint(strip.canvas, count, SHOWN, (i) => colourOf(PUOR, 0.5 + columns[i % SHOWN][Math.floor(i / SHOWN)] / (2 * most)));
  byId('channels-name').textContent = `Its ${QUANTITIES[state.quantity]} in ${count === cfg.hidden_size ? 'all' : `${count} of ${cfg.hidden_size}`} channels, a row each`;
  byId('channels-least').textContent = `−${most.toFixed(2)}`;
  byId('channels-most').textContent = most.toFixed(2);
}
