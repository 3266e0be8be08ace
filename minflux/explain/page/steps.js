// The steps: x_t and what it aims at, the slider that all panels follow, and the film of all of them.

/** Return the picture of x_t at the slider's place, by default the one chosen; at its end, the image. */
function noisyFrame(place = state.place) {
  return data.frames[place < SHOWN ? place : 2 * SHOWN];
}

/** Return the picture of what was aimed at. */
function cleanFrame(place = state.place) {
  return data.frames[place < SHOWN ? SHOWN + place : 2 * SHOWN];
}

function shortly() {
  return state.place < SHOWN ? `step ${stepNow() + 1} of ${STEPS}, t = ${timeNow().toFixed(2)}` : `done, t = 0`;
}

function atLength() {
  if (state.place === SHOWN) return `After ${STEPS} steps, t = 0: no noise is left, and xₜ is the image.`;
  const share = percent(timeNow());
  const first = stepNow() === 0 ? 'At first all is noise, and the guess is a blur of all that the prompt might mean. ' : '';
  return `${first}At t = ${timeNow().toFixed(2)}, xₜ is ${share} noise and ${percent(1 - timeNow())} image.`;
}

const slider = byId('step');
slider.max = SHOWN;
slider.addEventListener('input', () => choose({place: Number(slider.value)}));

const film = byId('film');
for (let place = 0; place <= SHOWN; place++) {
  const name = place < SHOWN ? `Step ${data.shown[place] + 1}, t = ${data.timesteps[data.shown[place]].toFixed(2)}` : 'The image';
  const pictures = [noisyFrame(place), cleanFrame(place)].map((src) => el('img', {src, alt: ''}));
  const below = place < SHOWN ? data.timesteps[data.shown[place]].toFixed(2) : '0';
  film.append(el('button', {type: 'button', 'aria-label': name, click: () => choose({place})}, ...pictures, below));
}

let playing = null;
const play = byId('play');

function stop() {
  clearInterval(playing);
  playing = null;
  play.setAttribute('aria-label', 'Play');
  byId('play-sign').setAttribute('d', 'M5 3l12 7-12 7z');
}

play.addEventListener('click', () => {
  if (playing) return stop();
  if (state.place === SHOWN) choose({place: 0});
  play.setAttribute('aria-label', 'Pause');
  byId('play-sign').setAttribute('d', 'M4 3h4v14h-4zM12 3h4v14h-4z');
  playing = setInterval(() => {
    if (state.place === SHOWN) stop();
    else choose({place: state.place + 1});
  }, 260);
});

if (Math.max(...data.size) > 320) document.body.classList.add('smooth');
whenever(['place'], () => {
  slider.value = state.place;
  slider.setAttribute('aria-valuetext', shortly());
  byId('step-said').textContent = shortly();
  byId('steps-said').textContent = atLength();
  for (const id of ['noisy', 'bar-noisy']) byId(id).src = noisyFrame();
  for (const id of ['clean', 'bar-clean']) byId(id).src = cleanFrame();
  byId('noisy').alt = `xₜ, ${shortly()}`;
  byId('clean').alt = `What it aims at, ${shortly()}`;
  [...film.children].forEach((frame, place) => frame.setAttribute('aria-current', place === state.place));
  const now = film.children[state.place];
  film.scrollLeft = now.offsetLeft - film.offsetLeft - film.clientWidth / 2 + now.offsetWidth / 2;
});
