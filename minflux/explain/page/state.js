// What is chosen, in one place. A panel says which names it depends on, and is drawn anew when one of them changes.

const SHOWN = data.shown.length; // steps that can be chosen; one place more for the image itself
const WORDS = data.words.length;
const [ROWS, COLUMNS] = data.grid;
const GROUPS = WORDS + ROWS * COLUMNS;

const state = {
  place: Math.floor(SHOWN / 2), // of the slider
  group: Math.min(1, WORDS - 1), // the word or patch that is chosen
  over: null, // the one that is pointed at, which goes before
  way: 'looks',
  block: 0, // of those whose attention was kept
  head: -1, // of those whose attention was kept, or their mean
  quantity: 2, // shift, scale or gate
  where: 0, // of the places in a double block
  steered: 0, // a block, double ones first
  axes: 'all',
  side: Math.max(16, ...data.tokens), // of the positions' grid
  alike: null, // the patch of the positions' grid
};
const panels = [];

/** Draw something now, and whenever one of the names changes. */
function whenever(names, draw) {
  panels.push([names, draw]);
  draw();
}

/** Change what is chosen. */
function choose(next) {
  const changed = Object.keys(next).filter((name) => state[name] !== next[name]);
  Object.assign(state, next);
  for (const [names, draw] of panels) {
    if (names.some((name) => changed.includes(name))) draw();
  }
}

/** Return the number of the step at the slider's place; at its end, of the last step. */
function stepNow() {
  return data.shown[Math.min(state.place, SHOWN - 1)];
}

/** Return the time at the slider's place. */
function timeNow() {
  return state.place < SHOWN ? data.timesteps[stepNow()] : 0;
}

/** Return the place of the number in a list that is nearest to x. */
function nearest(list, x) {
  return list.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(list[best] - x) ? i : best), 0);
}

/** Tie radio buttons of a name to a choice. */
function radios(name, choice) {
  for (const input of document.querySelectorAll(`input[name="${name}"]`)) {
    input.addEventListener('change', () => choose(choice(input.value)));
  }
}
