// Attention: what a word or a patch looks at, or who looks at it, in a block and a head at a step.

const kept = data.attention;
const LEVELS = unpack(kept.levels);
const MOST = unpack(kept.most);
const SHAPE = kept.levels.shape; // steps, blocks, heads, M, M

/** Return the place among the kept steps that is nearest to the slider's. */
function keptStep() {
  return nearest(kept.steps, stepNow());
}

/** Return what a group takes of each other one in a head: a row of attention. */
function row(block, head, group, step = keptStep()) {
  const line = flat(SHAPE.slice(0, 4), [step, block, head, group]);
  const start = line * GROUPS;
  return Float32Array.from(LEVELS.subarray(start, start + GROUPS), (level) => (level / 255) * MOST[line]);
}

/** Return what each group takes of one in a head: a column of attention. */
function column(block, head, group, step = keptStep()) {
  const values = new Float32Array(GROUPS);
  for (let from = 0; from < GROUPS; from++) {
    const line = flat(SHAPE.slice(0, 4), [step, block, head, from]);
    values[from] = (LEVELS[line * GROUPS + group] / 255) * MOST[line];
  }
  return values;
}

/** Return a row or a column, of a head or of the mean of those that were kept. */
function shares(block, head, group) {
  const of = state.way === 'looks' ? row : column;
  if (head >= 0) return of(block, head, group);
  return meanOf(kept.heads.map((_, each) => of(block, each, group)));
}

/** Return the group that is shown: the one pointed at, or else the one chosen. */
function groupNow() {
  return state.over ?? state.group;
}

/** Return a group's name in a sentence. */
function called(group) {
  if (group < WORDS) return isPadding(group) ? 'the padding' : `“${data.words[group]}”`;
  const cell = group - WORDS;
  return `the patch in row ${Math.floor(cell / COLUMNS) + 1}, column ${(cell % COLUMNS) + 1}`;
}

