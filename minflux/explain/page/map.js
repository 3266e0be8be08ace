// The map of chapter 00, drawn twice, wide and tall; each box leads to its panel. Lengths are those of the drawing.

const cfg = data.config;
const JOINT = data.textLength + data.tokens[0] * data.tokens[1];
const HEAD_WIDTH = cfg.hidden_size / cfg.num_heads;
const STEPS = data.timesteps.length - 1;

// [words, flow, has weights, panel, the block that it leads to]
const BOXES = {
  t5: [['T5'], 'txt', true, 'attention'],
  clip: [['CLIP'], 'vec', true, 'modulation'],
  time: [['sinusoids,', 'MLP'], 'vec', true, 'modulation'],
  modulation: [['modulation'], 'vec', true, 'modulation'],
  rope: [['rope'], 'pe', false, 'rope'],
  latents: [['latents', `${cfg.out_channels / 4} channels`], 'img', false, 'steps'],
  vae: [['VAE'], 'img', true, 'steps'],
  double: [[`${cfg.depth} double blocks`], 'img', true, 'attention', 'double'],
  single: [[`${cfg.depth_single_blocks} single blocks`], 'both', true, 'attention', 'single'],
  last: [['last layer'], 'img', true, 'motion'],
};
const TELLS = {
  t5: 'T5 reads the prompt: to who looks at whom',
  clip: 'CLIP reads the gist of the prompt: to how each block is steered',
  time: 'Time and guidance: to how each block is steered',
  modulation: 'Modulation: to how each block is steered',
  rope: 'Positions: to near and far',
  latents: 'Latents: to from noise to an image',
  vae: 'VAE: to from noise to an image',
  double: 'Double blocks: to who looks at whom',
  single: 'Single blocks: to who looks at whom',
  last: 'Last layer and velocity: to how far, how straight',
};
const TEXT = `txt: ${data.textLength} × ${cfg.context_in_dim}`;
const GIST = `y: ${cfg.vec_in_dim}`;
const VEC = `vec: ${cfg.hidden_size}`;
const TURNS = `pe: ${JOINT} × ${HEAD_WIDTH / 2}`;
const OF_STEPS = `one step of ${STEPS}`;

const WIDE = {
  size: [0, -12, 750, 400],
  boxes: { // middle, width and height
    t5: [65, 105, 70, 42], clip: [160, 105, 70, 42], time: [300, 105, 95, 42], modulation: [300, 208, 100, 34],
    rope: [490, 105, 80, 42], latents: [600, 105, 100, 42], vae: [702, 105, 60, 42],
    double: [230, 295, 140, 50], single: [430, 295, 140, 50], last: [605, 295, 95, 50],
  },
  pictures: {noisy: [600, 30, 56], clean: [702, 30, 56]},
  plus: [300, 160],
  lines: [ // flow, points; a head at the end unless it is a branch
    ['txt', [112, 37, 65, 82]], ['vec', [112, 37, 160, 82]], ['vec', [300, 37, 300, 82]], ['pe', [490, 37, 490, 82]],
    ['img', [600, 60, 600, 82]], ['img', [650, 105, 670, 105]], ['img', [702, 84, 702, 62]],
    ['vec', [300, 126, 300, 146]], ['vec', [160, 150, 160, 160, 286, 160]], ['vec', [300, 174, 300, 189]],
    ['txt', [65, 155, 65, 283, 158, 283]],
    ['img', [550, 105, 540, 105, 540, 362, 40, 362, 40, 307, 158, 307]],
    ['both', [300, 295, 358, 295]], ['img', [500, 295, 555, 295]],
    ['vec', [300, 225, 300, 238], 'branch'], ['vec', [210, 238, 585, 238], 'branch'],
    ['vec', [210, 238, 210, 268]], ['vec', [410, 238, 410, 268]], ['vec', [585, 238, 585, 268]],
    ['pe', [250, 253, 490, 253], 'branch'], ['pe', [490, 126, 490, 268]], ['pe', [250, 253, 250, 268]],
    ['img', [625, 270, 625, 232], 'branch'], ['img', [625, 198, 625, 128]],
  ],
  words: [ // text, x, y, flow
    ['prompt', 112, 26], ['position ids', 480, 26], [TEXT, 65, 142, 'txt'], [GIST, 160, 142, 'vec'],
    ['MLP', 220, 150, 'vec'], [VEC, 342, 180, 'vec'], [TURNS, 478, 170, 'pe', 'end'],
    [`linear map to ${data.textLength} × ${cfg.hidden_size}`, 73, 226, 'txt', 'start'],
    [`pack: ${data.tokens[0] * data.tokens[1]} × ${cfg.in_channels}, then a linear map to ${data.tokens[0] * data.tokens[1]} × ${cfg.hidden_size}`, 290, 348, 'img'],
    [`${JOINT} × ${cfg.hidden_size}`, 330, 333, 'faint'], ['velocity:', 632, 207, 'img'], [OF_STEPS, 632, 222, 'img'],
  ],
  time: [300, 26],
};
const TALL = {
  size: [0, 0, 380, 606],
  boxes: {
    t5: [40, 78, 60, 38], clip: [114, 78, 60, 38], time: [215, 78, 92, 38], modulation: [215, 180, 100, 32],
    rope: [328, 78, 70, 38], latents: [312, 400, 104, 42], vae: [336, 500, 60, 38],
    double: [128, 288, 148, 46], single: [128, 388, 148, 46], last: [128, 484, 148, 42],
  },
  pictures: {noisy: [312, 332, 62], clean: [336, 566, 66]},
  plus: [215, 136],
  lines: [
    ['txt', [77, 32, 44, 57]], ['vec', [77, 32, 110, 57]], ['vec', [215, 32, 215, 57]], ['pe', [328, 32, 328, 57]],
    ['img', [312, 364, 312, 377]], ['img', [336, 421, 336, 479]], ['img', [336, 519, 336, 531]],
    ['vec', [215, 97, 215, 122]], ['vec', [114, 116, 114, 136, 201, 136]], ['vec', [215, 150, 215, 163]],
    ['txt', [28, 116, 28, 288, 52, 288]],
    ['img', [260, 400, 252, 400, 252, 246, 128, 246, 128, 263]],
    ['both', [128, 311, 128, 363]], ['img', [128, 411, 128, 461]],
    ['vec', [222, 196, 222, 472], 'branch'], ['vec', [222, 278, 204, 278]], ['vec', [222, 378, 204, 378]], ['vec', [222, 472, 204, 472]],
    ['pe', [328, 97, 328, 214, 237, 214, 237, 398], 'branch'], ['pe', [237, 298, 204, 298]], ['pe', [237, 398, 204, 398]],
    ['img', [202, 494, 282, 494, 282, 423]],
  ],
  words: [
    ['prompt', 77, 20], ['position ids', 328, 20], [TEXT, 46, 107, 'txt'], [GIST, 134, 107, 'vec'],
    ['MLP', 158, 128, 'vec'], [VEC, 260, 150, 'vec'], [TURNS, 322, 120, 'pe', 'end'],
    ['linear map', 36, 205, 'txt', 'start'], ['pack, linear map', 128, 236, 'img', 'middle'],
    [`${JOINT} × ${cfg.hidden_size}`, 134, 337, 'faint', 'start'], ['velocity:', 242, 510, 'img'], [OF_STEPS, 242, 524, 'img'],
  ],
  time: [215, 20],
};
const thumbs = {noisy: [], clean: []};
const clocks = [];

