// Sizes of the velocity and of what it moves, and how straight it leads.

const moments = data.timesteps.slice(0, STEPS);
const pickTime = (step) => choose({place: nearest(data.shown, step)});

whenever(['place'], () => {
  const {velocity, noisy, clean, straight} = data.moved;
  const lines = [
    {name: 'velocity v', values: velocity, colour: 'img'},
    {name: 'xₜ', values: noisy, colour: 'both'},
    {name: 'x̂₀', values: clean, colour: 'txt'},
  ];
  const high = 1.05 * Math.max(...velocity, ...noisy, ...clean);
  const over = {xs: moments, from: 1, to: 0, label: 't, from noise to image', now: timeNow(), pick: pickTime};
  drawLines(byId('sizes-lines'), {...over, lines, low: 0, high, name: 'Sizes of v, xₜ and what it aims at, over time'});
  const low = Math.min(0, ...straight);
  drawLines(byId('straight-lines'), {...over, lines: [{name: 'cosine', values: straight, colour: 'img'}], low, high: 1, name: 'Cosine between v and the straight line, over time'});
  const now = stepNow();
  byId('motion-said').textContent = `At t = ${moments[now].toFixed(2)}: v ${velocity[now].toFixed(2)}, xₜ ${noisy[now].toFixed(2)}, x̂₀ ${clean[now].toFixed(2)}; cosine ${straight[now].toFixed(2)}.`;
});