function isPadding(group) {
  return data.words[group].startsWith('padding ×');
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

function say(values) {
  const group = groupNow();
  const who = called(group);
  const words = values.filter((_, i) => i < WORDS && !isPadding(i));
  const padding = values.filter((_, i) => i < WORDS && isPadding(i));
  const image = values.filter((_, i) => i >= WORDS);
  const best = [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, 3);
  const most = best.map((i) => `${called(i)} ${percent(values[i])}`).join(', ');
  const head = state.head < 0 ? `the mean of ${kept.heads.length} heads` : `head ${kept.heads[state.head]}`;
  const where = `At t = ${data.timesteps[kept.steps[keptStep()]].toFixed(2)}, in block ${shortName(kept.blocks[state.block])}, ${head}:`;
  if (state.way === 'looks') {
    const rest = padding.length ? `, ${percent(sum(padding))} to the padding` : '';
    return `${where} ${who} gives ${percent(sum(words))} to the words, ${percent(sum(image))} to the image${rest}. Most to ${most}.`;
  }
  return `${where} a patch gives ${percent(sum(image) / image.length)} to ${who} in the mean, a word ${percent(sum(words) / words.length)}. Most from ${most}.`;
}

// -- words -------------------------------------------------------------------------------------------------------

const chips = data.words.map((word, group) => {
  const mark = isPadding(group) || word.startsWith('<');
  return el('button', {
    type: 'button',
    class: mark ? 'mark-word' : '',
    pointerenter: (event) => event.pointerType === 'mouse' && choose({over: group}),
    pointerleave: () => choose({over: null}),
    focus: () => choose({group, over: null}),
    click: () => choose({group}),
    keydown: (event) => {
      const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (!move) return;
      event.preventDefault();
      chips[(group + move + WORDS) % WORDS].focus();
    },
  }, word);
});
byId('words').append(...chips);

// -- the image -----------------------------------------------------------------------------------------------------

const patches = makeGrid(byId('patches'), 'The image in patches', () => [ROWS, COLUMNS], {
  pick: (r, c) => choose({group: WORDS + r * COLUMNS + c, over: null}),
  over: (cell) => choose({over: cell && WORDS + cell[0] * COLUMNS + cell[1]}),
});

// -- every block and head ------------------------------------------------------------------------------------------

const COLUMNS_OF_HEADS = [...kept.heads.keys(), -1]; // the mean comes last
const minis = byId('minis');
const maps = [];
minis.style.gridTemplateColumns = `auto repeat(${COLUMNS_OF_HEADS.length}, minmax(26px, 64px))`;
minis.append(el('span', {class: 'row'}, 'head'), ...COLUMNS_OF_HEADS.map((h) => el('span', {class: 'column'}, h < 0 ? 'mean' : String(kept.heads[h]))));
kept.blocks.forEach((name, block) => {
  minis.append(el('span', {class: 'row'}, shortName(name)));
  for (const head of COLUMNS_OF_HEADS) {
    const canvas = el('canvas', {click: () => choose({block, head}), title: `${shortName(name)}, ${head < 0 ? 'mean' : `head ${kept.heads[head]}`}`});
    canvas.style.aspectRatio = `${COLUMNS} / ${ROWS}`;
    maps.push({canvas, block, head});
    minis.append(canvas);
  }
});
minis.tabIndex = 0;
minis.setAttribute('role', 'application');
minis.setAttribute('aria-label', 'Blocks and heads; arrow keys move in them');
minis.addEventListener('keydown', (event) => {
  const move = ARROWS[event.key];
  if (!move) return;
  event.preventDefault();
  const at = COLUMNS_OF_HEADS.indexOf(state.head) + move[1];
  const block = Math.min(Math.max(state.block + move[0], 0), kept.blocks.length - 1);
  choose({block, head: COLUMNS_OF_HEADS[Math.min(Math.max(at, 0), COLUMNS_OF_HEADS.length - 1)]});
});

// -- drawing -------------------------------------------------------------------------------------------------------

radios('way', (way) => ({way}));
byId('attention-limit').textContent = limits();

function limits() {
  const all = [STEPS, cfg.depth + cfg.depth_single_blocks, cfg.num_heads];
  const some = [kept.steps.length, kept.blocks.length, kept.heads.length];
  const names = ['steps', 'blocks', 'heads'];
  const left = names.filter((_, i) => some[i] < all[i]).map((name) => {
    const i = names.indexOf(name);
    return `${some[i]} of ${all[i]} ${name}`;
  });
  const coarse = ROWS < data.tokens[0] || COLUMNS < data.tokens[1];
  if (coarse) left.push(`${ROWS} × ${COLUMNS} cells for ${data.tokens[0]} × ${data.tokens[1]} tokens, of which a cell shows the mean`);
  if (!left.length) return '';
  return `So that this file stays small, attention was kept of ${left.join(', ')}. At other steps the nearest one is shown.`;
}

/** Begin where the chosen word looks at the image most. */
function lookFor(group) {
  let best = [-1, 0, -1];
  kept.blocks.forEach((_, block) => kept.heads.forEach((_, head) => {
    const share = sum(row(block, head, group).subarray(WORDS));
    if (share > best[0]) best = [share, block, head];
  }));
  choose({block: best[1], head: best[2]});
}
lookFor(state.group);

whenever(['place'], () => {
  const under = byId('under');
  under.src = cleanFrame();
  under.alt = '';
});

whenever(['place', 'group', 'over', 'way', 'block', 'head'], () => {
  const group = groupNow();
  const values = shares(state.block, state.head, group);
  const image = values.subarray ? values.subarray(WORDS) : values.slice(WORDS);
  const most = Math.max(...image, 1e-9);
  paint(patches.canvas, ROWS, COLUMNS, (i) => [0, 0, 0, Math.round(205 * (1 - image[i] / most))]);
  patches.mark(group >= WORDS ? [Math.floor((group - WORDS) / COLUMNS), (group - WORDS) % COLUMNS] : null);
  const verb = state.way === 'looks' ? 'what it looks at' : 'who looks at it';
  byId('patches-name').textContent = `${called(group)}: ${verb}`;
  byId('patches-most').textContent = percent(most);
  const widest = Math.max(...Array.from(values).slice(0, WORDS), 1e-9);
  chips.forEach((chip, i) => {
    chip.style.setProperty('--share', values[i] / widest);
    chip.setAttribute('aria-pressed', i === group);
    chip.title = percent(values[i]);
  });
  byId('attention-said').textContent = say(Array.from(values));
});

whenever(['place', 'group', 'over', 'way'], () => {
  for (const {canvas, block, head} of maps) {
    const image = Array.from(shares(block, head, groupNow())).slice(WORDS);
    const most = Math.max(...image, 1e-9);
    paint(canvas, ROWS, COLUMNS, (i) => colourOf(VIRIDIS, image[i] / most));
  }
});

whenever(['block', 'head'], () => {
  for (const {canvas, block, head} of maps) canvas.classList.toggle('on', block === state.block && head === state.head);
});