function drawMap(host, at, title) {
  const map = svg('svg', {viewBox: at.size.join(' '), role: 'group', 'aria-label': title});
  for (const [key, [x, y, w, h]] of Object.entries(at.boxes)) {
    map.append(svg('rect', {class: 'lit', 'data-of': BOXES[key][3], x: x - w / 2 - 8, y: y - h / 2 - 8, width: w + 16, height: h + 16, rx: 10}));
  }
  for (const [flow, points, branch] of at.lines) map.append(...arrow(flow, points, branch));
  const [px, py] = at.plus;
  map.append(svg('circle', {class: 'fill-none flow-vec line', style: 'fill: var(--card)', cx: px, cy: py, r: 12}), words('+', px, py, 'ink'));
  for (const [key, [x, y, size]] of Object.entries(at.pictures)) {
    const image = svg('image', {x: x - size / 2, y: y - size / 2, width: size, height: size, preserveAspectRatio: 'xMidYMid meet', style: 'image-rendering: pixelated'});
    thumbs[key].push(image);
    map.append(image);
  }
  for (const word of at.words) map.append(words(...word));
  const clock = words('', ...at.time, 'ink');
  clocks.push(clock);
  map.append(clock);
  for (const [key, place] of Object.entries(at.boxes)) map.append(box(key, place));
  host.append(map);
}

function words(text, x, y, flow = 'ink', anchor = 'middle') {
  return svg('text', {x, y, class: flow === 'faint' ? 'faint' : `flow-${flow}`, style: `text-anchor: ${anchor}`}, text);
}

function arrow(flow, points, branch) {
  const pairs = [];
  for (let i = 0; i < points.length; i += 2) pairs.push([points[i], points[i + 1]]);
  const line = svg('polyline', {class: `line flow-${flow}`, points: pairs.join(' ')});
  if (branch) return [line];
  const [[x0, y0], [x, y]] = pairs.slice(-2);
  const turn = (Math.atan2(y - y0, x - x0) * 180) / Math.PI;
  return [line, svg('path', {class: `head-${flow}`, d: 'M2 0L-7 -4.5L-7 4.5Z', transform: `translate(${x} ${y}) rotate(${turn})`})];
}

function box(key, [x, y, w, h]) {
  const [lines, flow, filled, panel, kind] = BOXES[key];
  const link = svg('a', {href: `#${panel}`, 'aria-label': TELLS[key], click: () => kind && chooseKind(kind)});
  link.append(svg('title', {}, TELLS[key]));
  link.append(svg('rect', {class: `box flow-${flow} ${filled ? `fill-${flow}` : 'fill-none'}`, x: x - w / 2, y: y - h / 2, width: w, height: h, rx: 7}));
  lines.forEach((line, i) => link.append(words(line, x, y + 14 * (i - (lines.length - 1) / 2))));
  return link;
}

/** Choose the first kept block of a kind, for the panel of attention. */
function chooseKind(kind) {
  const block = data.attention.blocks.findIndex((name) => name.startsWith(kind));
  if (block >= 0) choose({block});
}

/** Light up the boxes of a panel. */
function light(panel) {
  for (const lit of document.querySelectorAll('.lit')) lit.classList.toggle('on', lit.dataset.of === panel);
}

drawMap(byId('map-wide'), WIDE, 'The whole of FLUX.1');
drawMap(byId('map-tall'), TALL, 'The whole of FLUX.1');
whenever(['place'], () => {
  for (const image of thumbs.noisy) image.setAttribute('href', noisyFrame());
  for (const image of thumbs.clean) image.setAttribute('href', cleanFrame());
  for (const clock of clocks) clock.textContent = `t = ${timeNow().toFixed(2)}${data.guidance > 1 ? `, guidance ${data.guidance}` : ''}`;
});
