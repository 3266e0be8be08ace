// The page's head, what stands below each panel, and which part of the map is lit.

byId('prompt').textContent = `“${data.prompt}”`;
const asked = [
  `drawn by minflux ${data.version} with ${data.model ? `the model ${data.model.split(/[\\/]/).pop()}` : 'an unnamed model'}`,
  `${data.size[0]} × ${data.size[1]} pixels, ${data.tokens[0] * data.tokens[1]} tokens of image and ${data.textLength} of text`,
  `${STEPS} steps`,
  `seed ${data.seed}`,
  guidance(),
];
byId('facts').textContent = `${asked.join(' · ')}.`;

/** Say how the prompt was followed. */
function guidance() {
  if (data.passes === 2) return `guidance ${data.guidance}, by two passes a step`;
  return cfg.guidance_embed ? `guidance ${data.guidance}, which the model takes as an input` : 'no guidance';
}

/** Return a link where there is an address, or else the words and where to find it. */
function linked({name, path, url}) {
  if (url) return [el('a', {href: url}, name)];
  return [`${name}, `, el('code', {}, path)];
}

for (const [panel, {chapters, source}] of Object.entries(data.links)) {
  const footer = document.querySelector(`#${panel} > footer`);
  for (const chapter of chapters) footer.append(el('div', {}, 'Chapter ', ...linked(chapter)));
  const where = `${source.path}:${source.line}`;
  const name = source.url ? el('a', {href: source.url}, el('code', {}, where)) : el('code', {}, where);
  const code = el('pre', {tabindex: 0, 'aria-label': `The code of ${source.name}`}, source.text);
  footer.append(el('div', {}, 'Code ', name), el('details', {}, el('summary', {}, `Show ${source.name}`), code));
}

const order = [...document.querySelectorAll('.panel:not(#map)')];

/** Light up the panel that stands at the upper third of the window. */
function lightUp() {
  const third = window.innerHeight / 3;
  const here = order.filter((panel) => panel.getBoundingClientRect().top <= third).pop() ?? order[0];
  light(here.id);
}

/** Let what stands at the side stay in sight: all of it where the window is high enough, or else its lower end. */
function place() {
  const side = document.querySelector('.side');
  side.style.top = `${Math.min(12, window.innerHeight - byId('bar').offsetHeight - 12 - side.offsetHeight)}px`;
}

window.addEventListener('scroll', lightUp, {passive: true});
window.addEventListener('resize', () => [place(), lightUp()]);
new ResizeObserver(place).observe(document.querySelector('.side'));
place();
lightUp();
